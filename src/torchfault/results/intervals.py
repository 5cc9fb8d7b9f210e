"""Which interval a group of faults gets: it follows from the design of the draws, and from nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isfinite, nan

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis, Space
from torchfault.errors import CampaignError
from torchfault.results.assumptions import AuditCounts, widened
from torchfault.results.counter import Counter
from torchfault.results.finite import parts_of
from torchfault.results.looks import unbiased
from torchfault.results.observations import Observations, observe
from torchfault.results.sequential import Sequential
from torchfault.results.two_stage import factor_estimates
from torchfault.sampling.design import Design
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate, bounded_mean, quantile_interval, weighted_mean
from torchfault.statistics.intervals import find_interval
from torchfault.store import Columns, Record

__all__ = ["Question", "as_if_seen", "estimates", "weighed"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of a campaign: of its *record*, *space*, *design* and trials, by which groups, of which outcome.

    *counter*, where there is one, counts the trials without listing them.
    """

    record: Record
    space: Space
    design: Design
    columns: Columns
    by: str
    flag: str
    level: float
    method: str
    counter: Counter | None = None

    @property
    def counts(self) -> Counter | None:
        """The counter, where it counts these very columns."""
        return self.counter if self.counter is not None and self.counter.columns is self.columns else None

    @property
    def repeats(self) -> int:
        """The number of inputs that each draw runs on, one after the other."""
        return int(self.record.configuration.get("inputs_per_fault", 1))

    @cached_property
    def looks(self) -> Sequential:
        """The complete blocks of a campaign whose outcomes decide what is drawn."""
        return Sequential(self.space, self.design, self.columns, repeats=self.repeats)


def estimates(asked: Question, axis: Axis | None = None) -> list[Estimate]:
    """Return the estimate of every group that *asked* names, in the order of its axis, or of another *axis*."""
    axis = asked.space.axis(asked.by) if axis is None else axis
    found = as_if_seen(asked, axis)
    if asked.record.configuration.get("assumption"):
        found = _audited(asked, axis, found)
    elif asked.by == "model" and asked.flag == "failed":
        found = [unbiased(found[0], asked.record, asked.columns, asked.design)]
    metric = asked.columns.values is not None
    return [
        _beyond(one, _reach(asked, int(faults)), metric=metric) for one, faults in zip(found, axis.faults, strict=True)
    ]


def as_if_seen(asked: Question, axis: Axis) -> list[Estimate]:
    """Return the estimates of all groups, as if every outcome had been seen: none rests on an assumption."""
    design, columns = asked.design, asked.columns
    if design.clusters is not None:
        if axis.of_cell is None and asked.by != design.clusters:
            raise CampaignError(
                f"'{asked.record.name}' drew words by {design.clusters}, across each {asked.by}; group by site"
            )
        assert isinstance(asked.space, FaultSpace)
        told = {"flag": asked.flag, "repeats": asked.repeats, "level": asked.level}
        return factor_estimates(asked.space, design, columns, axis, **told)  # type: ignore[arg-type]
    if design.looks == "every":
        return _sequential(asked, axis)
    known: dict[int, Estimate] = {}
    if not design.replacement and not design.enumerates and columns.values is None and asked.repeats == 1:
        told = {"inputs": asked.record.inputs, "flag": asked.flag, "counter": asked.counts}
        parts = parts_of(asked.space, design.strata, axis, columns, **told)  # type: ignore[arg-type]
        for group in range(len(axis)) if parts is not None else ():
            one = parts.estimate(group, level=asked.level, method=asked.method)  # type: ignore[union-attr]
            known |= {} if one is None else {group: one}
    if len(known) == len(axis):
        return [known[group] for group in range(len(axis))]
    if (counter := asked.counts) is not None:
        rest = _shares(asked, counter.having(asked.flag, axis), counter.trials(axis))
        return [known.get(group, one) for group, one in enumerate(rest)]
    seen = observe(asked.space, columns, axis, repeats=1 if design.enumerates else asked.repeats, flag=asked.flag)
    rest = _exhaustive(asked, axis, seen) if design.enumerates else _sampled(asked, seen)
    return [known.get(group, one) for group, one in enumerate(rest)]


def _sequential(asked: Question, axis: Axis) -> list[Estimate]:
    """Return estimates that hold at every look; where there is none an interval of one look about an unbiased value."""
    looks = asked.looks
    known = looks.estimates(asked.by, level=asked.level) if asked.flag == "failed" else {}
    if len(known) == len(axis):
        return [known[group] for group in range(len(axis))]
    pooled = observe(asked.space, looks.pooled(), axis, repeats=asked.repeats, flag=asked.flag)
    fair = observe(asked.space, looks.weighed(level=asked.level), axis, repeats=asked.repeats, flag=asked.flag)
    values = fair.mean(fair.failed)
    rest = [
        replace(one, value=value, low=min(one.low, value), high=max(one.high, value)) if isfinite(value) else one
        for one, value in zip(_sampled(asked, pooled), values.tolist(), strict=True)
    ]
    return [known.get(group, one) for group, one in enumerate(rest)]


def weighed(asked: Question) -> Columns:
    """Return the trials with weights under which any mean over those of a group is unbiased."""
    return asked.columns if asked.design.looks == "one" else asked.looks.weighed(level=asked.level)


def _exhaustive(asked: Question, axis: Axis, seen: Observations) -> list[Estimate]:
    """Return what trials that take every fault in order leave unknown: all that is missing may fail, or none."""
    groups, lanes = len(axis), 1 if seen.value is not None else asked.record.inputs
    done, left = np.bincount(seen.group, seen.weight, groups), axis.faults * lanes - seen.trials
    # under a measure all weights sum to the number of trials; how what is missing is spread over groups is not known
    missing = left if seen.plain else np.where(left > 0, len(asked.space) * lanes - seen.weight.sum(), 0.0)
    whole = done + missing
    found = []
    for group, members in enumerate(seen.members()):
        n, complete = int(seen.trials[group]), int(seen.trials[group]) == int(axis.faults[group]) * lanes
        if seen.value is not None:
            value = float(np.average(seen.value[members], weights=seen.weight[members])) if n else nan
            bounds = (value, value) if complete and n and isfinite(value) else (-inf, inf)
            found.append(Estimate(value, *bounds, n, "exhaustive", asked.level))
            continue
        failing = float(seen.weight[members] @ seen.failed[members])
        value = failing / done[group] if done[group] > 0 else nan
        low, high = (
            (failing / whole[group], (failing + missing[group]) / whole[group]) if whole[group] > 0 else (0.0, 1.0)
        )
        found.append(Estimate(value, low, high, n, "exhaustive", asked.level))
    return found


def _sampled(asked: Question, seen: Observations) -> list[Estimate]:
    """Return estimates from draws that are independent, or independent within their strata."""
    if seen.plain and seen.value is None and bool(np.isin(seen.failed, (0, 1)).all()):
        return _shares(asked, np.bincount(seen.group, seen.failed, seen.groups), seen.trials)
    strata = seen.nested
    return [_group(asked, seen, members, strata=strata) for members in seen.members()]


def _shares(asked: Question, failures: Floats | Ints, trials: Ints) -> list[Estimate]:
    """Return the share of independent trials that failed in each group, shape (groups,) each."""
    low, high = find_interval(asked.method)(failures, trials, level=asked.level)
    with np.errstate(invalid="ignore"):
        value = failures / trials
    rows = zip(value.tolist(), low.tolist(), high.tolist(), trials.tolist(), strict=True)
    return [Estimate(v, lo, hi, count, asked.method, asked.level) for v, lo, hi, count in rows]


def _group(asked: Question, seen: Observations, members: Ints, *, strata: bool) -> Estimate:
    """Return the estimate of one group, given that the fault is one of its own: weights average 1 there.

    Over all trials they do so in expectation only, and dividing by their mean would trade the unbiased estimate for a
    ratio: only a part of the trials is normalised. A sampler that told its largest weight is taken at its word.
    """
    if not 0 < (seen.weight[members] * seen.share[members]).sum() < inf:
        members = members[:0]
    weights = seen.weight[members] * seen.share[members]
    mean = _Mean(
        weights,
        seen.stratum[members] if strata else None,
        asked.level,
        max(asked.design.largest_weight or 0.0, float(weights.max(initial=0.0))),
        len(members) < seen.draws,
    )
    if seen.value is not None:
        return _metric(seen.value[members], mean, asked.record.golden.get("drop_bounds"))
    values = seen.failed[members]
    return mean.of_shares(values) if np.isin(values, (0, 1)).all() else mean.of_bounded(values, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class _Mean:
    """How to average over draws: their weights, their strata, and the largest weight there can be."""

    weights: Floats
    stratum: Ints | None
    level: float
    largest_weight: float
    ratio: bool

    def of_shares(self, values: Floats) -> Estimate:
        """Return the mean of values that are 0 or 1."""
        return weighted_mean(values, **vars(self))

    def of_bounded(self, values: Floats, low: float, high: float) -> Estimate:
        """Return the mean of values from *low* to *high*."""
        return bounded_mean(values, low=low, high=high, **vars(self))

    def median(self, values: Floats) -> Estimate:
        """Return the median of values without bounds."""
        return quantile_interval(values, **vars(self))


def _metric(drops: Floats, mean: _Mean, bounds: Sequence[float] | None) -> Estimate:
    """Return the mean drop of a metric whose range is known, else the median; what is no number is the largest."""
    if bounds is None:
        return mean.median(drops)
    return mean.of_bounded(np.where(np.isnan(drops), bounds[1], drops), *bounds)


def _audited(asked: Question, axis: Axis, found: list[Estimate]) -> list[Estimate]:
    """Return estimates with what audits found, and what they leave open, added to them."""
    counts = AuditCounts(asked.space, asked.design, axis)
    counts.add(asked.columns)
    above = np.array([0.0 if one.method == "anytime" else np.nan_to_num(one.high - one.value) for one in found])
    shifts = np.stack(counts.shifts(asked.level, above=above), axis=1).tolist()
    said = str(asked.record.configuration["assumption"])
    return [
        widened(one, tuple(shift), said) if isfinite(one.value) else one
        for one, shift in zip(found, shifts, strict=True)
    ]


def _reach(asked: Question, faults: int) -> float:
    """Return the least share of a group of so many *faults* that the sampler can draw: it may hold all others."""
    out_of_reach = (1 - asked.design.reach) * len(asked.space)
    return max(1 - out_of_reach / max(faults, 1), 0.0)


def _beyond(estimate: Estimate, reach: float, *, metric: bool) -> Estimate:
    """Return an estimate that says nothing about the faults out of *reach*, any share of which may fail.

    A share is at most 1, though the heavy weights of a few draws bring its unbiased estimate beyond.
    """
    if not metric and max(estimate.value, estimate.high) > 1:
        value, low, high = (min(one, 1.0) for one in (estimate.value, estimate.low, estimate.high))
        estimate = replace(estimate, value=value, low=low, high=high)
    if reach == 1:
        return estimate
    method = f"{estimate.method}, {100 * reach:.3g} % in reach"
    return replace(estimate, high=estimate.high if metric else min(estimate.high + 1 - reach, 1.0), method=method)
