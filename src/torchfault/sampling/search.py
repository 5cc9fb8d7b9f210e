"""Search for critical faults: every fault at most once, in the order in which outcomes say that it will fail."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.sampling.design import Design, Strata
from torchfault.sampling.deviations import Words, word_classes
from torchfault.sampling.protocol import Draws, Population, stream
from torchfault.sampling.simple import distinct
from torchfault.sampling.tally import Tally
from torchfault.space import FaultSpace
from torchfault.store import Columns

__all__ = ["Search"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SIDE, SOUGHT = 0, 1  # the strata: the side sample, and what the search picks
_PRIOR = 0.01  # the failing share expected of faults of which nothing is known
_TRUST = 4.0  # what a larger group tells of a smaller one counts as so many trials of it
_BURST = 8  # faults of one cell in a block before the next best cell is looked at


@dataclass(frozen=True, eq=False)
class Search:
    """Find as many faults that fail as possible: a side sample first, then the cells that are likeliest to fail.

    A cell is a bit of a site, of one channel, or, with the golden *words* of all sites
    (:func:`torchfault.model.golden_words.golden_words`), of the words alike in sign and exponent. Each block of *block*
    faults goes to the cells that come out best in a draw from what is known of them (Thompson sampling): the outcomes
    of the cell, of its site and bit, and of its bit, each counting the more the fewer trials there are below it. No
    fault is struck twice, so that a long campaign covers the whole space and ends; *known* are numbers of faults left
    out, such as those that an earlier campaign found harmless. Each fault has one lane, on a random input.

    The first *side* faults are a random sample without replacement: they alone give estimates, also of the number of
    faults there are to be found (:func:`torchfault.results.recall`). Raises :class:`SamplingError` for
    numbers out of range. Source: Thompson, Biometrika 25, 1933.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (100,)),))
    >>> sampler = Search(side=64, block=64)
    >>> population = Population(space)
    >>> first = sampler.draw(population, 64, rng=np.random.default_rng(0), start=0)
    >>> tally, failed = Tally(space, sampler.design(population)), space.locate(first.index).bit == 30
    >>> tally.add(Columns(first.index, np.zeros(64, dtype=np.int64), {"failed": failed}, strata=first.stratum))
    >>> after = sampler.draw(population, 64, rng=np.random.default_rng(1), start=64, tally=tally)
    >>> bool((space.locate(after.index).bit == 30).mean() > 3 / 32), len(set(first.index) & set(after.index))
    (True, 0)
    """

    side: int = 2048
    block: int = 512
    words: Mapping[str, Words] | None = None
    known: tuple[int, ...] = ()
    seed: int = 0
    _cells: dict[str, "_Cells"] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.block < 1 or self.side < 1 or self.side % self.block or self.seed < 0:
            raise SamplingError(
                f"a side sample is whole blocks of one fault or more, got {self.side} in blocks of {self.block}; "
                "the usual ones are 2048 and 512"
            )

    def design(self, population: Population) -> Design:
        """Return two strata, of which the side sample alone tells of all faults."""
        space = _fault_space(population)
        size, none = len(space), np.full(2, -1)
        strata = Strata(np.array([SIDE, SOUGHT]), none, none, np.array([size, size]), np.array([1.0, 0.0]))
        total = size - len(self._known(space))
        return Design(
            strata, replacement=False, total=total, block=self.block, sample=(SIDE,), largest_weight=1.0, adapts=True
        )

    def _known(self, space: FaultSpace) -> Ints:
        known = np.unique(np.array(self.known, dtype=np.int64))
        if len(known) and not 0 <= known[0] <= known[-1] < len(space):
            raise SamplingError(f"known faults are numbers below {len(space)}, got {known[0]} to {known[-1]}")
        return known

    def cells(self, space: FaultSpace) -> "_Cells":
        """Return the cells of *space*: made once for each space."""
        key = space.digest()
        if key not in self._cells:
            self._cells.clear()
            self._cells[key] = _Cells(space, self)
        return self._cells[key]

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return the next block: of the side sample, or where the outcomes in *tally* say that faults will fail."""
        space = _fault_space(population)
        side = self._side(space)
        if start < len(side):
            sample = side[start : start + n]
            sought = n - len(sample)  # the last block of a small space
            if sought:
                raise SamplingError(
                    f"the side sample ends at {len(side)}, got {start} to {start + n}; draw whole blocks"
                )
            return Draws(sample, np.ones(n), np.full(n, SIDE, dtype=np.int32))
        if tally is None:
            raise SamplingError("a search goes by the outcomes of its side sample, got none; pass the tally")
        cells = self.cells(space)
        found = tally.follow(("search", id(self)), lambda: _Struck(cells, self._known(space)))
        mean, weight = cells.beliefs(found.trials, found.failures)
        score = np.where(found.struck < cells.size, rng.beta(mean * weight, (1 - mean) * weight), -1.0)
        return Draws(_next(cells, score, found, n), np.ones(n), np.full(n, SOUGHT, dtype=np.int32))

    def _side(self, space: FaultSpace) -> Ints:
        known, rng = self._known(space), stream(self.seed, 0)
        chosen = distinct(len(space) - len(known), min(self.side, len(space) - len(known)), rng)
        for one in known.tolist():  # numbers of those left, in order: each known one moves all from it on
            chosen += chosen >= one
        return rng.permutation(chosen)


def _fault_space(population: Population) -> FaultSpace:
    if not isinstance(population.space, FaultSpace) or not population.is_uniform:
        raise SamplingError("a search strikes words of sites, got another space or a measure; leave the measure out")
    return population.space


class _Struck:
    """What a search has done so far, by cell: *trials*, *failures*, and how many faults were *struck* or known."""

    def __init__(self, cells: "_Cells", known: Ints) -> None:
        self.cells = cells
        self.trials, self.failures = np.zeros((2, len(cells.size)), dtype=np.int64)
        self.struck = np.zeros(len(cells.size), dtype=np.int64)
        self.ranks: dict[int, Ints] = {}
        self._take(known)

    def add(self, columns: Columns) -> None:
        """Take in the next trials."""
        cell = self.cells.of(columns.faults)
        self.trials += np.bincount(cell, minlength=len(self.trials))
        self.failures += np.bincount(cell[columns.failed.astype(bool)], minlength=len(self.trials))
        self._take(columns.faults)

    def _take(self, faults: Ints) -> None:
        cell, rank = self.cells.of(faults), self.cells.rank(faults)
        self.struck += np.bincount(cell, minlength=len(self.struck))
        for one, ranks in zip(*_grouped(cell, rank), strict=True):
            held = self.ranks.get(one)
            self.ranks[one] = ranks if held is None else np.concatenate((held, ranks))


def _next(cells: "_Cells", score: Floats, found: _Struck, n: int) -> Ints:
    """Take faults from the best cells, some of each, and from the top again while they do not suffice."""
    order = np.argsort(-score, kind="stable")
    order = order[score[order] >= 0]
    left = (cells.size - found.struck)[order]
    burst = _BURST
    while np.minimum(left, burst).sum() < n:
        burst *= 4
    ends = np.cumsum(np.minimum(left, burst))
    chosen = order[: int(np.searchsorted(ends, n)) + 1]
    counts = np.minimum(left, burst)[: len(chosen)]
    counts[-1] -= ends[len(chosen) - 1] - n
    none = np.zeros(0, dtype=np.int64)
    parts = [
        cells.fault(one, _free(found.ranks.get(one, none), count))
        for one, count in zip(chosen.tolist(), counts.tolist(), strict=True)
    ]
    return np.concatenate(parts)


def _grouped(key: Ints, value: Ints) -> tuple[list[int], list[Ints]]:
    if not len(key):
        return [], []
    order = np.argsort(key, kind="stable")
    keys, first = np.unique(key[order], return_index=True)
    return keys.tolist(), np.split(value[order], first[1:])


def _free(taken: Ints, count: int) -> Ints:
    """Return the *count* smallest numbers from 0 up that are not *taken*."""
    return np.setdiff1d(np.arange(len(taken) + count), taken)[:count]


class _Cells:
    """The cells of a space: *size* in faults, and the *pair* of site and bit and the *bit* that each belongs to."""

    def __init__(self, space: FaultSpace, sampler: Search) -> None:
        self.space, self.seed = space, sampler.seed
        self.kinds = [_Kinds.of(space, s, sampler.words, seed=sampler.seed) for s in range(len(space.sites))]
        pairs = list(zip(space.sites, self.kinds, strict=True))
        bits = [np.tile(np.array(site.bits), len(kinds.size)) for site, kinds in pairs]
        sites = [np.full(len(part), s) for s, part in enumerate(bits)]
        self.size = np.concatenate([np.repeat(kinds.size, len(site.bits)) for site, kinds in pairs])
        self.first = np.concatenate(([0], np.cumsum([len(part) for part in bits])))
        self.bit = np.concatenate(bits).astype(np.int64)
        self.pair = np.concatenate(sites).astype(np.int64) * 64 + self.bit

    def of(self, faults: Ints) -> Ints:
        """Return the cell of each fault."""
        where = self.space.locate(faults)
        cell = np.empty(len(faults), dtype=np.int64)
        for s in np.unique(where.site):
            here, bits = where.site == s, np.array(self.space.sites[s].bits)
            kind = self.kinds[s].kind[where.element[here]]
            cell[here] = self.first[s] + kind * len(bits) + np.searchsorted(bits, where.bit[here])
        return cell

    def rank(self, faults: Ints) -> Ints:
        """Return at which place of the order of its cell each fault stands."""
        where = self.space.locate(faults)
        rank = np.empty(len(faults), dtype=np.int64)
        for s in np.unique(where.site):
            here = where.site == s
            rank[here] = self.kinds[s].place[where.element[here]]
        return rank

    def fault(self, cell: int, rank: Ints) -> Ints:
        """Return the faults at places *rank* of the order of *cell*."""
        s = int(np.searchsorted(self.first, cell, side="right")) - 1
        kind = (cell - int(self.first[s])) // len(self.space.sites[s].bits)
        element = self.kinds[s].element(kind, rank)
        return self.space.number(np.full(len(rank), s), element, np.full(len(rank), self.bit[cell]))

    def beliefs(self, trials: Ints, failures: Ints) -> tuple[Floats, Floats]:
        """Return the mean and the weight, in trials, of what is believed of each cell."""
        mean = np.full(len(self.size), _PRIOR)
        for group in (self.bit, self.pair, np.arange(len(self.size))):
            n, k = np.bincount(group, trials)[group], np.bincount(group, failures)[group]
            mean = (k + _TRUST * mean) / (n + _TRUST)
        return np.asarray(np.clip(mean, 1e-9, 1 - 1e-9), dtype=np.float64), np.asarray(trials + _TRUST)


@dataclass(frozen=True, eq=False)
class _Kinds:
    """The words of one site by kind: *kind* of each element, *place* within it in random order, *size* of each kind."""

    kind: Ints
    place: Ints
    size: Ints

    @classmethod
    def of(cls, space: FaultSpace, s: int, words: Mapping[str, Words] | None, *, seed: int) -> "_Kinds":
        """Return the kinds of a site: by its words where there is one of each, else by channel."""
        site = space.sites[s]
        element = np.arange(site.elements)
        where = space.locate(space.number(np.full(len(element), s), element, np.full(len(element), site.bits[0])))
        code = np.maximum(space.channels(where), 0)
        held = None if words is None else words.get(site.name)
        if held is not None and len(held) == 1:
            code = word_classes(site, held)[0][0].astype(np.int64)
        kind = np.unique(code, return_inverse=True)[1].reshape(-1)
        size = np.bincount(kind)
        order = np.lexsort((stream(seed, 1, s).random(len(element)), kind))
        place = np.empty(len(element), dtype=np.int64)
        place[order] = element - np.repeat(np.cumsum(size) - size, size)
        return cls(kind, place, size)

    @cached_property
    def _order(self) -> Ints:
        return np.lexsort((self.place, self.kind))

    def element(self, kind: int, place: Ints) -> Ints:
        """Return the elements at places of a kind."""
        return np.asarray(self._order[int(self.size[:kind].sum()) + place])
