"""How many trials to plan: Leveugle's sample size for a finite fault space, and the trials a Wilson interval needs."""

from math import ceil, sqrt
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import StatisticsError
from torchfault.statistics.intervals import check_level, quantile

__all__ = ["leveugle_sample_size", "wilson_trials"]


@overload
def leveugle_sample_size(population: float, *, margin: float = 0.01, t: float = 1.96, p: float = 0.5) -> float: ...


@overload
def leveugle_sample_size(
    population: ArrayLike, *, margin: float = 0.01, t: float = 1.96, p: float = 0.5
) -> NDArray[np.float64] | float: ...


def leveugle_sample_size(
    population: ArrayLike, *, margin: float = 0.01, t: float = 1.96, p: float = 0.5
) -> NDArray[np.float64] | float:
    """Return the number of faults to draw, without replacement and unrounded, for an error of at most *margin*.

    n = N / (1 + margin^2 (N - 1) / (t^2 p (1 - p))): *population* N is a number or an array of any shape, *t* the
    normal quantile of the confidence (1.96 for 95 %), *p* the failure probability expected, 0.5 being the worst. It is
    left unrounded because published totals are rounded once, after the sum over layers. Raises
    :class:`StatisticsError` for a negative population or a margin, t or p out of range. Source: Leveugle, Calvez,
    Maistri & Vanhauwaert, "Statistical fault injection: quantified error and confidence", DATE 2009, equation 4.

    >>> round(leveugle_sample_size(357_341_184), 1)
    9603.7
    >>> leveugle_sample_size([100, 10_000]).round(1)
    array([  99. , 4899.3])
    """
    size = np.asarray(population, dtype=np.float64)
    if not np.all((size >= 0) & np.isfinite(size)):
        raise StatisticsError(
            f"a population is a finite number of faults from 0 up, got {size.min()} to {size.max()}; count the space"
        )
    if not (0 < margin < 1 and t > 0 and 0 < p < 1):
        raise StatisticsError(
            f"margin and p lie strictly between 0 and 1 and t above 0, got margin={margin}, p={p}, t={t}; "
            "the usual values are margin=0.01, p=0.5, t=1.96"
        )
    # max: an empty layer needs no faults, and (0 - 1) would make the denominator negative for large margins
    needed = size / (1 + margin**2 * np.maximum(size - 1, 0) / (t**2 * p * (1 - p)))
    return float(needed) if needed.ndim == 0 else needed


def wilson_trials(p: float, half_width: float, *, level: float = 0.95) -> int:
    """Return how many trials a Wilson interval needs for *half_width* where a share *p* of them fails.

    Solves h (1 + t) = sqrt(t p (1 - p) + t^2 / 4) for t = z^2 / n (:func:`~torchfault.statistics.wilson`) and rounds
    up; 0 where the half-width is 0.5 or more, which no trial is needed for. Raises :class:`StatisticsError` for *p*
    outside 0 to 1, a half-width that is not positive, or an impossible level.

    >>> wilson_trials(0.5, 0.01), wilson_trials(0.01, 0.001), wilson_trials(0.0, 0.001)
    (9600, 38120, 1917)
    """
    check_level(level)
    if not (0 <= p <= 1 and half_width > 0):
        raise StatisticsError(
            f"p lies between 0 and 1 and the half-width above 0, got p={p}, half_width={half_width}; use fractions"
        )
    if half_width >= 0.5:
        return 0
    # (1/4 - h^2) t^2 + (p q - 2 h^2) t - h^2 = 0; its positive root in the form that does not cancel
    square, linear = 0.25 - half_width**2, p * (1 - p) - 2 * half_width**2
    t = 2 * half_width**2 / (linear + sqrt(linear**2 + 4 * square * half_width**2))
    return ceil(quantile(level) ** 2 / t)
