"""Importance sampling: faults in proportion to a score, mixed with uniform ones, each with its exact weight."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import SamplingError, did_you_mean
from torchfault.measures import draw, probability
from torchfault.sampling.design import Design, Strata
from torchfault.sampling.protocol import Draws, Population
from torchfault.sampling.scores import Score, runs, score_of
from torchfault.sampling.tally import Tally
from torchfault.space import FaultSpace

__all__ = ["SHARES", "Importance", "Shares"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Shares = Literal["score", "size", "equal"]
SHARES: tuple[str, ...] = get_args(Shares)


@dataclass(frozen=True, eq=False)
class Importance:
    """Draw faults in proportion to *score*, and a share *floor* of them by the measure (uniformly, unless told).

    With q the probability of a fault under this mixture and p its own, a draw weighs p / q, exactly, and 1 / *floor*
    at most. Whatever the score, the weighted mean is unbiased: a good score makes it narrow, and a bad one
    costs the draws that it wastes, at most as if only *floor* of them had been made.

    *shares* says how the draws by score are split over the sites: by the sum of their ``score``, by their ``size``, or
    ``equal`` as ISimDL has it; the score then counts within each site alone. *threshold* is ISimDL's: such a share of
    these draws strikes an element at random within its site, and a bit by the score's bits given that element.

    With *floor* 0 faults of score 0 are never drawn (unless *threshold* reaches them), and then the estimate is of
    those that are: :meth:`support` says how many. The space is never listed: each site is searched by the running sum
    over its elements, and bits are scored for the elements that were drawn. Raises :class:`SamplingError` for shares or
    a floor that cannot be, and a score that is 0 everywhere. Source: Colucci, Steininger & Shafique, "ISimDL", arXiv
    2303.08035, 2023, for the proposal; Hesterberg, Technometrics 37, 1995, for the defensive mixture.

    >>> from torchfault.sampling import Sensitivity
    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (1000,)),))
    >>> score = Sensitivity({"a": np.arange(1000.0)}, bits="exponential")
    >>> draws = Importance(score).draw(Population(space), 1000, rng=np.random.default_rng(0), start=0)
    >>> bool(draws.weight.max() <= 2), bool(np.mean(space.locate(draws.index).bit == 31) > 0.2)
    (True, True)
    """

    score: Score
    _: KW_ONLY
    floor: float = 0.5
    shares: Shares = "score"
    threshold: float = 0.0
    block: int = 4096

    def __post_init__(self) -> None:
        if self.shares not in SHARES:
            near = did_you_mean(self.shares, SHARES)
            raise SamplingError(f"shares are by {', '.join(SHARES)}, got '{self.shares}'{near}; name one of them")
        if not (0 <= self.floor <= 1 and 0 <= self.threshold <= 1) or self.block < 1:
            raise SamplingError(
                f"floor and threshold are shares from 0 to 1 and a block has a trial or more, got {self.floor}, "
                f"{self.threshold} and {self.block}; the usual floor is 0.5"
            )

    def design(self, population: Population) -> Design:
        """Return one stratum, drawn from without end by weights up to 1 / *floor*."""
        space, largest, reach = _fault_space(population), None, 1.0
        if self.floor > 0:
            largest = 1 / self.floor
        elif population.is_uniform:
            count, least = self._drawn(space)
            largest, reach = 1 / (len(space) * least), count / len(space)
        elif self.support(space) < 1:
            raise SamplingError(
                "what a measure gives the faults that a score never draws stays unknown, got a score of 0 for some and "
                "floor=0; give it floor=0.5"
            )
        return Design(Strata.one(len(space)), block=self.block, largest_weight=largest, reach=reach)

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return *n* trials with weights p / q; *start* and *tally* do not matter, since they are independent."""
        del start, tally
        space, measure = _fault_space(population), population.measure
        plain = population.is_uniform
        index = rng.integers(0, len(space), size=n, dtype=np.int64) if plain else draw(measure, space, n, rng=rng)
        scored = rng.random(n) >= self.floor
        at = rng.random((4, n))
        if scored.any():
            index[scored] = _Ladder.of(self, space).pick(at[:, scored])
        p = np.full(n, 1 / len(space)) if plain else probability(measure, space, index)
        weight = p / self.density(population, index)
        # a weight that is 1 but for rounding would cost the estimate its plain interval
        weight[np.isclose(weight, 1.0, rtol=1e-12, atol=0)] = 1.0
        return Draws(index, weight, np.zeros(n, dtype=np.int32))

    def density(self, population: Population, index: ArrayLike) -> Floats:
        """Return the probability q with which one draw is each fault of *index*, shape (n,)."""
        space = _fault_space(population)
        q = np.zeros(np.size(index)) if self.floor == 1 else _Ladder.of(self, space).density(index)
        p = 1 / len(space) if population.is_uniform else probability(population.measure, space, index)
        return np.asarray(self.floor * p + (1 - self.floor) * q)

    def support(self, space: FaultSpace) -> float:
        """Return the share of the faults of *space* that can be drawn: 1 unless *floor* is 0.

        >>> from torchfault.sampling import Sensitivity
        >>> from torchfault.space import Site
        >>> space = FaultSpace((Site("a", (4,)),))
        >>> Importance(Sensitivity({"a": [0, 1, 1, 2]}), floor=0).support(space)
        0.75
        """
        return 1.0 if self.floor > 0 else self._drawn(space)[0] / len(space)

    def _drawn(self, space: FaultSpace) -> tuple[int, float]:
        """Return how many faults can be drawn by their scores, and the least probability among them."""
        ladder, count, least = _Ladder.of(self, space), 0, 1.0
        for position, site in enumerate(space.sites):
            for elements in runs(site) if ladder.shares[position] > 0 else ():
                q = ladder.blend(position, self.score.rows(site, elements))
                reached = q[q > 0]
                count, least = count + reached.size, min(least, float(reached.min(initial=1.0)))
        return count, least


def _fault_space(population: Population) -> FaultSpace:
    if not isinstance(population.space, FaultSpace):
        raise SamplingError(
            f"scores are of the elements and bits of sites, got a {type(population.space).__name__}; use Uniform()"
        )
    return population.space


@dataclass(frozen=True, eq=False)
class _Ladder:
    """What draws by a score need of a space: each site's *shares*, and the running sum over its elements."""

    score: Score  # of the sampler, which it must not hold: ladders last as long as their samplers
    threshold: float
    space: FaultSpace
    shares: Floats
    sums: tuple[Floats, ...]

    @classmethod
    def of(cls, sampler: Importance, space: FaultSpace) -> "_Ladder":
        """Return the ladder, made once for each space."""
        kept = _LADDERS.setdefault(sampler, {})
        key = space.digest()
        if key not in kept:
            kept.clear()  # a campaign has one space, and a ladder is as large as the network
            kept[key] = cls._made(sampler, space)
        return kept[key]

    @classmethod
    def _made(cls, sampler: Importance, space: FaultSpace) -> "_Ladder":
        sums = tuple(np.cumsum(sampler.score.totals(site)) for site in space.sites)
        totals = np.array([column[-1] if len(column) else 0.0 for column in sums])
        if not (np.isfinite(totals).all() and totals.sum() > 0):
            raise SamplingError(
                f"a score is finite and above 0 for some fault, got a sum of {totals.sum():g}; check what it comes from"
            )
        shares = {"score": totals, "size": space.sizes.astype(np.float64), "equal": np.ones(len(totals))}
        share = np.where(totals > 0, shares[sampler.shares], 0.0)
        return cls(sampler.score, sampler.threshold, space, share / share.sum(), sums)

    def pick(self, at: Floats) -> Ints:
        """Return one fault number for each column of *at*, four numbers from 0 to 1: site, element, bit and mixture."""
        site = _rung(np.cumsum(self.shares), at[0])
        element, bit = np.zeros(len(site), dtype=np.int64), np.zeros(len(site), dtype=np.int64)
        for position in np.unique(site):
            here, one = np.flatnonzero(site == position), self.space.sites[position]
            element[here] = _rung(self.sums[position], at[1, here])
            free = here[at[3, here] < self.threshold]
            element[free] = np.minimum((at[1, free] * one.elements).astype(np.int64), one.elements - 1)
            rows = _filled(self.score.rows(one, element[here]))
            steps = np.cumsum(rows, axis=1)
            bit[here] = np.asarray(one.bits)[_rungs(steps, at[2, here])]
        return self.space.number(site, element, bit)

    def density(self, index: ArrayLike) -> Floats:
        """Return the probability of each fault number under draws by the score alone, shape (n,)."""
        where = self.space.locate(index)
        if not self.threshold:
            totals = np.array([column[-1] if len(column) else 1.0 for column in self.sums])
            scale = self.shares / np.where(totals > 0, totals, 1.0)
            return np.asarray(score_of(self.score, self.space, index) * scale[where.site])
        q = np.zeros(len(where.site))
        for position in np.unique(where.site):
            here, one = np.flatnonzero(where.site == position), self.space.sites[position]
            rows = self.blend(int(position), self.score.rows(one, where.element[here]))
            q[here] = rows[np.arange(len(here)), np.searchsorted(one.bits, where.bit[here])]
        return q

    def blend(self, position: int, rows: Floats) -> Floats:
        """Return the probabilities of elements' bits, (n, bits), from their scores: by score, and at random."""
        total = self.sums[position][-1]
        if not self.shares[position]:
            return np.zeros_like(rows)
        t, own = self.threshold, _filled(rows)
        free = own / own.sum(axis=1, keepdims=True) / self.space.sites[position].elements
        return np.asarray(self.shares[position] * ((1 - t) * rows / total + t * free))


_LADDERS: "WeakKeyDictionary[Importance, dict[str, _Ladder]]" = WeakKeyDictionary()


def _rung(sums: Floats, at: Floats) -> Ints:
    """Return the first step of running *sums* beyond each share *at* of the last; never one that adds nothing."""
    found = np.searchsorted(sums, at * sums[-1], side="right")
    return np.asarray(np.minimum(found, np.searchsorted(sums, sums[-1], side="left")))


def _rungs(steps: Floats, at: Floats) -> Ints:
    """Return the same for one row of running sums each."""
    beyond = (steps <= (at * steps[:, -1])[:, None]).sum(axis=1)
    return np.asarray(np.minimum(beyond, (steps < steps[:, -1:]).sum(axis=1)))


def _filled(rows: Floats) -> Floats:
    """Return *rows* with ones in those that are all 0: an element without a score, struck at random, has any bit."""
    return np.where(rows.sum(axis=1, keepdims=True) > 0, rows, 1.0)
