"""Parts of values: where lanes differ from golden in a small part of every live value, only that is computed.

What such a part is, and how operations change it, is told by boxes and by channels; how far lanes go in this way, and
when they have become as golden, is the same for both.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from torchfault.engine.graph.golden_pass import Golden
from torchfault.model.lane_axis import identical_lanes
from torchfault.model.places import lane_arguments
from torchfault.model.program import Node
from torchfault.model.rounding import ROUND_BLOCKS, ROUND_WORDS

__all__ = ["Part", "PartialLanes", "elementwise_operands", "walk"]

_RECTIFIERS = {"relu", "relu6", "leaky_relu", "gelu", "silu", "elu", "mish", "softplus", "clamp", "clamp_min", "abs"}
_SIGMOIDS = {"sigmoid", "tanh", "hardsigmoid", "hardtanh", "hardswish"}
_FLATTENING = _RECTIFIERS | {ROUND_WORDS, ROUND_BLOCKS}
_ELEMENTWISE = frozenset({*_RECTIFIERS, ROUND_WORDS, *_SIGMOIDS, "neg", "clone", "dropout", "add", "sub", "mul"})


class Part(Protocol):
    """A part of a value that differs from golden, of several lanes."""

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        ...

    def pick(self, index: Any) -> "Part":
        """Return the parts of some of the lanes."""
        ...

    def paste(self, value: Tensor) -> None:
        """Make *value*, golden in the rows of these lanes, what it is with the part, in place."""
        ...


class PartialLanes(Protocol):
    """Lanes of which parts are computed: *rows* are their inputs in the golden chunk, *values* the parts by node.

    They have come to the node *at*; *index* tells which of the lanes at the start are left.
    """

    golden: Golden
    rows: Tensor
    last_reader: Sequence[int]
    values: dict[int, Any]
    index: Tensor
    at: int

    def step(self, node: Node) -> Part | None:
        """Return the part of the value of *node*, ``None`` where no rule applies, or it is no small part."""
        ...

    def compared(self, position: int) -> tuple[Tensor, Tensor]:
        """Return the part of the value of a node, and what is golden there, lanes first."""
        ...


def walk(lanes: PartialLanes, node: int, part: Part) -> None:
    """Start at *node*, whose value differs from golden in *part*, and go on until no rule applies or all are masked."""
    program = lanes.golden.program
    lanes.at, lanes.values = node, {node: part}
    _leave(lanes, program.nodes[node])
    for following in program.nodes[node + 1 :]:
        if not lanes.values or not len(lanes.index):
            return
        reads = any(source in lanes.values for source in following.reads)
        if reads:
            found = lanes.step(following)
            if found is None:
                return
            lanes.values[following.position] = found
        lanes.at = following.position
        lanes.values = {p: v for p, v in lanes.values.items() if lanes.last_reader[p] > lanes.at}
        if reads and following.op in _FLATTENING:
            _leave(lanes, following)  # only what flattens a difference can make it vanish


def _leave(lanes: PartialLanes, node: Node) -> None:
    """Drop the lanes whose only live part is bit-identical to golden."""
    if set(lanes.values) != {node.position}:
        return
    same = identical_lanes(*lanes.compared(node.position))
    if same.any():
        keep = (~same).nonzero().squeeze(1)
        lanes.index, lanes.rows = lanes.index[keep], lanes.rows[keep]
        lanes.values = {p: v.pick(keep) for p, v in lanes.values.items()}


def elementwise_operands(node: Node, golden: Golden, *, but: str = "") -> Sequence[int] | None:
    """Return the operands of an operation that works element by element on values of one shape, ``None`` for others.

    Those with constants, *but* for the one operation named, are others: these may belong to elements that a part lacks.
    """
    program = golden.program
    if node.op != but and (node.op not in _ELEMENTWISE or any(program.nodes[s].constant for s in node.reads)):
        return None
    operands, shape = lane_arguments(node, program), golden.like(node.position).shape
    if any(program.nodes[s].positional or golden.like(s).shape != shape for s in operands):
        return None
    return operands
