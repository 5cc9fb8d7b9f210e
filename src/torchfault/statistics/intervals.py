"""Confidence intervals for a failure proportion, from counts, vectorised, with or without a finite population."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainccinv, betaincinv, ndtri  # scipy.stats takes 0.4 s more to import

from torchfault.errors import StatisticsError, did_you_mean

__all__ = [
    "INTERVALS",
    "Bounds",
    "IntervalFunction",
    "check_level",
    "clopper_pearson",
    "find_interval",
    "jeffreys",
    "quantile",
    "variance_left",
    "wilson",
]

Floats: TypeAlias = NDArray[np.float64]
Bounds: TypeAlias = tuple[Floats, Floats]

# Below this sampled share a sample without replacement is taken as one with: the interval is wider by at most about
# half this share, and the hypergeometric sums, slow and inexact for huge populations, are avoided.
_NEGLIGIBLE_SHARE = 1e-4
_SLACK = 1e-6  # of one fault: 29 / 100 * 100 is a little less than 29


class IntervalFunction(Protocol):
    """The signature that every entry of :data:`INTERVALS` has."""

    def __call__(
        self, failures: ArrayLike, trials: ArrayLike, *, level: float = ..., population: ArrayLike | None = ...
    ) -> Bounds:
        """Return the lower and the upper bounds."""
        ...


def wilson(
    failures: ArrayLike, trials: ArrayLike, *, level: float = 0.95, population: ArrayLike | None = None
) -> Bounds:
    """Return the Wilson score interval of a proportion: the default, near its level on average even for rare events.

    *failures* and *trials* broadcast together and may be fractional (effective counts); both bounds have their shape.
    Without trials the interval is (0, 1). *population* is the number of faults that the trials were drawn from
    without replacement: the variance shrinks by (N - n) / (N - 1), that is, trials count as n (N - 1) / (N - n)
    (Cochran, Sampling Techniques, 3rd ed. 1977, theorem 3.2, as an effective sample size after Korn & Graubard,
    Survey Methodology 24, 1998), and the bounds are rounded outward to what such a population can hold, multiples of
    1 / N between k / N and (N - n + k) / N. Raises :class:`StatisticsError` for impossible counts or levels. Source:
    Wilson, JASA 22, 1927.

    >>> low, high = wilson([0, 12], [100, 1000])
    >>> low.round(4), high.round(4)
    (array([0.    , 0.0069]), array([0.037 , 0.0209]))
    >>> [float(bound) for bound in wilson(12, 1000, population=1000)]
    [0.012, 0.012]
    """
    k, n, size = _counts(failures, trials, level, population)
    with np.errstate(divide="ignore", invalid="ignore"):
        p, t = k / n, quantile(level) ** 2 / n * variance_left(n, size)
        high = (p + t / 2 + np.sqrt(t * p * (1 - p) + t * t / 4)) / (1 + t)
        low = p * p / ((1 + t) * high)  # the product of the roots is p^2 / (1 + t): no cancellation for rare events
    return _settle(low, high, k, n, size)


def clopper_pearson(
    failures: ArrayLike, trials: ArrayLike, *, level: float = 0.95, population: ArrayLike | None = None
) -> Bounds:
    """Return the Clopper-Pearson interval of a proportion: never below its level, wider than the others for it.

    *failures* and *trials* broadcast together and may be fractional (effective counts); both bounds have their shape.
    Without trials the interval is (0, 1). *population* is the number of faults that the trials were drawn from
    without replacement: both tails are then those of the hypergeometric distribution (Buonaccorsi, The American
    Statistician 41, 1987), which needs whole counts; where the sample is less than 1/10,000 of the population, the
    binomial interval stands in, being slightly wider. Raises :class:`StatisticsError` for impossible counts or
    levels. Source: Clopper & Pearson, Biometrika 26, 1934.

    >>> low, high = clopper_pearson([0, 12], [100, 1000])
    >>> low.round(4), high.round(4)
    (array([0.    , 0.0062]), array([0.0362, 0.0209]))
    >>> [float(bound) for bound in clopper_pearson(2, 90, population=100)]
    [0.02, 0.04]
    """
    k, n, size = _counts(failures, trials, level, population)
    tail = (1 - level) / 2
    low, high = _array(betaincinv(k, n - k + 1, tail)), _array(betainccinv(k + 1, n - k, tail))
    if size is None:
        return _settle(low, high, k, n, size)
    if np.any((k != np.floor(k)) | (n != np.floor(n)) | (size != np.floor(size))):
        raise StatisticsError(
            "clopper_pearson with a population needs whole counts, got fractional ones; use wilson for effective counts"
        )
    exact = (n >= _NEGLIGIBLE_SHARE * size) & (n > 0)
    high[exact] = _most_failing(k[exact], n[exact], size[exact], tail) / size[exact]
    low[exact] = 1 - _most_failing((n - k)[exact], n[exact], size[exact], tail) / size[exact]
    return _settle(low, high, k, n, size)


def jeffreys(
    failures: ArrayLike, trials: ArrayLike, *, level: float = 0.95, population: ArrayLike | None = None
) -> Bounds:
    """Return the equal-tailed Jeffreys interval of a proportion: quantiles of Beta(k + 1/2, n - k + 1/2).

    The lower bound is 0 without failures and the upper one 1 without successes (Brown, Cai & DasGupta, Statistical
    Science 16, 2001, section 4.1.2). *failures* and *trials* broadcast together and may be fractional (effective
    counts); both bounds have their shape. Without trials the interval is (0, 1). *population*: as in :func:`wilson`.
    Raises :class:`StatisticsError` for impossible counts or levels.

    >>> low, high = jeffreys([0, 12], [100, 1000])
    >>> low.round(4), high.round(4)
    (array([0.    , 0.0066]), array([0.0247, 0.0202]))
    """
    k, n, size = _counts(failures, trials, level, population)
    tail, left = (1 - level) / 2, variance_left(n, size)
    scale = 1 / np.where(left > 0, left, 1.0)  # where nothing is left to draw, _settle closes the interval
    a, b = k * scale + 0.5, (n - k) * scale + 0.5
    return _settle(_array(betaincinv(a, b, tail)), _array(betainccinv(a, b, tail)), k, n, size)


INTERVALS: Mapping[str, IntervalFunction] = MappingProxyType(
    {"wilson": wilson, "clopper-pearson": clopper_pearson, "jeffreys": jeffreys}
)


def find_interval(method: str) -> IntervalFunction:
    """Return the interval function of that name, or raise :class:`StatisticsError` with the nearest names.

    >>> find_interval("wilson") is wilson
    True
    """
    if method not in INTERVALS:
        raise StatisticsError(
            f"an interval method is one of {', '.join(INTERVALS)}, got {method!r}{did_you_mean(method, INTERVALS)}"
        )
    return INTERVALS[method]


def check_level(level: float) -> None:
    """Raise :class:`StatisticsError` unless *level* lies strictly between 0 and 1.

    >>> check_level(0.95)
    """
    if not 0 < level < 1:
        raise StatisticsError(f"a confidence level lies strictly between 0 and 1, got {level}; 0.95 is usual")


def quantile(level: float) -> float:
    """Return the two-sided standard normal quantile of *level*.

    >>> round(quantile(0.95), 4)
    1.96
    """
    return -float(ndtri((1 - level) / 2))


def variance_left(trials: Floats, population: Floats | None) -> Floats:
    """Return the share (N - n) / (N - 1) of the variance that sampling without replacement leaves; 1 with replacement.

    >>> variance_left(np.array([1.0, 5.0, 9.0]), np.array([9.0, 9.0, 9.0]))
    array([1. , 0.5, 0. ])
    """
    if population is None:
        return np.ones_like(trials)
    return np.asarray((population - trials) / np.maximum(population - 1, 1), dtype=np.float64)


def _array(values: ArrayLike) -> Floats:
    return np.array(values, dtype=np.float64)  # also of a scalar, and writable


def _counts(
    failures: ArrayLike, trials: ArrayLike, level: float, population: ArrayLike | None
) -> tuple[Floats, Floats, Floats | None]:
    check_level(level)
    size = trials if population is None else population
    try:
        given = np.broadcast_arrays(*(_array(values) for values in (failures, trials, size)))
    except (TypeError, ValueError) as error:
        raise StatisticsError(
            f"counts are numbers or arrays of one shape, got {error}; pass matching arrays"
        ) from error
    k, n, size = (_array(values) for values in given)
    _refuse(~((k >= 0) & (k <= n) & np.isfinite(n)), k, n, "failures lie between 0 and the number of trials")
    if population is None:
        return k, n, None
    _refuse(~((n <= size) & (size >= 1) & np.isfinite(size)), n, size, "trials lie between 0 and the population")
    return k, n, size


def _refuse(wrong: NDArray[np.bool_], part: Floats, whole: Floats, expected: str) -> None:
    if np.any(wrong):
        at = int(np.argmax(wrong))
        raise StatisticsError(f"{expected}, got {part.flat[at]:g} of {whole.flat[at]:g}; check what was counted")


def _settle(low: Floats, high: Floats, k: Floats, n: Floats, size: Floats | None) -> Bounds:
    """Fix the edges, where the formulas round or divide by zero, and cut to what a finite population can hold."""
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(k == 0, 0.0, np.minimum(low, k / n))
        high = np.where(k == n, 1.0, np.maximum(high, k / n))
    if size is not None:
        low = np.maximum(np.floor(low * size + _SLACK), k) / size
        high = np.minimum(np.ceil(high * size - _SLACK), size - n + k) / size
    return low, high


def _most_failing(k: Floats, n: Floats, size: Floats, tail: float) -> Floats:
    """Return the largest number of failing faults under which k or fewer failures are not too rare."""
    from scipy.stats import hypergeom

    fits, fails = k.copy(), size - n + k + 1  # P(X <= k) is 1 at k failing faults, and falls from there
    while np.any(fails - fits > 1):
        middle = np.floor((fits + fails) / 2)
        good = hypergeom.cdf(k, size, middle, n) > tail
        fits, fails = np.where(good, middle, fits), np.where(good, fails, middle)
    return fits
