"""What the trials of a campaign say of groups of faults: pairs of a trial and a group that it struck."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis, Space
from torchfault.space import FaultSpace
from torchfault.store import Columns

__all__ = ["Observations", "observe"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Observations:
    """Pairs of a draw and a *group* that it struck: how much of it *failed* and was *due*, each from 0 to 1.

    A draw is a fault on an input; where draws run on several inputs, or are words, their outcomes in a group are
    averaged, since they are not independent. *group*, *weight*, *stratum*, *failed*, *due* and *value* (of a metric)
    have shape (pairs,); *share* is how much of the draw is in the group. *trials* counts rows of the campaign by
    group, (groups,), and *draws* all draws.
    """

    group: Ints
    weight: Floats
    stratum: Ints
    failed: Floats
    due: Floats
    share: Floats
    value: Floats | None
    draws: int
    trials: Ints

    @property
    def plain(self) -> bool:
        """Whether all are alike: single outcomes of equal weight in one stratum."""
        return bool((self.weight == 1).all() and (self.stratum == self.stratum[:1]).all() and (self.share == 1).all())

    def members(self) -> list[Ints]:
        """Return the pairs of each group, in order."""
        order = np.argsort(self.group, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.group, minlength=len(self.trials)))[:-1])

    @property
    def nested(self) -> bool:
        """Whether every stratum lies within one group, so that the groups' numbers of draws are fixed as well."""
        width = len(self.trials)
        pairs = np.unique(self.stratum * width + self.group)
        return len(np.unique(pairs // width)) == len(pairs)


def observe(space: Space, columns: Columns, axis: Axis, *, repeats: int = 1, flag: str = "failed") -> Observations:
    """Return what *columns* say of the groups of *axis*; every draw has run on *repeats* inputs, one after the other.

    *flag* names the outcome that counts as failed.
    """
    if columns.unit == "word":
        assert isinstance(space, FaultSpace)
        row, faults, bit = space.flips(columns.faults)
        flips = columns.flips(row, faults, bit)
        part = np.bincount(row, minlength=len(columns))[row]
        return _averaged(axis, flips, draw=row, share=1 / part, flag=flag, count=len(columns))
    if repeats > 1:
        draw = np.arange(len(columns)) // repeats
        of = np.bincount(draw)[draw].astype(np.float64)  # the last one may be under way
        return _averaged(axis, columns, draw=draw, share=1 / of, flag=flag, count=int(draw[-1:].sum()) + 1)
    owner, group = columns.owner, axis.code(columns.faults)
    if columns.counts is not None:
        owner, group = np.divmod(np.unique(owner * len(axis) + group), len(axis))
    failed, due = (columns.flag(name).astype(np.float64)[owner] for name in (flag, "due"))
    value = None if columns.values is None else columns.values[owner]
    trials = np.bincount(group, minlength=len(axis))
    one = np.ones(len(owner))
    return Observations(
        group, columns.weight[owner], columns.stratum[owner], failed, due, one, value, len(columns), trials
    )


def _averaged(axis: Axis, rows: Columns, *, draw: Ints, share: Floats, flag: str, count: int) -> Observations:
    """Return pairs of draws, of which *rows* are parts, and groups, with their outcomes averaged over these parts."""
    group = axis.code(rows.faults)
    key, pair = np.unique(draw * len(axis) + group, return_inverse=True)
    pair, (owner, code) = pair.reshape(-1), np.divmod(key, len(axis))
    inside = np.bincount(pair, share, len(key)).astype(np.float64)
    failed, due = (np.bincount(pair, share * rows.flag(name), len(key)) / inside for name in (flag, "due"))
    first = np.zeros(int(draw.max(initial=-1)) + 1, dtype=np.int64)
    first[draw[::-1]] = np.arange(len(draw))[::-1]
    at = first[owner]
    trials = np.bincount(group, minlength=len(axis))
    return Observations(code, rows.weight[at], rows.stratum[at], failed, due, inside, None, count, trials)
