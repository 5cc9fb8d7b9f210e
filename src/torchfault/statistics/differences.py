"""Differences of two estimates, each with its interval: of the same trials by pairs, or of two samples."""

from dataclasses import replace
from math import hypot, sqrt

from torchfault.errors import StatisticsError
from torchfault.statistics.estimators import Estimate
from torchfault.statistics.intervals import wilson

__all__ = ["difference", "paired_difference"]


def difference(one: Estimate, two: Estimate) -> Estimate:
    """Return one - two of two samples, its interval from both (MOVER: Zou & Donner, Statistics in Medicine 27, 2008).

    >>> from torchfault.statistics import proportion
    >>> print(difference(proportion(40, 100), proportion(30, 100)))
    0.10 [-0.03, 0.23]
    """
    value = one.value - two.value
    low = value - hypot(one.value - one.low, two.high - two.value)
    high = value + hypot(one.high - one.value, two.value - two.low)
    return replace(one, value=value, low=low, high=high)


def paired_difference(both: int, first_alone: int, second_alone: int, neither: int, *, level: float = 0.95) -> Estimate:
    """Return how much larger the second share is than the first, of outcomes of the same trials, counted by pairs.

    So many trials have the outcome in *both* runs, in the first or the second *alone*, in *neither*. The interval joins
    the Wilson intervals of both shares by their correlation. Raises :class:`StatisticsError` without trials. Source:
    Newcombe, Statistics in Medicine 17, 1998, pp. 2635-2650, method 10.

    >>> print(paired_difference(30, 0, 10, 60))
    0.100 [0.038, 0.162]
    """
    a, b, c, d = both, second_alone, first_alone, neither
    n = a + b + c + d
    if n < 1:
        raise StatisticsError(f"a difference needs trials that both runs share, got {n}; run the same ones in both")
    product = float(a + b) * (c + d) * (a + c) * (b + d)
    cross = float(a) * d - float(b) * c
    cross = max(cross - n / 2, 0.0) if cross > 0 else cross
    phi = cross / sqrt(product) if product else 0.0
    value, first, second = (b - c) / n, (a + c) / n, (a + b) / n
    low, high = wilson([a + c, a + b], n, level=level)
    down, up = _joined(second - low[1], high[0] - first, phi), _joined(high[1] - second, first - low[0], phi)
    return Estimate(value, value - down, value + up, n, "newcombe", level)


def _joined(x: float, y: float, phi: float) -> float:
    return sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))
