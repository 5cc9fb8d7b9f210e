"""Resiliency Accuracy: how accurate a network is, given that one upset struck the accelerator while it ran.

RA = sum_j p(j) A(j) = SA - c SA - sum_data p(j) UF (SA - A(j)), with SA the accuracy without faults and c the
probability of control, whose faults are crashes (A = 0) and are summed exactly. Source: Tyagi et al., arXiv 2212.02649.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.engine import Engine
from torchfault.errors import HardwareError
from torchfault.faults import BitFlip, strike
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.measure import hardware_space
from torchfault.hardware.proposals import Profile, check_estimator, proposal
from torchfault.hardware.sample import Sample, negative, shifted
from torchfault.hardware.strata import stratify
from torchfault.hardware.striking import Target, judged, target_of
from torchfault.hardware.work import Layers, layers_of
from torchfault.measures import draw, uniform
from torchfault.sampling import stream
from torchfault.statistics import Estimate, proportion

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
    are the values whose mean is *ra*, in the order in which they were drawn; *lanes* counts all runs, those of the
    profile included; *sample* is what was drawn and found.

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
            "bit": (np.where(cells.bitless, 0, cells.bit + 1), list(range(-1, int(cells.bit.max()) + 1))),
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
    cells, lanes = target.cells, 0
    known = profile if isinstance(profile, Profile) else None
    if known is None and estimator in ("IS-B", "IS-B-drop", "drop"):
        run = faults * min(images or len(target.before), len(target.before))
        trials = profile if isinstance(profile, int) else min(max(run // (10 * cells.pairs), 8), 64)
        known = profile_upsets(target, trials=trials, seed=seed)
        lanes = int(known.trials.sum())
    plan = None
    if estimator == "drop":
        assert known is not None
        plan = stratify(cells.mass, known.rate(cells), faults)
        q, (drawn, stratum) = plan.q, plan.draw(rng=stream(seed, 0))
    else:
        q = proposal(estimator, cells, known)
        drawn, stratum = stream(seed, 0).choice(len(q), size=faults, p=q), np.zeros(faults, dtype=np.int64)
    inputs = _inputs(faults, images, len(target.before), stream(seed, 2))
    sample = _struck(target, q, drawn, stratum, inputs, seed=seed, level=level)
    sample = replace(sample, allocation=plan)
    lanes += int((~cells.control[drawn]).sum()) * inputs.shape[1]
    return _summary(sample, estimator, lanes)


def _struck(target: Target, q: Floats, drawn: Ints, stratum: Ints, inputs: Ints, *, seed: int, level: float) -> Sample:
    """Run what was drawn, and take means over images."""
    data = ~target.cells.control[drawn]
    fates = target.strike(drawn[data], inputs[data], rng=stream(seed, 1))
    earlier = target.before[inputs[data]]

    def spread(values: NDArray[np.bool_]) -> Floats:
        means = np.zeros(len(drawn))
        means[data] = values.mean(axis=1)
        return means

    right, lost, gained = (spread(of) for of in (~fates.wrong, fates.wrong & ~earlier, ~fates.wrong & earlier))
    changed, due = spread(fates.changed & ~fates.due), spread(fates.due)
    names = tuple(work.layer for work in target.works)
    sa = float((~target.before).mean())
    return Sample(
        target.accelerator, names, target.cells, q, drawn, stratum, right, lost, gained, changed, due, sa, level
    )


def _summary(sample: Sample, estimator: str, lanes: int) -> Resiliency:
    cells, sa, control = sample.cells, sample.sa, sample.control
    mass = cells.mass
    if estimator == "drop":
        drop = sample.drop(mass, control=control)
        samples = sa * (1 - control) - sample.weights(mass) * (sample.lost - sample.gained)
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


def profile_upsets(target: Target, *, trials: int = 8, seed: int = 0) -> Profile:
    """Return how often *trials* upsets of each type and bit changed whether an answer is correct.

    Layers are drawn by their work, variables, uses and inputs uniformly.
    """
    cells, rng = target.cells, stream(seed, 3)
    chosen = []
    for one, bit in np.unique(np.stack((cells.kind, cells.bit))[:, ~cells.control], axis=1).T:
        here = np.flatnonzero((cells.kind == one) & (cells.bit == bit))
        mass = cells.p[here] if cells.p[here].sum() > 0 else cells.variables[here]
        chosen.append(rng.choice(here, size=trials, p=mass / mass.sum()))
    cell = np.concatenate(chosen)
    inputs = rng.integers(0, len(target.before), size=(len(cell), 1))
    fates = target.strike(cell, inputs, rng=rng)
    changed = (fates.wrong != target.before[inputs])[:, 0].astype(np.float64)
    size = len(cells)
    counts = (np.bincount(cell, of, size).astype(np.float64) for of in (changed, np.ones_like(changed)))
    return Profile(*counts)


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
    where = space.locate(draw(uniform(space), space, faults, rng=stream(seed, 0)))
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
