"""Estimates of adaptive campaigns, whose intervals hold although the outcomes decided what to draw and when to stop."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.groups import code_of
from torchfault.sampling import Adaptive, History
from torchfault.sampling.adaptive import Tally, tally
from torchfault.sampling.deviation import Rounds, price_in, rounds
from torchfault.sampling.whole import word_rounds
from torchfault.statistics import Estimate, stratified
from torchfault.store import Columns, Record

__all__ = ["Deviated", "Looks", "looks"]


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


@dataclass(frozen=True, eq=False)
class Deviated:
    """The rounds of a campaign that samples by deviation, the sites *chosen* by their *shares*, one or (-1) all."""

    counts: Rounds
    shares: NDArray[np.float64]
    whole: bool
    anytime: bool
    target: float

    def estimate(self, group: int, *, level: float, method: str) -> Estimate | None:
        """Return the estimate of a site, or of the whole, from the complete blocks; *method* is for plain trials."""
        del method
        counts, site = self.counts, None if self.whole else group
        here = counts.shares > 0 if site is None else (counts.site == site) & (counts.shares > 0)
        if not here.any() or not len(counts.trials):
            return None
        trials = int(counts.trials[:, here].sum())
        if self.anytime:
            ends = counts.sequence(site, self.shares, target=self.target, level=level)
            if not len(ends.value):
                return None
            return Estimate(float(ends.value[-1]), float(ends.low[-1]), float(ends.high[-1]), trials, "anytime", level)
        share = counts.shares[here] * (self.shares[counts.site[here]] if site is None else 1.0)
        n = counts.trials[:, here].sum(axis=0)
        return (
            stratified(counts.failures[:, here].sum(axis=0), n, share / share.sum(), level=level) if n.all() else None
        )


def looks(record: Record, columns: Columns, by: str) -> "Looks | Deviated | None":
    """Return what the intervals of an adaptive campaign are made of, ``None`` for other samplers and for channels.

    Where a campaign was stopped within a block, the trials of that block do not count for the estimate.
    """
    described = record.configuration.get("sampler")
    if isinstance(described, dict) and described.get("class") == "Deviation":
        return _deviated(record, columns, by, described["fields"])
    if isinstance(described, dict) and described.get("class") == "WholeWords":
        return _whole_words(record, columns, by, described["fields"])
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


def _deviated(record: Record, columns: Columns, by: str, fields: dict[str, Any]) -> Deviated | None:
    """Return the rounds of sampling by deviation; the shares of its strata follow from the weights of the first."""
    block, space = int(fields["block"]), record.space
    if by not in ("model", "site") or len(columns) < block or columns.weights is None:
        return None
    stratum = np.zeros(len(columns), dtype=np.int64) if columns.strata is None else columns.strata.astype(np.int64)
    first = stratum[:block]
    drawn = np.bincount(first, minlength=int(stratum.max()) + 1)
    weight, site = np.zeros(len(drawn)), np.zeros(len(drawn), dtype=np.int64)
    weight[first] = columns.weights[:block]
    site[first] = space.locate(columns.faults[:block]).site
    sites, edges = space.sizes / len(space), len(fields["edges"])
    shares = weight * drawn / block / sites[site]
    price = price_in(int(fields["pool"]))
    counts = rounds(stratum, columns.failed, block=block, site=site, shares=shares, edges=edges, price=price)
    target = fields["model" if by == "model" else "site"]
    anytime = target is not None
    return Deviated(counts, sites, by == "model", anytime, float(target or 0.5) - float(fields["reserve"]))


def _whole_words(record: Record, columns: Columns, by: str, fields: dict[str, Any]) -> Deviated | None:
    """Return the rounds of a sample of whole words."""
    block, space = int(fields["block"]), record.space
    if by not in ("model", "site") or len(columns) < block:
        return None
    stratum = np.zeros(len(columns), dtype=np.int32) if columns.strata is None else columns.strata
    counts = word_rounds(space, stratum, columns.failed, block=block)
    return Deviated(counts, space.sizes / len(space), by == "model", by == "site", float(fields["site"]))
