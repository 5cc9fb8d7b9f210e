"""Estimates of adaptive campaigns, whose intervals hold although the outcomes decided what to draw and when to stop."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.groups import code_of
from torchfault.sampling import Adaptive, History
from torchfault.sampling.adaptive import Tally, tally
from torchfault.statistics import Estimate
from torchfault.store import Columns, Record

__all__ = ["Looks", "looks"]


@dataclass(frozen=True, eq=False)
class Looks:
    """Counts by block and cell of an adaptive campaign, all *trials* by group, and the half-width aimed at."""

    counts: Tally
    trials: NDArray[np.int64]
    target: float

    def estimate(self, group: int, *, level: float, method: str) -> Estimate | None:
        """Return the estimate of a group from the complete blocks; *method* is for intervals of one look."""
        del method
        if not (self.counts.group == group).any():
            return None
        trials = int(self.trials[group])
        if not len(self.counts.trials):
            return Estimate(np.nan, 0.0, 1.0, trials, "anytime", level)
        ends = self.counts.sequence(group, target=self.target, level=level)
        return Estimate(float(ends.value[-1]), float(ends.low[-1]), float(ends.high[-1]), trials, "anytime", level)


def looks(record: Record, columns: Columns, by: str) -> Looks | None:
    """Return what the intervals of an adaptive campaign are made of, ``None`` for other samplers and for channels.

    Where a campaign was stopped within a block, the trials of that block do not count for the estimate.
    """
    described = record.configuration.get("sampler")
    if not isinstance(described, dict) or described.get("class") != "Adaptive" or by == "channel":
        return None
    fields = dict(described["fields"])
    sampler = Adaptive(**{**fields, "groups": tuple(fields["groups"])})
    strata = sampler.strata(record.space)
    of_trial = code_of(record.space, record.space.locate(columns.faults), by)
    of_pair = code_of(record.space, strata.where, by)
    stratum = np.zeros(len(columns), dtype=np.int32) if columns.strata is None else columns.strata
    history = History(columns.faults, stratum, columns.failed)
    counts = tally(strata, of_pair, of_trial, history, block=sampler.block)
    trials = np.bincount(of_trial, minlength=int(of_pair.max()) + 1)
    return Looks(counts, trials, sampler.target(by))
