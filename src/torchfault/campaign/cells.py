"""What a sample without replacement left undrawn: strata cut by the groups of a table, with their sizes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.groups import code_of
from torchfault.sampling import Statistical
from torchfault.statistics import Estimate, proportion, stratified
from torchfault.store import Columns, Record

__all__ = ["Cells", "cells"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells, each the part of a stratum that lies in one *group*: *lanes* it holds, *trials* and *failures* in it.

    Given its number of trials, those of a cell are a random sample without replacement from it. A lane is a fault on
    an input (a fault, where a metric of all inputs is measured). Every trial strikes a fault of its own, on an input
    that is drawn: as a sample of lanes this has no more variance than one drawn without replacement, save for a share
    of one in the number of inputs where the inputs alone decide.
    """

    group: Ints
    lanes: Ints
    trials: Ints
    failures: Ints

    def estimate(self, group: int, *, level: float, method: str) -> Estimate | None:
        """Return the estimate of a group, or ``None`` where one of its cells was never drawn from."""
        here = self.group == group
        lanes, trials, failures = self.lanes[here], self.trials[here], self.failures[here]
        if not here.any() or not trials.all():
            return None
        if len(lanes) == 1:
            return proportion(int(failures[0]), int(trials[0]), method=method, level=level, population=int(lanes[0]))
        return stratified(failures, trials, lanes / lanes.sum(), level=level, population=lanes)


def cells(record: Record, columns: Columns, by: str) -> Cells | None:
    """Return the cells of statistical injection, ``None`` for other samplers, channels and metrics.

    A metric's mean has an interval as if drawn with replacement, which is wider; so has a channel's.
    """
    sampler = _statistical(record)
    if sampler is None or by == "channel" or columns.values is not None or record.population is not None:
        return None
    space, strata = record.space, sampler.strata(record.space)
    code = code_of(space, strata.where, by)
    width = int(code.max()) + 1
    keys, cell = np.unique(strata.stratum * width + code, return_inverse=True)
    lanes = np.zeros(len(keys), dtype=np.int64)
    np.add.at(lanes, cell, strata.faults * record.inputs)
    stratum = np.zeros(len(columns), dtype=np.int64) if columns.strata is None else columns.strata.astype(np.int64)
    of_trial = np.searchsorted(keys, stratum * width + code_of(space, space.locate(columns.faults), by))
    trials = np.bincount(of_trial, minlength=len(keys))
    failures = np.bincount(of_trial[columns.failed], minlength=len(keys))
    held = lanes > 0
    return Cells(keys[held] % width, lanes[held], trials[held], failures[held])


def _statistical(record: Record) -> Statistical | None:
    """Return the sampler of a recorded campaign where it is :class:`Statistical`, from its description."""
    described = record.configuration.get("sampler")
    if not isinstance(described, dict) or described.get("class") != "Statistical":
        return None
    return Statistical(**described["fields"])
