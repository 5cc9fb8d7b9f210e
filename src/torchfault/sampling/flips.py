"""The flips of whole words, counted by masks: which bits of each word fall into which group, without listing them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis
from torchfault.space import FaultSpace
from torchfault.store import Columns

__all__ = ["Flips", "flips_by_group", "popcount"]

Ints = NDArray[np.int64]
Masks = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Flips:
    """Words at *rows* of some columns whose bits in *mask*, so many *bits*, fall into the groups *code*, (rows,) each.

    *whole* is the number of bits that a word of the site has in the space, in all groups.
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


def flips_by_group(space: FaultSpace, columns: Columns, axis: Axis) -> Iterator[Flips]:
    """Yield the words of *columns* by site and group of *axis*.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (2,), word="int8", bits=(0, 7)),))
    >>> words = Columns(np.array([0, 2]), np.zeros(2, dtype=np.int64), unit="word")
    >>> [(part.code.tolist(), int(part.mask), part.bits) for part in flips_by_group(space, words, space.axis("bit"))]
    [([0, 0], 1, 1), ([1, 1], 128, 1)]
    """
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
