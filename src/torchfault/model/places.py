"""The sites of a captured program: its inputs, parameters, and the inputs and outputs of its operations."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from torchfault.model.discover import parameter_sites
from torchfault.model.fold import Fold, fold
from torchfault.model.lane_axis import LaneAxis, per_sample
from torchfault.model.marks import inside
from torchfault.model.memory import homes
from torchfault.model.observe import channel_axis
from torchfault.model.program import Node, Program, Ref
from torchfault.model.rounding import rounding, sites_kept, without_blocks
from torchfault.model.states import Cell
from torchfault.model.torch_ao.quantised import is_leaf
from torchfault.names import site_name
from torchfault.space import Site
from torchfault.storages import ActivationStorage, InBlocks
from torchfault.words import WORDS

__all__ = ["Place", "lane_arguments", "program_sites"]


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


def lane_arguments(node: Node, program: Program) -> list[int]:
    """Return the nodes of the arguments of *node* that have lanes, in order, repeated where they are."""

    def walk(argument: Any) -> Iterator[int]:
        if isinstance(argument, Ref):
            if not program.nodes[argument.node].constant:
                yield argument.node
        elif isinstance(argument, list | tuple):
            for part in argument:
                yield from walk(part)

    return list(walk([*node.args, *node.kwargs.values()]))


def program_sites(
    model: nn.Module,
    program: Program,
    golden: dict[int, Any],
    *,
    lanes: int,
    buffers: bool = False,
    given: Sequence[Site | None] = (),
    cells: Sequence[Cell] = (),
) -> tuple[Fold, dict[str, Place]]:
    """Return every site of *program*, in execution order, and where each one is, by its name at each time step.

    *golden* holds the value of every node for a batch of *lanes*; *given* are the sites of the inputs. Names are those
    of module hooks wherever a module without children is a single operation.
    """
    parameters: dict[str, list[Site]] = {}
    of = {name: home.parameter for home in homes(model) for name in home.words}
    for site in parameter_sites(model, buffers=buffers):
        parameters.setdefault(of.get(site.name, site.name), []).append(site)
    fed = program.fed()
    bases = _bases(model, program, fed, inside(model, cells))
    alone = {base for position, base in bases.items() if base == program.nodes[position].call}
    sites: dict[str, Site] = {}
    places: dict[str, Place] = {}
    for data, position in zip(given, program.inputs, strict=False):
        if data is not None and position is not None:
            sites[data.name], places[data.name] = data, Place(position, "output")
    read = {source for node in program.nodes for source in node.reads}
    keeping = _keeping(program, fed, inside(model, cells))
    for node in program.nodes:
        for name, position in _parameters_of(node, program, read):
            for site in parameters.pop(name, ()):
                part = site_name(site.name).role
                sites[site.name], places[site.name] = site, Place(position, "parameter", part=part)
        if node.op == "mark" and node.position in bases:
            kept = rounding(model.get_submodule(node.module), site_name(node.call).role)
            for site in _mark(node, golden[node.position], lanes, without_blocks(node.module, kept)):
                sites[site.name], places[site.name] = site, Place(node.position, "output")
        elif node.position in bases:
            for site, place in _activations(node, bases[node.position], program, golden, lanes, fed):
                found = _kept(site, place, keeping.get(site.name), program, golden, lanes)
                sites |= {words.name: words for words, _ in found}
                places |= {words.name: where for words, where in found}
        elif node.rounded is not None and node.call not in alone and _rounded_name(node) in keeping:
            site = _rounded_site(node, golden, lanes)
            found = _kept(site, Place(node.position, "output"), node, program, golden, lanes)
            sites |= {words.name: words for words, _ in found}
            places |= {words.name: where for words, where in found}
    return fold(sites.values()), places


def _parameters_of(node: Node, program: Program, read: set[int]) -> Iterator[tuple[str, int]]:
    """Yield the parameters that *node* reads directly, and before a cell's first site all of its own in *read*."""
    if node.op == "mark":
        own = ((name, place) for name, place in program.parameters.items() if name.startswith(f"{node.module}."))
        yield from ((name, place) for name, place in own if place in read)
    names = {position: name for name, position in program.parameters.items()}
    for source in node.reads:
        if source in names:
            yield names[source], source


def _bases(model: nn.Module, program: Program, fed: set[int], closed: frozenset[str]) -> dict[int, str]:
    """Name every real operation: its module's call where it is the only one there, else the call and the operation.

    A mark has the name of its site; other operations inside the modules *closed* have none.
    """
    real = [n for n in program.nodes if n.target and not n.view and n.position in fed and not n.constant]
    marks = {node.position: node.call for node in real if node.op == "mark"}
    real = [node for node in real if node.op != "mark" and node.rounded is None and node.module not in closed]
    per_call = Counter(node.call for node in real)
    with_children = {path for path, module in model.named_modules() if not path or not is_leaf(module)}
    used: Counter[str] = Counter()
    names = dict(marks)
    for node in real:
        alone = per_call[node.call] == 1 and node.module not in with_children
        base = node.call if alone else f"{node.call}.{node.op}" if node.call else node.op
        names[node.position] = base if not used[base] else f"{base}@{used[base]}"
        used[base] += 1
    return names


def _rounded_name(node: Node) -> str:
    """Return the name of the activation that a rounding operation gives."""
    assert node.rounded is not None
    return f"{node.call}:{node.rounded.role}{node.rounded.place or ''}"


def _keeping(program: Program, fed: set[int], closed: frozenset[str]) -> dict[str, Node]:
    """Return the operation that rounds each emulated activation, by the name of its site; not those inside *closed*."""
    found = (node for node in program.nodes if node.rounded is not None and node.position in fed)
    return {_rounded_name(n): n for n in found if isinstance(n.layout, LaneAxis) and n.module not in closed}


def _rounded_site(node: Node, golden: dict[int, Any], lanes: int) -> Site:
    """Return the site of what a rounding operation gives, in float words as yet."""
    assert isinstance(node.layout, LaneAxis)
    assert node.rounded is not None
    shape = per_sample(golden[node.position].shape, node.layout, lanes=lanes)
    channel = channel_axis(node.module_type, shape, node.layout)
    kind, module = node.rounded.role, node.module
    return Site(_rounded_name(node), shape, "float32", 32, kind, module, node.module_type, channel=channel)


def _kept(
    site: Site, place: Place, node: Node | None, program: Program, golden: dict[int, Any], lanes: int
) -> list[tuple[Site, Place]]:
    """Return the sites of the words in which the activation *site* is kept, given the *node* that rounds it, if any."""
    if node is None or node.rounded is None:
        return [(site, place)]
    read = place.role == "input" and lane_arguments(program.nodes[place.node], program)[place.which] == node.position
    storage = node.rounded.storage
    if not read:  # what the module gives may be a view of what its operation does
        site, place = _rounded_site(node, golden, lanes), Place(node.position, "output")
    blocks = storage if isinstance(storage, InBlocks) else None
    layout = node.layout if isinstance(node.layout, LaneAxis) else None
    found = sites_kept(site, storage, golden[node.position].shape, layout)
    return [(words, replace(place, part=site_name(words.name).block, blocks=blocks)) for words in found]


def _mark(node: Node, tensor: Tensor, lanes: int, storage: ActivationStorage | None) -> Iterator[Site]:
    """Yield the site of a mark, if it has words and lanes; its type is that of the module."""
    layout = node.layout
    word = WORDS.get(str(tensor.dtype).removeprefix("torch."))
    if word is None or not isinstance(layout, LaneAxis) or not tensor.dtype.is_floating_point:
        return
    shape = per_sample(tensor.shape, layout, lanes=lanes)
    kind = site_name(node.call).role
    channel = channel_axis(node.module_type, shape, layout)
    site = Site(node.call, shape, word.name, word.width, kind, node.module, node.module_type, channel=channel)
    yield from sites_kept(site, storage, tensor.shape, layout)


def _activations(
    node: Node,
    base: str,
    program: Program,
    golden: dict[int, Any],
    lanes: int,
    fed: set[int],
) -> Iterator[tuple[Site, Place]]:
    sources = [
        (which, golden[source], program.nodes[source].layout)
        for which, source in enumerate(lane_arguments(node, program))
        if source in fed or base != node.call  # a module's own zeros, such as a first state, are none of its inputs
    ]
    value = golden[node.position]
    layouts = node.layout if isinstance(node.layout, tuple) else (node.layout,)
    results = value if isinstance(value, tuple | list) else (value,)
    ends = [("input", *source) for source in sources]
    ends += [("output", which, result, layouts[which]) for which, result in enumerate(results)]
    operation = node.module_type if base == node.call else node.op
    counted: Counter[str] = Counter()
    for role, which, tensor, layout in ends:
        number = counted[role]
        counted[role] += 1
        if not isinstance(tensor, Tensor) or not isinstance(layout, LaneAxis) or not tensor.dtype.is_floating_point:
            continue
        word = WORDS.get(str(tensor.dtype).removeprefix("torch."))
        if word is None:
            continue
        shape = per_sample(tensor.shape, layout, lanes=lanes)
        yield (
            Site(
                f"{base}:{role}{number or ''}",
                shape,
                word=word.name,
                width=word.width,
                kind=role,
                module=node.module,
                module_type=node.module_type,
                channel=channel_axis(operation, shape, layout),
            ),
            Place(node.position, role, which),
        )
