"""Group testing: many faults that are expected to be harmless struck together in one lane, failing pools searched."""

from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray

from torchfault.resolve.block import Block

__all__ = ["Searched", "search"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# A pool tells most where it fails as often as not: that many failing faults are expected in it then, log 2.
_EXPECTED = 0.69


@dataclass(eq=False)
class Searched:
    """What a search tells of its faults: which *failing*, which *alone* had a lane of their own; *masked* pools."""

    failing: Bools
    alone: Bools
    masked: list[Ints] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Group:
    """Faults on one input, *guilty* where one of them must fail."""

    items: Ints
    guilty: bool


def search(items: Ints, inputs: Ints, words: Ints, rates: Floats, block: Block, *, pool: int) -> Searched:
    """Find which faults fail, pools of at most *pool* at a time; one fault is run alone before it is said to fail.

    *items* are rows of *block*; *inputs*, *words* (equal for faults of one word) and *rates* (the failing share
    expected) are theirs, all of shape (n,). A masked pool counts for all its members. Of a failing one the first half
    is struck: where it is masked the other half must fail, else the other half goes back to those that nothing is known
    of. Source: Dorfman, Annals of Mathematical Statistics 14, 1943; halving after Sobel & Groll, Bell System Technical
    Journal 38, 1959.
    """
    state = _Search(inputs, words, rates, pool, Searched(np.zeros(len(items), bool), np.zeros(len(items), bool)))
    bag, guilty = np.arange(len(items)), list[_Group]()
    while len(bag) or guilty:
        pools, bag = state.pools(bag)
        groups = [*guilty, *pools]
        struck = [state.first_half(group) if group.guilty else group.items for group in groups]
        failed = _struck(block, [items[part] for part in struck])
        guilty, back = [], [bag]
        for group, part, fails in zip(groups, struck, failed.tolist(), strict=True):
            state.note(part, fails)
            rest = group.items[len(part) :]
            if fails and len(part) > 1:
                guilty.append(_Group(part, True))
            if len(rest) and fails:
                back.append(rest)
            elif len(rest):
                guilty.append(_Group(rest, True))
        bag = np.sort(np.concatenate(back))
    return state.found


def _struck(block: Block, pools: list[Ints]) -> Bools:
    """Run one lane for each of *pools*; a pool of one fault is a trial like any other, whose verdicts are kept."""
    failed = np.zeros(len(pools), dtype=bool)
    single = np.array([len(pool) == 1 for pool in pools])
    alone = np.array([pool[0] for pool in pools], dtype=np.int64)[single]
    block.run_alone(alone)
    failed[single] = block.failed[alone]
    failed[~single] = block.strike_together([pool for pool in pools if len(pool) > 1])
    return failed


@dataclass(frozen=True, eq=False)
class _Search:
    """The faults of a search by position, and what was found so far."""

    inputs: Ints
    words: Ints
    rates: Floats
    pool: int
    found: Searched

    def note(self, part: Ints, fails: bool) -> None:
        """Take in the outcome of a lane that struck *part*."""
        if len(part) == 1:
            self.found.alone[part] = True
            self.found.failing[part] = fails
        elif not fails:
            self.found.masked.append(part)

    def first_half(self, group: _Group) -> Ints:
        """Return the first faults of a group, about half of what is expected to fail; a single one is struck alone."""
        if len(group.items) < 2:
            return group.items
        expected = np.cumsum(self.rates[group.items])
        half = int(np.searchsorted(expected, expected[-1] / 2)) + 1
        return group.items[: min(half, len(group.items) - 1)]

    def pools(self, bag: Ints) -> tuple[list[_Group], Ints]:
        """Part the faults in *bag* into pools; return those that wait too: of each word one takes part at a time."""
        if not len(bag):
            return [], bag
        order = bag[np.lexsort((self.rates[bag], self.words[bag], self.inputs[bag]))]
        key = np.stack((self.inputs[order], self.words[order]))
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = (key[:, 1:] != key[:, :-1]).any(axis=0)
        now, wait = order[fresh], order[~fresh]
        now = now[np.lexsort((now, self.rates[now], self.inputs[now]))]
        borders = np.flatnonzero(np.diff(self.inputs[now])) + 1
        groups = []
        for members in np.split(now, borders):
            count = max(ceil(self.rates[members].sum() / _EXPECTED), ceil(len(members) / self.pool))
            groups += [_Group(members[first::count], False) for first in range(count)]
        return groups, wait
