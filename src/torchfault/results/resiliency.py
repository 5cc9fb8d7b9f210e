"""Resiliency Accuracy: how accurate a network is, given that one upset struck the accelerator while it ran.

RA = sum_j p(j) A(j) = SA - c SA - sum_data p(j) UF (SA - A(j)), with SA the accuracy without faults and c the
probability of control, whose faults are crashes (A = 0) and are summed exactly. Source: Tyagi et al., arXiv 2212.02649.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.engine import Engine
from torchfault.errors import HardwareError
from torchfault.faults import BitFlip
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.layers import Layers, layers_of
from torchfault.hardware.measure import hardware_space
from torchfault.hardware.proposals import Cells, Profile, check_estimator, proposal
from torchfault.hardware.sample import Sample, negative, shifted
from torchfault.hardware.strata import Allocation, stratify
from torchfault.hardware.striking import Target, judged, target_of
from torchfault.measures import UNIFORM, draw
from torchfault.sampling import stream
from torchfault.statistics import Estimate, proportion
from torchfault.trials import strike

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Resiliency", "profile_upsets", "resiliency_accuracy", "resiliency_of", "software_accuracy"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Resiliency:
    """Resiliency Accuracy with its interval, and what goes with it.

    *sa* is the accuracy without faults and *drop* = sa - ra. *sdc* and *due* are the probabilities that an upset makes
    the answer another one, and that it makes it none: a crash (*control*), NaN or infinity. *samples*, shape (faults,),
    are values whose mean is *ra*, one for each fault after the profile, in the order of drawing; *lanes* counts all
    runs, those of the profile included; *sample* is what was drawn and found.

    >>> import torch
    >>> from torchfault import FLAT, Data, Engine, resiliency_accuracy
    >>> from torchfault.zoo import digits_cnn
    >>> engine = Engine(digits_cnn(), Data(torch.rand(4, 1, 8, 8), torch.arange(4)))
    >>> found = resiliency_accuracy(engine, FLAT, faults=50)
    >>> bool(abs(found.table("layer")["drop"].sum() - found.drop.value) < 1e-9)
    True
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
    sample: Sample

    def table(self, by: str = "layer") -> "pd.DataFrame":
        """Return the contribution of each ``layer``, ``type`` or ``bit`` to the drop, control under its own type.

        Contributions of data and of control (known exactly) add up to the drop. Control, and what leaves random
        words, has no bit and counts under -1. Columns:
        *by*, data, data_low, data_high, control, drop. Raises :class:`HardwareError` for another *by*.
        """
        import pandas as pd

        if by not in ("layer", "type", "bit"):
            raise HardwareError(f"contributions go by layer, type or bit, got '{by}'")
        sample, cells = self.sample, self.sample.cells
        names: dict[str, tuple[Ints, list[object]]] = {
            "layer": (cells.layer, list(sample.layers)),
            "type": (cells.kind, [one.name for one in sample.accelerator.types]),
            "bit": (cells.bit + 1, list(range(-1, int(cells.bit.max()) + 1))),
        }
        number, name = names[by]
        rows = []
        for one in np.unique(number):
            here = number == one
            control = float(cells.p[here & cells.control].sum()) * self.sa
            data = sample.drop(np.where(here, cells.mass, 0.0), control=0.0)
            rows.append((name[one], data.value, data.low, data.high, control, data.value + control))
        return pd.DataFrame(rows, columns=[by, "data", "data_low", "data_high", "control", "drop"])


def resiliency_accuracy(
    engine: Engine,
    accelerator: Accelerator,
    *,
    estimator: str = "drop",
    faults: int = 2000,
    images: int | None = 1,
    profile: Profile | int | None = None,
    seed: int = 0,
    level: float = 0.95,
    layers: Layers | None = None,
) -> Resiliency:
    """Return the accuracy of *engine*'s model on its labelled data, given that an upset struck *accelerator*.

    *faults* upsets are drawn as *estimator* says, each run on *images* random inputs, or on all (``None``). ``drop``,
    the recommended one, draws from strata of cells (layer, type and bit) of like predicted drop, in Neyman's shares;
    for the others see :func:`torchfault.hardware.proposals.proposal`. *profile* is the number of upsets per type and
    bit that estimators with a profile run first, on one image each (unless given, about a tenth of all lanes, from 8
    to 64), or what :func:`profile_upsets` returned. The result depends on the arguments and *seed* alone. *layers*, if
    given, is ``layers_of(engine.model, engine.data)``.

    Raises :class:`HardwareError` for an unknown estimator or no faults, :class:`torchfault.errors.ModelError` where the
    model cannot be captured, and :class:`torchfault.errors.CriterionError` without labels.

    >>> import torch
    >>> from torchfault import OUTPUT_STATIONARY, Data, Engine
    >>> from torchfault.zoo import digits_cnn
    >>> engine = Engine(digits_cnn(), Data(torch.rand(4, 1, 8, 8), torch.arange(4)))
    >>> found = resiliency_accuracy(engine, OUTPUT_STATIONARY, faults=50)
    >>> found.ra.low <= found.ra.value <= found.ra.high
    True
    """
    layers = layers or layers_of(engine.model, engine.data)
    target = target_of(engine, accelerator, layers)
    return resiliency_of(
        target, estimator=estimator, faults=faults, images=images, profile=profile, seed=seed, level=level
    )


def resiliency_of(
    target: Target,
    *,
    estimator: str = "drop",
    faults: int = 2000,
    images: int | None = 1,
    profile: Profile | int | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Resiliency:
    """Return the Resiliency Accuracy of a *target*: see :func:`resiliency_accuracy`, which makes one of an engine."""
    check_estimator(estimator)
    if faults < 2 or (images is not None and images < 1):
        raise HardwareError(f"an estimate needs 2 faults and 1 image or more, got {faults} and {images}")
    cells = target.cells
    piloted: tuple[_Stage, ...] = ()
    known = profile if isinstance(profile, Profile) else None
    if known is None and estimator in ("IS-B", "IS-B-drop", "drop"):
        run = faults * min(images or len(target.before), len(target.before))
        trials = profile if isinstance(profile, int) else min(max(run // (10 * cells.pairs), 8), 64)
        piloted = _pilot(target, trials=trials, seed=seed)
        known = _profile(cells, piloted)
    if estimator == "drop":
        assert known is not None
        rate = known.rate(cells)
        plan = stratify(cells.mass, rate, faults)
        main = _struck(target, plan.q, plan.draw(rng=stream(seed, 0)), images, seed=seed)
        # Strata are cut by the pilot's own outcomes: its scatter within them would be too small, so it counts as one.
        strata = np.stack((*(np.minimum(plan.stratum, 0) for _ in piloted), plan.stratum))
        sample = _sample(target, (*piloted, main), _worths(cells, piloted, main), level, rate, strata)
    else:
        q = proposal(estimator, cells, known)
        main = _struck(target, q, stream(seed, 0).choice(len(q), size=faults, p=q), images, seed=seed)
        sample = _sample(target, (main,), np.ones(1), level)
    return _summary(sample, estimator, main.lanes + sum(stage.lanes for stage in piloted))


@dataclass(frozen=True, eq=False)
class _Stage:
    """Upsets drawn independently, each cell with probability *q*, and the means over images of what became of them.

    *outcomes*, shape (5, draws), are right, lost, gained, changed and due, 0 for control.
    """

    q: Floats
    drawn: Ints
    outcomes: Floats
    lanes: int


def _profile(cells: Cells, stages: Sequence[_Stage]) -> Profile:
    """Return how often draws of each cell in *stages* changed an answer."""
    changed, trials = np.zeros((2, len(cells)))
    for stage in stages:
        changed += np.bincount(stage.drawn, stage.outcomes[1] + stage.outcomes[2], len(cells))
        trials += np.bincount(stage.drawn, minlength=len(cells))
    return Profile(changed, trials)


def _struck(target: Target, q: Floats, drawn: Ints, images: int | None, *, seed: int, streams: int = 0) -> _Stage:
    """Run what was drawn, and take means over images."""
    inputs = _inputs(len(drawn), images, len(target.before), stream(seed, streams + 2))
    data = ~target.cells.control[drawn]
    fates = target.strike(drawn[data], inputs[data], rng=stream(seed, streams + 1))
    earlier = target.before[inputs[data]]
    found = (~fates.wrong, fates.wrong & ~earlier, ~fates.wrong & earlier, fates.changed & ~fates.due, fates.due)
    outcomes = np.zeros((len(found), len(drawn)))
    outcomes[:, data] = [values.mean(axis=1) for values in found]
    return _Stage(q, drawn, outcomes, int(data.sum()) * inputs.shape[1])


def _pilot(target: Target, *, trials: int, seed: int) -> tuple[_Stage, ...]:
    """Run *trials* upsets of each type and bit on one image each, over layers by their work, in independent halves."""
    cells = target.cells
    _, pair = np.unique(np.stack((cells.kind, cells.bit, cells.control)), axis=1, return_inverse=True)
    pair = pair.reshape(-1)
    struck = np.bincount(pair, cells.p) > 0
    mass = np.where(struck[pair], cells.p, cells.variables)  # types that never upset are looked at all the same
    pair = np.where(cells.control, -1, np.unique(np.where(cells.control, -1, pair), return_inverse=True)[1] - 1)
    _, first = np.unique(pair[~cells.control], return_index=True)
    bits = cells.bits[~cells.control][first]
    halves = []
    for streams, count in ((3, trials - trials // 2), (6, trials // 2)):
        if count:
            plan = Allocation(pair, count * bits, np.where(cells.control, 0.0, mass))
            drawn = plan.draw(rng=stream(seed, streams))
            halves.append(_struck(target, plan.q, drawn, 1, seed=seed, streams=streams))
    return tuple(halves)


def _worths(cells: Cells, piloted: Sequence[_Stage], main: _Stage) -> Floats:
    """Return by how much each stage counts, all of *piloted* and then *main*; together 1.

    Each half of a pilot counts by how sure it is expected to be after what the other half saw, never itself: its worth
    is then independent of its outcomes, and as *main* is unbiased whatever the pilot saw, so is the whole.
    """
    worths, mass = [], cells.mass
    whole = sum(len(stage.drawn) for stage in piloted)
    for half in piloted:
        rate = _profile(cells, [stage for stage in piloted if stage is not half]).rate(cells)
        draws = (whole, len(main.drawn))
        q = (half.q, stratify(mass, rate, draws[1]).q)
        sure = [n / max(_square(mass, rate, one), 1e-300) for n, one in zip(draws, q, strict=True)]
        worths.append(len(half.drawn) / whole * sure[0] / sum(sure))
    return np.array([*worths, 1 - sum(worths)])


def _square(mass: Floats, rate: Floats, q: Floats) -> float:
    """Return the mean square expected of a draw's weight times its outcome."""
    return float(np.divide(mass**2 * rate, q, out=np.zeros_like(mass), where=q > 0).sum())


def _sample(
    target: Target,
    stages: tuple[_Stage, ...],
    worths: Floats,
    level: float,
    rate: Floats | None = None,
    strata: Ints | None = None,
) -> Sample:
    """Return one sample of all *stages*, which count by their *worths*."""
    draws = np.array([len(stage.drawn) for stage in stages])
    q = np.stack([one.q * n / (part * draws.sum()) for one, n, part in zip(stages, draws, worths, strict=True)])
    right, lost, gained, changed, due = np.concatenate([one.outcomes for one in stages], axis=1)
    return Sample(
        accelerator=target.accelerator,
        layers=tuple(work.layer for work in target.works),
        cells=target.cells,
        q=q,
        stage=np.repeat(np.arange(len(stages)), draws),
        drawn=np.concatenate([one.drawn for one in stages]),
        right=right,
        lost=lost,
        gained=gained,
        changed=changed,
        due=due,
        sa=float((~target.before).mean()),
        level=level,
        rate=rate,
        strata=strata,
    )


def _summary(sample: Sample, estimator: str, lanes: int) -> Resiliency:
    cells, sa, control = sample.cells, sample.sa, sample.control
    mass = cells.mass
    if estimator == "drop":
        drop = sample.drop(mass, control=control)
        samples = _running(sa * (1 - control), sample.weights(mass) * (sample.lost - sample.gained), sample.stage)
    elif estimator == "IS-B-drop":
        lost = np.where(cells.control[sample.drawn], sa, sample.lost)
        whole = np.where(cells.control, cells.p, mass)
        drop = sample.contrast(whole, lost, sample.gained)
        samples = sa - sample.weights(whole) * (lost - sample.gained)
    else:
        used = cells.used[sample.drawn]
        y = np.where(cells.control[sample.drawn], 0.0, used * sample.right + (1 - used) * sa)
        ra = sample.mean(cells.p, y)
        samples = sample.weights(cells.p) * y
        drop = negative(ra, sa)
    sdc = sample.mean(mass, sample.changed)
    due = shifted(sample.mean(mass, sample.due), control)
    due = replace(due, high=min(due.high, 1.0))
    return Resiliency(negative(drop, sa), sa, drop, sdc, due, control, estimator, samples, lanes, sample)


def _running(whole: float, x: Floats, stage: Ints) -> Floats:
    """Return values, one per draw of the last stage, whose mean is *whole* less the mean of *x*."""
    last = stage == stage[-1]
    return np.asarray(whole - x[~last].sum() / len(x) - x[last] * (last.sum() / len(x)))


def profile_upsets(target: Target, *, trials: int = 8, seed: int = 0) -> Profile:
    """Return how often *trials* upsets of each type and bit changed whether an answer is correct.

    Layers are drawn by their work, variables, uses and inputs uniformly.
    """
    return _profile(target.cells, _pilot(target, trials=trials, seed=seed))


def software_accuracy(
    engine: Engine, *, faults: int = 2000, seed: int = 0, level: float = 0.95, layers: Layers | None = None
) -> Estimate:
    """Return RA_SW: the accuracy under one bit flip, every bit of every variable of the layers equally likely.

    What injection in software alone measures, for comparison: no accelerator, one random input per fault.

    >>> import torch
    >>> from torchfault import Data, Engine
    >>> from torchfault.zoo import digits_cnn
    >>> engine = Engine(digits_cnn(), Data(torch.rand(4, 1, 8, 8), torch.arange(4)))
    >>> 0 <= software_accuracy(engine, faults=50).value <= 1
    True
    """
    layers = layers or layers_of(engine.model, engine.data)
    space = hardware_space(layers.works, engine.space)
    where = space.locate(draw(UNIFORM, space, faults, rng=stream(seed, 0)))
    inputs = stream(seed, 2).integers(0, len(engine.data), size=faults)
    trials = strike(space, where, model=BitFlip(), rng=stream(seed, 1), inputs=inputs)
    wrong = np.zeros(faults, dtype=bool)
    for index, fates in judged(engine, trials):
        wrong[index] = fates.wrong
    return proportion(int((~wrong).sum()), faults, level=level)


def _inputs(faults: int, images: int | None, total: int, rng: np.random.Generator) -> Ints:
    if images is None or images >= total:
        return np.broadcast_to(np.arange(total), (faults, total))
    return rng.integers(0, total, size=(faults, images))
