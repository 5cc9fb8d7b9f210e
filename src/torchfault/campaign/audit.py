"""What an audit of shortcuts allows to say: how many of the outcomes that others vouch for may be wrong."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.groups import groups
from torchfault.campaign.shortcuts import assumption
from torchfault.sampling.deviation import LABELS
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate
from torchfault.statistics.looks import upper_at_every_look
from torchfault.store import Columns, Record
from torchfault.store.columns import AUDITED, CONTROLLED, HIDDEN, POOLED, VOUCHED, WRONG

__all__ = ["Audit", "audit_of", "widened", "widening"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_POOLED, _SMALLER, _LARGER = range(3)  # who vouches: a masked pool, a larger masked flip, a smaller failing one


@dataclass(frozen=True)
class Audit:
    """What stands behind a campaign that took shortcuts: its *assumption*, and how well it held.

    Of *trials* outcomes, found by *lanes* lanes, *vouched* rest on the assumption; *audited* of them, drawn at random,
    were run alone, *wrong* of those came out otherwise, so that at most a share *error* of what is vouched for is wrong
    (:func:`~torchfault.statistics.upper_at_every_look`, at the campaign's level). *controlled* faults that
    fail alone were struck amid masked pools, which hid *hidden*; at most a share *missed* is hidden, if those that were
    found are like those that were not.

    >>> print(Audit("errors of pooled faults do not cancel", 1000, 90, 950, 40, 0, 10, 0, 0.088, 0.31))
    1,000 outcomes from 90 lanes; 950 assume that errors of pooled faults do not cancel; 0 of 40 audited are wrong
    (at most 8.8 %), pools hid 0 of 10 failing faults (at most 31 %)
    """

    assumption: str
    trials: int
    lanes: int
    vouched: int
    audited: int
    wrong: int
    controlled: int
    hidden: int
    error: float
    missed: float

    def __str__(self) -> str:
        return (
            f"{self.trials:,} outcomes from {self.lanes:,} lanes; {self.vouched:,} assume that {self.assumption}; "
            f"{self.wrong} of {self.audited:,} audited are wrong (at most {100 * self.error:.2g} %), "
            f"pools hid {self.hidden} of {self.controlled:,} failing faults (at most {100 * self.missed:.2g} %)"
        )


def audit_of(record: Record, columns: Columns, *, level: float) -> Audit | None:
    """Return the audit of a campaign, ``None`` where every trial had a lane of its own."""
    described = record.configuration.get("shortcuts")
    if described is None or columns.lanes is None:
        return None
    marks = _marks(columns)
    count = {flag: int((marks & flag > 0).sum()) for flag in (VOUCHED, AUDITED, WRONG, CONTROLLED, HIDDEN)}
    fields = described["fields"]
    return Audit(
        assumption(pool=bool(fields["pool"]), monotone=fields["words"] is not None),
        len(columns),
        int(columns.lanes.sum()),
        count[VOUCHED],
        count[AUDITED],
        count[WRONG],
        count[CONTROLLED],
        count[HIDDEN],
        _upper(count[WRONG], count[AUDITED], level),
        _upper(count[HIDDEN], count[CONTROLLED], level),
    )


def widened(estimate: Estimate, columns: Columns, members: Ints, *, level: float) -> Estimate:
    """Return *estimate* of *members* with what the audit found, and what it leaves open, added to it.

    An outcome that an audit found wrong stands for its like: its share of them is added to the value. The bounds
    move by what may be wrong besides: of the outcomes that others vouch for by an audit's upper bound; of those in
    masked pools, where that is less, by the failing faults that pools may hide: up to missed / (1 - missed) times as
    many as they showed, among *members* or, where that is more, everywhere. Intervals of one look leave no room for
    chance to have shown few: there it is as many times the upper bound of what they showed.
    """
    if columns.lanes is None or not len(members):
        return estimate
    value, low, high = estimate.value, estimate.low, estimate.high
    above = 0.0 if estimate.method == "anytime" else high - value
    for kind, likely, most in _left_open(columns, members, np.zeros_like(members), 1, level, above=above):
        value += -likely[0] if kind == _LARGER else likely[0]
        low, high = (low - most[0], high) if kind == _LARGER else (low, high + most[0])
    value = min(max(value, 0.0), 1.0)
    return replace(estimate, value=value, low=max(min(low, value), 0.0), high=min(max(high, value), 1.0))


def widening(columns: Columns, space: FaultSpace, by: str, level: float) -> Floats:
    """Return by how much :func:`widened` makes the interval of each group of a table by *by* wider, shape (groups,)."""
    axis = groups(space, columns, by)
    added = np.zeros(len(axis.keys))
    for _, _, most in _left_open(columns, axis.trial, axis.code, len(axis.keys), level):
        added += most
    return added


def _left_open(
    columns: Columns, rows: Ints, group: Ints, count: int, level: float, *, above: float = 0.0
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield, by who vouches, the share of wrong outcomes of each group that is likely, and the most that may be.

    *above* is by how much more than pools showed they may show: what they hide is in proportion to it.
    """
    marks = _marks(columns)
    weight = np.ones(len(columns)) if columns.weights is None else columns.weights
    kinds, shown, like = _kinds(marks, columns.failed), columns.failed & (marks & POOLED > 0), _likes(columns)
    total = np.bincount(group, weight[rows], count)

    def share(of: Bools) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(np.bincount(group, (weight * of)[rows], count) / total)

    found = np.maximum(share(shown), float(weight @ shown / weight.sum()) if weight.sum() > 0 else 0.0)
    for kind in (_POOLED, _SMALLER, _LARGER):
        of = kinds == kind
        audited, wrong = (int((of & (marks & flag > 0)).sum()) for flag in (AUDITED, WRONG))
        open_ = share(of & (marks & AUDITED == 0))
        most = _upper(wrong, audited, level) * open_
        likely = np.zeros(count)
        for one in np.unique(like[of & (marks & WRONG > 0)]):
            alike = of & (like == one)
            checked, bad = ((alike & (marks & flag > 0)).sum() for flag in (AUDITED, WRONG))
            likely += bad / checked * share(alike & (marks & AUDITED == 0))
        most = np.maximum(likely, most)
        if kind == _POOLED:
            # pools that showed none tell nothing
            hidden = _odds(marks, level) * (found + above) if found.any() else most
            most = np.where(open_ > 0, np.maximum(likely, np.minimum(most, hidden)), 0.0)
        yield kind, likely, most


def _likes(columns: Columns) -> Ints:
    """Return which faults are alike: those of strata alike, where sites are cut alike, or else all of them."""
    return (
        np.zeros(len(columns), dtype=np.int64) if columns.strata is None else columns.strata.astype(np.int64) % LABELS
    )


def _odds(marks: NDArray[np.uint8], level: float) -> float:
    """Return how many failing faults pools may hide for each that they show."""
    controlled, hidden = (int((marks & flag > 0).sum()) for flag in (CONTROLLED, HIDDEN))
    missed = _upper(hidden, controlled, level)
    return missed / (1 - missed) if missed < 1 else np.inf


def _kinds(marks: NDArray[np.uint8], failed: Bools) -> Ints:
    """Return who vouches for each outcome, -1 where nobody needs to."""
    said = failed ^ (marks & WRONG > 0)
    kind = np.where(said, _LARGER, np.where(marks & POOLED > 0, _POOLED, _SMALLER))
    return np.where(marks & VOUCHED > 0, kind, -1)


def _marks(columns: Columns) -> NDArray[np.uint8]:
    return np.zeros(len(columns), dtype=np.uint8) if columns.marks is None else columns.marks


def _upper(wrong: int, checked: int, level: float) -> float:
    """Return how large a share may be: at every look, since campaigns stop by it."""
    return float(upper_at_every_look(wrong, checked, level=level))
