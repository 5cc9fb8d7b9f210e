"""The interval for draws that carry weights and come in strata: Clopper-Pearson's where there is neither."""

from dataclasses import dataclass
from math import inf, nan

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainccinv, betaincinv, gammainccinv, gammaincinv

from torchfault.errors import StatisticsError
from torchfault.statistics.intervals import Floats, quantile

__all__ = ["Strata", "beta_bounds", "check_draws", "check_weights", "ratio_bounds", "share_within", "vector"]

# A stratum's own variance counts with its draws less one, the largest that weighted 0/1 outcomes can have, w^2 / 4, as
# this many draws more: two trials that agree are no proof that all would. Of 1, 2 and 3 the first that held its level
# in simulation; what it adds is capped at the variance without strata.
_CAUTION = 3.0
_VAST = 1e100  # draws, of weights as small: SciPy's inverses of the beta distribution end in NaN from 1e140 on


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


def beta_bounds(strata: Strata, *, heaviest: float, level: float) -> tuple[float, float]:
    """Return the interval of the mean of w y for y of 0 and 1, the largest possible weight being *heaviest*.

    See :func:`torchfault.statistics.weighted_mean` for the derivation.

    >>> low, high = beta_bounds(Strata(*np.array([[100.0], [12.0], [12.0], [1.0]])), heaviest=1.0, level=0.95)
    >>> round(low, 4), round(high, 4)
    (0.0636, 0.2002)
    """
    n, mean = float(strata.draws.sum()), strata.mean
    if n == 0:
        return 0.0, 1.0
    tail, within = (1 - level) / 2, share_within(strata)
    square, low, high = float(strata.squares.sum()) / n, 0.0, 1.0
    if 0 < mean < 1:
        draws = _draws_worth(mean, square, within) * n
        low = _beta_below(mean * draws, draws * (1 - mean) + 1, tail) if draws < inf else mean
    elif mean >= 1:
        low = tail ** (1 / n)
    if mean > 0 and len(strata.draws) > 1:
        low = min(low, _lower_by_stratum(strata, quantile(level) ** 2, mean))
    more = mean + heaviest / n  # one failure more, of the heaviest kind
    if more < 1:
        draws = _draws_worth(more, square + heaviest**2 / n, within) * n
        high = _beta_above(more * draws, draws * (1 - more) + 1, tail) if draws < inf else more
    elif mean < 1 and heaviest < 1 + 1e-9:  # all weights are 1, and all draws but one failed
        high = (1 - tail) ** (1 / n)
    # the truth is at most 1, but an interval holds its estimate, and the unbiased estimate may be above 1
    return min(low, mean), max(high, mean)


def ratio_bounds(y: Floats, w: Floats, *, heaviest: float, level: float) -> tuple[float, float]:
    """Return the interval of E[w y] / E[w] for y of 0 and 1, the largest possible weight being *heaviest*.

    Each bound is that of a beta distribution which has the mean and, by linearisation, the variance of sum w y / sum w
    with one draw more of the heaviest kind: one that fails for the upper bound, and one that does not for the lower.
    With equal weights it is Clopper & Pearson's.

    >>> low, high = ratio_bounds(np.repeat([1.0, 0.0], [12, 88]), np.ones(100), heaviest=1.0, level=0.95)
    >>> round(low, 4), round(high, 4)
    (0.0636, 0.2002)
    """
    tail, bounds = (1 - level) / 2, []
    for more in (0.0, 1.0):
        outcome, weight = np.append(y, more), np.append(w, heaviest)
        whole = float(weight.sum())
        share = float(weight @ outcome) / whole
        if not 0 < share < 1:
            bounds.append(share)
            continue
        draws = share * (1 - share) * whole**2 / float(np.square(weight) @ np.square(outcome - share))
        inverse = _beta_above if more else _beta_below
        bounds.append(inverse(share * draws, (1 - share) * draws, tail))
    value = float(w @ y) / float(w.sum())
    return min(bounds[0], value), max(bounds[1], value)


def _beta_below(a: float, b: float, tail: float) -> float:
    """Return the point below which *tail* of a beta distribution lies; of a vast *b* that of its limit, a gamma one."""
    return float(betaincinv(a, b, tail) if b < _VAST else gammaincinv(a, tail) / b)


def _beta_above(a: float, b: float, tail: float) -> float:
    """Return the point above which *tail* of a beta distribution lies; of a vast *b* that of its limit, a gamma one."""
    return float(betainccinv(a, b, tail) if b < _VAST else gammainccinv(a, tail) / b)


def _draws_worth(mean: float, square: float, within: float) -> float:
    """Return how many equally weighted draws one is worth, given E[x] and E[x^2]; no end where x does not vary."""
    variance = within * (square - mean**2)
    return mean * (1 - mean) / variance if variance > 0 else inf


def share_within(strata: Strata) -> float:
    """Return the share of the variance of w y that lies within strata: all that counts where their draws are fixed.

    >>> alike = Strata.of_draws(np.repeat([0.0, 1.0], 500), np.ones(1000), np.repeat([0, 1], 500))
    >>> round(share_within(alike), 4)
    0.006
    """
    n = strata.draws.sum()
    whole = _spread(n, strata.sums.sum(), strata.squares.sum()) / max(n - 1, 1)
    if len(strata.draws) == 1 or whole <= 0:
        return 1.0
    own = strata.variances * np.maximum(strata.draws - 1, 0)
    cautious = (own + _CAUTION * np.square(strata.heaviest) / 4) / (np.maximum(strata.draws - 1, 0) + _CAUTION)
    inside = float(strata.draws @ cautious / n)
    return inside / float(whole) if inside < whole else 1.0


def _lower_by_stratum(strata: Strata, z2: float, mean: float) -> float:
    """Return MOVER's lower bound: the strata's own lower distances, added as squares."""
    seen = strata.squares > 0
    draws, sums = strata.draws[seen], strata.sums[seen]
    own = sums / draws
    distance = own - _lower_root(own, strata.squares[seen] / sums, z2 / draws)
    return mean - float(np.sqrt(np.square(draws / strata.draws.sum() * distance).sum()))


def _lower_root(mean: Floats, reach: Floats, t: Floats) -> Floats:
    """Return the score bound, the smaller m with (mean - m)^2 = t m (reach - m), for a mean above 0."""
    inside = np.maximum(t * (4 * mean * (reach - mean) + t * reach * reach), 0.0)
    larger = (2 * mean + t * reach + np.sqrt(inside)) / (2 * (1 + t))
    return np.asarray(mean * mean / ((1 + t) * larger))  # from the product of the roots: no cancellation


def _spread(n: "Floats | float", total: "Floats | float", square: "Floats | float") -> Floats:
    """Return the sum of squared deviations; never negative by rounding."""
    return np.maximum(square - total * total / np.maximum(n, 1), 0.0)


def check_draws(
    values: ArrayLike, weights: ArrayLike, stratum: ArrayLike | None, *, largest_weight: float | None, ratio: bool
) -> tuple[Floats, Floats, NDArray[np.int64], float]:
    """Return values, weights, strata numbered from 0, and the largest weight; weights average 1 for a *ratio*.

    >>> check_draws([0, 1], [2.0, 2.0], ["b", "a"], largest_weight=None, ratio=True)
    (array([0., 1.]), array([1., 1.]), array([1, 0]), 1.0)
    """
    y, w = vector(values, "values"), check_weights(weights)
    group = np.zeros(len(y), dtype=np.int64) if stratum is None else np.asarray(stratum)
    if not len(y) == len(w) == group.size or group.ndim != 1:
        raise StatisticsError(
            f"values, weights and strata go together one to one, got {len(y)}, {len(w)} and {group.size}; "
            "pass those of the same draws"
        )
    heaviest = float(w.max(initial=0.0)) if largest_weight is None else largest_weight
    if not (w.max(initial=0.0) <= heaviest < inf):
        raise StatisticsError(
            f"largest_weight is finite and bounds all weights, got {heaviest} for weights up to {w.max(initial=0.0)}; "
            "pass the sampler's bound, or none"
        )
    if ratio and w.size:
        average = float(w.mean() if np.ptp(w) else w[0])  # all alike, they are 1, not 1 but for rounding
        heaviest, w = heaviest / average, w / average
    return y, w, np.unique(group, return_inverse=True)[1], heaviest


def check_weights(weights: ArrayLike) -> Floats:
    """Return *weights* as an array, or raise :class:`StatisticsError` where they are no p / q.

    >>> check_weights([0, 2])
    array([0., 2.])
    """
    w = vector(weights, "weights")
    if w.size and not (w.min() >= 0 and w.max() > 0):
        raise StatisticsError(
            f"weights p/q are not negative and not all 0, got {w.min():g} to {w.max():g}; check the sampler"
        )
    return w


def vector(values: ArrayLike, name: str) -> Floats:
    """Return *values* as an array of one axis, or raise :class:`StatisticsError` where they are no finite numbers.

    >>> vector([1, 2], "values")
    array([1., 2.])
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise StatisticsError(f"{name} are a sequence of numbers, got {error}; pass one number per draw") from error
    if vector.ndim != 1 or not np.all(np.isfinite(vector)):
        got = f"shape {vector.shape}" if vector.ndim != 1 else "NaN or infinity among them"
        raise StatisticsError(f"{name} are finite numbers in one dimension, got {got}; pass one number per draw")
    return vector
