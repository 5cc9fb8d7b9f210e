"""Confidence sequences: intervals that hold at every look, for stratified trials that follow the outcomes."""

from dataclasses import dataclass
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import StatisticsError
from torchfault.statistics.allocation import BOLDEST, Plan, Price, cheapest_plan, guess
from torchfault.statistics.intervals import check_level

__all__ = ["SETTLED", "Sequence", "Sequences", "confidence_sequence"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SETTLED = 1 - 1e-9
# The largest stakes on failures in one trial, found by simulating how many trials rare failures take; any would be
# valid: in multiples of the capital, and in shares of what the expected number of failures would cost if they failed
# to come.
_BOLDEST_ON, _BOLDEST_EXPECTED = 3.0, 0.75
_HASTE = 1.15  # how much sooner the value has all its weight than the interval its width, if all goes as planned
_PRIOR_TRIALS = 4.0  # what the caller's prior of a stratum counts as so many trials


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


class Sequences:
    """The confidence sequences of many groups at once, each sum_h shares_h p_h, updated round by round.

    *shares* has shape (groups, strata): of each group's strata, usually p's mass of each within the group; more than 1
    in all where a failure counts only in a part of its stratum. Groups with fewer strata than others have shares of 0
    for the rest, and what is counted there does not matter. How many trials a round takes from each stratum may depend
    on everything before the round, and a campaign may stop after any round for any reason. *target*, for all groups or
    of shape (groups,), is the half-width for which a sequence is tuned: it is narrowest, compared with an interval for
    one look, when it gets there, and holds at any. *prior*, (groups, strata), is the failure probability of each
    stratum, strictly between 0 and 1, that is expected before the first round: good ones save trials, bad ones cost
    them. *price* is what the trials are allocated by (:func:`~torchfault.statistics.needed_draws`), which
    decides the stakes alone.

    For a trial y of stratum h and any guess g, log E exp(-s y) = log(1 - p u) with u = 1 - exp(-s), which is concave in
    p and so below its tangent at g. Choosing s in round t such that the tangent's slope is -c_t shares_h / trials_h
    makes the sum over a round linear in the estimand alone, hence exp(sum_t c_t theta - ...) a supermartingale, and
    Ville's inequality gives the upper bound; exp(+s y) the lower one, each at (1 - level) / 2. Both g (from earlier
    rounds) and c_t, what the allocation plans for either bound, are known before the round. No approximation is made:
    strata without failures are bounded as far as their trials prove it, at about log(2 / (1 - level)) / (0.9 trials).
    The price of looking at any time is, at the target, 2 log(2 / 0.05) / 1.96^2 = 1.92 times the trials of Wald's
    interval at a number of trials fixed beforehand.

    The value is a sum of the rounds' stratified estimates with weights that are fixed before each round, by its share
    of what the plan needs, until they have summed up to 1; the first round after the interval is narrow gets what is
    left. From then on it stays as it is, save that it is brought within the bounds where later rounds leave it outside,
    and is unbiased (so rarely does that happen) although the outcomes decide when the campaign stops: a mean of all
    rounds would be too low, by a tenth of the target in short campaigns, since samples with few failures have narrow
    intervals and stop early. Until then it is that mean, which is unbiased for a number of rounds fixed beforehand.

    Raises :class:`StatisticsError` for shapes or numbers that do not fit together, a group without any share, a target
    outside 0 to 1 or an impossible level. Sources: Waudby-Smith & Ramdas, "Estimating means of bounded random variables
    by betting", JRSS B 86, 2024 (predictable bets); Howard, Ramdas, McAuliffe & Sekhon, Annals of Statistics 49, 2021
    (tuning for a time); Ville 1939. The tangent, which sums over strata, is ours, and so are the weights of the value,
    by the optional stopping theorem (Doob 1953).

    >>> sequences = Sequences([[0.9, 0.1], [1.0, 0.0]], target=0.02)
    >>> for _ in range(20):
    ...     sequences.update([[0, 8], [3, 0]], [[90, 10], [100, 0]])
    >>> sequences.value.round(3), sequences.low.round(3), sequences.high.round(3)
    (array([0.08, 0.03]), array([0.066, 0.02 ]), array([0.089, 0.042]))
    >>> sequences.enough([0.025, 0.02])
    array([ True, False])
    """

    def __init__(
        self,
        shares: ArrayLike,
        *,
        target: ArrayLike,
        level: float = 0.95,
        prior: ArrayLike | None = None,
        price: Price | None = None,
    ) -> None:
        check_level(level)
        self.shares, half = np.asarray(shares, dtype=np.float64), np.asarray(target, dtype=np.float64)
        if self.shares.ndim != 2 or not np.all(self.shares >= 0) or not np.all(self.shares.any(axis=1)):
            raise StatisticsError(
                "shares are (groups, strata), from 0 up and above 0 in one stratum of each group, got shape "
                f"{self.shares.shape} or others among them; leave empty groups out"
            )
        groups = len(self.shares)
        if half.shape not in ((), (groups,)) or not np.all((half > 0) & (half < 1)):
            raise StatisticsError(
                f"target is a half-width between 0 and 1, one for all of {groups} groups or one each, got "
                f"target={half.tolist()}; one percentage point is 0.01"
            )
        self.prior = None if prior is None else _prior(prior, self.shares)
        self._target, self._threshold, self._price = np.broadcast_to(half, (groups,)), log(2 / (1 - level)), price
        self.failures, self.trials = np.zeros_like(self.shares), np.zeros_like(self.shares)
        self._plan: Plan | None = None  # for the next round
        self._against, self._on, self._up, self._down = np.zeros((4, groups))
        self._low, self._high, self._settled = np.zeros(groups), np.ones(groups), np.zeros(groups)
        self._weighted, self._plain, self._rounds = np.zeros((3, groups))

    def update(self, failures: ArrayLike, trials: ArrayLike) -> None:
        """Add one round's counts, both (groups, strata); a group is left as it is where a stratum got no trial.

        Raises :class:`StatisticsError` for counts of another shape, and for more failures than trials.
        """
        k, n = _counts(failures, trials, self.shares)
        if k.shape != self.shares.shape:
            raise StatisticsError(f"a round's counts have the shape of shares, {self.shares.shape}, got {k.shape}")
        bets = _bets(k, n, self.shares, self.expected, self._planned, target=self._target, threshold=self._threshold)
        self._add(bets)
        self.failures, self.trials = self.failures + bets.full[:, None] * k, self.trials + bets.full[:, None] * n
        self._plan = None

    @property
    def expected(self) -> Floats:
        """The failure probability expected of each stratum in the next round, (groups, strata)."""
        return _expected(self.failures, self.trials, self.prior)

    @property
    def needed(self) -> Floats:
        """The draws in all, (groups, strata), with which the bounds are expected to reach the target."""
        return self._planned.draws

    @property
    def value(self) -> Floats:
        """The estimates, (groups,); NaN before a group's first round."""
        with np.errstate(invalid="ignore"):
            plain = self._plain / self._rounds
        value = np.where(self._settled > SETTLED, self._weighted, plain)
        # what has all its weight stays as it is: outside the bounds it would keep them apart for ever
        return np.clip(value, np.minimum(self._low, self._high), np.maximum(self._low, self._high))

    @property
    def low(self) -> Floats:
        """The lower bounds, (groups,); 0 before a group's first round."""
        return np.fmin(self._low, self.value)

    @property
    def high(self) -> Floats:
        """The upper bounds, (groups,); 1 before a group's first round."""
        return np.fmax(self._high, self.value)

    @property
    def settled(self) -> Floats:
        """The share of its weight that each value has been given, (groups,)."""
        return self._settled

    def enough(self, widths: ArrayLike) -> Bools:
        """Return, (groups,), whose interval is no wider than *widths*, one or (groups,), and whose value is settled."""
        return np.asarray((self._settled >= SETTLED) & (self.high - self.low <= np.asarray(widths)))

    @property
    def _planned(self) -> Plan:
        if self._plan is None:
            self._plan = cheapest_plan(
                self.shares, self.expected, target=self._target, threshold=self._threshold, price=self._price
            )
        return self._plan

    def _add(self, bets: "_Bets") -> None:
        """Move sums, bounds and values by one round, of shape (groups,) each."""
        narrow = self._high - self._low <= 2 * self._target
        self._against, self._on = self._against + bets.against, self._on + bets.on
        self._up, self._down = self._up + bets.up, self._down + bets.down
        with np.errstate(divide="ignore"):  # groups without a round have staked nothing
            high, low = (self._up + self._threshold) / self._against, (self._down - self._threshold) / self._on
        # bounds that hold in all rounds at once still hold where the narrowest so far is taken
        self._high, self._low = np.minimum(self._high, high), np.maximum(self._low, low)
        wanted = bets.full * np.where(narrow, 1.0, np.minimum(_HASTE * bets.informs, 1.0))
        weight = np.minimum(self._settled + wanted, 1.0) - self._settled
        self._settled, self._weighted = self._settled + weight, self._weighted + weight * bets.estimate
        self._plain, self._rounds = self._plain + bets.full * bets.estimate, self._rounds + bets.full


def confidence_sequence(
    failures: ArrayLike,
    trials: ArrayLike,
    shares: ArrayLike,
    *,
    target: float,
    level: float = 0.95,
    prior: ArrayLike | None = None,
    price: Price | None = None,
) -> Sequence:
    """Return the confidence sequence of sum_h shares_h p_h from all rounds of stratified trials.

    *failures* and *trials* have shape (rounds, strata), *shares* and *prior* (strata,): one group of
    :class:`Sequences`, which explains the rest. A round that leaves out a stratum with a share counts for nothing.
    Raises :class:`StatisticsError` as that does.

    >>> failures, trials = np.tile([[0, 8]], (20, 1)), np.tile([[90, 10]], (20, 1))
    >>> sequence = confidence_sequence(failures, trials, [0.9, 0.1], target=0.02)
    >>> round(float(sequence.value[-1]), 3), sequence.low[[4, -1]].round(3), sequence.high[[4, -1]].round(3)
    (0.08, array([0.059, 0.066]), array([0.114, 0.089]))
    """
    share = np.asarray(shares, dtype=np.float64)
    k, n = _counts(failures, trials, share)
    own = None if prior is None else np.asarray(prior, dtype=np.float64)[None]
    one = Sequences(share[None], target=target, level=level, prior=own, price=price)
    # of each round: what was counted before it, what that makes one expect, and the stakes
    full = _is_full(n, share)[:, None]
    k_before, n_before = (np.cumsum(part * full, axis=0) - part * full for part in (k, n))
    half, threshold = np.asarray(target, dtype=np.float64), log(2 / (1 - level))
    expected = _expected(k_before, n_before, one.prior)
    plan = cheapest_plan(share, expected, target=half, threshold=threshold, price=price)
    bets = _bets(k, n, share, expected, plan, target=half, threshold=threshold)
    found = []
    for of_round in zip(*bets, strict=True):
        one._add(_Bets(*of_round))
        found.append((one.value, one.low, one.high, one.settled))
    return Sequence(*np.array(found).reshape(len(k), 4).T)


class _Bets(NamedTuple):
    """What one round stakes and wins, by group: whether it is *full*, a trial or more in each stratum with a share; the
    stakes *against* failures and *on* them; the logarithms *up* and *down* by which the bounds' capital moves; the
    stratified *estimate*, and how much of what is needed the round *informs* of."""

    full: Bools
    against: Floats
    on: Floats
    up: Floats
    down: Floats
    estimate: Floats
    informs: Floats


def _bets(k: Floats, n: Floats, share: Floats, g: Floats, plan: Plan, *, target: Floats, threshold: float) -> _Bets:
    """Return the bets of rounds of *k* failures in *n* trials, (..., strata), at guesses *g*: each field (...,)."""
    full = _is_full(n, share)
    k, n = k * full[..., None], n * full[..., None]
    each = share / np.where(n > 0, n, 1.0)
    variance = (np.square(each) * n * g * (1 - g)).sum(axis=-1).clip(1e-300)
    informs = np.square(plan.lower * target) / (2 * threshold) / variance
    against = np.minimum(informs * plan.stake * threshold / target, BOLDEST / each.max(axis=-1)) * full
    on = np.minimum(_BOLDEST_ON / each.max(axis=-1), _BOLDEST_EXPECTED / (each * g).max(axis=-1))
    on = np.minimum(plan.lower * target / variance, on) * full
    r = against[..., None] * each
    up = np.log((1 + g * r) / (1 - (1 - g) * r)) * k - n * np.log1p(g * r) + n * r * g
    r = on[..., None] * each
    down = np.log((1 + (1 - g) * r) / (1 - g * r)) * k + n * np.log1p(-g * r) + n * r * g
    informs = np.minimum(informs, n.sum(axis=-1) / plan.draws.sum(axis=-1))
    return _Bets(full, against, on, up.sum(axis=-1), down.sum(axis=-1), (each * k).sum(axis=-1), informs)


def _is_full(n: Floats, share: Floats) -> Bools:
    return np.asarray(((n > 0) | (share == 0)).all(axis=-1))


def _expected(failures: Floats, trials: Floats, prior: Floats | None) -> Floats:
    if prior is None:
        return guess(failures, trials)
    return (failures + _PRIOR_TRIALS * prior) / (trials + _PRIOR_TRIALS)


def _counts(failures: ArrayLike, trials: ArrayLike, share: Floats) -> tuple[Floats, Floats]:
    """Return counts of (rows, strata), 0 where a stratum has no share."""
    k, n = np.asarray(failures, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    if k.ndim != 2 or k.shape != n.shape or k.shape[1:] != share.shape[-1:]:
        raise StatisticsError(
            f"failures and trials have two axes, the second of them strata as in shares, got {k.shape}, {n.shape} and "
            f"{share.shape}"
        )
    k, n = np.where(share > 0, k, 0.0), np.where(share > 0, n, 0.0)
    if not np.all((k >= 0) & (k <= n)):
        raise StatisticsError("in each stratum 0 <= failures <= trials, got other counts; check what was counted")
    return k, n


def _prior(prior: ArrayLike, shares: Floats) -> Floats:
    """Return *prior*, with any probability where a stratum has no share."""
    own = np.asarray(prior, dtype=np.float64)
    if own.shape != shares.shape or not np.all(((own > 0) & (own < 1)) | (shares == 0)):
        raise StatisticsError(
            f"prior is a probability strictly between 0 and 1 for each of {shares.shape} groups and strata, got shape "
            f"{own.shape} from {own.min(initial=1):g} to {own.max(initial=0):g}; a rare failure is 1e-4, not 0"
        )
    return np.where(shares > 0, own, 0.5)
