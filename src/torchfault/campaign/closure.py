"""Monotone closure: flips of one word on one input in one direction, of which the smaller ones fail less."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.space import FaultSpace, Locations

__all__ = ["Chains", "chains"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(eq=False)
class Chains:
    """Trials in *order*, chain by chain, each from its largest flip down; of a chain that begins at *first* those
    before *low* are known to fail, and those from *high* on to be masked."""

    order: Ints
    first: Ints
    low: Ints
    high: Ints

    @classmethod
    def single(cls, trials: int) -> "Chains":
        """Return chains of one trial each: nothing vouches for anything.

        >>> Chains.single(3).probes().tolist()
        [0, 1, 2]
        """
        order = np.arange(trials)
        return cls(order, order, order.copy(), order + 1)

    def probes(self) -> Ints:
        """Return the trial to look at next in each chain that is not settled: from the top, and later in the middle."""
        open_ = np.flatnonzero(self.low < self.high)
        low, high = self.low[open_], self.high[open_]
        return self.order[np.where(low - self.first[open_] < 2, low, (low + high) // 2)]

    def settle(self, probes: Ints, failing: Bools) -> None:
        """Take in the outcomes of the *probes* just returned."""
        place = np.empty(len(self.order), dtype=np.int64)
        place[self.order] = np.arange(len(self.order))
        open_, at = np.flatnonzero(self.low < self.high), place[probes]
        self.low[open_] = np.where(failing, at + 1, self.low[open_])
        self.high[open_] = np.where(failing, self.high[open_], at)

    def failing(self) -> Bools:
        """Return which trials fail, once all chains are settled."""
        failed = np.zeros(len(self.order), dtype=bool)
        ends = np.append(self.first[1:], len(self.order))
        begin, settled = np.repeat(self.first, ends - self.first), np.repeat(self.low, ends - self.first)
        place = np.arange(len(self.order))
        failed[self.order] = (place >= begin) & (place < settled)
        return failed


def chains(space: FaultSpace, where: Locations, inputs: Ints, words: dict[str, NDArray[np.unsignedinteger]]) -> Chains:
    """Return the chains of single bit flips at *where* on *inputs*: same site, element, input and direction.

    *words* are the golden words of every site. Flips to NaN have no direction, and are chains of their own.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (1,)),))
    >>> one = {"a": np.array([[1.0]], dtype=np.float32).view(np.uint32)}
    >>> found = chains(space, space.locate([30, 22, 23, 31, 24]), np.zeros(5, dtype=np.int64), one)
    >>> found.order.tolist(), found.first.tolist()
    ([3, 4, 2, 0, 1], [0, 3])
    """
    moved = deviations(space, where, inputs, words)
    direction = np.where(np.isnan(moved), 2 + np.arange(len(moved)), np.where(moved > 0, 1, 0))
    size = np.where(np.isnan(moved), 0.0, -np.abs(moved))
    order = np.lexsort((np.arange(len(moved)), -where.bit, size, direction, inputs, where.element, where.site))
    key = np.stack((where.site[order], where.element[order], inputs[order], direction[order])).astype(np.int64)
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (key[:, 1:] != key[:, :-1]).any(axis=0)
    first = np.flatnonzero(fresh)
    return Chains(order, first, first.copy(), np.append(first[1:], len(order)))


def deviations(
    space: FaultSpace, where: Locations, inputs: Ints, words: dict[str, NDArray[np.unsignedinteger]]
) -> NDArray[np.float64]:
    """Return by how much each flip changes the value of its word, exact but for the rounding of float64.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (1,)),))
    >>> one = {"a": np.array([[1.0]], dtype=np.float32).view(np.uint32)}
    >>> deviations(space, space.locate([22, 31]), np.zeros(2, dtype=np.int64), one).tolist()
    [0.5, -2.0]
    """
    from torchfault.words import flip_deltas

    moved = np.empty(len(where.site))
    for position in np.unique(where.site):
        here, site = where.site == position, space.sites[position]
        held = words[site.name]
        row = inputs[here] if len(held) > 1 else np.zeros(int(here.sum()), dtype=np.int64)
        moved[here] = flip_deltas(held[row, where.element[here]], site.word, bit=where.bit[here])
    return moved
