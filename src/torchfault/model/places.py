"""Where in a program the sites of its model are."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchfault.model.lane_axis import LaneAxis
from torchfault.model.memory import homes
from torchfault.model.program import Program, Ref
from torchfault.names import site_name
from torchfault.space import Site
from torchfault.storages import InBlocks

__all__ = ["Captured", "Place", "has_lanes", "lane_arguments", "parameter_places", "value_at"]


@dataclass(frozen=True)
class Place:
    """Where in a program a site is: a parameter's node, or the *which*-th input or output of an operation.

    *part* names the tensor of words in which a stored parameter, or an activation in blocks, keeps it; *blocks* are
    those of an activation.
    """

    node: int
    role: str
    which: int = 0
    part: str = ""
    blocks: InBlocks | None = None


@dataclass(frozen=True, eq=False)
class Captured:
    """A model as a *program*, and the *places* of its sites by their names; a site that it does not show has none."""

    program: Program
    places: dict[str, Place]


def lane_arguments(node: Any, program: Program) -> list[int]:
    """Return the nodes of the arguments of *node* that have lanes, in order, repeated where they are."""

    def walk(argument: Any) -> Iterator[int]:
        if isinstance(argument, Ref):
            if not program.nodes[argument.node].constant:
                yield argument.node
        elif isinstance(argument, list | tuple):
            for part in argument:
                yield from walk(part)

    return list(walk([*node.args, *node.kwargs.values()]))


def _value(place: Place, program: Program) -> tuple[int, int | None]:
    """Return the node whose value stands at *place*, and which of its results."""
    if place.role == "input":
        return lane_arguments(program.nodes[place.node], program)[place.which], None
    return place.node, place.which if isinstance(program.nodes[place.node].layout, tuple) else None


def value_at(place: Place, program: Program, values: Mapping[int, Any]) -> Any:
    """Return what stands at the *place* of an activation, given the *values* of all nodes."""
    position, which = _value(place, program)
    return values[position] if which is None else values[position][which]


def has_lanes(place: Place, program: Program) -> bool:
    """Whether the value at the *place* of an activation holds something of its own for every lane."""
    position, which = _value(place, program)
    node = program.nodes[position]
    layout = node.layout[which] if which is not None and isinstance(node.layout, tuple) else node.layout
    # A positional value is computed anew for the lanes on board, whatever was put in its place.
    return isinstance(layout, LaneAxis) and (place.role == "input" or not node.positional)


def parameter_places(model: nn.Module, program: Program, sites: Collection[Site]) -> dict[str, Place]:
    """Return the places of the stored words of *model* among *sites*, where *program* has their parameter."""
    of = {name: home.parameter for home in homes(model) for name in home.words}
    found = {}
    for site in sites:
        name = of.get(site.name, site.name)
        if not site.is_activation and name in program.parameters:
            found[site.name] = Place(program.parameters[name], "parameter", part=site_name(site.name).role)
    return found
