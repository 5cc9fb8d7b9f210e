"""Learned importance: the outcomes so far tell how much a score is worth, and which sites and bits it misjudges."""

from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.sampling.draws import Draws, History
from torchfault.sampling.importance import Importance
from torchfault.sampling.scores import Score, score_of
from torchfault.space import FaultSpace, Locations, Site

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
    >>> draws = sampler.draw(space, 256, rng=np.random.default_rng(0))
    >>> past = History(draws.index, draws.stratum, space.locate(draws.index).bit == 31)
    >>> later = sampler.replan(space, past).draw(space, 256, rng=np.random.default_rng(1))
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

    def total(self, space: FaultSpace) -> int | None:
        """Return ``None``: draws are with replacement and never run out."""
        del space
        return None

    def largest_weight(self, space: FaultSpace) -> float:
        """Return the largest p / q of any draw: 1 / *floor*."""
        del space
        return 1 / self.floor

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return *n* trials of the first block."""
        return self._by(self.score).draw(space, n, rng=rng, start=start)

    def replan(self, space: FaultSpace, history: History) -> Importance:
        """Return the sampler of the block that follows *history*."""
        blocks = len(history) // self.block
        if not blocks:
            return self._by(self.score)
        fitted = fit(self.score, space, history.take(self.block << (blocks.bit_length() - 1)), power=0.5)
        return self._by(fitted or self.score)

    def finished(self, space: FaultSpace, history: History) -> str | None:
        """Return ``None``: a rule of the campaign decides when it is enough."""
        del space, history
        return None

    def _by(self, score: Score) -> Importance:
        return Importance(score, floor=self.floor, block=self.block)


def fit(score: Score, space: FaultSpace, history: History, *, power: float = 1.0) -> Fitted | None:
    """Return the regression of the outcomes in *history* on *score*, site and bit, ``None`` where all are alike."""
    from sklearn.linear_model import LogisticRegression

    if history.failed.all() or not history.failed.any():
        return None
    where = space.locate(history.faults)
    logarithm = np.log(np.maximum(score_of(score, space, history.faults), _LEAST))
    bits = max(site.width for site in space.sites)
    features = _features(where, logarithm, len(space.sites), bits)
    model = LogisticRegression(C=1.0, max_iter=2000).fit(features, history.failed)
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
