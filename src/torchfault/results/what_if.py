"""What a change of the chip would do: the same upsets, weighed anew; nothing is run again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import HARDENED_FIT, Accelerator
from torchfault.hardware.measure import UpsetMeasure
from torchfault.results.fit import chip_fit
from torchfault.results.resiliency import resiliency
from torchfault.results.results import Results
from torchfault.results.upset_sample import UpsetSample, negative, sample_of, scaled, shifted
from torchfault.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Change", "WhatIf", "add_ecc", "harden", "protect", "usual_changes", "what_if", "what_if_table"]

Floats = NDArray[np.float64]
_LAYERS = 3  # layers that the usual changes protect one by one: those that take most away


@dataclass(frozen=True)
class Change:
    """A change of a chip: flip-flops of some types upset at other *fits* per MB, and some *layers* are protected.

    In a protected layer (by duplication, checksums or range checks that correct) no fault of its variables has an
    effect; its control has. *name* is for people.

    >>> Change("none")
    Change(name='none', fits=(), layers=())
    """

    name: str
    fits: tuple[tuple[str, float], ...] = ()
    layers: tuple[str, ...] = ()


def harden(accelerator: Accelerator, name: str, *, fit: float = HARDENED_FIT) -> Change:
    """Return the change that hardens all flip-flops of the type *name*, as DICE does, to *fit* per MB.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> harden(FLAT, "control").name
    'harden control: 600 to 200 FIT/MB'
    """
    return Change(f"harden {name}: {accelerator.type_of(name).fit:g} to {fit:g} FIT/MB", ((name, fit),))


def add_ecc(accelerator: Accelerator, name: str) -> Change:
    """Return the change that corrects every upset of the unprotected memory *name*.

    Raises :class:`HardwareError` where that type is no memory: flip-flops of the datapath have no code words.

    >>> from torchfault.hardware.accelerator import FLAT, with_buffer
    >>> add_ecc(with_buffer(FLAT, "cache", holds="weight", share=1e6), "cache").name
    'ECC for cache'
    """
    if not accelerator.type_of(name).memory:
        known = [one.name for one in accelerator.types if one.memory]
        raise HardwareError(f"ECC is for memories, and '{name}' is none; memories: {', '.join(known) or 'none'}")
    return Change(f"ECC for {name}", ((name, 0.0),))


def protect(layer: str) -> Change:
    """Return the change that protects the variables of *layer*.

    >>> protect("conv1").layers
    ('conv1',)
    """
    return Change(f"protect {layer}", layers=(layer,))


@dataclass(frozen=True)
class WhatIf:
    """What a *change* makes of Resiliency Accuracy and of failures in time, and by how much that is more or less.

    *ra* is given an upset of the changed chip. *chip*, *sdc* and *due* are failures in time; where flip-flops are not
    counted, in shares of the chip's upsets before the change.
    """

    change: Change
    ra: Estimate
    ra_change: Estimate
    chip: float
    chip_change: float
    sdc: Estimate
    sdc_change: Estimate
    due: Estimate
    due_change: Estimate


def what_if(results: Results, change: Change, *, flip_flops: int | None = None, level: float | None = None) -> WhatIf:
    """Return what *change* would make of what a campaign by :func:`torchfault.recipes.upsets` found.

    A change alters how likely upsets are, not what they do: with p' in place of p, the same draws weigh p' / q. The
    differences are estimated as such, from differences of weights, and are sharper than two intervals side by side.
    A memory with ECC no longer upsets, so that RA, given an upset, may fall while failures in time do: compare both.
    *flip_flops* counts all, where the accelerator does not. Raises :class:`HardwareError` for unknown types and
    layers, for a type that upsets after the change alone, and for other campaigns.

    >>> import torch
    >>> from torchfault import Data, Engine, MaxTrials
    >>> from torchfault.campaign import run
    >>> from torchfault.hardware.accelerator import FLAT
    >>> from torchfault.recipes import upsets
    >>> from torchfault.zoo import digits_cnn
    >>> engine = Engine(digits_cnn(), Data(torch.rand(4, 1, 8, 8), torch.arange(4)))
    >>> better = what_if(run(upsets(engine, FLAT, stop=MaxTrials(1100))), harden(FLAT, "control"))
    >>> round(better.chip_change, 4), better.due_change.high < 0
    (-0.015, True)
    """
    return _changed(sample_of(results, level=level), change, flip_flops=flip_flops)


def _changed(sample: UpsetSample, change: Change, *, flip_flops: int | None) -> WhatIf:
    before = sample.known.control
    mass, control, share = _reweighed(sample, change)
    chip = chip_fit(sample.space.accelerator, flip_flops=flip_flops)
    more = mass - sample.p
    ra = negative(sample.drop(mass / share, control=control / share), sample.sa)
    ra_change = sample.drop(sample.p - mass / share, control=before - control / share)
    due, due_change = sample.mean(mass, sample.due), sample.contrast(more, sample.due)
    return WhatIf(
        change,
        ra,
        ra_change,
        chip * share,
        chip * (share - 1),
        scaled(sample.mean(mass, sample.changed), chip),
        scaled(sample.contrast(more, sample.changed), chip),
        scaled(shifted(due, control), chip),
        scaled(shifted(due_change, control - before), chip),
    )


def _reweighed(sample: UpsetSample, change: Change) -> tuple[Floats, float, float]:
    """Return the mass of each cell, of control, and of all upsets, in upsets of the chip before the change."""
    space, chip = sample.space, sample.space.accelerator
    factor = np.ones(len(chip.types))
    for name, fit in change.fits:
        one = chip.type_of(name)
        if not one.fit > 0 and fit > 0:
            raise HardwareError(f"'{name}' never upsets at 0 FIT, so nothing is known of it; measure it at {fit:g}")
        factor[chip.types.index(one)] = fit / one.fit if one.fit else 1.0
    kept = np.ones(len(space.works))
    for name in change.layers:
        kept[space.positions(name)] = 0.0
    p = UpsetMeasure().mass(space) * factor[space.type]
    if not p.sum() > 0:
        raise HardwareError(f"'{change.name}' leaves no flip-flop that upsets; leave one")
    return sample.p * factor[space.type] * kept[space.layer], float(p[space.is_control].sum()), float(p.sum())


def usual_changes(results: Results, *, layers: Sequence[str] = ()) -> tuple[Change, ...]:
    """Return the changes worth a look: harden each type, ECC for each memory, protect *layers*, or the worst three."""
    found = resiliency(results)
    chip = found.sample.space.accelerator
    plain = [one for one in chip.types if one.fit > HARDENED_FIT and one.share > 0]
    table = found.table("layer").sort_values("data", ascending=False, kind="stable")
    worst = [str(layer) for layer, data in zip(table["layer"], table["data"], strict=True) if data > 0][:_LAYERS]
    return (
        *(harden(chip, one.name) for one in plain if not one.memory),
        *(add_ecc(chip, one.name) for one in plain if one.memory),
        *map(protect, layers or worst),
    )


def what_if_table(
    results: Results,
    changes: Sequence[Change] | None = None,
    *,
    flip_flops: int | None = None,
    level: float | None = None,
) -> "pd.DataFrame":
    """Return a data frame with one row per change, the first being none; :func:`usual_changes` unless told.

    Columns: change, then ra, ra_change, chip_fit, chip_fit_change, sdc_fit, sdc_fit_change, due_fit and due_fit_change;
    all but the chip's are estimates and are followed by their bounds, as ra_low and ra_high.
    """
    import pandas as pd

    sample, rows = sample_of(results, level=level), []
    for change in (Change("as it is"), *(usual_changes(results) if changes is None else changes)):
        seen = _changed(sample, change, flip_flops=flip_flops)
        row: dict[str, object] = {"change": change.name, **_columns("ra", seen.ra)}
        row |= _columns("ra_change", seen.ra_change) | {"chip_fit": seen.chip, "chip_fit_change": seen.chip_change}
        row |= _columns("sdc_fit", seen.sdc) | _columns("sdc_fit_change", seen.sdc_change)
        rows.append(row | _columns("due_fit", seen.due) | _columns("due_fit_change", seen.due_change))
    return pd.DataFrame(rows)


def _columns(name: str, one: Estimate) -> dict[str, object]:
    return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
