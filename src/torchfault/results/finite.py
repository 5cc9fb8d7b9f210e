"""Estimates from samples without replacement: what each stratum left undrawn is known, group by group."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis, Space
from torchfault.results.counter import Counter
from torchfault.sampling.design import Strata
from torchfault.statistics import Estimate, proportion, stratified
from torchfault.store import Columns

__all__ = ["Parts", "parts_of"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts of strata, each what lies of one in a *group*: *lanes* it holds, *trials* and *failures* in it, (parts,).

    Given its number of trials, those of a part are a random sample without replacement from it. A lane is a fault on
    an input. Every trial strikes a fault of its own, on an input that is drawn: as a sample of lanes this has no more
    variance than one drawn without replacement, save for a share of one in the number of inputs where the inputs alone
    decide.
    """

    group: Ints
    lanes: Ints
    trials: Ints
    failures: Ints

    def estimate(self, group: int, *, level: float, method: str) -> Estimate | None:
        """Return the estimate of a group, or ``None`` where one of its parts was never drawn from."""
        here = self.group == group
        lanes, trials, failures = self.lanes[here], self.trials[here], self.failures[here]
        if not here.any() or not trials.all():
            return None
        if len(lanes) == 1:
            return proportion(int(failures[0]), int(trials[0]), method=method, level=level, population=int(lanes[0]))
        return stratified(failures, trials, lanes / lanes.sum(), level=level, population=lanes)


def parts_of(
    space: Space,
    strata: Strata,
    axis: Axis,
    columns: Columns,
    *,
    inputs: int,
    flag: str,
    counter: Counter | None = None,
) -> Parts | None:
    """Return the parts of *strata* in the groups of *axis*, ``None`` where groups are smaller than cells.

    A *counter* of the columns, which there is of a single stratum alone, tells its parts without listing trials.
    """
    if axis.of_cell is None:
        return None
    if counter is not None:
        lanes = axis.faults * inputs
        held = lanes > 0
        whole = (np.arange(len(axis)), lanes, counter.trials(axis), counter.having(flag, axis))
        return Parts(*(column[held] for column in whole))
    cells, width = space.cells, len(axis)
    stratum = np.zeros(len(cells), dtype=np.int64)
    for one, group, bit, mass in zip(strata.stratum, strata.group, strata.bit, strata.mass, strict=True):
        if mass == 0:  # what a search picks on purpose
            continue
        stratum[((cells.group == group) | (group < 0)) & ((cells.bit == bit) | (bit < 0))] = one
    keys, part = np.unique(stratum * width + axis.of_cell, return_inverse=True)
    lanes = np.zeros(len(keys), dtype=np.int64)
    np.add.at(lanes, part.reshape(-1), cells.sizes * inputs)
    of_trial = np.searchsorted(keys, columns.stratum * width + axis.code(columns.faults))
    trials = np.bincount(of_trial, minlength=len(keys))
    failures = np.bincount(of_trial[columns.flag(flag).astype(bool)], minlength=len(keys))
    held = lanes > 0
    return Parts(keys[held] % width, lanes[held], trials[held], failures[held])
