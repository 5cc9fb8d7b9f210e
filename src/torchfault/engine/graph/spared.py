"""Golden values where those of all inputs do not fit: in memory that chunk after chunk uses, and not all of them.

Fresh memory costs up to as much as a pass without faults, since the system hands it out page by page. And most of what
batch-normalised networks hold are values between a product and the rectifier behind it, for which lanes hardly ever
ask: they are cheap to compute again. ResNet-20 needs 1.7 MiB for an input instead of 2.5, so that chunks hold three
times as many: a lane of 4,096 upsets on 1,000 images takes 0.88 of a golden image instead of 1.34, one of 16,384 takes
0.61 instead of 0.73 (30 November 2026, one thread).
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchfault.engine.graph.segments import bytes_held, memory_of
from torchfault.model.lane_axis import LaneAxis, take_value
from torchfault.model.program import Program, Value, run_node

__all__ = ["Reused", "Spared", "Spares", "spares"]

# What these give for an input depends on nothing but its own values, and not on how many inputs there are, to the bit.
_CHEAP = frozenset({"batch_norm", "add", "sub", "relu", "relu6", "hardtanh", "clamp"})
_AT_HAND = 2
_LANES = LaneAxis(0)


@dataclass(frozen=True)
class Spares:
    """The *nodes* whose values are not held, and the bytes that one input then needs."""

    nodes: frozenset[int]
    nbytes: int


@dataclass(eq=False)
class Reused:
    """Memory for golden values of up to *rows* inputs, but for those of *nodes*, computed *step* inputs at a time.

    A pass writes over the one before; while somebody still reads that one, it gets memory of its own.
    """

    nodes: frozenset[int]
    rows: int
    step: int
    tensors: dict[int, Tensor] = field(default_factory=dict)
    reader: "weakref.ref[Spared] | None" = None

    def values(self, program: Program, inputs: Sequence[Tensor], lanes: int) -> "Spared":
        """Return the values of *program* for one batch of *inputs*."""
        if self.reader is not None and self.reader() is not None:
            self.tensors = {}
        found = Spared(program, inputs, lanes, self)
        self.reader = weakref.ref(found)
        return found

    def forget(self) -> None:
        """Let go of the memory, which whoever reads it keeps."""
        self.tensors = {}


class Spared(Mapping[int, Value]):
    """The values of *program* for one batch of *inputs*; those of the nodes of *memory* are computed when asked for."""

    def __init__(self, program: Program, inputs: Sequence[Tensor], lanes: int, memory: Reused) -> None:
        self.program, self.nodes, self.lanes = program, memory.nodes, lanes
        given = {at: leaf for at, leaf in zip(program.inputs, inputs, strict=True) if at is not None}
        self.held: dict[int, Value] = {**program.constants, **given}
        self.shapes: dict[int, Tensor] = {}
        self.at_hand: dict[int, Value] = {}
        last = [max(readers, default=-1) for readers in program.readers()]
        for begin in range(0, lanes, memory.step):
            rows = slice(begin, min(begin + memory.step, lanes))
            passing: dict[int, Value] = {**program.constants, **{at: leaf[rows] for at, leaf in given.items()}}
            for node in program.nodes:
                at = node.position
                if at not in passing:
                    value = passing[at] = run_node(node, passing.__getitem__, rows.stop - begin)
                    self._keep(at, value, rows, memory)
                for source in {at, *node.reads}:
                    if last[source] <= at:
                        passing.pop(source, None)
        self.held |= {at: kept[:lanes] for at, kept in memory.tensors.items()}
        for node in program.nodes:
            if not (node.position in self.held or node.position in self.nodes):  # views of what is held
                self.held[node.position] = run_node(node, self.held.__getitem__, lanes)

    def _keep(self, at: int, value: Tensor, rows: slice, memory: Reused) -> None:
        """Copy what is held of a node to its place."""
        if at in self.nodes:
            if at not in self.shapes:
                self.shapes[at] = _alike(value, self.lanes, torch.device("meta"))
        elif not self.program.nodes[at].view:
            if at not in memory.tensors:
                memory.tensors[at] = _alike(value, memory.rows, value.device)
            memory.tensors[at][rows].copy_(value)

    def __getitem__(self, position: int) -> Value:
        if position in self.held:
            return self.held[position]
        if position not in self.at_hand:
            value = run_node(self.program.nodes[position], self.__getitem__, self.lanes)
            while len(self.at_hand) >= _AT_HAND:
                del self.at_hand[next(iter(self.at_hand))]
            self.at_hand[position] = value
        return self.at_hand[position]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.program.nodes)))

    def __len__(self) -> int:
        return len(self.program.nodes)

    def like(self, position: int) -> Value:
        """Return the value of a node, or a tensor of its shape without data where it is not held."""
        return self.shapes[position] if position in self.nodes else self.held[position]

    def take(self, position: int, index: Tensor) -> Value:
        """Return the rows *index* of the value of a node, computed for these alone where it is not held."""
        node = self.program.nodes[position]
        if position not in self.nodes:
            return take_value(self.held[position], node.layout, index)
        return run_node(node, lambda source: self.take(source, index), len(index))


def _alike(value: Tensor, lanes: int, device: torch.device) -> Tensor:
    """Return memory for *lanes* rows that lie like those of *value*."""
    one = value[0]
    strides = torch.empty_like(one, device="meta").stride()  # those of *one* but for gaps
    return torch.empty_strided((lanes, *one.shape), (one.numel(), *strides), dtype=value.dtype, device=device)


def spares(program: Program, values: Mapping[int, Value], last_reader: Sequence[int]) -> Spares | None:
    """Return what is not held of *program*, by its *values* for one input: what cheap operations give to one another.

    What others read, convolutions above all, is held: lanes start from it. ``None`` for programs whose values are not
    all rows of inputs: these run in one piece.
    """
    computed = [node for node in program.nodes if node.reads and not (node.constant or node.view)]
    if any(node.positional for node in program.nodes) or any(node.layout != _LANES for node in computed):
        return None
    memories, readers = memory_of(program, values), program.readers()
    end = len(program.nodes)
    nodes = frozenset(
        node.position
        for node in computed
        if _is_cheap(program, node.position)
        and last_reader[node.position] < end
        and len(readers[node.position]) == 1
        and all(_is_cheap(program, reader) for reader in readers[node.position])
    )
    held = bytes_held(memories[p] for p in range(end) if p not in nodes)
    most = max((sum(memories[p].values()) for p in nodes), default=0)
    return Spares(nodes, held + _AT_HAND * most)


def _is_cheap(program: Program, position: int) -> bool:
    node = program.nodes[position]
    alike = all((source := program.nodes[p]).constant or source.layout == _LANES for p in node.reads)
    return node.op in _CHEAP and node.layout == _LANES and alike and not node.view
