"""Estimates of campaigns whose outcomes decide what is drawn and when it is enough: from their complete blocks."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.sampling.design import Design
from torchfault.sampling.tally import Rounds, Tally
from torchfault.statistics import Estimate
from torchfault.store import Columns

__all__ = ["Sequential"]

Ints = NDArray[np.int64]


class Sequential:
    """The complete blocks of a campaign on *space* under a *design* whose intervals hold at every look.

    Each draw has run on *repeats* inputs. What was drawn after the last complete block does not count.
    """

    def __init__(self, space: Space, design: Design, columns: Columns, *, repeats: int = 1) -> None:
        size = design.block * repeats
        self.design, self.columns = design, columns.take(0, len(columns) // size * size)
        self.tally = Tally(space, design, repeats=repeats)
        self.tally.add(self.columns)

    def estimates(self, by: str, *, level: float) -> dict[int, Estimate]:
        """Return the estimate of each group of *by* for which there is one that holds at every look, by its code.

        Groups that are made of whole sites have theirs from the sites' where only these were asked for: the bounds of n
        sites hold together where each holds at 1 - (1 - level) / n (Bonferroni's inequality).
        """
        if by in self.design.targets:
            return _of_rounds(self.tally.rounds(by, level=level), level)
        return self._joined(by, level) if "site" in self.design.targets and by in ("layer", "kind") else {}

    def weighed(self, *, level: float) -> Columns:
        """Return the trials with weights under which the mean of any outcome, in any group, is unbiased.

        All trials alike would not do: where few failed, fewer were drawn later. A trial stands for its stratum within
        its block, and the block for as much as the sequence of its group gave it beforehand, at *level*.
        """
        by = max(self.design.targets, key=lambda one: len(self.tally.space.axis(one)))
        rounds, columns, masses = self.tally.rounds(by, level=level), self.columns, self.design.strata.masses
        if not len(columns):
            return columns
        block = np.arange(len(columns)) // (self.design.block * self.tally.repeats)
        cell = block * len(masses) + columns.stratum
        position = np.zeros(len(rounds.axis), dtype=np.int64)
        position[rounds.groups] = np.arange(len(rounds.groups))
        given = rounds.weights[block, position[rounds.axis.code(columns.faults)]]
        return replace(columns, weights=given * masses[columns.stratum] * (len(columns) / np.bincount(cell)[cell]))

    def pooled(self) -> Columns:
        """Return the trials weighed as if all those of a stratum had been drawn at once, for intervals of one look."""
        columns, masses = self.columns, self.design.strata.masses
        drawn = np.bincount(columns.stratum, minlength=len(masses))
        return replace(columns, weights=(masses * (len(columns) / np.maximum(drawn, 1)))[columns.stratum])

    def _joined(self, by: str, level: float) -> dict[int, Estimate]:
        sites, axis = self.tally.rounds("site", level=level), self.tally.space.axis(by)
        assert axis.of_cell is not None
        first = np.unique(self.tally.space.cells.group, return_index=True)[1]
        of_site, mass = axis.of_cell[first], self.design.strata.within(self.tally.space, sites.axis)[1]
        found = {}
        for code in range(len(axis)):
            members = np.intersect1d(np.flatnonzero(of_site == code), sites.groups)
            each = 1 - (1 - level) / max(len(members), 1)
            known = _of_rounds(self.tally.rounds("site", level=each), each)
            if len(members) and all(site in known for site in members.tolist()):
                share = mass[members] / mass[members].sum()
                parts = [known[site] for site in members.tolist()]
                value, low, high = (share @ np.array([(e.value, e.low, e.high) for e in parts])).tolist()
                found[code] = Estimate(value, low, high, sum(e.trials for e in parts), "anytime", level)
        return found


def _of_rounds(rounds: Rounds, level: float) -> dict[int, Estimate]:
    """Return the estimates of the groups that have had a complete round."""
    found, sequences = {}, rounds.sequences
    columns = (sequences.value, sequences.low, sequences.high, sequences.trials.sum(axis=1))
    for code, value, low, high, trials in zip(rounds.groups.tolist(), *columns, strict=True):
        if np.isfinite(value):
            found[code] = Estimate(float(value), float(low), float(high), int(trials), "anytime", level)
    return found
