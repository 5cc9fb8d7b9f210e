"""Upsets that a campaign drew, what became of them, and estimates of whatever weighs them anew; NumPy only."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import nan

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import HardwareError
from torchfault.hardware.measure import Known, UpsetMeasure, known
from torchfault.hardware.profile import Profile
from torchfault.hardware.samplers import TwoPhase, halves_of, pairs_of
from torchfault.hardware.strata import Allocation
from torchfault.hardware.upset_space import UpsetSpace, as_upsets
from torchfault.results.results import Results
from torchfault.sampling.protocol import Population
from torchfault.statistics import Estimate
from torchfault.statistics.differences import difference
from torchfault.statistics.stratified_score import tilted_bounds
from torchfault.statistics.weights import Strata, beta_bounds
from torchfault.store import Columns, Record

__all__ = ["UpsetSample", "lacking", "negative", "sample_of", "scaled", "shifted"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# The draw that the prior of a stratum counts as has a probability of so many changes, over its draws, of one more. Of
# 1, 1.5 and 2 the first that held its level in simulation, for RA and SDC alike, from 400 lanes on.
_UNSEEN = 2.0
_IN_USE = UpsetMeasure(in_use=True)


@dataclass(frozen=True, eq=False)
class Stages:
    """What is known of draws in stages, such as a pilot and what it directed: each counts by its worth.

    A draw of stage s, one of *stage*, shape (draws,), counts ``weight[s]`` of its cell, and the mean of that over all
    draws is unbiased. In each stage, *q* is the share of the draws of a cell and *strata* its stratum, -1 for none;
    like *weight* they have shape (stages, cells). *rate*, (cells,), is the mean square expected of outcomes.
    """

    stage: Ints
    q: Floats
    weight: Floats
    strata: Ints
    rate: Floats


@dataclass(frozen=True, eq=False)
class UpsetSample:
    """Upsets of *space*, drawn by cells, and what became of them.

    *p* is the probability that an upset strikes each cell while it holds data, shape (cells,), and *known* that of all
    else. Of shape (draws,): *cell*, *weight* (the mean of weight times outcome is an unbiased sum over p) and
    *stratum*; *lost* and *gained*, the shares of the draw's inputs on which an answer is no longer right, and is now,
    *changed*, of other answers, and *due*, of none. *sa* is the accuracy without faults, *heaviest* the largest weight
    that a draw can have, and *stages* what is known of how draws were directed.
    """

    space: UpsetSpace
    known: Known
    p: Floats
    cell: Ints
    weight: Floats
    stratum: Ints
    lost: Floats
    gained: Floats
    changed: Floats
    due: Floats
    sa: float
    level: float
    heaviest: float
    stages: Stages | None

    def __len__(self) -> int:
        return len(self.cell)

    def drop(self, p: Floats, *, control: float) -> Estimate:
        """Return control SA + the sum over cells of *p* (SA - A); *p* may be negative, as of differences."""
        return shifted(self.contrast(p, self.lost, self.gained), control * self.sa)

    def contrast(self, p: Floats, plus: Floats, minus: Floats | None = None) -> Estimate:
        """Return the sum over cells of *p*, of any sign, times the mean of *plus* - *minus*, 0 to 1 per draw."""
        signed = minus is not None
        if self.stages is not None or not len(self):
            return self._bounded(p, plus if minus is None else plus - minus, signed=signed)
        more, size = p[self.cell] >= 0, np.abs(p)
        none = np.zeros_like(plus) if minus is None else minus
        one, two = (self.mean(size, np.where(more == first, plus, none)) for first in (True, False))
        return self._possible(difference(one, two), p, signed=signed)

    def mean(self, p: Floats, y: Floats) -> Estimate:
        """Return the sum over cells of *p*, 0 or more, times the mean of *y*, from 0 to 1 per draw."""
        if self.stages is not None or not len(self):
            return self._bounded(p, y, signed=False)
        w = self.weights(p)
        strata = Strata.of_draws(w * y, w, self.stratum)
        heaviest = max(self.heaviest * float(self._factor(p).max()), float(w.max()))
        low, high = beta_bounds(strata, heaviest=heaviest, level=self.level)
        return self._possible(Estimate(strata.mean, low, high, len(y), "weighted-beta", self.level), p, signed=False)

    def _bounded(self, p: Floats, y: Floats, *, signed: bool) -> Estimate:
        """Return the sum over cells of *p* times the mean of *y*, with an interval that knows stages and strata."""
        least, most = self._limits(p, signed=signed)
        if self.stages is None or not len(self):
            return Estimate(nan, least, most, 0, "none", self.level)
        known, factor = self.stages, self._factor(p)
        weight = known.weight * factor
        count = np.maximum(np.bincount(self.stratum, minlength=known.strata.max() + 1), 1)
        moment = _moments(known, weight)
        # That a stratum's draws agree is no proof that all would: further changes, of the size that changes have in its
        # stage, are always possible.
        stage_of = np.zeros(len(count), dtype=np.int64)
        for number, strata in enumerate(known.strata):
            stage_of[strata[strata >= 0]] = number
        typical = np.array([_typical(y[known.stage == number]) for number in range(len(known.q))])
        unseen = _UNSEEN * typical[stage_of] / count * moment(2, np.ones_like(p))
        ends = weight * np.array([-1.0 if signed else 0.0, 1.0])[:, None, None]  # a draw may be on one input alone
        value, low, high = tilted_bounds(
            self.weights(p) * y,
            self.stratum,
            (moment(2, known.rate) + unseen, moment(3, known.rate), moment(4, known.rate)),
            level=self.level,
            reach=(min(float(ends.min()), 0.0), max(float(ends.max()), 0.0)),
            least=least,
            most=most,
        )
        return self._possible(Estimate(value, low, high, len(y), "stratified-score", self.level), p, signed=signed)

    def _possible(self, found: Estimate, p: Floats, *, signed: bool) -> Estimate:
        """Return *found* cut to what the mean can be: heavy weights bring it beyond, where draws are few."""
        least, most = self._limits(p, signed=signed)
        value, low, high = (min(max(one, least), most) for one in (found.value, found.low, found.high))
        return replace(found, value=value, low=min(low, value), high=max(high, value))

    def _limits(self, p: Floats, *, signed: bool) -> tuple[float, float]:
        """Return the least and the most that *p* can sum up to, weighing shares of inputs, or with *signed* by how
        much accuracy falls: no more than there is."""
        ends = p * np.array([[self.sa - 1], [self.sa]] if signed else [[0.0], [1.0]])
        return float(ends.min(axis=0).sum()), float(ends.max(axis=0).sum())

    def weights(self, p: Floats) -> Floats:
        """Return the weight of every draw where *p* takes the place of the sample's own, shape (draws,)."""
        return self.weight * self._factor(p)[self.cell]

    def _factor(self, p: Floats) -> Floats:
        return np.divide(p, self.p, out=np.zeros_like(self.p), where=self.p > 0)


def lacking(record: Record) -> str:
    """Return what a campaign lacks for :func:`sample_of`, empty where nothing."""
    configuration = record.configuration
    struck = configuration.get("measure") == {"class": "UpsetMeasure", "fields": {"in_use": True}}
    if record.space.get("kind") != "upsets" or not struck:
        return "did not strike the data in use of an accelerator; take recipes.upsets"
    if configuration.get("verdicts", {}).get("wrong", {}).get("class") != "Misclassified":
        return "recorded no wrong answers; give verdicts={'wrong': Misclassified()}"
    return ""


def sample_of(results: Results, *, level: float | None = None) -> UpsetSample:
    """Return the upsets that a campaign drew, and what became of them.

    Raises :class:`HardwareError` for a campaign that did not strike data in use of an accelerator, or did not record
    which answers were ``wrong``.
    """
    if lacks := lacking(results.record):
        raise HardwareError(f"'{results.name}' {lacks}")
    space = as_upsets(results.space)
    columns, repeats = results.sampled, int(results.record.configuration.get("inputs_per_fault", 1))
    before = np.isin(columns.inputs, results.record.golden["wrong"])
    failed, due, wrong = (columns.flag(name).astype(bool) for name in ("failed", "due", "wrong"))
    draw = np.arange(len(columns)) // repeats
    size = np.bincount(draw)

    def share(values: NDArray[np.bool_]) -> Floats:
        return np.asarray(np.bincount(draw, values, len(size)) / size)

    draws = columns.where(np.arange(len(columns)) % repeats == 0)
    cell, cause = space.cell_of(draws.faults), known(space)
    p = cause.in_use * _IN_USE.mass(space)
    directed = results.design.adapts and results.design.sample is None
    stages = _two_phases(space, results.design.block, columns, draws, repeats) if directed else None
    if stages is None:
        weight, stratum = draws.weight, np.unique(draws.stratum, return_inverse=True)[1].reshape(-1)
    else:
        weight, stratum = stages.weight[stages.stage, cell], stages.strata[stages.stage, cell]
        stages = replace(stages, weight=cause.in_use * stages.weight)
    heaviest = max(results.design.largest_weight or 0.0, float(weight.max(initial=0.0)))
    return UpsetSample(
        space,
        cause,
        p,
        cell,
        cause.in_use * weight,
        stratum,
        lost=share(wrong & ~before),
        gained=share(~wrong & before),
        changed=share(failed & ~due),
        due=share(due),
        sa=1 - len(results.record.golden["wrong"]) / results.record.inputs,
        level=results.level if level is None else level,
        heaviest=cause.in_use * heaviest,
        stages=stages,
    )


def _two_phases(space: UpsetSpace, block: int, columns: Columns, draws: Columns, repeats: int) -> Stages | None:
    """Return the stages of *draws* by :class:`TwoPhase`, ``None`` where they are not its: other strata, or weights.

    Strata of later blocks are cut by the pilot's own outcomes. Its scatter within these would be too small, and its own
    strata are of a few draws each: half by half, it counts as one.
    """
    sampler, population, mass = TwoPhase(block), Population(space, _IN_USE), _IN_USE.mass(space)
    ends = np.cumsum(halves_of(block))
    trials = [columns.take(0, ends[0] * repeats), columns.take(ends[0] * repeats, ends[1] * repeats)]
    halves, profiles = sampler.halves(population), [Profile.of(space, half) for half in trials]
    profile = Profile.of(space, columns.take(0, ends[1] * repeats))
    plans = [*halves, sampler.plan(population, profile)]
    stage, cell = np.searchsorted(ends, np.arange(len(draws)), side="right"), space.cell_of(draws.faults)
    pair = pairs_of(space, mass)
    strata = np.stack((pair, pair, pair.max() + 1 + plans[-1].stratum))
    weight = np.stack([plan.weight for plan in plans])
    if not (
        np.array_equal(strata[stage, cell], draws.stratum) and np.allclose(weight[stage, cell], draws.weight, rtol=1e-9)
    ):
        return None
    count = np.bincount(stage, minlength=3)
    worths = _worths(mass, halves, count, [sampler.plan(population, other) for other in profiles[::-1]], profiles[::-1])
    weight = weight * (worths * len(draws) / np.maximum(count, 1))[:, None]
    own = np.stack((np.minimum(pair, 0), np.minimum(pair, 0) * 2 + 1, plans[-1].stratum + 2))
    strata = np.where(pair >= 0, np.stack((own[0], np.full_like(pair, 1), own[2])), -1)
    return Stages(stage, np.stack([plan.q for plan in plans]), weight, strata, profile.rate())


def _worths(
    mass: Floats, halves: list[Allocation], count: Ints, plans: list[Allocation], profiles: list[Profile]
) -> Floats:
    """Return by how much each stage counts, the halves of a pilot and then the rest; together 1.

    Each half counts by how sure it is expected to be after what the other half saw, never itself: its worth is then
    independent of its outcomes, and as the rest is unbiased whatever the pilot saw, so is the whole.
    """
    worths, pilot = [], count[:2].sum()
    for half, draws, plan, other in zip(halves, count, plans, profiles, strict=False):
        rate = other.rate()
        squares = [float((mass * one.weight * rate).sum()) for one in (half, plan)]
        sure = [n / max(square, 1e-300) for n, square in zip((pilot, count[2]), squares, strict=True)]
        worths.append(draws / max(pilot, 1) * sure[0] / max(sum(sure), 1e-300))
    return np.array([*worths, 1 - sum(worths)])


def _moments(known: Stages, weight: Floats) -> Callable[[int, Floats], Floats]:
    """Return a function of a power and of squares of outcomes by cell: the moments of draws of each stratum."""
    size = int(known.strata.max()) + 1

    def moment(power: int, square: Floats) -> Floats:
        sums = np.zeros((2, size))
        for q, w, strata in zip(known.q, weight, known.strata, strict=True):
            held = strata >= 0
            sums += [np.bincount(strata[held], of[held], size) for of in (q * w**power * square, q)]
        return np.asarray(sums[0] / np.where(sums[1] > 0, sums[1], 1.0))

    return moment


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
