"""Estimates of adaptive campaigns, whose intervals hold although the outcomes decided what to draw and when to stop."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.groups import code_of
from torchfault.sampling import Adaptive, History
from torchfault.sampling.adaptive import Tally, tally
from torchfault.sampling.deviation import Rounds, price_in, rounds, thoughts
from torchfault.sampling.whole import word_rounds
from torchfault.statistics import Estimate, stratified
from torchfault.store import Columns, Record

__all__ = ["Deviated", "Looks", "Together", "looks"]


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
    """The rounds of a campaign in which each site, or the whole, decided when it had enough draws.

    *shares* are the sites' of the whole; *asked* are the half-widths that intervals had to reach at *level*, by what
    they are of, ``site`` or ``model``; estimates are of the *whole*, or of one site.
    """

    counts: Rounds
    shares: NDArray[np.float64]
    whole: bool
    asked: Mapping[str, float]
    level: float

    def estimate(self, group: int, *, level: float, method: str) -> Estimate | None:
        """Return the estimate of a site, or of the whole, from the complete blocks; *method* is for plain trials."""
        del method
        counts, site = self.counts, None if self.whole else group
        here = counts.shares > 0 if site is None else (counts.site == site) & (counts.shares > 0)
        if not here.any() or not len(counts.trials):
            return None
        trials, target = int(counts.trials[:, here].sum()), self.asked.get("model" if self.whole else "site")
        if target is not None:
            ends = counts.sequence(site, self.shares, target=target, level=level)
            if not len(ends.value):
                return None
            return Estimate(float(ends.value[-1]), float(ends.low[-1]), float(ends.high[-1]), trials, "anytime", level)
        share, n = self._shares(here), counts.trials[:, here].sum(axis=0)
        if not n.all():
            return None
        plain = stratified(counts.failures[:, here].sum(axis=0), n, share, level=level)
        value = self._from_sites() if self.whole else self._as_the_whole(here)
        if value is None:
            return plain
        return replace(plain, value=value, low=min(plain.low, value), high=max(plain.high, value))

    def _shares(self, here: NDArray[np.bool_]) -> NDArray[np.float64]:
        share = self.counts.shares[here] * (self.shares[self.counts.site[here]] if self.whole else 1.0)
        return np.asarray(share / share.sum())

    def _from_sites(self) -> float | None:
        """Return the value of the whole from the sites', which are unbiased although each stopped when it had enough.

        All their trials together are not: a site that shows few failures is done sooner.
        """
        value = 0.0
        for site in np.flatnonzero(self.shares).tolist():
            ends = self.counts.sequence(site, self.shares, target=self.asked["site"], level=self.level)
            if not len(ends.value):
                return None
            value += self.shares[site] * float(ends.value[-1])
        return value

    def _as_the_whole(self, here: NDArray[np.bool_]) -> float | None:
        """Return a site's value from the rounds' with the weights that they have for the whole, fixed before each.

        ``None`` until these sum to 1. All trials together would be too low: where few failed, fewer are drawn later.
        """
        drawn = self.counts.trials.sum(axis=1) > 0
        ends = self.counts.sequence(None, self.shares, target=self.asked["model"], level=self.level)
        if not ends.is_settled:
            return None
        weight = np.diff(ends.settled, prepend=0.0)
        rounds = drawn.nonzero()[0][weight > 0]
        share = self.counts.failures[np.ix_(rounds, here)] / self.counts.trials[np.ix_(rounds, here)]
        return float(weight[weight > 0] @ (share @ self._shares(here)))


@dataclass(frozen=True, eq=False)
class Together:
    """Estimates of layers from those of their sites, *layer* being that of each site; as narrow as these, nearly.

    The bounds of n sites hold together where each holds at 1 - (1 - level) / n (Bonferroni's inequality).
    """

    sites: Deviated
    layer: NDArray[np.int64]

    def estimate(self, group: int, *, level: float, method: str) -> Estimate | None:
        """Return the estimate of a layer, ``None`` where one of its sites has none."""
        members = np.flatnonzero(self.layer == group)
        each = 1 - (1 - level) / max(len(members), 1)
        found = [self.sites.estimate(site, level=each, method=method) for site in members.tolist()]
        known = [one for one in found if one is not None]
        if not found or len(known) < len(found):
            return None
        share = self.sites.shares[members] / self.sites.shares[members].sum()
        value, low, high = (share @ np.array([(one.value, one.low, one.high) for one in known])).tolist()
        return Estimate(value, low, high, sum(one.trials for one in known), "anytime", level)


def looks(record: Record, columns: Columns, by: str) -> "Looks | Deviated | Together | None":
    """Return what the intervals of an adaptive campaign are made of, ``None`` for other samplers and for channels.

    Where a campaign was stopped within a block, the trials of that block do not count for the estimate.
    """
    described = record.configuration.get("sampler")
    if isinstance(described, dict) and described.get("class") in ("Deviation", "WholeWords"):
        rounds_of = _deviated if described["class"] == "Deviation" else _whole_words
        known = rounds_of(record, columns, "site" if by == "layer" else by, described["fields"])
        if known is None or by != "layer":
            return known
        firsts = np.cumsum(record.space.sizes) - record.space.sizes
        return Together(known, code_of(record.space, record.space.locate(firsts), "layer"))
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
    if by == "site" and fields["site"] is None:
        return None  # sites of a kind share their strata
    stratum = np.zeros(len(columns), dtype=np.int64) if columns.strata is None else columns.strata.astype(np.int64)
    first = stratum[:block]
    drawn = np.bincount(first, minlength=int(stratum.max()) + 1)
    weight, site = np.zeros(len(drawn)), np.zeros(len(drawn), dtype=np.int64)
    weight[first] = columns.weights[:block]
    sites = space.sizes / len(space)
    if fields["site"] is None:
        sites = np.ones(1)
    else:
        site[first] = space.locate(columns.faults[:block]).site
    groups = 1 if fields["margins"] is None else len(fields["unsure"]) + 1
    shares, thought = weight * drawn / block / sites[site], thoughts(len(fields["edges"]), groups)
    price = price_in(int(fields["pool"]))
    counts = rounds(stratum, columns.failed, block=block, site=site, shares=shares, thought=thought, price=price)
    asked = {of: fields[of] - float(fields["reserve"]) for of in ("model", "site") if fields[of] is not None}
    return Deviated(counts, sites, by == "model", asked, float(fields["level"]))


def _whole_words(record: Record, columns: Columns, by: str, fields: dict[str, Any]) -> Deviated | None:
    """Return the rounds of a sample of whole words."""
    block, space = int(fields["block"]), record.space
    if by not in ("model", "site") or len(columns) < block:
        return None
    stratum = np.zeros(len(columns), dtype=np.int32) if columns.strata is None else columns.strata
    counts = word_rounds(space, stratum, columns.failed, block=block)
    asked = {"site": float(fields["site"])}
    return Deviated(counts, space.sizes / len(space), by == "model", asked, float(fields["level"]))
