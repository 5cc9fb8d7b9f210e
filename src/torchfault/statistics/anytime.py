"""Intervals that hold at every look: confidence sequences for stratified trials that follow the outcomes."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import StatisticsError
from torchfault.statistics.intervals import check_level

__all__ = ["SETTLED", "Price", "Sequence", "confidence_sequence", "guess", "needed_draws"]

Floats = NDArray[np.float64]
Price = Callable[[Floats], Floats]
"""What a draw costs, by the failure probabilities expected in strata; any shape."""

# The largest bets on one trial, found by simulating how many trials rare failures take; any would be valid. Against
# failures: in shares of the bet that one failure would lose whole. On failures: in multiples of the capital, and in
# shares of what the expected number of failures would cost if they failed to come.
_BOLDEST = 0.9
_BOLDEST_ON, _BOLDEST_EXPECTED = 3.0, 0.75
_PRIOR_FAILURES, _PRIOR_TRIALS = 0.1, 1.0
_UPPER = np.linspace(0.55, 1.25, 15)  # stakes of the upper bound to choose from, in multiples of threshold / target
_UPPER_PRICED = np.linspace(0.55, 2.0, 30)  # where draws differ in price; stakes of 2 suit draws that cost nothing
SETTLED = 1 - 1e-9
_HASTE = 1.15  # how much sooner the value has all its weight than the interval its width, if all goes as planned
_THOUGHT_TRIALS = 4.0  # what the caller thinks of a stratum counts as so many trials


@dataclass(frozen=True, eq=False)
class Sequence:
    """An estimate after each round: *value*, *low* and *high*, all of shape (rounds,).

    The bounds hold in all rounds at once with the level's probability, so that a stop at any of them keeps it.
    *settled*, shape (rounds,), is the share of its weight that the value has been given; once it is 1 the value is
    unbiased whenever the campaign ends.
    """

    value: Floats
    low: Floats
    high: Floats
    settled: Floats

    def enough(self, width: float) -> bool:
        """Whether the last interval is no wider than *width*, and a stop there leaves the value unbiased.

        >>> one = np.ones(1)
        >>> Sequence(one, one, one, one).enough(0.1), Sequence(one, one, one, 0.9 * one).enough(0.1)
        (True, False)
        """
        return len(self.value) > 0 and bool(self.is_settled and self.high[-1] - self.low[-1] <= width)

    @property
    def is_settled(self) -> bool:
        """Whether the value has all its weight."""
        return len(self.settled) > 0 and bool(self.settled[-1] >= SETTLED)


def guess(failures: Floats, trials: Floats) -> Floats:
    """Return the failure probability that counts suggest, never 0 or 1: (failures + 0.1) / (trials + 1).

    >>> guess(np.array([0.0, 5.0]), np.array([0.0, 9.0]))
    array([0.1 , 0.51])
    """
    return (failures + _PRIOR_FAILURES) / (trials + _PRIOR_TRIALS)


def confidence_sequence(
    failures: ArrayLike,
    trials: ArrayLike,
    shares: ArrayLike,
    *,
    target: float,
    level: float = 0.95,
    thought: ArrayLike | None = None,
    price: Price | None = None,
) -> Sequence:
    """Return the confidence sequence of sum_h shares_h p_h from rounds of stratified trials.

    *failures* and *trials* have shape (rounds, strata), *shares* (strata,): usually p's mass of each stratum; more than
    1 in all where a failure counts only in a part of its stratum. How many trials a round takes from each stratum may
    depend on everything before the round, and a campaign may stop after any round for any reason. A round that leaves
    out a stratum with a share counts for nothing. *target* is the half-width for which the sequence is tuned: it is
    narrowest, compared with an interval for one look, when it gets there, and holds at any. *thought*, shape (strata,),
    is what is thought of each stratum's failure probability before the first round: good guesses save trials, bad ones
    cost them. *price* is what the trials were allocated by (:func:`needed_draws`), which decides the stakes alone.

    For a trial y of stratum h and any guess g, log E exp(-s y) = log(1 - p u) with u = 1 - exp(-s), which is concave in
    p and so below its tangent at g. Choosing s in round t such that the tangent's slope is -c_t shares_h / trials_h
    makes the sum over a round linear in the estimand alone, hence exp(sum_t c_t theta - ...) a supermartingale, and
    Ville's inequality gives the upper bound; exp(+s y) the lower one, each at (1 - level) / 2. Both g (from earlier
    rounds) and c_t, what :func:`needed_draws` plans for either bound, are known before the round. No approximation is
    made: strata without failures are bounded as far as their trials prove it, at about log(2 / (1 - level)) /
    (0.9 trials). The price of looking at any time is, at the target, 2 log(2 / 0.05) / 1.96^2 = 1.92 times the trials
    of Wald's interval at a number of trials fixed beforehand.

    The value is a sum of the rounds' stratified estimates with weights that are fixed before each round, by its share
    of what the plan needs, until they have summed up to 1; the first round after the interval is narrow gets what is
    left. From then on it stays as it is, save that it is brought within the bounds where later rounds leave it outside,
    and is unbiased (so rarely does that happen) although the outcomes decide when the campaign stops: a mean of all
    rounds would be too low, by a tenth of the target in short campaigns, since samples with few failures have narrow
    intervals and stop early. Until then it is that mean, which is unbiased for a number of rounds fixed beforehand.

    Raises :class:`StatisticsError` for counts that do not fit
    together, a target outside 0 to 1 or an impossible level. Sources: Waudby-Smith & Ramdas, "Estimating means of
    bounded random variables by betting", JRSS B 86, 2024 (predictable bets); Howard, Ramdas, McAuliffe & Sekhon,
    Annals of Statistics 49, 2021 (tuning for a time); Ville 1939. The tangent, which sums over strata, is ours, and so
    are the weights of the value, by the optional stopping theorem (Doob 1953).

    >>> failures, trials = np.tile([[0, 8]], (20, 1)), np.tile([[90, 10]], (20, 1))
    >>> sequence = confidence_sequence(failures, trials, [0.9, 0.1], target=0.02)
    >>> round(float(sequence.value[-1]), 3), sequence.low[[4, -1]].round(3), sequence.high[[4, -1]].round(3)
    (0.08, array([0.059, 0.066]), array([0.114, 0.089]))
    """
    check_level(level)
    k, n, share = (np.asarray(values, dtype=np.float64) for values in (failures, trials, shares))
    if k.ndim != 2 or k.shape != n.shape or share.shape != k.shape[1:]:
        raise StatisticsError(
            f"failures and trials are (rounds, strata) and shares (strata,), got {k.shape}, {n.shape} and {share.shape}"
        )
    if not np.all((k >= 0) & (k <= n)) or np.any(share < 0) or not 0 < target < 1:
        raise StatisticsError(
            "0 <= failures <= trials, shares from 0 up and a target between 0 and 1, got other numbers "
            f"(target={target}); check what was counted"
        )
    used = np.asarray(share > 0)
    k, n, share = k[:, used], n[:, used], share[used]
    full = np.asarray((n > 0).all(axis=1))
    k, n = k * full[:, None], np.where(full[:, None], n, 0.0)
    before = [np.vstack((np.zeros_like(part[:1]), np.cumsum(part, axis=0)[:-1])) for part in (k, n)]
    expected = guess(*before)
    if thought is not None:
        own = np.asarray(thought, dtype=np.float64)[used]
        expected = (before[0] + _THOUGHT_TRIALS * own) / (before[1] + _THOUGHT_TRIALS)
    return _bounds(k, n, share, expected, full, target=target, threshold=log(2 / (1 - level)), price=price)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What reaches the target at least cost: *draws* (..., strata), and of the bounds, (...,): the upper one's stake
    in multiples of threshold / target, and the lower one's distance from the value in multiples of the target.
    """

    draws: Floats
    stake: Floats
    lower: Floats


def needed_draws(
    shares: Floats, p: Floats, *, target: float, level: float = 0.95, price: Price | None = None
) -> Floats:
    """Return the draws from each stratum, (strata,), with which intervals are expected to reach half-width *target*.

    *shares* and expected failure probabilities *p* have shape (strata,). The cheapest plan is sought among those that
    differ in how the width is split: strata with failures take draws in Neyman's proportion share sqrt(p (1 - p)),
    which narrow both bounds; each stratum takes at least what lets the upper bound stake on it, share stake / 0.9.
    With a *price* of each draw at probabilities p, Neyman's proportion is share sqrt(p (1 - p) / price), and the plan
    is the one that costs least rather than the one with fewest draws.

    >>> needed_draws(np.array([31 / 32, 1 / 32]), np.array([1e-6, 0.5]), target=0.01).round()
    array([278.,  66.])
    """
    return _plan(shares, p, target=target, threshold=log(2 / (1 - level)), price=price).draws


def _plan(share: Floats, p: Floats, *, target: float, threshold: float, price: Price | None = None) -> _Plan:
    """Return the cheapest of the plans for each row of *p*, shape (..., strata)."""
    spread = (share * np.sqrt(p * (1 - p)))[..., None, :]
    stakes = _UPPER if price is None else _UPPER_PRICED
    cost = np.ones_like(spread) if price is None else price(p)[..., None, :]
    dear = np.sqrt(cost)
    root = np.sqrt(2 * threshold)
    # width: target / stake + stake threshold variance / (2 target) + root sqrt(variance) = 2 target
    error = (np.sqrt(root**2 + 2 * threshold * (2 * stakes - 1)) - root) / (stakes * threshold) * target
    least = (stakes * threshold / (_BOLDEST * target))[:, None] * share
    factor = (spread * dear).sum(axis=-1, keepdims=True) / np.square(error)[:, None]
    for _ in range(4):  # those at their least take a part of the variance, the others share the rest
        active = factor * spread / dear > least
        rest = np.square(error)[:, None] - (np.square(spread) / least * ~active).sum(axis=-1, keepdims=True)
        better = (spread * dear * active).sum(axis=-1, keepdims=True) / np.maximum(
            rest, 0.1 * np.square(error)[:, None]
        )
        factor = np.where(active.any(axis=-1, keepdims=True), better, factor)
    draws = np.maximum(least, factor * spread / dear)
    best = (cost * draws).sum(axis=-1).argmin(axis=-1)
    chosen = np.take_along_axis(draws, best[..., None, None], axis=-2)[..., 0, :]
    return _Plan(chosen, stakes[best], root * error[best] / target)


def _bounds(
    k: Floats,
    n: Floats,
    share: Floats,
    g: Floats,
    full: NDArray[np.bool_],
    *,
    target: float,
    threshold: float,
    price: Price | None,
) -> Sequence:
    plan = _plan(share, g, target=target, threshold=threshold, price=price)
    size = np.where(full[:, None], n, 1.0)
    each = share / size
    variance = (np.square(each) * n * g * (1 - g)).sum(axis=1).clip(1e-300)
    informs = np.square(plan.lower) * target**2 / (2 * threshold) / variance  # the round's share of what is needed
    against = np.minimum(informs * plan.stake * threshold / target, _BOLDEST / each.max(axis=1)) * full  # c_t
    on = np.minimum(_BOLDEST_ON / each.max(axis=1), _BOLDEST_EXPECTED / (each * g).max(axis=1))
    on = np.minimum(plan.lower * target / variance, on) * full
    r = against[:, None] * each
    up = np.log((1 + g * r) / (1 - (1 - g) * r)) * k - n * np.log1p(g * r) + n * r * g
    r = on[:, None] * each
    down = np.log((1 + (1 - g) * r) / (1 - g * r)) * k + n * np.log1p(-g * r) + n * r * g
    total = np.cumsum(against)
    with np.errstate(divide="ignore", invalid="ignore"):
        high = (np.cumsum(up.sum(axis=1)) + threshold) / total
        low = (np.cumsum(down.sum(axis=1)) - threshold) / np.cumsum(on)
    # bounds that hold in all rounds at once still hold where the narrowest so far is taken
    high = np.minimum.accumulate(np.where(total > 0, np.minimum(high, 1.0), 1.0))
    low = np.maximum.accumulate(np.where(total > 0, np.maximum(low, 0.0), 0.0))
    weight = _spent(
        np.minimum(informs, n.sum(axis=1) / plan.draws.sum(axis=1)) * full, full & _after(high - low <= 2 * target)
    )
    settled, of_round = np.cumsum(weight), (each * k).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.cumsum(of_round * full) / np.cumsum(full)
    value = np.where(settled > SETTLED, np.cumsum(weight * of_round), plain)
    # what has all its weight stays as it is: outside the bounds it would keep them apart for ever
    value = np.clip(value, np.fmin(low, high), np.fmax(low, high))
    return Sequence(value, np.fmin(low, value), np.fmax(high, value), settled)


def _after(narrow: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which rounds begin with an interval that is narrow already."""
    return np.concatenate(([False], narrow[:-1]))


def _spent(wanted: Floats, last: NDArray[np.bool_]) -> Floats:
    """Return weights as *wanted*, with some haste, until their sum is 1; what is left of it in a *last* round."""
    wanted = np.where(last, 1.0, np.minimum(_HASTE * wanted, 1.0))
    reached = np.minimum(np.cumsum(wanted), 1.0)
    return np.diff(reached, prepend=0.0)
