"""Learned importance: the outcomes so far tell how much a score is worth, and which sites and bits it misjudges."""

from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.sampling.design import Design, Strata
from torchfault.sampling.importance import Importance
from torchfault.sampling.protocol import Draws, Population
from torchfault.sampling.scores import Score, score_of
from torchfault.sampling.tally import Tally
from torchfault.space import FaultSpace, Locations, Site
from torchfault.store import Columns

__all__ = ["Fitted", "Learned"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LEAST = 1e-9  # scores below it, 0 among them, count as it: their logarithm is finite


@dataclass(frozen=True, eq=False)
class Fitted(Score):
    """A failure probability by logistic regression on another score's logarithm, the site and the bit.

    sigmoid(*constant* + *slope* log(score) + *by_site* + *by_bit*): *by_site* maps names to numbers, *by_bit* holds one
    for each bit of the widest word. Its square root serves as a proposal: draws that fail with probability p are best
    made in proportion to sqrt(p). Raises :class:`SamplingError` for a site without a number.

    >>> site = Site("a", (1,), bits=(30, 31))
    >>> from torchfault.sampling.scores import Table
    >>> Fitted(Table({"a": np.array([[1.0, 1.0]])}), 0.0, 1.0, {"a": 0.0}, np.zeros(32)).rows(site, np.array([0]))
    array([[0.5, 0.5]])
    """

    score: Score
    constant: float
    slope: float
    by_site: dict[str, float]
    by_bit: Floats
    power: float = 1.0

    def rows(self, site: Site, elements: Ints) -> Floats:
        """Return the probability, or its power, of all bits of some elements, shape (n, bits)."""
        if site.name not in self.by_site:
            raise SamplingError(f"a fit has numbers for its own sites, got none for '{site.name}'; fit it anew")
        raised = self.constant + self.by_site[site.name] + self.by_bit[list(site.bits)]
        logarithm = np.log(np.maximum(self.score.rows(site, elements), _LEAST))
        return np.asarray((1 / (1 + np.exp(-np.clip(raised + self.slope * logarithm, -40, 40)))) ** self.power)


@dataclass(frozen=True, eq=False)
class Learned:
    """Draw by a *score* first, and then by what a regression on the outcomes so far makes of it.

    The first block is :class:`Importance` by the score alone. At 1, 2, 4, 8, ... blocks a logistic regression of the
    outcomes on the score's logarithm, the site and the bit (:class:`Fitted`) is fitted to all of them; later blocks are
    drawn in proportion to the square root of its probabilities. A share *floor* of every block is uniform. The proposal
    of a block depends on outcomes before it alone, so that weighted draws stay unbiased whatever the regression makes
    of them; a score that says nothing is found out. It never ends by itself: give the campaign a rule.

    Raises :class:`SamplingError` for a floor that is not above 0, or an empty block.

    >>> from torchfault.sampling.scores import Table
    >>> space = FaultSpace((Site("a", (8,), bits=(30, 31)),))
    >>> sampler = Learned(Table({"a": np.ones((8, 2))}), floor=0.1, block=256)
    >>> population = Population(space)
    >>> tally = Tally(space, sampler.design(population))
    >>> draws = sampler.draw(population, 256, rng=np.random.default_rng(0), start=0)
    >>> failed = space.locate(draws.index).bit == 31
    >>> tally.add(Columns(draws.index, np.zeros(256, dtype=np.int64), {"failed": failed}))
    >>> later = sampler.draw(population, 256, rng=np.random.default_rng(1), start=256, tally=tally)
    >>> bool((space.locate(later.index).bit == 31).mean() > 0.6)
    True
    """

    score: Score
    _: KW_ONLY
    floor: float = 0.5
    block: int = 1024

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1 or self.block < 1:
            raise SamplingError(
                f"a floor is above 0, at most 1, and a block has a trial or more, got {self.floor} and {self.block}: "
                "what was learnt from few outcomes may be wrong"
            )

    @cached_property
    def _first(self) -> Importance:
        """What draws by the score alone, the same for all blocks: it knows the whole space."""
        return Importance(self.score, floor=self.floor, block=self.block)

    def design(self, population: Population) -> Design:
        """Return one stratum, drawn from without end by weights up to 1 / *floor*."""
        return Design(Strata.one(len(population.space)), block=self.block, largest_weight=1 / self.floor, adapts=True)

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return the block that begins at *start*, by what a regression makes of the outcomes in *tally*."""
        sampler = self._first
        if tally is not None and (blocks := start // self.block):
            trials = self.block << (blocks.bit_length() - 1)
            assert isinstance(population.space, FaultSpace)
            space = population.space
            sampler = tally.follow(("learned", id(self)), lambda: _Fits(self._first, space)).by(trials)
        return sampler.draw(population, n, rng=rng, start=start)


class _Fits:
    """What is drawn by after each power of two of a campaign's blocks: scores that are fitted, or the *first* one."""

    def __init__(self, first: Importance, space: FaultSpace) -> None:
        self.first, self.space = first, space
        self._columns, self._trials, self._last = Columns.empty(), 0, first

    def add(self, columns: Columns) -> None:
        """Take in the next trials."""
        self._columns = Columns.join([self._columns, columns])

    def by(self, trials: int) -> Importance:
        """Return the sampler by the fit to the first so many trials, the first where their outcomes are all alike.

        The last one is kept, with what it knows of the whole space, until another is due.
        """
        if trials != self._trials:
            score = fit(self.first.score, self.space, self._columns.take(0, trials), power=0.5)
            self._trials, self._last = trials, self.first if score is None else replace(self.first, score=score)
        return self._last


def fit(score: Score, space: FaultSpace, columns: Columns, *, power: float = 1.0) -> Fitted | None:
    """Return the regression of the outcomes in *columns* on *score*, site and bit, ``None`` where all are alike."""
    from sklearn.linear_model import LogisticRegression

    if columns.failed.all() or not columns.failed.any():
        return None
    where = space.locate(columns.faults)
    logarithm = np.log(np.maximum(score_of(score, space, columns.faults), _LEAST))
    bits = max(site.width for site in space.sites)
    features = _features(where, logarithm, len(space.sites), bits)
    model = LogisticRegression(C=1.0, max_iter=2000).fit(features, columns.failed)
    found = model.coef_[0]
    by_site = dict(zip(space.names, found[1 : 1 + len(space.sites)].tolist(), strict=True))
    return Fitted(score, float(model.intercept_[0]), float(found[0]), by_site, found[1 + len(space.sites) :], power)


def _features(where: Locations, logarithm: Floats, sites: int, bits: int) -> Floats:
    rows = np.arange(len(logarithm))
    features = np.zeros((len(rows), 1 + sites + bits))
    features[:, 0] = logarithm
    features[rows, 1 + where.site] = 1
    features[rows, 1 + sites + where.bit] = 1
    return features
