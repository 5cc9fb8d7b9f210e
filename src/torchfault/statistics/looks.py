"""What looks at failures, to decide when to stop, do to counts: an unbiased value, and a bound that holds at each."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, gammaln, xlog1py, xlogy

from torchfault.errors import StatisticsError
from torchfault.statistics.intervals import check_level

__all__ = ["after_looks", "upper_at_every_look"]

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


_PRIOR = 0.5, 10.0  # the beta distribution that is mixed over: tightest where a tenth or less fails


def upper_at_every_look(failures: ArrayLike, trials: ArrayLike, *, level: float = 0.95) -> Floats:
    """Return upper bounds of a probability, of the shape of *failures* and *trials*, that hold at all looks at once.

    Each holds with (1 + *level*) / 2, as the upper bound of a two-sided interval does. A p is left out once a mixture
    of all failure probabilities, by a beta distribution, explains what was seen 2 / (1 - level) times better: for the
    true p the ratio of the two is a martingale that starts at 1, which gets there with a probability of (1 - level) / 2
    at most. Without failures it is 1.1 to 1.4 times Clopper and Pearson's bound for one look, with some 1.3 times.
    Raises :class:`StatisticsError` for impossible counts or levels. Sources: Ville 1939; Robbins, Annals of
    Mathematical Statistics 41, 1970 (mixtures).

    >>> upper_at_every_look([0, 0, 19], [0, 50, 204]).round(3)
    array([1.   , 0.088, 0.177])
    """
    check_level(level)
    k, n = np.broadcast_arrays(np.asarray(failures, dtype=np.float64), np.asarray(trials, dtype=np.float64))
    if not np.all((k >= 0) & (k <= n)):
        raise StatisticsError("0 <= failures <= trials, got other counts; check what was counted")
    a, b = _PRIOR
    least = betaln(a + k, b + n - k) - betaln(a, b) + np.log((1 - level) / 2)
    low, high = k / np.maximum(n, 1), np.ones(k.shape)
    for _ in range(60):
        middle = (low + high) / 2
        held = xlogy(k, middle) + xlog1py(n - k, -middle) > least
        low, high = np.where(held, middle, low), np.where(held, high, middle)
    return np.asarray(high)


def _chance(k: Floats, n: int, p: float) -> Floats:
    """Return the binomial probabilities of *k* failures in *n* trials."""
    inside = k <= n
    rest = np.maximum(n - k, 0)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(rest + 1)
    return np.asarray(np.where(inside, np.exp(ways + xlogy(k, p) + xlog1py(rest, -p)), 0.0))
