"""What the trials of a campaign say of groups of faults: pairs of a trial and a group that it struck."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis, Space
from torchfault.sampling.flips import flips_by_group, masks_of
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
    have shape (pairs,); *share* is how much of the draw is in the group, and *size* how many faults on inputs these
    are. *draws* counts all draws, and *groups* the groups.
    """

    group: Ints
    weight: Floats
    stratum: Ints
    failed: Floats
    due: Floats
    share: Floats
    size: Ints
    value: Floats | None
    draws: int
    groups: int

    @property
    def trials(self) -> Ints:
        """The number of trials in each group, shape (groups,)."""
        return np.bincount(self.group, self.size, self.groups).astype(np.int64)

    @property
    def plain(self) -> bool:
        """Whether all are alike: single outcomes of equal weight in one stratum."""
        return bool((self.weight == 1).all() and (self.stratum == self.stratum[:1]).all() and (self.share == 1).all())

    def mean(self, values: Floats) -> Floats:
        """Return the mean of *values* of the pairs, weighed, in each group, (groups,); NaN where there is none."""
        weight = self.weight * self.share
        with np.errstate(invalid="ignore", divide="ignore"):
            whole = np.bincount(self.group, weight, self.groups)
            return np.asarray(np.bincount(self.group, weight * values, self.groups) / whole)

    def members(self) -> list[Ints]:
        """Return the pairs of each group, in order."""
        order = np.argsort(self.group, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.group, minlength=self.groups))[:-1])

    @property
    def nested(self) -> bool:
        """Whether every stratum lies within one group, so that the groups' numbers of draws are fixed as well."""
        pairs = np.unique(self.stratum * self.groups + self.group)
        return len(np.unique(pairs // self.groups)) == len(pairs)


def observe(space: Space, columns: Columns, axis: Axis, *, repeats: int = 1, flag: str = "failed") -> Observations:
    """Return what *columns* say of the groups of *axis*; every draw has run on *repeats* inputs, one after the other.

    *flag* names the outcome that counts as failed.
    """
    if len(columns) and (columns.unit == "word" or repeats > 1):
        return _averaged(space, columns, axis, repeats=repeats, flag=flag)
    owner, group = _struck(columns, axis)
    failed, due = (columns.flag(name).astype(np.float64)[owner] for name in (flag, "due"))
    value = None if columns.values is None else columns.values[owner]
    weight, stratum, one = columns.weight[owner], columns.stratum[owner], np.ones(len(owner))
    size = one.astype(np.int64)
    return Observations(group, weight, stratum, failed, due, one, size, value, len(columns), len(axis))


def _struck(columns: Columns, axis: Axis) -> tuple[Ints, Ints]:
    """Return pairs of a trial and a group that it struck, once each."""
    owner, group = columns.owner, axis.code(columns.faults)
    if columns.counts is not None:
        owner, group = np.divmod(np.unique(owner * len(axis) + group), len(axis))
    return owner, group


def _averaged(space: Space, columns: Columns, axis: Axis, *, repeats: int, flag: str) -> Observations:
    """Return pairs of a draw and a group, with outcomes averaged over the bits and the inputs of the draw."""
    if columns.unit == "word":
        parts = list(flips_by_group(space, columns, axis))
        row, code = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "code"))
        bits, whole = (np.repeat([getattr(p, name) for p in parts], [len(p.rows) for p in parts]) for name in _SIZES)
        counts = [np.concatenate([part.count(masks_of(columns, one)) for part in parts]) for one in (flag, "due")]
    else:
        row, code = _struck(columns, axis)
        bits = whole = np.ones(len(row), dtype=np.int64)
        counts = [masks_of(columns, one)[row] for one in (flag, "due")]
    key, pair = np.unique(row // repeats * len(axis) + code, return_inverse=True)
    pair, (draw, group) = pair.reshape(-1), np.divmod(key, len(axis))
    inside = np.bincount(pair, bits, len(key)).astype(np.int64)
    failed, due = (np.bincount(pair, count, len(key)) / inside for count in counts)
    share = np.bincount(pair, bits / whole, len(key)) / np.bincount(pair, minlength=len(key))
    weight, stratum = columns.weight[draw * repeats], columns.stratum[draw * repeats]
    draws = -(-len(columns) // repeats)
    return Observations(group, weight, stratum, failed, due, share, inside, None, draws, len(axis))


_SIZES = ("bits", "whole")
