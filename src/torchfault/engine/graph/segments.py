"""Golden values that do not fit: what later segments of a program read is kept, the rest is computed again.

Operations run again as they ran before, on the same inputs in the same shape, so that their values are the same bits.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from torchfault.data import leaves
from torchfault.model.program import Program, Value, evaluate, run_node

__all__ = ["Segmented", "Segments", "bytes_held", "memory_of", "segments"]

_AT_HAND = 2  # segments whose values are all held: an operation reads its own and the one before
_MOST = 64


@dataclass(frozen=True)
class Segments:
    """Where segments of a program begin (*starts*), what is *kept* all the time, and the bytes that one input needs."""

    starts: tuple[int, ...]
    kept: frozenset[int]
    nbytes: int

    def values(self, program: Program, inputs: Sequence[Tensor], lanes: int) -> Mapping[int, Value]:
        """Return the values of *program* for one batch of *inputs*; all are held where there is one segment."""
        if len(self.starts) == 1:
            return evaluate(program, inputs, lanes)
        return Segmented(program, self, inputs, lanes)


class Segmented(Mapping[int, Value]):
    """The values of *program* for one batch of *inputs*, of which no more than *plan* says is held at a time."""

    def __init__(self, program: Program, plan: Segments, inputs: Sequence[Tensor], lanes: int) -> None:
        self.program, self.plan, self.lanes = program, plan, lanes
        self.held: dict[int, Value] = dict(program.constants)
        given = zip(program.inputs, inputs, strict=True)
        self.held |= {position: leaf for position, leaf in given if position is not None}
        self.at_hand: dict[int, dict[int, Value]] = {}
        for segment in range(len(plan.starts)):
            values = self._run(segment)
            self.held |= {position: value for position, value in values.items() if position in plan.kept}

    def _run(self, segment: int) -> dict[int, Value]:
        """Compute what is not held of a segment."""
        starts = (*self.plan.starts, len(self.program.nodes))
        values: dict[int, Value] = {}
        for node in self.program.nodes[starts[segment] : starts[segment + 1]]:
            if node.position not in self.held:
                values[node.position] = run_node(node, lambda p: values[p] if p in values else self.held[p], self.lanes)
        return values

    def __getitem__(self, position: int) -> Value:
        if position in self.held:
            return self.held[position]
        segment = bisect_right(self.plan.starts, position) - 1
        if segment not in self.at_hand:
            while len(self.at_hand) >= _AT_HAND:
                del self.at_hand[next(iter(self.at_hand))]
            self.at_hand[segment] = self._run(segment)
        return self.at_hand[segment][position]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.program.nodes)))

    def __len__(self) -> int:
        return len(self.program.nodes)


def segments(program: Program, values: Mapping[int, Value], last_reader: Sequence[int], *, most: int) -> Segments:
    """Return as few segments of *program* as need no more than *most* bytes for an input, by its *values* for one.

    Where none do, those that need the least.
    """
    memories = memory_of(program, values)
    found = None
    for count in range(1, min(_MOST, len(program.nodes)) + 1):
        plan = _cut(program, memories, last_reader, count)
        if found is None or plan.nbytes < found.nbytes:
            found = plan
        if found.nbytes <= most:
            break
    assert found is not None
    return found


def memory_of(program: Program, values: Mapping[int, Value]) -> list[dict[int, int]]:
    """Return the memory that the value of each node lies in: bytes by address; none for constants."""
    found: list[dict[int, int]] = []
    for node in program.nodes:
        mine: dict[int, int] = {}
        for leaf in [] if node.constant else leaves(values[node.position]):
            storage, own = leaf.untyped_storage(), leaf.numel() * leaf.element_size()
            # An input is a row of the data, whose memory is there anyway, however many rows it has.
            mine[storage.data_ptr()] = storage.nbytes() if node.reads else min(storage.nbytes(), own)
        found.append(mine)
    return found


def _cut(program: Program, memories: list[dict[int, int]], last_reader: Sequence[int], count: int) -> Segments:
    """Return *count* segments of about as many bytes each."""
    known: set[int] = set()
    fresh = []
    for one in memories:
        fresh.append(sum(size for at, size in one.items() if at not in known))
        known |= one.keys()
    total, starts, now = sum(fresh), [0], 0
    for position, size in enumerate(fresh):
        now += size
        if now * count >= total * len(starts) and len(starts) < count and position + 1 < len(fresh):
            starts.append(position + 1)
    ends = [*starts[1:], len(fresh)]
    kept = frozenset(
        position
        for start, end in zip(starts, ends, strict=True)
        for position in range(start, end)
        if count == 1 or last_reader[position] >= end or not program.nodes[position].reads
    )
    held = bytes_held(memories[position] for position in kept)
    largest = max(
        bytes_held(memories[p] for p in range(start, end) if p not in kept)
        for start, end in zip(starts, ends, strict=True)
    )
    return Segments(tuple(starts), kept, held + _AT_HAND * largest)


def bytes_held(memories: Iterator[dict[int, int]]) -> int:
    """Return the bytes of some memories, each counted once."""
    found: dict[int, int] = {}
    for one in memories:
        found |= one
    return sum(found.values())
