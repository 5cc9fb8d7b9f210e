"""Monotone closure: flips of one word on one input in one direction, of which the smaller ones fail less."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    def probes(self) -> Ints:
        """Return the trial to look at next in each chain that is not settled.

        It is the largest, which most often settles it, then the next ones down in steps that double, and once one was
        masked the one in the middle of what is left.
        """
        open_ = np.flatnonzero(self.low < self.high)
        low, high, failing = self.low[open_], self.high[open_], (self.low - self.first)[open_]
        down = np.minimum(low + np.maximum(failing, 1) - 1, high - 1)
        ends = np.append(self.first[1:], len(self.order))
        return self.order[np.where(high == ends[open_], down, (low + high) // 2)]

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


def chains(word: Ints, inputs: Ints, change: NDArray[np.float64]) -> Chains:
    """Return the chains of flips: those of one *word* on one input in one direction, of shape (n,) each.

    *change* is what each flip adds to the value of its word. Flips to NaN have no direction, and are chains of their
    own; those that change no value, from 0 to -0, are smaller than all others, and masked as far as closure tells.

    >>> found = chains(np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.int64), np.array([0.5, -1.0, 2.0, np.nan]))
    >>> found.order.tolist(), found.first.tolist()
    ([1, 2, 0, 3], [0, 1, 3])
    """
    lost = np.isnan(change)
    direction = np.where(lost, 3 + np.arange(len(change)), np.sign(change) + 1)
    size = np.where(lost, 0.0, -np.abs(change))
    order = np.lexsort((np.arange(len(change)), size, direction, inputs, word))
    key = np.stack((word[order], inputs[order], direction[order]))
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (key[:, 1:] != key[:, :-1]).any(axis=0)
    first = np.flatnonzero(fresh)
    ends = np.append(first[1:], len(order))
    return Chains(order, first, first.copy(), np.where(change[order[first]] == 0, first, ends))
