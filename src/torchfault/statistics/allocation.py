"""How many draws to take from each stratum, so that a confidence sequence gets as narrow as asked at the least cost."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.statistics.intervals import check_level

__all__ = ["BOLDEST", "Plan", "Price", "cheapest_plan", "guess", "needed_draws"]

Floats = NDArray[np.float64]
Price = Callable[[Floats], Floats]
"""What a draw costs, above 0, by the failure probabilities expected in strata; any shape."""

BOLDEST = 0.9
"""The largest stake against failures on one trial, in shares of the stake that one failure would lose whole; found by
simulating how many trials rare failures take."""

_PRIOR_FAILURES, _PRIOR_TRIALS = 0.1, 1.0
# Stakes of the upper bound to choose from, in multiples of threshold / target; those of 2 suit draws that cost nothing.
_STAKES = np.linspace(0.55, 2.0, 30)
_BOLDEST_UNPRICED = 1.26  # where all draws cost the same


def guess(failures: Floats, trials: Floats) -> Floats:
    """Return the failure probability that counts suggest, never 0 or 1: (failures + 0.1) / (trials + 1).

    >>> guess(np.array([0.0, 5.0]), np.array([0.0, 9.0]))
    array([0.1 , 0.51])
    """
    return (failures + _PRIOR_FAILURES) / (trials + _PRIOR_TRIALS)


@dataclass(frozen=True, eq=False)
class Plan:
    """What reaches the target at least cost: *draws* (..., strata), and of the bounds, (...,): the upper one's *stake*
    in multiples of threshold / target, and the *lower* one's distance from the value in multiples of the target.
    """

    draws: Floats
    stake: Floats
    lower: Floats


def needed_draws(
    shares: Floats, p: Floats, *, target: ArrayLike, level: float = 0.95, price: Price | None = None
) -> Floats:
    """Return the draws from each stratum, (..., strata), with which intervals are expected to reach *target*.

    *shares* and expected failure probabilities *p*, strictly between 0 and 1, have shape (..., strata), one row for
    each group; strata with a share of 0 take no draws. *target* is the half-width, for all groups or, of shape (...,),
    for each. The cheapest plan is sought among those that differ in how the width is split: strata with failures take
    draws in Neyman's proportion share sqrt(p (1 - p)), which narrow both bounds; each stratum takes at least what lets
    the upper bound stake on it, share stake / 0.9. With a *price* of each draw at probabilities p, Neyman's proportion
    is share sqrt(p (1 - p) / price), and the plan is the one that costs least rather than the one with fewest draws.
    Raises :class:`StatisticsError` for an impossible level.

    >>> needed_draws(np.array([31 / 32, 1 / 32]), np.array([1e-6, 0.5]), target=0.01).round()
    array([278.,  66.])
    """
    check_level(level)
    half = np.asarray(target, dtype=np.float64)
    return cheapest_plan(shares, p, target=half, threshold=log(2 / (1 - level)), price=price).draws


def cheapest_plan(share: Floats, p: Floats, *, target: Floats, threshold: float, price: Price | None) -> Plan:
    """Return the cheapest plan for each row of *share* and *p*, (..., strata), as :func:`needed_draws` seeks it.

    *threshold* is the logarithm of the capital at which a bound moves, log(2 / (1 - level)).
    """
    spread = (share * np.sqrt(p * (1 - p)))[..., None, :]
    cost = np.ones_like(spread) if price is None else price(p)[..., None, :]
    stakes = _STAKES if (cost != 1).any() else _STAKES[_STAKES < _BOLDEST_UNPRICED]  # half the work
    dear, root = np.sqrt(cost), np.sqrt(2 * threshold)
    # width: target / stake + stake threshold variance / (2 target) + root sqrt(variance) = 2 target
    error = (np.sqrt(root**2 + 2 * threshold * (2 * stakes - 1)) - root) / (stakes * threshold)
    square = np.square(error * target[..., None])[..., None]
    least = (stakes * threshold / (BOLDEST * target[..., None]))[..., None] * share[..., None, :]
    fixed = np.divide(
        np.square(spread), least, out=np.zeros(np.broadcast_shapes(spread.shape, least.shape)), where=least > 0
    )
    in_proportion, variable = spread / dear, spread * dear
    factor = variable.sum(axis=-1, keepdims=True) / square
    for _ in range(4):  # those at their least take a part of the variance, the others share the rest
        active = factor * in_proportion > least
        rest = square - np.where(active, 0.0, fixed).sum(axis=-1, keepdims=True)
        better = (variable * active).sum(axis=-1, keepdims=True) / np.maximum(rest, 0.1 * square)
        factor = np.where(active.any(axis=-1, keepdims=True), better, factor)
    draws = np.maximum(least, factor * in_proportion)
    alike = np.all((cost == 1) | (share[..., None, :] == 0), axis=-1)
    paid = np.where(alike & (stakes > _BOLDEST_UNPRICED), np.inf, (cost * draws).sum(axis=-1))
    best = paid.argmin(axis=-1)
    chosen = np.take_along_axis(draws, best[..., None, None], axis=-2)[..., 0, :]
    return Plan(chosen, stakes[best], root * error[best])
