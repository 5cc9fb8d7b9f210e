"""Upsets drawn for an estimate, what became of them, and estimates of whatever weighs them anew; NumPy only."""

from dataclasses import dataclass, replace
from math import hypot

import numpy as np
from numpy.typing import NDArray

from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.proposals import Cells
from torchfault.statistics import Estimate
from torchfault.statistics.stratified_score import tilted_bounds
from torchfault.statistics.weights import Strata, beta_bounds

__all__ = ["Sample", "difference", "negative", "scaled", "shifted"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# The draw that the prior of a stratum counts as has a probability of so many changes, over its draws, of one more. Of
# 1, 1.5 and 2 the first that held its level in simulation, for RA and SDC alike, from 400 lanes on.
_UNSEEN = 2.0


@dataclass(frozen=True, eq=False)
class Sample:
    """Upsets of an *accelerator* on *layers* (their names), drawn by cells, and what became of them.

    Draws come in stages, one of which may be a pilot: a draw of stage s counts mass / q[s] of its cell, and the mean of
    that over all draws is unbiased; *q* has shape (stages, cells), *stage* and *drawn*, the cell, (draws,). *right* is
    the share of a fault's images with a right answer, *lost* and *gained* of those on which it changed that, *changed*
    of other answers, *due* of none, shape (draws,), 0 for control. *sa* is the accuracy without faults. Where draws are
    from strata, *strata*, (stages, cells), tells that of each cell, -1 for none, and *rate* the mean square
    expected of its outcomes.
    """

    accelerator: Accelerator
    layers: tuple[str, ...]
    cells: Cells
    q: Floats
    stage: Ints
    drawn: Ints
    right: Floats
    lost: Floats
    gained: Floats
    changed: Floats
    due: Floats
    sa: float
    level: float
    rate: Floats | None = None
    strata: Ints | None = None

    @property
    def control(self) -> float:
        """The probability that an upset strikes control."""
        return float(self.cells.p[self.cells.control].sum())

    def drop(self, mass: Floats, *, control: float) -> Estimate:
        """Return control SA + the sum over cells of *mass* (SA - A); masses may be negative, as of differences."""
        return shifted(self.contrast(mass, self.lost, self.gained), control * self.sa)

    def contrast(self, mass: Floats, plus: Floats, minus: Floats | None = None) -> Estimate:
        """Return the sum over cells of *mass*, of any sign, times the mean of *plus* - *minus*, 0 to 1 per fault."""
        if self.strata is not None:
            return self._stratified(mass, plus if minus is None else plus - minus, signed=minus is not None)
        more, size = mass[self.drawn] >= 0, np.abs(mass)
        none = np.zeros_like(plus) if minus is None else minus
        one, two = (self.mean(size, np.where(more == first, plus, none)) for first in (True, False))
        return self._possible(difference(one, two), mass, signed=minus is not None)

    def mean(self, mass: Floats, y: Floats) -> Estimate:
        """Return the sum over cells of *mass*, 0 or more, times the mean of *y*, from 0 to 1 per fault."""
        if self.strata is not None:
            return self._stratified(mass, y, signed=False)
        w = self.weights(mass)
        whole = Strata.of_draws(w * y, w, np.zeros(len(y), dtype=np.int64))
        low, high = beta_bounds(whole, heaviest=float(self._weight(mass).max()), level=self.level)
        return self._possible(Estimate(whole.mean, low, high, len(y), "weighted-beta", self.level), mass, signed=False)

    def _stratified(self, mass: Floats, y: Floats, *, signed: bool) -> Estimate:
        """Return the sum over cells of *mass* times the mean of *y*, with an interval that knows the strata."""
        assert self.strata is not None
        assert self.rate is not None
        weight = self._weight(mass)
        size = int(self.strata.max()) + 1
        # A pilot also looks at types that never upset: these draws weigh nothing, and any stratum may have them.
        number = self.stage * size + np.maximum(self.strata[self.stage, self.drawn], 0)
        count = np.maximum(np.bincount(number, minlength=size * len(self.q)), 1)
        of_stage = self.strata

        def moment(power: int, square: Floats) -> Floats:
            sums = [
                [np.bincount(strata[strata >= 0], of[strata >= 0], size) for of in (q * w**power * square, q)]
                for q, w, strata in zip(self.q, weight, of_stage, strict=True)
            ]
            return np.concatenate([part / np.where(whole > 0, whole, 1.0) for part, whole in sums])

        # That a stratum's draws agree is no proof that all would: further changes, of the size that changes have in its
        # stage, are always possible.
        typical = [_typical(y[self.stage == number]) for number in range(len(self.q))]
        unseen = _UNSEEN * np.repeat(typical, size) / count * moment(2, np.ones_like(mass))
        prior = (moment(2, self.rate) + unseen, moment(3, self.rate), moment(4, self.rate))
        least, most = self._limits(mass, signed=signed)
        ends = weight[self.q > 0] * np.array([[-1.0 if signed else 0.0], [1.0]])  # a draw may be on one image alone
        value, low, high = tilted_bounds(
            self.weights(mass) * y,
            number,
            prior,
            level=self.level,
            reach=(min(float(ends.min()), 0.0), max(float(ends.max()), 0.0)),
            least=least,
            most=most,
        )
        return Estimate(value, low, high, len(y), "stratified-score", self.level)

    def _possible(self, found: Estimate, mass: Floats, *, signed: bool) -> Estimate:
        """Return *found* with bounds that the mean can reach; heavy weights may bring the estimate itself beyond."""
        least, most = self._limits(mass, signed=signed)
        return replace(found, low=min(max(found.low, least), found.value), high=max(min(found.high, most), found.value))

    def _limits(self, mass: Floats, *, signed: bool) -> tuple[float, float]:
        """Return the least and the most that *mass* can sum up to, weighing shares of images, or with *signed* by how
        much accuracy falls: no more than there is."""
        ends = mass * np.array([[self.sa - 1], [self.sa]] if signed else [[0.0], [1.0]])
        return float(ends.min(axis=0).sum()), float(ends.max(axis=0).sum())

    def weights(self, mass: Floats) -> Floats:
        """Return mass / q of every draw, shape (draws,)."""
        return self._weight(mass)[self.stage, self.drawn]

    def _weight(self, mass: Floats) -> Floats:
        return np.asarray(np.where(self.q > 0, mass, 0.0) / np.where(self.q > 0, self.q, 1.0))


def _typical(y: Floats) -> float:
    """Return the mean size of what is not 0, each counted by its size; 1 where all is."""
    return float(y @ y / np.abs(y).sum()) if y.any() else 1.0


def shifted(one: Estimate, by: float) -> Estimate:
    """Return the estimate of a quantity plus *by*, which is known."""
    return replace(one, value=one.value + by, low=one.low + by, high=one.high + by)


def scaled(one: Estimate, by: float) -> Estimate:
    """Return the estimate of a quantity times *by*, which is known and not negative."""
    return replace(one, value=by * one.value, low=by * one.low, high=by * one.high)


def negative(one: Estimate, whole: float = 0.0) -> Estimate:
    """Return the estimate of *whole*, which is known, less a quantity."""
    return replace(one, value=whole - one.value, low=whole - one.high, high=whole - one.low)


def difference(one: Estimate, two: Estimate) -> Estimate:
    """Return one - two, its interval from both (MOVER: Zou & Donner, Statistics in Medicine 27, 2008)."""
    value = one.value - two.value
    low = value - hypot(one.value - one.low, two.high - two.value)
    high = value + hypot(one.high - one.value, two.value - two.low)
    return replace(one, value=value, low=low, high=high)
