"""Trials that all weigh the same, counted group by group: what tables of millions of them need, and nothing more."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis, Space
from torchfault.sampling.design import Design
from torchfault.store import Columns

__all__ = ["Counter", "counter_of"]

Ints = NDArray[np.int64]
_CHUNK = 1 << 17  # trials whose places are worked out at a time: what a processor's cache holds


class Counter:
    """Counts of the trials in *columns*, single faults of *space*, by any axis; their cells are worked out once."""

    def __init__(self, space: Space, columns: Columns) -> None:
        self.space, self.columns = space, columns

    def relabelled(self, columns: Columns) -> "Counter":
        """Return a counter of *columns*, the same trials with other outcomes."""
        other = Counter(self.space, columns)
        other.__dict__["_cells"], other.__dict__["_by_cell"] = self._cells, self._by_cell
        return other

    @cached_property
    def _cells(self) -> NDArray[np.int32]:
        faults, cells = self.columns.faults, np.empty(len(self.columns), dtype=np.int32)
        for begin in range(0, len(faults), _CHUNK):
            cells[begin : begin + _CHUNK] = self.space.cell_of(faults[begin : begin + _CHUNK])
        return cells

    @cached_property
    def _by_cell(self) -> Ints:
        return np.bincount(self._cells, minlength=len(self.space.cells))

    def trials(self, axis: Axis) -> Ints:
        """Return the number of trials in each group of *axis*, shape (groups,)."""
        if len(axis) == 1:
            return np.array([len(self.columns)], dtype=np.int64)
        if axis.of_cell is not None:
            return np.bincount(axis.of_cell, self._by_cell, len(axis)).astype(np.int64)
        faults, found = self.columns.faults, np.zeros(len(axis), dtype=np.int64)
        for begin in range(0, len(faults), _CHUNK):
            found += np.bincount(axis.code(faults[begin : begin + _CHUNK]), minlength=len(axis))
        return found

    def having(self, flag: str, axis: Axis) -> Ints:
        """Return the number of trials with the outcome *flag* in each group of *axis*, shape (groups,)."""
        rows = np.flatnonzero(self.columns.flag(flag))
        if len(axis) == 1:
            return np.array([len(rows)], dtype=np.int64)
        group = axis.code(self.columns.faults[rows]) if axis.of_cell is None else axis.of_cell[self._cells[rows]]
        return np.bincount(group, minlength=len(axis))


def counter_of(space: Space, design: Design, columns: Columns, *, repeats: int) -> Counter | None:
    """Return what counts *columns*, ``None`` where counts are not all that an estimate by *design* goes by."""
    single = columns.unit == "fault" and columns.counts is None and columns.values is None and repeats == 1
    alike = columns.weights is None and columns.strata is None and len(design.strata) == 1
    fixed = design.looks == "one" and not design.enumerates and design.clusters is None and design.sample is None
    return Counter(space, columns) if single and alike and fixed else None
