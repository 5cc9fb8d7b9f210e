"""Quantiles of values of any size, infinite ones included, with intervals that assume nothing of their distribution."""

from bisect import bisect_left
from math import inf, nan

import numpy as np
from numpy.typing import ArrayLike

from torchfault.errors import StatisticsError
from torchfault.statistics.estimators import Estimate, weighted_mean
from torchfault.statistics.intervals import check_level

__all__ = ["quantile_interval"]

_ROUNDING = 1e-12  # of a share of the draws


def quantile_interval(
    values: ArrayLike,
    q: float = 0.5,
    *,
    weights: ArrayLike | None = None,
    stratum: ArrayLike | None = None,
    level: float = 0.95,
    largest_weight: float | None = None,
    ratio: bool = False,
) -> Estimate:
    """Return the *q* quantile of *values* (the median unless told), with bounds that are two of them, by their ranks.

    *values* have shape (draws,); larger ones are worse, infinity is the largest, and NaN counts as it. The bounds are
    the first values up to which the share of all faults may be, and must be, *q*, by the interval of
    :func:`~torchfault.statistics.weighted_mean`, whose other arguments these are: for plain draws Clopper & Pearson's,
    which makes them the order statistics of the textbook. No bound is infinite unless values are, or too few.
    Raises :class:`StatisticsError` for *q* outside 0 to 1, and as :func:`~torchfault.statistics.weighted_mean` does.
    Source: Thompson, Annals of Mathematical Statistics 7, 1936.

    >>> rises = np.concatenate((np.zeros(60), np.arange(1.0, 39.0), [np.inf, np.nan]))
    >>> print(quantile_interval(rises), quantile_interval(rises, 0.9), quantile_interval(rises, 0.99))
    0.00 [0.00, 1.00] 30.0 [24.0, 36.0] inf [37.0, inf]
    """
    check_level(level)
    y = np.asarray(values, dtype=np.float64)
    if not 0 < q < 1 or y.ndim != 1:
        raise StatisticsError(
            f"a quantile of values of shape (draws,) lies between 0 and 1, got q={q} and shape {y.shape}; "
            "the median is 0.5"
        )
    candidates, rank = np.unique(np.where(np.isnan(y), inf, y), return_inverse=True)
    w = np.ones(len(y)) if weights is None else weights

    def share(of: int) -> Estimate:
        """Return the share of all faults with at most the value of that rank, from -1 for less than any."""
        at_most = rank <= of
        return weighted_mean(at_most, w, stratum=stratum, level=level, largest_weight=largest_weight, ratio=ratio)

    ranks = range(-1, len(candidates))
    first = bisect_left(ranks, True, key=lambda of: share(of).high >= q)
    middle = bisect_left(ranks, True, key=lambda of: share(of).value >= q - _ROUNDING)
    last = bisect_left(ranks, True, key=lambda of: share(of).low >= q)
    ends = np.concatenate(([-inf], candidates, [inf]))
    value = float(ends[max(min(middle, len(candidates)), 1)]) if y.size else nan
    return Estimate(
        value, min(float(ends[first]), value), max(float(ends[last]), value), y.size, f"quantile {q:g}", level
    )
