"""What audits allow to say of outcomes that others vouch for: how many of them may be wrong, group by group."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis, Space
from torchfault.sampling.design import Design
from torchfault.sampling.flips import flips_by_group, masks_of, popcount
from torchfault.sampling.tally import Tally
from torchfault.statistics import Estimate, upper_at_every_look
from torchfault.store import Columns

__all__ = ["Audit", "AuditCounts", "widening"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_POOLED, _SMALLER, _LARGER = range(3)  # who vouches: a masked pool, a larger masked flip, a smaller failing one


@dataclass(frozen=True)
class Audit:
    """What stands behind a campaign whose outcomes were not all seen: its *assumption*, and how well it held.

    Of *trials* outcomes, found by *lanes* lanes, *vouched* rest on the assumption; *audited* of them, drawn at random,
    were run alone, *refuted* of those came out otherwise, so that at most a share *error* of what is vouched for is
    wrong (:func:`~torchfault.statistics.upper_at_every_look`, at the campaign's level). *controlled* faults
    that fail alone were struck amid masked pools, which hid *hidden*; at most a share *missed* is hidden, if those that
    were found are like those that were not.

    >>> print(Audit("errors of pooled faults do not cancel", 1000, 90, 950, 40, 0, 10, 0, 0.088, 0.31))
    1,000 outcomes from 90 lanes; 950 assume that errors of pooled faults do not cancel; 0 of 40 audited are wrong
    (at most 8.8 %), pools hid 0 of 10 failing faults (at most 31 %)
    """

    assumption: str
    trials: int
    lanes: int
    vouched: int
    audited: int
    refuted: int
    controlled: int
    hidden: int
    error: float
    missed: float

    def __str__(self) -> str:
        told = (
            f"{self.trials:,} outcomes from {self.lanes:,} lanes; {self.vouched:,} assume that {self.assumption}; "
            f"{self.refuted} of {self.audited:,} audited are wrong (at most {100 * self.error:.2g} %)"
        )
        if not self.controlled:
            return told
        hidden = f"pools hid {self.hidden} of {self.controlled:,} failing faults (at most {100 * self.missed:.2g} %)"
        return f"{told}, {hidden}"


class AuditCounts:
    """Counts of what was vouched for and audited, by who vouches, by kind of stratum and by group of *axis*."""

    def __init__(self, space: Space, design: Design, axis: Axis) -> None:
        self.space, self.axis = space, axis
        self._kind = design.strata.kind if design.strata.kind is not None else np.zeros(len(design.strata), np.int64)
        groups, kinds = len(axis), int(self._kind.max(initial=0)) + 1
        self.total, self.shown = np.zeros((2, groups))  # weights of all outcomes, and of failing ones in pools
        self.open = np.zeros((3, kinds, groups))  # weights of what is vouched for and was not audited
        self.audited, self.refuted = np.zeros((2, 3, kinds))
        self.counts = dict.fromkeys(("vouched", "audited", "refuted", "controlled", "hidden"), 0)
        self.trials, self.lanes = 0, 0

    def add(self, columns: Columns) -> None:
        """Take in the next trials."""
        self.lanes += len(columns) if columns.lanes is None else int(columns.lanes.sum())
        flag = {name: masks_of(columns, name) for name in ("failed", "pooled", *self.counts)}
        for name in self.counts:
            self.counts[name] += int(popcount(flag[name]).sum())
        said, shown = flag["failed"] ^ flag["refuted"], flag["failed"] & flag["pooled"]
        vouching = {_LARGER: said, _POOLED: ~said & flag["pooled"], _SMALLER: ~said & ~flag["pooled"]}
        left_open = flag["vouched"] & ~flag["audited"]
        told = {who: [flag[name] & by for name in ("audited", "refuted")] for who, by in vouching.items()}
        untold = {who: left_open & by for who, by in vouching.items()}
        weight, kinds, groups = columns.weight, self._kind[columns.stratum], len(self.axis)
        for part in flips_by_group(self.space, columns, self.axis):
            mine, kind = weight[part.rows], kinds[part.rows]
            self.trials += len(part.rows) * part.bits
            self.total += np.bincount(part.code, mine * part.bits, groups)
            self.shown += np.bincount(part.code, mine * part.count(shown), groups)
            cell = kind * groups + part.code
            for who, open_ in enumerate(self.open):
                for held, masks in zip((self.audited, self.refuted), told[who], strict=True):
                    held[who] += np.bincount(kind, part.count(masks), held.shape[1])
                open_ += np.bincount(cell, mine * part.count(untold[who]), open_.size).reshape(open_.shape)

    def audit(self, assumption: str, *, level: float) -> Audit:
        """Return how well *assumption* held."""
        counts = self.counts
        error = _upper(counts["refuted"], counts["audited"], level)
        missed = _upper(counts["hidden"], counts["controlled"], level)
        names = ("vouched", "audited", "refuted", "controlled", "hidden")
        vouched, audited, refuted, controlled, hidden = (counts[name] for name in names)
        total = (self.trials, self.lanes, vouched, audited, refuted, controlled, hidden)
        return Audit(assumption, *total, error, missed)

    def shifts(self, level: float, *, above: Floats | float = 0.0) -> tuple[Floats, Floats, Floats]:
        """Return by how much the value, the lower and the upper bound of each group move, (groups,) each.

        An outcome that an audit found wrong stands for its like: its share of them is added to the value. The bounds
        move by what may be wrong besides: of the outcomes that others vouch for by an audit's upper bound; of those in
        masked pools, where that is less, by the failing faults that pools may hide: up to missed / (1 - missed) times
        as many as they showed, in the group or, where that is more, everywhere. Intervals of one look leave no room for
        chance to have shown few: there it is as many times what they may have shown *above* that.
        """
        value, low, high = np.zeros((3, len(self.axis)))
        for who, likely, most in self._left_open(level, above):
            value += -likely if who == _LARGER else likely
            low, high = (low - most, high) if who == _LARGER else (low, high + most)
        return value, low, high

    def _left_open(self, level: float, above: Floats | float) -> Iterator[tuple[int, Floats, Floats]]:
        """Yield, by who vouches, the share of wrong outcomes of each group that is likely, and the most that may be."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found, open_ = (np.nan_to_num(part / self.total) for part in (self.shown, self.open))
            wrong = np.nan_to_num(self.refuted / self.audited)
        found = np.maximum(found, self.shown.sum() / self.total.sum() if self.total.any() else 0.0)
        for who in (_POOLED, _SMALLER, _LARGER):
            left, likely = open_[who].sum(axis=0), wrong[who] @ open_[who]
            error = _upper(int(self.refuted[who].sum()), int(self.audited[who].sum()), level)
            most = np.maximum(likely, error * left)
            if who == _POOLED:
                # pools that showed none tell nothing
                hidden = self._odds(level) * (found + above) if found.any() else most
                most = np.where(left > 0, np.maximum(likely, np.minimum(most, hidden)), 0.0)
            yield who, likely, most

    def _odds(self, level: float) -> float:
        """Return how many failing faults pools may hide for each that they show."""
        missed = _upper(self.counts["hidden"], self.counts["controlled"], level)
        return missed / (1 - missed) if missed < 1 else np.inf


def widened(estimate: Estimate, shifts: tuple[float, float, float], assumption: str) -> Estimate:
    """Return *estimate* moved by *shifts* of its value and bounds, within 0 to 1."""
    value = min(max(estimate.value + shifts[0], 0.0), 1.0)
    low, high = max(min(estimate.low + shifts[1], value), 0.0), min(max(estimate.high + shifts[2], value), 1.0)
    return replace(estimate, value=value, low=low, high=high, assumption=assumption)


def widening(tally: Tally, by: str, level: float) -> Floats:
    """Return by how much audits widen the interval of each group of *by*, shape (groups,): for a campaign's tally."""
    counts = tally.follow(("audit", by), lambda: AuditCounts(tally.space, tally.design, tally.space.axis(by)))
    _, low, high = counts.shifts(level)
    return high - low


def _upper(wrong: int, checked: int, level: float) -> float:
    """Return how large a share may be: at every look, since campaigns stop by it."""
    return float(upper_at_every_look(wrong, checked, level=level))
