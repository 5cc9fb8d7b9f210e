"""Notes in a captured graph: where the running model showed a site, and from that the place of each.

The model shows the sites of a call to graph capture just as it shows them to discovery: what the call reads when it
begins, and what it gives when it ends. Each note is an operation without a result. What lies between the two notes of a
call belongs to it, into however many operations capture has taken it apart.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from torchfault.model.marks import mark_operator
from torchfault.model.places import Place, has_lanes, lane_arguments
from torchfault.model.program import VIEWS, Node, Program, Ref, plain_name
from torchfault.model.rounding import names_kept
from torchfault.model.watch import Moment, Visitor
from torchfault.names import site_name
from torchfault.storages import InBlocks

__all__ = ["Noted", "noting"]


@torch.library.custom_op("torchfault::note", mutates_args=(), schema="(Tensor[] tensors, str base, str role) -> ()")
def _note_operator(tensors: list[Tensor], base: str, role: str) -> None:
    """Do nothing: an operation that graph capture keeps, by which the sites of a call are found again."""


@_note_operator.register_fake
def _(tensors: list[Tensor], base: str, role: str) -> None: ...


torch.fx.node.has_side_effect(torch.ops.torchfault.note.default)  # or it would be dropped


def noting(names: Collection[str]) -> Visitor:
    """Return what notes the calls of the sites called *names* in a model that is being captured."""
    bases = {site_name(name).base for name in names}

    def note(moment: Moment) -> Sequence[Tensor] | None:
        if moment.marked:
            return [mark_operator(moment.tensors[0], moment.name())]
        if moment.tensors and moment.base in bases:
            _note_operator(list(moment.tensors), moment.base, moment.role)
        return None

    return note


@dataclass(frozen=True)
class _Read:
    """An input of a call that one operation, *reader*, reads: the value *source*, for the *again*-th time."""

    source: int
    reader: fx.Node
    again: int


@dataclass(eq=False)
class Noted:
    """Gathers the places of the sites called *names* from the notes in *graph*, while its nodes are taken over.

    *nodes* are those taken over so far and *known* what has become of each of the graph's, by name; *copy* adds a node
    that copies the value of another one, which then has a memory of its own.
    """

    graph: fx.Graph
    names: Collection[str]
    nodes: Sequence[Node]
    known: dict[str, Any]
    copy: Callable[[int, fx.Node], int]
    found: dict[str, Place] = field(default_factory=dict)
    read: dict[str, _Read] = field(default_factory=dict)
    rounded: dict[str, int] = field(default_factory=dict)
    hidden: dict[fx.Node, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = {node: i for i, node in enumerate(self.graph.nodes)}
        self.begin: dict[fx.Node, fx.Node] = {}
        self.end: dict[fx.Node, fx.Node] = {}
        latest: dict[str, fx.Node] = {}
        for node in self.graph.nodes:
            if _is_note(node):
                _, base, role = node.args
                if role == "input":
                    latest[str(base)] = node  # an earlier one was of a call that turned out to compute nothing
                elif (begin := latest.pop(str(base), None)) is not None:
                    self.begin[node], self.end[begin] = begin, node

    def add(self, node: fx.Node) -> None:
        """Take over one note."""
        tensors, base, role = node.args
        assert isinstance(tensors, list)
        named = [(f"{base}:{role}{i or ''}", tensor) for i, tensor in enumerate(tensors)]
        if role == "output":
            self.known.update(self.hidden.pop(self.begin.get(node, node), {}))
        for name, tensor in named:
            source = self.known.get(tensor.name)
            if isinstance(source, Ref) and any(kept in self.names for kept in self._kept(name, source.node)):
                if role == "output":
                    self._given(name, tensor, source.node, node)
                elif node in self.end:
                    self._taken(name, tensor, source.node, node, tensors[: tensors.index(tensor)].count(tensor))

    def _kept(self, name: str, source: int) -> list[str]:
        """Return the names of the sites in which the activation called *name* is kept."""
        rounded = self.nodes[self.rounded.get(name, source)].rounded
        return names_kept(name, rounded.storage if rounded is not None else None)

    def _given(self, name: str, tensor: fx.Node, source: int, at: fx.Node) -> None:
        node = self.nodes[source]
        if name in self.rounded:  # what the module gives may be a view of what its operation does
            self._add(name, Place(self.rounded[name], "output"))
        elif node.op == "getitem" and isinstance(node.args[0], Ref) and isinstance(node.args[1], int):
            self._add(name, Place(node.args[0].node, "output", node.args[1]))
        elif node.target is None or node.view:
            # Another view of the same memory must not be struck with it.
            copied = self.copy(source, at)
            self.known[tensor.name] = Ref(copied)
            self._add(name, Place(copied, "output"))
        else:
            self._add(name, Place(source, "output"))

    def _taken(self, name: str, tensor: fx.Node, source: int, begin: fx.Node, again: int) -> None:
        readers = [user for user in tensor.users if self._inside(user, begin)]
        plain = len(readers) == 1 and plain_name(readers[0].target) not in VIEWS
        if plain and self.rounded.get(name, source) == source:
            self.read[name] = _Read(source, readers[0], again)
        elif name in self.rounded:
            self._add(name, Place(self.rounded[name], "output"))
        elif tensor.name not in self.hidden.get(begin, {}):
            copied = self.copy(source, begin)
            self.hidden.setdefault(begin, {})[tensor.name] = Ref(source)
            self.known[tensor.name] = Ref(copied)
            self._add(name, Place(copied, "output"))

    def _inside(self, user: fx.Node, begin: fx.Node) -> bool:
        """Whether *user* is an operation on values between a call's first note, *begin*, and its last."""
        between = self.order[begin] < self.order[user] < self.order[self.end[begin]]
        return between and not _is_note(user) and user.meta.get("val") is not None and _gives_values(user)

    def _add(self, name: str, place: Place) -> None:
        node = self.nodes[place.node]
        rounded = node.rounded
        if place.role == "input":
            rounded = self.nodes[self.read[name].source].rounded
        storage = rounded.storage if rounded is not None else None
        blocks = storage if isinstance(storage, InBlocks) else None
        for kept in names_kept(name, storage):
            self.found[kept] = replace(place, part=site_name(kept).block, blocks=blocks)

    def places(self, program: Program) -> dict[str, Place]:
        """Return the places of all sites that were noted, given the finished *program*, where they hold lanes."""
        for name, read in self.read.items():
            reader = self.known.get(read.reader.name)
            if not isinstance(reader, Ref):
                continue
            lanes = lane_arguments(program.nodes[reader.node], program)
            slots = [which for which, source in enumerate(lanes) if source == read.source]
            if read.again < len(slots):
                self._add(name, Place(reader.node, "input", slots[read.again]))
        return {name: place for name, place in self.found.items() if has_lanes(place, program)}


def _is_note(node: fx.Node) -> bool:
    return node.target is torch.ops.torchfault.note.default


def _gives_values(node: fx.Node) -> bool:
    """Whether *node* gives tensors, and no sizes or checks."""
    return not isinstance(node.meta["val"], torch.SymInt | torch.SymBool | torch.SymFloat | int | bool | float)
