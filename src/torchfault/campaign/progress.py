"""Where a running campaign stands: for whoever watches it, and for the rule that ends it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.results import Results
from torchfault.results.intervals import Question, estimates
from torchfault.sampling.tally import Tally
from torchfault.statistics import AllOf, AnyOf, Estimate, HalfWidth, MaxTrials, TimeBudget, proportion, wilson_trials
from torchfault.statistics.intervals import find_interval
from torchfault.statistics.sequences import SETTLED
from torchfault.statistics.stopping import Rule
from torchfault.store import Record

__all__ = ["Standing", "expected_trials", "half_widths", "running_estimate"]


@dataclass(frozen=True)
class Standing:
    """How far a campaign is: trials *done* of *total*, *rate* in trials per second, seconds *left*, and the *estimate*.

    *total* and *left* are forecasts where a half-width or a time budget decides, and ``None`` where nothing tells.
    *lanes* counts those that ran, also amid trials whose outcomes become known together. The *estimate* is that of the
    finished batches: within one, trials end in an order that depends on where they strike. Where a recipe runs several
    campaigns, one after the other, *part* tells which of them this is.

    >>> from torchfault.statistics import proportion
    >>> Standing(500, 1000, 250.0, 2.0, proportion(5, 500), 500).left
    2.0
    """

    done: int
    total: int | None
    rate: float
    left: float | None
    estimate: Estimate
    lanes: int
    part: str = ""


def expected_trials(
    rule: Rule | None, end: int | None, estimate: Estimate, *, done: int, seconds: float, rate: float
) -> int | None:
    """Return after how many trials *rule* or the sampler's *end* will probably stop, ``None`` where nothing tells."""
    return _least((_expected(rule, estimate, done, seconds, rate), end))


def _expected(rule: Rule | None, estimate: Estimate, done: int, seconds: float, rate: float) -> int | None:
    if isinstance(rule, MaxTrials):
        return rule.n
    if isinstance(rule, HalfWidth) and rule.by == "model" and 0 <= estimate.value <= 1:
        return max(wilson_trials(estimate.value, rule.h, level=rule.level), rule.minimum, done)
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


def is_counted(record: Record, tally: Tally) -> bool:
    """Return whether counts alone give intervals: of independent, equally weighted trials whose outcomes were seen."""
    design, configuration = tally.design, record.configuration
    alike = design.looks == "one" and design.replacement and design.unit == "fault" and design.reach == 1
    seen = not configuration.get("assumption") and not configuration.get("metric")
    return alike and seen and configuration.get("inputs_per_fault", 1) == 1 and tally.counts("model").equal


def running_estimate(record: Record, tally: Tally, *, level: float) -> Estimate:
    """Return the estimate of the trials in *tally*, from counts alone where they suffice."""
    if not is_counted(record, tally):
        return Results(record, tally.columns()).estimate(level=level)
    counts = tally.counts("model")
    return proportion(int(counts.failures[0]), int(counts.trials[0]), level=level)


def half_widths(record: Record, tally: Tally, by: str, level: float, method: str) -> NDArray[np.float64]:
    """Return the half-width of the interval of each group of *by*, audits included, shape (groups,).

    It is infinite where nothing is known, or where a stop now would bias the value, and 0 for groups that cannot be
    drawn.
    """
    axis = tally.space.axis(by)
    if tally.design.looks == "every":
        rounds, half = tally.rounds(by, level=level), np.zeros(len(axis))
        sequences = rounds.sequences
        width = sequences.high - sequences.low + tally.widened(by, level)[rounds.groups]
        half[rounds.groups] = np.where(sequences.settled >= SETTLED, width / 2, np.inf)
        return half
    if is_counted(record, tally):
        counts = tally.counts(by)
        low, high = find_interval(method)(counts.failures, counts.trials, level=level)
        return np.where(axis.faults > 0, (high - low) / 2, 0.0)
    asked = Question(record, tally.space, tally.design, tally.columns(), by, "failed", level, method)
    half = np.array([one.half_width for one in estimates(asked)])
    return np.where(axis.faults > 0, np.where(np.isnan(half), np.inf, half), 0.0)
