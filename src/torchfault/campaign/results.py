"""Results: trials become estimates and tables when asked for, from the stored columns alone, without torch."""

from dataclasses import dataclass, replace
from math import inf, isfinite, nan
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.anytime import Deviated, Looks, Together, looks
from torchfault.campaign.audit import Audit, audit_of, widened
from torchfault.campaign.cells import Cells, cells
from torchfault.campaign.diagnostics import Diagnostics, diagnose
from torchfault.campaign.discovery import Discovery, discovery, is_search, side_sample
from torchfault.campaign.groups import GROUPINGS, Groups, groups
from torchfault.campaign.stopped import unbiased
from torchfault.errors import CampaignError, did_you_mean
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate, bounded_mean, proportion, quantile_interval, weighted_mean
from torchfault.statistics.intervals import find_interval
from torchfault.store import Batch, Columns, Record, Store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Results", "load"]


@dataclass(frozen=True, eq=False)
class Results:
    """What a campaign found: its *record* (names, digests, status), and its trials in *columns*.

    Estimates weigh each trial by its p/q, and know of the faults that were drawn without replacement how many are
    left. Where the sampler enumerates everything the interval (method ``exhaustive``)
    is what the trials that are missing could still change: no width at all at the end.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("fc.weight", (4,)),))
    >>> failed = np.array([True, False, False, False])
    >>> columns = Columns(np.array([31, 7, 40, 127]), np.zeros(4, dtype=np.int64), failed, np.zeros(4, dtype=bool))
    >>> print(Results(Record("example", space=space, inputs=1), columns).estimate())
    0.25 [0.05, 0.70]
    """

    record: Record
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def name(self) -> str:
        """The name of the campaign."""
        return self.record.name

    @property
    def space(self) -> FaultSpace:
        """The faults that could be drawn."""
        return self.record.space

    @property
    def failures(self) -> int:
        """The number of trials that failed."""
        return int(self.columns.failed.sum())

    def estimate(self, *, level: float = 0.95, method: str = "wilson") -> Estimate:
        """Return the probability that a trial fails or, where a metric was measured, the metric's mean drop.

        Where a metric knows no end (:func:`torchfault.criteria.bounds`), it is the median drop.
        Where the sampler leaves faults out, the upper bound has it that all of these fail; the mean of a metric is of
        the others then.
        *method* names an interval for unweighted failures: ``wilson``, ``clopper-pearson`` or ``jeffreys``. Where a
        half-width ended a uniform campaign, the value reckons with it and is unbiased. A drop that is no number counts
        as the largest.

        >>> from torchfault.space import Site
        >>> space = FaultSpace((Site("fc.weight", (4,)),))
        >>> print(Results(Record("begun", space=space, inputs=1), Columns.empty()).estimate())
        nan [0.00, 1.00]
        """
        find_interval(method)
        if self._narrower is not None:
            return self._narrower.estimate(level=level, method=method)
        sample = looks(self.record, self.columns, "model") or cells(self.record, self.columns, "model")
        known = sample.estimate(0, level=level, method=method) if sample else None
        everyone = np.arange(len(self))
        known = known or _estimate(self.columns, everyone, self.record, self.record.population, level, method)
        known = unbiased(known, self.record, self.columns)
        known = self._audited(known, everyone, level)
        return _beyond(known, self._reach(len(self.space)), metric=self.columns.values is not None)

    def audit(self, *, level: float = 0.95) -> Audit | None:
        """Return how well the assumption behind shortcuts held, ``None`` where every trial had a lane of its own.

        >>> from torchfault.space import Site
        >>> space = FaultSpace((Site("fc.weight", (4,)),))
        >>> Results(Record("begun", space=space, inputs=1), Columns.empty()).audit() is None
        True
        """
        return audit_of(self.record, self.columns, level=level)

    def diagnostics(self, *, level: float = 0.95) -> Diagnostics:
        """Return how the trials were spent: weights, effective sample size, allocation by stratum, and warnings.

        >>> from torchfault.space import Site
        >>> space = FaultSpace((Site("fc.weight", (4,)),))
        >>> Results(Record("begun", space=space, inputs=1), Columns.empty()).diagnostics().warnings
        ('there is no trial yet: run some',)
        """
        return diagnose(self.space, self.columns, self.estimate(level=level))

    def discovery(self, *, level: float = 0.95) -> Discovery:
        """Return what a search for critical faults found: precision and recall after every trial, with intervals.

        Raises :class:`CampaignError` for a campaign whose sampler is not :class:`torchfault.sampling.Search`.
        """
        return discovery(self.record, self.columns, level=level)

    @property
    def _narrower(self) -> "Results | None":
        """The part of a search that estimates may use, its side sample; ``None`` where they may use all trials."""
        side = side_sample(self.columns) if is_search(self.record) else self.columns
        return None if len(side) == len(self) else Results(self.record, side)

    @property
    def lanes(self) -> int:
        """The number of lanes that ran: one for each trial on each of its inputs, or fewer by shortcuts."""
        if self.columns.lanes is not None:
            return int(self.columns.lanes.sum())
        return len(self) * (1 if self.columns.values is None else self.record.inputs)

    @property
    def measured(self) -> str:
        """What is estimated: ``failing`` trials, a metric's ``mean drop``, or a ``median drop`` without an end."""
        if self.columns.values is None:
            return "failing"
        return "mean drop" if "span" in self.record.configuration else "median drop"

    def _audited(self, estimate: Estimate, members: NDArray[np.int64], level: float) -> Estimate:
        known = self.audit(level=level)
        if known is None or not isfinite(estimate.value):
            return estimate
        return replace(widened(estimate, self.columns, members, level=level), assumption=known.assumption)

    def _reach(self, faults: int) -> float:
        """Return the least share of a group of so many *faults* that the sampler can draw: it may hold all others."""
        out_of_reach = (1 - float(self.record.configuration.get("reach", 1.0))) * len(self.space)
        return max(1 - out_of_reach / max(faults, 1), 0.0)

    def table(self, by: str = "site", *, level: float = 0.95, method: str = "wilson") -> "pd.DataFrame":
        """Return one row per ``model``, ``site``, ``layer`` (module), ``channel``, ``bit``, ``kind`` or time ``step``.

        The columns are *key*, *trials*, *failures*, *due* (the share with a NaN or infinity), *value*, *low* and
        *high*: :meth:`estimate`, given that the fault struck there. A trial of several faults counts in each group that
        it struck. A group without trials has the value NaN and the interval (0, 1). Raises
        :class:`CampaignError` for another *by*.

        >>> from torchfault.space import Site
        >>> space = FaultSpace((Site("fc.weight", (4,)),))
        >>> Results(Record("begun", space=space, inputs=1), Columns.empty()).table("site")
                 key  trials  failures  due  value  low  high
        0  fc.weight       0         0  NaN    NaN  0.0   1.0
        """
        import pandas as pd

        if by not in GROUPINGS:
            raise CampaignError(f"a table is by {', '.join(GROUPINGS)}, got '{by}'{did_you_mean(by, GROUPINGS)}")
        interval = find_interval(method)
        if self._narrower is not None:
            return self._narrower.table(by, level=level, method=method)
        of = groups(self.space, self.columns, by)
        trials, failures = of.count(), of.count(self.columns.failed)
        sample = looks(self.record, self.columns, by) or cells(self.record, self.columns, by)
        plain = self.columns.weights is None and self.columns.values is None and self.record.population is None
        if plain and sample is None and self.columns.lanes is None:
            with np.errstate(invalid="ignore"):
                value, due = failures / trials, of.count(self.columns.due) / trials
            low, high = interval(failures, trials, level=level)
        else:
            value, low, high, due = self._conditional(of, sample, level, method)
        if by == "model":
            one = self.estimate(level=level, method=method)
            value, low, high = (np.array([number]) for number in (one.value, one.low, one.high))
        columns = {"key": of.keys, "trials": trials, "failures": failures, "due": due}
        return pd.DataFrame(columns | {"value": value, "low": low, "high": high})

    def faults(self) -> "pd.DataFrame":
        """Return one row per fault, with its place, weight and outcome; the same columns as an export.

        >>> from torchfault.space import Site
        >>> space = FaultSpace((Site("fc.weight", (4,)),))
        >>> list(Results(Record("begun", space=space, inputs=1), Columns.empty()).faults())[:4]
        ['trial', 'site', 'kind', 'layer']
        """
        import pandas as pd

        from torchfault.store.export import flat

        return pd.DataFrame(flat(self.space, Batch(0, self.columns, 0.0)))

    def _conditional(
        self, of: Groups, sample: "Deviated | Looks | Together | Cells | None", level: float, method: str
    ) -> tuple[NDArray[np.float64], ...]:
        """Return value, low, high and share of due for every group, from its own trials."""
        lanes = None if self.record.population is None else self.record.population // len(self.space)
        strata = _nested(self.columns, of)
        rows = []
        for code, members in enumerate(of.members()):
            everything = None if lanes is None else int(of.faults[code]) * lanes
            one = sample.estimate(code, level=level, method=method) if sample else None
            one = one or _estimate(self.columns, members, self.record, everything, level, method, strata=strata)
            one = self._audited(one, members, level)
            one = _beyond(one, self._reach(int(of.faults[code])), metric=self.columns.values is not None)
            rows.append((one.value, one.low, one.high, _share(self.columns, members)))
        return tuple(np.array(rows, dtype=np.float64).reshape(-1, 4).T)


def load(store: Store, name: str) -> Results:
    """Return the results of the campaign *name* in *store*, as far as it has come.

    Raises :class:`torchfault.errors.StoreError` where there is none.

    >>> import tempfile
    >>> from torchfault.space import Site
    >>> with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/results.sqlite") as store:
    ...     _ = store.create(Record("first", space=FaultSpace((Site("fc.weight", (4,)),)), inputs=1))
    ...     len(load(store, "first"))
    0
    """
    columns = store.trials(name)
    record = store.campaign(name)
    return Results(replace(record, trials=len(columns)), columns)  # it may be growing while we read


def _estimate(
    columns: Columns,
    members: NDArray[np.int64],
    record: Record,
    everything: int | None,
    level: float,
    method: str,
    *,
    strata: bool = True,
) -> Estimate:
    """Return the estimate from the trials *members* of *columns*; *everything* is their number in an enumeration."""
    n, failures = len(members), int(columns.failed[members].sum())
    if columns.values is not None:
        return _mean(columns, members, record, everything, level, strata=strata)
    if everything is not None and everything > 0:
        value = failures / n if n else nan
        return Estimate(value, failures / everything, (failures + everything - n) / everything, n, "exhaustive", level)
    if columns.weights is None:
        return proportion(failures, n, method=method, level=level)
    return _weighted(columns, members, record, level, strata=strata)


def _mean(
    columns: Columns,
    members: NDArray[np.int64],
    record: Record,
    everything: int | None,
    level: float,
    *,
    strata: bool,
) -> Estimate:
    assert columns.values is not None
    assert columns.metric is not None
    if everything is not None:
        values = columns.values[members]
        value = float(values.mean()) if values.size else nan
        low, high = (value, value) if 0 < everything == len(values) else (-inf, inf)
        return Estimate(value, low, high, len(values), "exhaustive", level)
    members, weights, stratum, heaviest, part = _draws(columns, members, record, strata=strata)
    values = columns.values[members]
    if "span" not in record.configuration:
        return quantile_interval(
            values, weights=weights, stratum=stratum, level=level, largest_weight=heaviest, ratio=part
        )
    least, most = record.configuration["span"]
    golden = float(np.nanmax(columns.metric + columns.values, initial=least))
    values, low, high = np.where(np.isnan(values), golden - least, values), golden - most, golden - least
    return bounded_mean(
        values, low=low, high=high, weights=weights, stratum=stratum, level=level, largest_weight=heaviest, ratio=part
    )


def _draws(
    columns: Columns, members: NDArray[np.int64], record: Record, *, strata: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32] | None, float, bool]:
    """Return *members*, none where they have no weight, their weights and strata, the largest weight, and whether they
    are a part of the trials.

    Given that the fault is one of theirs, weights average 1 there. Over all trials they do so in expectation only, and
    dividing by their mean would trade the unbiased estimate for a ratio: only a part of the trials is normalised. A
    sampler that told its largest weight is taken at its word.
    """
    part = len(members) < len(columns)
    weights = np.ones(len(members)) if columns.weights is None else columns.weights[members]
    if not 0 < weights.sum() < inf:
        members, weights = members[:0], weights[:0]
    heaviest = max(record.configuration.get("largest_weight", 0.0), float(weights.max(initial=0.0)))
    stratum = columns.strata[members] if strata and columns.strata is not None else None
    return members, weights, stratum, heaviest, part


def _weighted(columns: Columns, members: NDArray[np.int64], record: Record, level: float, *, strata: bool) -> Estimate:
    """Return the weighted share of *members* that failed, given that the fault is one of theirs."""
    members, weights, stratum, heaviest, part = _draws(columns, members, record, strata=strata)
    failed = columns.failed[members].astype(np.float64)
    return weighted_mean(failed, weights, stratum=stratum, level=level, largest_weight=heaviest, ratio=part)


def _beyond(estimate: Estimate, reach: float, *, metric: bool) -> Estimate:
    """Return an estimate that says nothing about the faults out of *reach*, any share of which may fail."""
    if reach == 1:
        return estimate
    method = f"{estimate.method}, {100 * reach:.3g} % in reach"
    return replace(estimate, high=estimate.high if metric else min(estimate.high + 1 - reach, 1.0), method=method)


def _nested(columns: Columns, of: Groups) -> bool:
    """Return whether every stratum lies within one group, so that the groups' numbers of draws are fixed as well."""
    if columns.strata is None or columns.counts is not None:
        return False
    pairs = np.unique(np.stack((columns.strata[of.trial].astype(np.int64), of.code)), axis=1)
    return bool(np.unique(pairs[0]).size == pairs.shape[1])


def _share(columns: Columns, members: NDArray[np.int64]) -> float:
    weights = np.ones(len(members)) if columns.weights is None else columns.weights[members]
    return float(weights @ columns.due[members] / weights.sum()) if weights.sum() > 0 else nan
