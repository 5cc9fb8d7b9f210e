"""The flips of words, counted by masks: which bits of each word fall into which group, without listing them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis, Space
from torchfault.space import FaultSpace
from torchfault.store import Columns

__all__ = ["Flips", "failing_share", "flips_by_group", "masks_of", "popcount"]

Ints = NDArray[np.int64]
Masks = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Flips:
    """Trials at *rows* of some columns whose bits in *mask*, so many *bits*, fall into the groups *code*, (rows,) each.

    *whole* is the number of bits of each trial in the space, in all groups. Single faults have one bit.
    """

    site: int
    rows: Ints
    code: Ints
    mask: np.uint64
    bits: int
    whole: int

    def count(self, flag: Masks) -> Ints:
        """Return how many of the bits are set in *flag*, one mask for each row of the columns: shape (rows,)."""
        return popcount(flag[self.rows] & self.mask)


def masks_of(columns: Columns, flag: str) -> Masks:
    """Return a flag of *columns* as masks, shape (trials,): of words as it is, 1 where it is set for a single fault."""
    return np.asarray(columns.flag(flag)).astype(np.uint64, copy=False)


def failing_share(space: Space, columns: Columns, flag: str = "failed") -> NDArray[np.float64]:
    """Return the share of the faults of each trial for which *flag* is set, shape (trials,).

    It is 0 or 1 for faults that were struck, and any share between for words, whose bits count the same.
    """
    if columns.unit == "fault":
        return columns.flag(flag).astype(np.float64)
    assert isinstance(space, FaultSpace)
    bits = np.array([len(site.bits) for site in space.sites])
    return np.asarray(popcount(masks_of(columns, flag)) / bits[space.locate(columns.faults).site])


def flips_by_group(space: Space, columns: Columns, axis: Axis) -> Iterator[Flips]:
    """Yield the trials of *columns*, words or single faults, by site and group of *axis*; single faults all at once.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (2,), word="int8", bits=(0, 7)),))
    >>> words = Columns(np.array([0, 2]), np.zeros(2, dtype=np.int64), unit="word")
    >>> [(part.code.tolist(), int(part.mask), part.bits) for part in flips_by_group(space, words, space.axis("bit"))]
    [([0, 0], 1, 1), ([1, 1], 128, 1)]
    """
    if columns.unit == "fault":
        yield Flips(0, np.arange(len(columns)), axis.code(columns.faults), np.uint64(1), 1, 1)
        return
    assert isinstance(space, FaultSpace)
    site = space.locate(columns.faults).site
    for position in np.unique(site).tolist():
        rows, bits = np.flatnonzero(site == position), np.array(space.sites[position].bits, dtype=np.uint64)
        hot, width = np.left_shift(np.uint64(1), bits), len(bits)
        if axis.of_cell is None:
            every = np.bitwise_or.reduce(hot)
            yield Flips(position, rows, axis.code(columns.faults[rows]), every, width, width)
            continue
        of_bit = axis.of_cell[space.cells.group == position]
        for code in np.unique(of_bit).tolist():
            mine = hot[of_bit == code]
            mask = np.bitwise_or.reduce(mine)
            yield Flips(position, rows, np.full(len(rows), code), mask, len(mine), width)


def popcount(words: Masks) -> Ints:
    """Return the number of bits that are set in each of *words*, shape (n,).

    Source: Warren, Hacker's Delight, 2nd ed. 2012, section 5-1.

    >>> popcount(np.array([0, 0b1011, 2**64 - 1], dtype=np.uint64))
    array([ 0,  3, 64])
    """
    pairs, fours, eights = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
    x = words - (words >> np.uint64(1) & pairs)
    x = (x & fours) + (x >> np.uint64(2) & fours)
    x = x + (x >> np.uint64(4)) & eights
    return np.asarray((x * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.int64))
