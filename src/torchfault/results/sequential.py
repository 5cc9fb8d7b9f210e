"""Estimates whose intervals hold at every look: from the rounds of a campaign whose design says so."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.sampling.design import Design
from torchfault.sampling.flips import failing_share
from torchfault.sampling.tally import Rounds, Tally
from torchfault.statistics import Estimate, stratified
from torchfault.store import Columns

__all__ = ["Sequential"]

Ints = NDArray[np.int64]


class Sequential:
    """The complete blocks of a campaign on *space* under a *design* whose intervals hold at every look.

    What was drawn after the last complete block does not count.
    """

    def __init__(self, space: Space, design: Design, columns: Columns) -> None:
        self.design = design
        self.tally = Tally(space, design)
        self.tally.add(columns)

    def estimates(self, by: str, *, level: float) -> dict[int, Estimate] | None:
        """Return the estimate of each group of *by* that has one, by its code; ``None`` for groupings without.

        Groups that are made of whole sites have theirs from the sites' where only these were asked for: the bounds of n
        sites hold together where each holds at 1 - (1 - level) / n (Bonferroni's inequality).
        """
        if by in self.design.targets:
            return _of_rounds(self.tally.rounds(by, level=level), level)
        if by == "model":
            whole = self._model(next(iter(self.design.targets)), level)
            return {} if whole is None else {0: whole}
        return self._joined(by, level) if "site" in self.design.targets and by in ("layer", "kind") else None

    def _joined(self, by: str, level: float) -> dict[int, Estimate]:
        sites, axis = self.tally.rounds("site", level=level), self.tally.space.axis(by)
        assert axis.of_cell is not None
        first = np.unique(self.tally.space.cells.group, return_index=True)[1]
        of_site, mass = axis.of_cell[first], self._masses(sites)
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

    def _masses(self, rounds: Rounds) -> NDArray[np.float64]:
        """Return the mass of each group, shape (groups,)."""
        return self.design.strata.within(self.tally.space, rounds.axis)[1]

    def _model(self, by: str, level: float) -> Estimate | None:
        """Return the estimate of the whole where each group of *by* decided when it had enough draws.

        All their trials together would be biased: a group that shows few failures is done sooner. The groups' values
        are not, and neither is their sum.
        """
        rounds = self.tally.rounds(by, level=level)
        known, mass = _of_rounds(rounds, level), self._masses(rounds)
        if len(known) < len(rounds.groups):
            return None
        value = float(sum(mass[code] * one.value for code, one in known.items()))
        columns, width = self.tally.columns(), len(self.design.strata)
        trials = np.bincount(columns.stratum, minlength=width)
        failures = np.bincount(columns.stratum, failing_share(self.tally.space, columns), width)
        drawn = trials > 0
        share = self.design.strata.masses[drawn] / self.design.strata.masses[drawn].sum()
        plain = stratified(failures[drawn], trials[drawn], share, level=level)
        return replace(plain, value=value, low=min(plain.low, value), high=max(plain.high, value))


def _of_rounds(rounds: Rounds, level: float) -> dict[int, Estimate]:
    """Return the estimates of the groups that have had a complete round."""
    found, sequences = {}, rounds.sequences
    columns = (sequences.value, sequences.low, sequences.high, sequences.trials.sum(axis=1))
    for code, value, low, high, trials in zip(rounds.groups.tolist(), *columns, strict=True):
        if np.isfinite(value):
            found[code] = Estimate(float(value), float(low), float(high), int(trials), "anytime", level)
    return found
