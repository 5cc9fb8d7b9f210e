"""Where a running campaign stands, for whoever watches it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torchfault.campaign.plan import Campaign, StopRule, total
from torchfault.statistics import AllOf, AnyOf, Estimate, HalfWidth, MaxTrials, TimeBudget, wilson_trials

__all__ = ["Standing", "expected"]


@dataclass(frozen=True)
class Standing:
    """How far a campaign is: trials *done* of *total*, *rate* in trials per second, seconds *left*, and the *estimate*.

    *total* and *left* are forecasts where a half-width or a time budget decides, and ``None`` where nothing tells. The
    *estimate* is that of the finished batches: within one, trials end in an order that depends on where they strike.

    >>> from torchfault.statistics import proportion
    >>> Standing(500, 1000, 250.0, 2.0, proportion(5, 500)).left
    2.0
    """

    done: int
    total: int | None
    rate: float
    left: float | None
    estimate: Estimate


def expected(campaign: Campaign, estimate: Estimate, *, done: int, seconds: float, rate: float) -> int | None:
    """Return the number of trials at which the campaign will probably stop, ``None`` where nothing tells."""
    end = _expected(campaign.stop, estimate, done, seconds, rate)
    return _least((end, total(campaign)))


def _expected(rule: StopRule | None, estimate: Estimate, done: int, seconds: float, rate: float) -> int | None:
    if isinstance(rule, MaxTrials):
        return rule.n
    if isinstance(rule, HalfWidth):
        needed = wilson_trials(estimate.value, rule.h, level=rule.level) if 0 <= estimate.value <= 1 else None
        return None if needed is None else max(needed, rule.minimum, done)
    if isinstance(rule, TimeBudget):
        return done + math.ceil(max(rule.seconds - seconds, 0.0) * rate) if rate > 0 else None
    if isinstance(rule, AnyOf):
        return _least(_expected(inner, estimate, done, seconds, rate) for inner in rule.rules)
    if isinstance(rule, AllOf):
        ends = [_expected(inner, estimate, done, seconds, rate) for inner in rule.rules]
        return None if None in ends else max(end for end in ends if end is not None)
    return None


def _least(ends: Iterable[int | None]) -> int | None:
    return min((end for end in ends if end is not None), default=None)
