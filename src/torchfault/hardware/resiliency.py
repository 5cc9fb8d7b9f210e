"""Resiliency Accuracy: how accurate a network is, given that one upset struck the accelerator while it ran.

RA = sum_j p(j) A(j) = SA - c SA - sum_data p(j) UF (SA - A(j)), with SA the accuracy without faults and c the
probability of control, whose faults are crashes (A = 0) and are summed exactly. Source: Tyagi et al., arXiv 2212.02649.
"""

from dataclasses import dataclass
from math import hypot
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from torchfault.criteria import Misclassified, Top1Change
from torchfault.criteria.compose import judge
from torchfault.engine import Engine
from torchfault.errors import HardwareError
from torchfault.faults import BitFlip, Trials, strike
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.measure import hardware_space
from torchfault.hardware.proposals import Cells, Profile, cells_of, draw_cells, proposal
from torchfault.hardware.upsets import Upsets, locate_upsets, upset_trials
from torchfault.hardware.work import Layers, layers_of
from torchfault.measures import draw, uniform
from torchfault.model.data import rows
from torchfault.sampling import stream
from torchfault.statistics import Estimate, proportion
from torchfault.statistics.weighted import Strata, beta_bounds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Resiliency", "profile_upsets", "resiliency_accuracy", "software_accuracy"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_AT_ONCE = 2048  # trials handed to the engine together
_INPUTS = 64  # inputs whose golden operands are held at a time, if a quarter of the memory can hold as many


@dataclass(frozen=True, eq=False)
class Resiliency:
    """Resiliency Accuracy with its interval, and what goes with it.

    *sa* is the accuracy without faults and *drop* = sa - ra. *sdc* and *due* are the probabilities that an upset makes
    the answer another one, and that it makes it none: a crash (*control*), NaN or infinity. *samples*, shape (faults,),
    are the unbiased values whose mean is *ra*; *lanes* counts all runs, those of the profile included; *shares* are the
    contributions to the drop by layer, type and bit that :meth:`table` adds up.
    """

    ra: Estimate
    sa: float
    drop: Estimate
    sdc: Estimate
    due: Estimate
    control: float
    estimator: str
    samples: Floats
    lanes: int
    shares: tuple[tuple[str, str, int, float], ...]

    def table(self, by: str = "layer") -> "pd.DataFrame":
        """Return the contribution of each ``layer``, ``type`` or ``bit`` to the drop, control under its own type.

        Contributions add up to *drop*; those of control count under bit -1. Raises :class:`HardwareError` for another
        *by*.
        """
        import pandas as pd

        if by not in ("layer", "type", "bit"):
            raise HardwareError(f"contributions go by layer, type or bit, got '{by}'")
        frame = pd.DataFrame(self.shares, columns=["layer", "type", "bit", "drop"])
        return frame.groupby(by, sort=False)["drop"].sum().reset_index()


@dataclass(frozen=True, eq=False)
class _Fates:
    """What became of trials: the answer is *wrong*, *changed*, or *due*, NaN or infinite; any shape, alike."""

    wrong: NDArray[np.bool_]
    changed: NDArray[np.bool_]
    due: NDArray[np.bool_]


def resiliency_accuracy(
    engine: Engine,
    accelerator: Accelerator,
    *,
    estimator: str = "drop",
    faults: int = 2000,
    images: int | None = 1,
    profile: Profile | int = 8,
    seed: int = 0,
    level: float = 0.95,
    layers: Layers | None = None,
) -> Resiliency:
    """Return the accuracy of *engine*'s model on its labelled data, given that an upset struck *accelerator*.

    *faults* upsets are drawn as *estimator* says (see :func:`proposal`), each run on *images* random inputs, or on all
    (``None``); ``drop`` is the recommended one. *profile* is the number of upsets per type and bit that estimators with
    a profile run first, or what :func:`profile_upsets` returned. The result depends on the arguments and *seed* alone.
    *layers*, if given, is ``layers_of(engine.model, engine.data)``. Intervals of the ``drop`` estimator leave out what
    the even spread of its draws gains, so they are on the wide side.

    Raises :class:`HardwareError` for an unknown estimator or no faults, :class:`torchfault.errors.ModelError` where the
    model cannot be captured, and :class:`torchfault.errors.CriterionError` without labels.
    """
    if faults < 2 or (images is not None and images < 1):
        raise HardwareError(f"an estimate needs 2 faults and 1 image or more, got {faults} and {images}")
    layers = layers or layers_of(engine.model, engine.data)
    cells = cells_of(accelerator, layers)
    before, lanes = _golden_wrong(engine), 0
    if isinstance(profile, int) and estimator in ("IS-B", "drop"):
        profile = profile_upsets(engine, accelerator, trials=profile, seed=seed, layers=layers)
        lanes = int(profile.trials * np.count_nonzero(~np.isnan(profile.changed)))
    q = proposal(estimator, cells, profile if isinstance(profile, Profile) else None)
    drawn = draw_cells(q, faults, even=estimator == "drop", rng=stream(seed, 0))
    inputs = _inputs(faults, images, len(engine.data), stream(seed, 2))
    data = ~cells.control[drawn]
    struck = drawn[data]
    upsets = locate_upsets(
        accelerator, layers, cells.layer[struck], cells.kind[struck], cells.bit[struck], rng=stream(seed, 1)
    )
    fates = _run(engine, accelerator, layers, upsets, inputs[data], before)
    lanes += int(data.sum()) * inputs.shape[1]
    return _summary(_Sampled(accelerator, layers, cells, estimator, q, drawn, inputs, fates, before, level), lanes)


def profile_upsets(
    engine: Engine, accelerator: Accelerator, *, trials: int = 8, seed: int = 0, layers: Layers | None = None
) -> Profile:
    """Return how often *trials* upsets of each type and bit changed whether an answer is correct.

    Layers are drawn by their work, variables, uses and inputs uniformly. Bits that a type does not have are NaN.
    """
    layers = layers or layers_of(engine.model, engine.data)
    cells, rng = cells_of(accelerator, layers), stream(seed, 3)
    layer, kind, bit = [], [], []
    pairs = sorted({(k, b) for k, b, c in zip(cells.kind, cells.bit, cells.control, strict=True) if not c})
    for one, place in pairs:
        here = np.flatnonzero((cells.kind == one) & (cells.bit == place) & ~cells.control)
        chosen = rng.choice(here, size=trials, p=_normal(cells.p[here], cells.variables[here]))
        layer.append(cells.layer[chosen])
        kind.append(np.full(trials, one))
        bit.append(np.full(trials, place))
    upsets = locate_upsets(
        accelerator, layers, np.concatenate(layer), np.concatenate(kind), np.concatenate(bit), rng=rng
    )
    inputs = rng.integers(0, len(engine.data), size=(len(upsets), 1))
    before = _golden_wrong(engine)
    fates = _run(engine, accelerator, layers, upsets, inputs, before)
    changed = np.full((len(accelerator.types), int(cells.bit.max()) + 1), np.nan)
    for (one, place), differs in zip(pairs, (fates.wrong != before[inputs]).reshape(-1, trials), strict=True):
        changed[one, place] = differs.sum()
    return Profile(changed, trials)


def _normal(p: Floats, otherwise: Floats) -> Floats:
    """Return *p*, or *otherwise* where all of it is 0, as probabilities."""
    mass = p if p.sum() > 0 else otherwise
    return np.asarray(mass / mass.sum())


def software_accuracy(
    engine: Engine, *, faults: int = 2000, seed: int = 0, level: float = 0.95, layers: Layers | None = None
) -> Estimate:
    """Return RA_SW: the accuracy under one bit flip, every bit of every variable of the layers equally likely.

    What injection in software alone measures, for comparison: no accelerator, one random input per fault.
    """
    layers = layers or layers_of(engine.model, engine.data)
    space = hardware_space(layers.works, engine.space)
    where = space.locate(draw(uniform(space), space, faults, rng=stream(seed, 0)))
    inputs = stream(seed, 2).integers(0, len(engine.data), size=faults)
    trials = strike(space, where, model=BitFlip(), rng=stream(seed, 1), inputs=inputs)
    wrong = np.zeros(faults, dtype=bool)
    for index, fates in _judged(engine, trials):
        wrong[index] = fates.wrong
    return proportion(int((~wrong).sum()), faults, level=level)


def _golden_wrong(engine: Engine) -> NDArray[np.bool_]:
    golden = engine.golden()
    return judge(Misclassified(), golden, golden, engine.data.labels).failed


def _inputs(faults: int, images: int | None, total: int, rng: np.random.Generator) -> Ints:
    if images is None or images >= total:
        return np.tile(np.arange(total), (faults, 1))
    return rng.integers(0, total, size=(faults, images))


def _judged(engine: Engine, trials: Trials) -> list[tuple[Ints, _Fates]]:
    found = []
    for lanes in engine.run(trials):
        labels = rows(engine.data.labels, torch.from_numpy(lanes.inputs))
        wrong = judge(Misclassified(), lanes.golden, lanes.faulty, labels)
        changed = judge(Top1Change(), lanes.golden, lanes.faulty, labels)
        found.append((lanes.trial, _Fates(wrong.failed, changed.failed, changed.due)))
    return found


def _run(
    engine: Engine,
    accelerator: Accelerator,
    layers: Layers,
    upsets: Upsets,
    inputs: Ints,
    before: NDArray[np.bool_],
) -> _Fates:
    """Run every upset on its row of *inputs*, shape (upsets, images); those without a trial end as golden does."""
    flat, owner = inputs.reshape(-1), np.repeat(np.arange(len(upsets)), inputs.shape[1])
    wrong, changed, due = before[flat], np.zeros(len(flat), dtype=bool), np.zeros(len(flat), dtype=bool)
    order = np.argsort(flat, kind="stable")
    at_once = max(1, min(_INPUTS, engine.memory // 4 // max(layers.nbytes, 1)))
    group = (np.cumsum(np.diff(flat[order], prepend=-1) > 0) - 1) // at_once
    for one in np.unique(group):
        members = order[group == one]
        for begin in range(0, len(members), _AT_ONCE):
            part = members[begin : begin + _AT_ONCE]
            trials, kept = upset_trials(
                accelerator, layers, engine.space, engine.data, upsets.take(owner[part]), flat[part]
            )
            for index, fates in _judged(engine, trials) if len(trials) else ():
                at = part[kept[index]]
                wrong[at], changed[at], due[at] = fates.wrong, fates.changed, fates.due
    return _Fates(*(values.reshape(inputs.shape) for values in (wrong, changed, due)))


@dataclass(frozen=True, eq=False)
class _Sampled:
    """Everything that was drawn and found."""

    accelerator: Accelerator
    layers: Layers
    cells: Cells
    estimator: str
    q: Floats
    drawn: Ints
    inputs: Ints
    fates: _Fates
    before: NDArray[np.bool_]
    level: float

    def spread(self, values: NDArray[np.bool_], control: float) -> Floats:
        """Return the mean of *values* over images per fault, *control* for faults of control, shape (faults,)."""
        found = np.full(len(self.drawn), control)
        found[~self.cells.control[self.drawn]] = values.mean(1)
        return found

    def estimate(self, y: Floats, ratio: Floats) -> Estimate:
        """Return the mean of ratio/q times y, y from 0 to 1; *ratio* is the target mass of each cell."""
        possible = self.q > 0
        heaviest = float((ratio[possible] / self.q[possible]).max())
        w = (ratio / np.where(possible, self.q, 1.0))[self.drawn]
        strata = Strata.of_draws(w * y, w, np.zeros(len(y), dtype=np.int64))
        low, high = beta_bounds(strata, heaviest=heaviest, level=self.level)
        return Estimate(strata.mean, low, high, len(y), "weighted-beta", self.level)


def _summary(sampled: _Sampled, lanes: int) -> Resiliency:
    cells, fates = sampled.cells, sampled.fates
    sa, control = float((~sampled.before).mean()), float(cells.p[cells.control].sum())
    mass = np.where(cells.control, 0.0, cells.p * cells.used)
    earlier = sampled.before[sampled.inputs[~cells.control[sampled.drawn]]]
    lost = sampled.spread(fates.wrong & ~earlier, 0.0)
    gained = sampled.spread(~fates.wrong & earlier, 0.0)
    weight = (mass / np.where(sampled.q > 0, sampled.q, 1.0))[sampled.drawn]
    if sampled.estimator == "drop":
        drop = _difference(sampled.estimate(lost, mass), sampled.estimate(gained, mass), add=control * sa)
        ra = _between(sa - drop.value, sa - drop.high, sa - drop.low, drop)
        samples = sa * (1 - control) - weight * (lost - gained)
    else:
        used = cells.used[sampled.drawn]
        y = used * sampled.spread(~fates.wrong, 0.0) + (1 - used) * sa
        y[cells.control[sampled.drawn]] = 0.0
        ra = sampled.estimate(y, cells.p)
        samples = (cells.p / np.where(sampled.q > 0, sampled.q, 1.0))[sampled.drawn] * y
        drop = _between(sa - ra.value, sa - ra.high, sa - ra.low, ra)
    sdc = sampled.estimate(sampled.spread(fates.changed & ~fates.due, 0.0), mass)
    found = sampled.estimate(sampled.spread(fates.due, 0.0), mass)
    due = _between(found.value + control, found.low + control, min(found.high + control, 1.0), found)
    shares = _shares(sampled, weight * (lost - gained) / len(weight), sa)
    return Resiliency(ra, sa, drop, sdc, due, control, sampled.estimator, samples, lanes, shares)


def _between(value: float, low: float, high: float, like: Estimate) -> Estimate:
    return Estimate(value, low, high, like.trials, like.method, like.level)


def _difference(one: Estimate, two: Estimate, *, add: float) -> Estimate:
    """Return one - two + *add*, its interval from both (MOVER: Zou & Donner, Statistics in Medicine 27, 2008)."""
    value = one.value - two.value + add
    low = value - hypot(one.value - one.low, two.high - two.value)
    high = value + hypot(one.high - one.value, two.value - two.low)
    return _between(value, low, high, one)


def _shares(sampled: _Sampled, drops: Floats, sa: float) -> tuple[tuple[str, str, int, float], ...]:
    """Return the contribution of each cell drawn, and of control."""
    cells, works = sampled.cells, sampled.layers.works
    total = np.bincount(sampled.drawn, weights=drops, minlength=len(cells))
    total[cells.control] = cells.p[cells.control] * sa
    names = [one.name for one in sampled.accelerator.types]
    kept = np.flatnonzero((total != 0) | cells.control)
    return tuple(
        (
            works[cells.layer[i]].layer,
            names[cells.kind[i]],
            -1 if cells.control[i] else int(cells.bit[i]),
            float(total[i]),
        )
        for i in kept
    )
