"""The unbiased value of a campaign that looked at its failures to decide when to stop."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlog1py, xlogy

from torchfault.errors import StatisticsError

__all__ = ["after_looks"]

Floats = NDArray[np.float64]


def after_looks(
    failures: int, trials: int, *, looks: Sequence[int], stops: Callable[[int, Floats], NDArray[np.bool_]]
) -> float:
    """Return the unbiased failure probability from trials that went on until a rule on their counts stopped them.

    *looks* are the numbers of trials at which the rule was asked, up to *trials*; ``stops(n, k)`` tells for an array of
    counts k at which of them it stops after n trials. Failures over trials is too low for rules that stop once an
    interval is narrow, since few failures make it so sooner. Instead the value is the probability that the first trial
    failed, given what was counted in the end: whatever p is, all orders of failures that the rule lets through are
    equally likely, so that it is a ratio of their numbers, and its mean is that of the first trial, p. Raises
    :class:`StatisticsError` for counts or looks that do not fit together. Source: Girshick, Mosteller & Savage,
    Annals of Mathematical Statistics 17, 1946, theorem 4.

    >>> round(after_looks(3, 30, looks=[10, 20, 30], stops=lambda n, k: k < 0), 3)  # never before the end
    0.1
    >>> round(after_looks(3, 30, looks=[10, 20, 30], stops=lambda n, k: k == 0), 3)  # without failures it would end
    0.139
    """
    if not 0 <= failures <= trials or not looks or looks[-1] != trials or any(np.diff(looks) < 1) or looks[0] < 1:
        raise StatisticsError(
            f"0 <= failures <= trials, and looks rise from 1 up to the trials, got {failures}, {trials} and "
            f"{list(looks)[:5]}; pass every number of trials at which the rule was asked"
        )
    if failures in (0, trials):
        return failures / trials
    p, counts = failures / trials, np.arange(failures + 1, dtype=np.float64)
    # numbers of orders, each times p^k (1 - p)^(n - k), which cancels and keeps them in range
    every = _chance(counts, looks[0], p)
    first = np.concatenate(([0.0], p * _chance(counts[:-1], looks[0] - 1, p)))
    for before, now in pairwise(looks):
        goes_on = ~stops(before, np.minimum(counts, before))
        step = _chance(np.arange(now - before + 1, dtype=np.float64), now - before, p)
        every, first = (np.convolve(part * goes_on, step)[: failures + 1] for part in (every, first))
    return float(first[-1] / every[-1])


def _chance(k: Floats, n: int, p: float) -> Floats:
    """Return the binomial probabilities of *k* failures in *n* trials."""
    inside = k <= n
    rest = np.maximum(n - k, 0)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(rest + 1)
    return np.asarray(np.where(inside, np.exp(ways + xlogy(k, p) + xlog1py(rest, -p)), 0.0))
