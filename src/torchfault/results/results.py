"""Results: trials become estimates and tables when asked for, from the stored columns alone, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis, Space
from torchfault.errors import CampaignError, StoreError, did_you_mean
from torchfault.files import check_target, written
from torchfault.results.assumptions import Audit, AuditCounts
from torchfault.results.counter import Counter, counter_of
from torchfault.results.crossed import crossed
from torchfault.results.diagnostics import Diagnostics, diagnose
from torchfault.results.intervals import Question, estimates, weighed
from torchfault.results.observations import observe
from torchfault.results.plausibility import sound_batches
from torchfault.results.proofs import Proofs, proofs_of
from torchfault.results.spaces import space_of
from torchfault.sampling.design import Design
from torchfault.sampling.flips import masks_of, popcount
from torchfault.statistics import Estimate
from torchfault.statistics.intervals import find_interval
from torchfault.store import Batch, Columns, Record, Store
from torchfault.text import visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Results", "load"]


@dataclass(frozen=True, eq=False, repr=False)
class Results:
    """What a campaign found: its *record* (names, digests, design, status), and its trials in *columns*.

    Estimates follow from the design of the draws: they weigh each trial by its p/q, know of the faults that were drawn
    without replacement how many are left, and hold at every look where the design says so. Where the sampler enumerates
    everything the interval (method ``exhaustive``) is what the trials that are missing could still change: no width at
    all at the end.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> results = run(example_campaign(trials=200))
    >>> results
    <Results of 'campaign': 200 trials, 0.040 [0.020, 0.077] fail, finished>
    """

    record: Record
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns)

    def __repr__(self) -> str:
        what = "fail" if self.columns.values is None else self.measured
        found = f"{self.estimate()} {what}, " if len(self) else ""
        return f"<Results of '{self.name}': {len(self)} trials, {found}{self.record.status}>"

    @property
    def name(self) -> str:
        """The name of the campaign."""
        return self.record.name

    @cached_property
    def space(self) -> Space:
        """The faults that could be drawn."""
        return space_of(self.record)

    @cached_property
    def design(self) -> Design:
        """What the sampler promised."""
        return Design.from_plain(self.record.design)

    @property
    def level(self) -> float:
        """The confidence level of the campaign."""
        return float(self.record.configuration.get("level", 0.95))

    @property
    def failures(self) -> int:
        """The number of trials that failed, each bit of a word for itself."""
        return int(popcount(masks_of(self.columns, "failed")).sum())

    @property
    def lanes(self) -> int:
        """The number of lanes that ran: one for each trial on each of its inputs, or fewer by resolvers."""
        if self.columns.lanes is not None:
            return int(self.columns.lanes.sum())
        return len(self) * (1 if self.columns.values is None else self.record.inputs)

    @property
    def measured(self) -> str:
        """What the estimate of a metric is: the mean of its drops where these have bounds, else their median."""
        return "mean drop" if self.record.golden.get("drop_bounds") else "median drop"

    def estimate(self, flag: str = "failed", *, level: float | None = None, method: str = "wilson") -> Estimate:
        """Return the probability that a trial fails or, where a metric was measured, the metric's mean drop.

        *flag* names another outcome: ``due``, ``crash``, or a further verdict of the campaign. *level* is the
        campaign's own unless told. Where the sampler leaves faults out, the upper bound has it that all of these fail;
        the mean of a metric is of the others then. *method* names an interval for unweighted failures: ``wilson``,
        ``clopper-pearson`` or ``jeffreys``. Where a half-width ended a uniform campaign, the value reckons with it and
        is unbiased.
        """
        return estimates(self.question("model", flag, level=level, method=method))[0]

    def table(
        self,
        by: str | tuple[str, str] = "site",
        flag: str = "failed",
        *,
        level: float | None = None,
        method: str = "wilson",
    ) -> "pd.DataFrame":
        """Return one row per group of *by*: ``model``, ``site``, ``layer`` (module), ``channel``, ``bit``, ...

        The columns are *key*, *trials*, *failures*, *due* (the share without an answer), *value*, *low* and *high*:
        :meth:`estimate`, given that the fault struck there. A trial of several faults counts in each group that it
        struck. A group without trials has the value NaN and the interval (0, 1). A pair of names, such as ``("layer",
        "bit")``, crosses two groupings: two columns of their names stand in the place of *key*, and pairs that hold no
        fault are left out. Raises :class:`torchfault.errors.SpaceError` for another *by*.
        """
        import pandas as pd

        if isinstance(by, str):
            axis = self.space.axis(by)
            named: dict[str, Any] = {"key": axis.keys}
        else:
            axis, keys = crossed(self.space, by)
            named = dict(zip(by, zip(*keys, strict=True), strict=True))
        asked = self.question(by if isinstance(by, str) else ", ".join(by), flag, level=level, method=method)
        found = estimates(asked, axis)
        named |= dict(zip(("trials", "failures", "due"), self._counted(asked, axis), strict=True))
        bounds = np.array([(one.value, one.low, one.high) for one in found]).reshape(-1, 3).T
        return pd.DataFrame(named | dict(zip(("value", "low", "high"), bounds, strict=True)))

    def _counted(self, asked: Question, axis: Axis) -> tuple[NDArray[Any], ...]:
        """Return the trials, the failures, and the share without an answer of each group of *axis*, (groups,) each."""
        if (counter := asked.counts) is not None:
            trials, failures, due = counter.trials(axis), *(counter.having(one, axis) for one in (asked.flag, "due"))
            with np.errstate(invalid="ignore"):
                return trials, failures, due / trials
        seen, fair = observe(self.space, self.sampled, axis, flag=asked.flag), weighed(asked)
        failures = np.bincount(seen.group, seen.failed * seen.size, len(axis)).round().astype(np.int64)
        lost = seen if fair is self.sampled else observe(self.space, fair, axis, flag=asked.flag)
        return seen.trials, failures, lost.mean(lost.due)

    def audit(self, *, level: float | None = None) -> Audit | None:
        """Return how well the assumption behind resolvers held, ``None`` where every trial had a lane of its own."""
        assumption = self.record.configuration.get("assumption", "")
        if not assumption:
            return None
        counts = AuditCounts(self.space, self.design, self.space.axis("model"))
        counts.add(self.columns)
        return counts.audit(assumption, level=self.level if level is None else level)

    def proofs(self) -> Proofs | None:
        """Return how many outcomes were proven, and what came of those run all the same; ``None`` where none was."""
        return proofs_of(self.columns, trials=len(self), lanes=self.lanes)

    def diagnostics(self, *, level: float | None = None) -> Diagnostics:
        """Return how the trials were spent: weights, effective sample size, allocation by stratum, and warnings."""
        return diagnose(self.space, self.columns, self.estimate(level=level), counter=self._counter)

    def faults(self) -> "pd.DataFrame":
        """Return one row per fault, with its place, weight and outcome; the same columns as an export."""
        import pandas as pd

        from torchfault.results.export import flat

        return pd.DataFrame(flat(self.space, Batch(0, self.columns, 0.0), self.record))

    def to_csv(self, path: str | Path, by: str | None = None, *, force: bool = False) -> None:
        """Write one row per fault to a file, or the table by *by*; over a file that exists with *force* alone.

        Raises :class:`torchfault.errors.StoreError` for a place that cannot be written to.
        """
        target = Path(path)
        if why := check_target(target, force=force):
            raise StoreError(f"the file '{target}' {why}")
        frame = self.faults() if by is None else self.table(by)
        with written(target, force=force) as part:
            frame.to_csv(part, index=False, lineterminator="\n")

    def _repr_html_(self) -> str:
        """Return the headline and the table of layers, for notebooks."""
        by = "layer" if "layer" in self.space.groupings else "model"
        frame = self.table(by).map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
        return f"<p>{escape(visible(repr(self)))}</p>{frame.to_html(index=False)}"

    @cached_property
    def sampled(self) -> Columns:
        """The trials that are a sample: all of them, unless the sampler picked some on purpose."""
        sample = self.design.sample
        return self.columns if sample is None else self.columns.where(np.isin(self.columns.stratum, sample))

    def with_flags(self, flags: Mapping[str, NDArray[Any]]) -> "Results":
        """Return the same trials with further outcomes: *flags* by name, as in :class:`torchfault.store.Columns`."""
        named = dict(self.record.configuration.get("verdicts", {})) | dict.fromkeys(flags)
        record = replace(self.record, configuration={**self.record.configuration, "verdicts": named})
        found = Results(record, replace(self.columns, flags={**self.columns.flags, **flags}))
        if self._counter is not None:
            found.__dict__["_counter"] = self._counter.relabelled(found.columns)  # where they struck is worked out once
        return found

    def question(self, by: str, flag: str, *, level: float | None = None, method: str = "wilson") -> Question:
        """Return what estimates by groups *by* of the outcome *flag* ask; refuse an outcome that was not recorded."""
        find_interval(method)
        known = {"failed", "due", *self.record.configuration.get("verdicts", {}), "crash"}
        if flag not in known:
            named = ", ".join(sorted(known))
            raise CampaignError(f"'{self.name}' recorded the outcomes {named}, got '{flag}'{did_you_mean(flag, known)}")
        chosen = self.level if level is None else level
        told = (self.record, self.space, self.design, self.sampled, by, flag, chosen, method)
        return Question(*told, self._counter)

    @cached_property
    def _counter(self) -> Counter | None:
        repeats = int(self.record.configuration.get("inputs_per_fault", 1))
        return counter_of(self.space, self.design, self.columns, repeats=repeats)


def load(store: Store, name: str) -> Results:
    """Return the results of the campaign *name* in *store*, as far as it has come.

    Raises :class:`torchfault.errors.StoreError` where there is none, and for one that says what cannot be.

    >>> import tempfile
    >>> from torchfault.testing import example_record
    >>> with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/results.sqlite") as store:
    ...     _ = store.create(example_record("first"))
    ...     len(load(store, "first"))
    0
    """
    record, _, batches = sound_batches(store, name)
    columns = Columns.join([batch.columns for batch in batches])
    return Results(replace(record, trials=len(columns)), columns)  # it may be growing while we read
