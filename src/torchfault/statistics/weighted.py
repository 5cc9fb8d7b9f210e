"""The score interval for draws that carry weights and come in strata: Wilson's where there is neither."""

from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from numpy.typing import NDArray

from torchfault.statistics.intervals import Floats, quantile

__all__ = ["Strata", "score_bounds"]

# A stratum's own variance counts with its draws less one, the largest that weighted 0/1 outcomes can have, w^2 / 4, as
# this many draws more: two trials that agree are no proof that all would. Of 1, 2 and 3 the first that held its level
# in simulation; what it adds is capped at the variance without strata.
_CAUTION = 3.0


@dataclass(frozen=True)
class Strata:
    """What an interval needs of weighted outcomes x = w y, per stratum: draws, sum of x, sum of x^2, largest w.

    >>> Strata.of_draws(np.array([2.0, 0.0, 1.0]), np.array([2.0, 2.0, 1.0]), np.array([0, 0, 1])).mean
    1.0
    """

    draws: Floats
    sums: Floats
    squares: Floats
    heaviest: Floats

    @classmethod
    def of_draws(cls, x: Floats, w: Floats, group: NDArray[np.int64]) -> "Strata":
        """Gather the draws of each stratum, strata being numbered from 0."""
        heaviest = np.zeros(int(group.max(initial=-1)) + 1)
        np.maximum.at(heaviest, group, w)
        count = len(heaviest)
        draws, sums, squares = (
            np.bincount(group, weights=v, minlength=count).astype(np.float64) for v in (np.ones_like(x), x, x * x)
        )
        return cls(draws, sums, squares, heaviest)

    @property
    def mean(self) -> float:
        """The mean of x over all draws; NaN without any."""
        return float(self.sums.sum() / self.draws.sum()) if self.draws.size else nan

    @property
    def variances(self) -> Floats:
        """The unbiased variance of x within each stratum; 0 for a single draw."""
        return _spread(self.draws, self.sums, self.squares) / np.maximum(self.draws - 1, 1)


def score_bounds(strata: Strata, *, heaviest: float, level: float) -> tuple[float, float]:
    """Return the score interval of the mean of w y for y of 0 and 1, the largest possible weight being *heaviest*.

    See :func:`torchfault.statistics.weighted_mean` for the derivation.

    >>> low, high = score_bounds(Strata(*np.array([[100.0], [12.0], [12.0], [1.0]])), heaviest=1.0, level=0.95)
    >>> round(low, 4), round(high, 4)
    (0.07, 0.1981)
    """
    n, mean = float(strata.draws.sum()), strata.mean
    if n == 0:
        return 0.0, 1.0
    z2, within = quantile(level) ** 2, _share_within(strata)
    total, square = float(strata.sums.sum()), float(strata.squares.sum())
    high = _upper_root(mean, square / n, heaviest, z2 / n, within)
    low = float(_lower_root(mean, square / total, z2 / n * within)) if square > 0 else 0.0
    if len(strata.draws) > 1 and square > 0:
        low = min(low, _lower_by_stratum(strata, z2, mean))
    # the truth is at most 1, but an interval holds its estimate, and the unbiased estimate may be above 1
    return min(max(low, 0.0), mean), max(min(high, 1.0), mean)


def _share_within(strata: Strata) -> float:
    """Return the share of the variance of w y that lies within strata: all that counts where their draws are fixed."""
    n = strata.draws.sum()
    whole = _spread(n, strata.sums.sum(), strata.squares.sum()) / max(n - 1, 1)
    if len(strata.draws) == 1 or whole <= 0:
        return 1.0
    own = strata.variances * np.maximum(strata.draws - 1, 0)
    cautious = (own + _CAUTION * np.square(strata.heaviest) / 4) / (np.maximum(strata.draws - 1, 0) + _CAUTION)
    inside = float(strata.draws @ cautious / n)
    return inside / whole if inside < whole else 1.0


def _lower_by_stratum(strata: Strata, z2: float, mean: float) -> float:
    """Return MOVER's lower bound: the strata's own lower distances, added as squares."""
    seen = strata.squares > 0
    draws, sums = strata.draws[seen], strata.sums[seen]
    own = sums / draws
    distance = own - _lower_root(own, strata.squares[seen] / sums, z2 / draws)
    return mean - float(np.sqrt(np.square(draws / strata.draws.sum() * distance).sum()))


def _upper_root(mean: float, square: float, heaviest: float, t: float, within: float) -> float:
    """Return the larger m with (m - mean)^2 = t (within (square - m^2) + (m - mean) heaviest)."""
    inside = t * heaviest**2 + 4 * within * (square - mean**2 + t * (within * square - mean * heaviest))
    return (2 * mean + t * heaviest + sqrt(max(t * inside, 0.0))) / (2 * (1 + t * within))


def _lower_root(mean: "Floats | float", reach: "Floats | float", t: "Floats | float") -> Floats:
    """Return the smaller m with (mean - m)^2 = t m (reach - m), for a mean above 0."""
    inside = np.maximum(t * (4 * mean * (reach - mean) + t * reach * reach), 0.0)
    larger = (2 * mean + t * reach + np.sqrt(inside)) / (2 * (1 + t))
    return np.asarray(mean * mean / ((1 + t) * larger))  # from the product of the roots: no cancellation


def _spread(n: "Floats | float", total: "Floats | float", square: "Floats | float") -> Floats:
    """Return the sum of squared deviations; never negative by rounding."""
    return np.maximum(square - total * total / np.maximum(n, 1), 0.0)
