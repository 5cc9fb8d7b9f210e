"""Intervals that hold at every look: confidence sequences for stratified trials that follow the outcomes."""

from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import StatisticsError
from torchfault.statistics.intervals import check_level

__all__ = ["BOLDEST", "Sequence", "confidence_sequence", "guess"]

Floats = NDArray[np.float64]

# The largest bets on one trial, found by simulating how many trials rare failures take; any would be valid. Against
# failures: in shares of the bet that one failure would lose whole. On failures: in multiples of the capital, and in
# shares of what the expected number of failures would cost if they failed to come.
BOLDEST = 0.9
_BOLDEST_ON, _BOLDEST_EXPECTED = 3.0, 0.75
_PRIOR_FAILURES, _PRIOR_TRIALS = 0.1, 1.0


@dataclass(frozen=True, eq=False)
class Sequence:
    """An estimate after each round: *value*, *low* and *high*, all of shape (rounds,).

    The bounds hold in all rounds at once with the level's probability, so that a stop at any of them keeps it.
    """

    value: Floats
    low: Floats
    high: Floats


def guess(failures: Floats, trials: Floats) -> Floats:
    """Return the failure probability that counts suggest, never 0 or 1: (failures + 0.1) / (trials + 1).

    >>> guess(np.array([0.0, 5.0]), np.array([0.0, 9.0]))
    array([0.1 , 0.51])
    """
    return (failures + _PRIOR_FAILURES) / (trials + _PRIOR_TRIALS)


def confidence_sequence(
    failures: ArrayLike, trials: ArrayLike, shares: ArrayLike, *, target: float, level: float = 0.95
) -> Sequence:
    """Return the confidence sequence of sum_h shares_h p_h from rounds of stratified trials.

    *failures* and *trials* have shape (rounds, strata), *shares* (strata,): usually p's mass of each stratum; more than
    1 in all where a failure counts only in a part of its stratum. How many trials a round takes from each stratum may
    depend on everything before the round, and a campaign may stop after any round for any reason. A round that leaves
    out a stratum with a share counts for nothing. *target* is the half-width for which the sequence is tuned: it is
    narrowest, compared with an interval for one look, when it gets there, and holds at any.

    For a trial y of stratum h and any guess g, log E exp(-s y) = log(1 - p u) with u = 1 - exp(-s), which is concave in
    p and so below its tangent at g. Choosing s in round t such that the tangent's slope is -c_t shares_h / trials_h
    makes the sum over a round linear in the estimand alone, hence exp(sum_t c_t theta - ...) a supermartingale, and
    Ville's inequality gives the upper bound; exp(+s y) the lower one, each at (1 - level) / 2. Both g (from earlier
    rounds) and c_t = target / (variance of the round's estimate under g), within limits for each bound, are known
    before the round. No approximation is made: strata without failures are bounded as far as their trials prove it, at
    about log(2 / (1 - level)) / (0.9 trials). The price of looking at any time is, at the target, 2 log(2 / 0.05) /
    1.96^2 = 1.92 times the trials of Wald's interval at a number of trials fixed beforehand.

    The value is the mean of the rounds' stratified estimates: unbiased for any fixed number of rounds. A stop chosen
    by the data shifts it, as it does every estimate: towards 0, by a tenth of the target in campaigns of six rounds
    and less in longer ones. The coverage it leaves alone. Raises :class:`StatisticsError` for counts that do not fit
    together, a target outside 0 to 1 or an impossible level. Sources: Waudby-Smith & Ramdas, "Estimating means of
    bounded random variables by betting", JRSS B 86, 2024 (predictable bets); Howard, Ramdas, McAuliffe & Sekhon,
    Annals of Statistics 49, 2021 (tuning for a time); Ville 1939. The tangent, which sums over strata, is ours.

    >>> failures, trials = np.tile([[0, 8]], (20, 1)), np.tile([[90, 10]], (20, 1))
    >>> sequence = confidence_sequence(failures, trials, [0.9, 0.1], target=0.02)
    >>> round(float(sequence.value[-1]), 3), sequence.low[[4, -1]].round(3), sequence.high[[4, -1]].round(3)
    (0.08, array([0.057, 0.063]), array([0.096, 0.088]))
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
    return _bounds(k, n, share, guess(*before), full, target=target, threshold=log(2 / (1 - level)))


def _bounds(
    k: Floats, n: Floats, share: Floats, g: Floats, full: NDArray[np.bool_], *, target: float, threshold: float
) -> Sequence:
    size = np.where(full[:, None], n, 1.0)
    each = share / size
    best = target / (np.square(each) * n * g * (1 - g)).sum(axis=1).clip(1e-300)
    against = np.minimum(best, BOLDEST / each.max(axis=1)) * full  # c_t
    on = np.minimum(_BOLDEST_ON / each.max(axis=1), _BOLDEST_EXPECTED / (each * g).max(axis=1))
    on = np.minimum(best, on) * full
    r = against[:, None] * each
    up = np.log((1 + g * r) / (1 - (1 - g) * r)) * k - n * np.log1p(g * r) + n * r * g
    r = on[:, None] * each
    down = np.log((1 + (1 - g) * r) / (1 - g * r)) * k + n * np.log1p(-g * r) + n * r * g
    total = np.cumsum(against)
    with np.errstate(divide="ignore", invalid="ignore"):
        high = (np.cumsum(up.sum(axis=1)) + threshold) / total
        low = (np.cumsum(down.sum(axis=1)) - threshold) / np.cumsum(on)
        value = np.cumsum((each * k).sum(axis=1) * full) / np.cumsum(full)
    # bounds that hold in all rounds at once still hold where the narrowest so far is taken
    high = np.minimum.accumulate(np.where(total > 0, np.minimum(high, 1.0), 1.0))
    low = np.maximum.accumulate(np.where(total > 0, np.maximum(low, 0.0), 0.0))
    return Sequence(value, np.fmin(low, value), np.fmax(high, value))
