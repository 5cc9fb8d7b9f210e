"""The sweep: a batch of lanes that grows where faults strike and shrinks where they turn out to be masked.

Lanes are sorted by the node at which they board. A value is kept for a prefix of the lanes only; behind the prefix it
is golden and is gathered from the golden cache when somebody asks. So an operation runs for just those lanes
that a fault has reached, and everything off a fault's cone of influence costs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.engine.graph.golden_pass import Golden
from torchfault.engine.graph.parts import Part
from torchfault.model.lane_axis import LaneAxis, identical_lanes, join, lanes_first, take, take_value
from torchfault.model.program import Node, Program, Ref, Value, run_node

__all__ = ["Schedule", "Sweep", "schedule"]

_IN_PLACE = {"relu": torch.relu_}
_OWN_MEMORY = ("conv", "linear", "batch_norm", "add", "layer_norm", "mul", "round_")
_CHECKS_PER_LANE = 2
# A lane that differs from golden mostly shows it at every fourth place of both axes: lanes of weights of ResNet-20 cost
# 0.141 of a golden image instead of 0.152, paired on one thread.
_SAMPLE = 4


@dataclass(frozen=True, eq=False)
class Schedule:
    """What a sweep needs to know about a program beforehand.

    *last_reader* is the last node that reads each value; *narrow* are the nodes after which no other value is alive, so
    that one comparison with golden decides whether a lane is masked; *in_place* are those that may reuse the memory of
    their operand.
    """

    program: Program
    last_reader: list[int]
    dying: list[list[int]]
    narrow: frozenset[int]
    in_place: frozenset[int]


def schedule(program: Program) -> Schedule:
    """Return the schedule of *program*."""
    count = len(program.nodes)
    last = [max(readers, default=-1) for readers in program.readers()]
    for output in program.outputs:
        if isinstance(output, Ref):
            last[output.node] = count
    dying: list[list[int]] = [[] for _ in range(count + 1)]
    for position, reader in enumerate(last):
        if not program.nodes[position].constant:
            dying[max(reader, position)].append(position)  # what nobody reads dies where it is struck
    roots = _roots(program)
    open_roots: set[int] = set()
    last_of_root: dict[int, int] = {}
    for position, root in enumerate(roots):
        last_of_root[root] = max(last_of_root.get(root, -1), last[position])
    narrow, in_place = set(), set()
    for node in program.nodes:
        position = node.position
        if node.constant or node.positional or isinstance(node.layout, tuple):
            continue
        open_roots = {r for r in {*open_roots, roots[position]} if last_of_root[r] > position}
        if open_roots == {roots[position]} and not node.view:
            narrow.add(position)
        if node.op in _IN_PLACE and _may_overwrite(node, program, last_of_root):
            in_place.add(position)
    return Schedule(program, last, dying, frozenset(narrow), frozenset(in_place))


def _roots(program: Program) -> list[int]:
    """Return the node whose memory each value may live in: its own, or that of the operand it is a view of."""
    roots = list(range(len(program.nodes)))
    for node in program.nodes:
        lanes = [source for source in node.reads if not program.nodes[source].constant]
        if node.view and lanes:
            roots[node.position] = roots[lanes[0]]
    return roots


def _may_overwrite(node: Node, program: Program, last_of_root: dict[int, int]) -> bool:
    operand = program.nodes[node.reads[0]]
    alone = last_of_root.get(operand.position) == node.position
    return alone and not operand.view and any(part in operand.op for part in _OWN_MEMORY)


class Sweep:
    """One batch of lanes on its way through a program.

    *inputs* gives the row of the golden chunk that each lane stands on, *boards* the node at which it boards (sorted),
    *settled* the last node at which something happens to it. *strike* is called with this sweep, a node, its value and
    the lanes on board after every node in *struck*, and applies their events in place. *parts* maps nodes to groups of
    lanes that board there with parts already computed: which of those who board, and what to paste into live values.
    """

    def __init__(
        self,
        plan: Schedule,
        golden: Golden,
        inputs: Tensor,
        boards: Sequence[int],
        settled: NDArray[np.int64],
        parts: Mapping[int, Sequence[tuple[slice, Mapping[int, Part]]]],
    ) -> None:
        self.plan, self.golden, self.inputs = plan, golden, inputs
        self.lane = torch.arange(len(inputs), device=inputs.device)
        self.boards, self.settled, self.parts = list(boards), settled, parts
        self.aboard = 0
        self.values: dict[int, tuple[Value, int]] = {}
        self.checks = np.zeros(len(inputs), dtype=np.int8)
        self.masked: list[Tensor] = []

    def run(
        self,
        strike: Callable[["Sweep", Node, Value, int], Value],
        struck: frozenset[int],
        observe: Callable[["Sweep", Node], None] | None = None,
    ) -> None:
        """Execute the program from the first boarding to the end, or until every lane has left.

        *observe* is called after every node, while its value is still what it was computed to be.
        """
        program = self.plan.program
        for node in program.nodes[self.boards[0] :]:
            self._execute(node, strike if node.position in struck else None)
            if observe is not None:
                observe(self, node)
            for position in self.plan.dying[node.position]:
                self.values.pop(position, None)
            if node.position in self.plan.narrow and self.aboard:
                self._let_masked_leave(node)
            if not len(self.inputs):
                return

    def value(self, position: int, lanes: int) -> Value:
        """Return the value of a node for the first *lanes* lanes, gathering from golden what is not computed."""
        node = self.plan.program.nodes[position]
        if node.constant:
            return self.plan.program.constants[position]
        if node.positional:
            return run_node(node, lambda source: self.value(source, lanes), lanes)
        have, count = self.values.get(position, (None, 0))
        if count < lanes:
            have = self._extend(have, count, lanes, position, node.layout)
            self.values[position] = (have, lanes)
        return have

    def _extend(self, have: Value, count: int, lanes: int, position: int, layout: Any) -> Value:
        golden = self.golden.take(position, self.inputs[count:lanes])

        def longer(mine: Tensor | None, added: Tensor, where: LaneAxis | None) -> Any:
            return added if where is None or mine is None or not count else join([mine, added], where)

        if isinstance(layout, tuple):
            parts = have if count else [None] * len(layout)
            return tuple(longer(m, g, w) for m, g, w in zip(parts, golden, layout, strict=True))
        return longer(have, golden, layout)

    def reached(self, node: Node) -> int:
        """Return how many lanes hold something else than golden in an operand of *node*."""
        return max((self.values[s][1] for s in node.reads if s in self.values), default=0)

    def _execute(self, node: Node, strike: Callable[["Sweep", Node, Value, int], Value] | None) -> None:
        reached = self.reached(node) if node.target and not node.constant else 0
        if reached:
            self.values[node.position] = (self._compute(node, reached, spare=strike is None), reached)
        before = self.aboard
        while self.aboard < len(self.boards) and self.boards[self.aboard] == node.position:
            self.aboard += 1
        for which, parts in self.parts.get(node.position, ()):
            for position, part in parts.items():
                part.paste(self.value(position, self.aboard)[before + which.start : before + which.stop])
        if strike is not None and self.aboard:
            value = strike(self, node, self.value(node.position, self.aboard), self.aboard)
            self.values[node.position] = (value, self.aboard)

    def _compute(self, node: Node, lanes: int, *, spare: bool) -> Value:
        # A struck operation is run again on its operand, which must then still be what it was.
        if spare and node.position in self.plan.in_place:
            return _IN_PLACE[node.op](self.value(node.reads[0], lanes))
        return run_node(node, lambda position: self.value(position, lanes), lanes)

    def _let_masked_leave(self, node: Node) -> None:
        """Drop the lanes that have become bit-identical to golden and to which nothing more will happen."""
        if not self.golden.holds(node.position):  # what reads it is compared
            return
        value, count = self.values.get(node.position, (None, 0))
        if count < self.aboard:
            # Lanes behind the prefix are golden here; only those on board count.
            value, count = self.value(node.position, self.aboard), self.aboard
        due = (self.checks[:count] < _CHECKS_PER_LANE) & (self.settled[:count] <= node.position)
        index = np.flatnonzero(due)
        if not len(index):
            return
        self.checks[index] += 1
        layout = node.layout
        assert isinstance(layout, LaneAxis)
        mine, golden = lanes_first(value, layout), lanes_first(self.golden.values[node.position], layout)
        same = self._same(mine, golden, index, step=_SAMPLE)
        if same.any():
            same[same] = self._same(mine, golden, index[same])
        if same.any():
            keep = np.ones(len(self.inputs), dtype=bool)
            keep[index[same]] = False
            self._keep(keep)

    def _same(self, mine: Tensor, golden: Tensor, index: NDArray[np.int64], *, step: int = 1) -> NDArray[np.bool_]:
        """Return which lanes *index* are as golden, as far as every *step*-th place of an image tells."""
        some = (slice(None), slice(None), *[slice(None, None, step)] * (mine.ndim - 2)) if mine.ndim > 2 else ...
        lanes, first = self._index(index), LaneAxis(0)
        found = identical_lanes(take(mine[some], first, lanes), take(golden[some], first, self.inputs[lanes]))
        same: NDArray[np.bool_] = found.cpu().numpy()  # the one thing for which the host waits
        return same

    def _index(self, positions: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(positions).to(self.inputs.device)

    def _keep(self, keep: NDArray[np.bool_]) -> None:
        self.masked.append(self.lane[self._index(np.flatnonzero(~keep))])
        kept, left = self._index(np.flatnonzero(keep)), np.concatenate([[0], keep.cumsum()]).tolist()
        for position, (value, count) in list(self.values.items()):
            index = kept[: left[count]]
            layout = self.plan.program.nodes[position].layout
            self.values[position] = (take_value(value, layout, index), len(index))
        self.aboard = left[self.aboard]
        self.boards = [board for board, stays in zip(self.boards, keep.tolist(), strict=True) if stays]
        self.inputs, self.lane = self.inputs[kept], self.lane[kept]
        self.checks, self.settled = self.checks[keep], self.settled[keep]
