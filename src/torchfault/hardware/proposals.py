"""The cells of an accelerator's probabilities, layer by type by bit, and how often estimators draw from each.

Within a cell all variables are equally likely, so a proposal over cells is a proposal over all faults.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import HardwareError, did_you_mean
from torchfault.hardware.measure import UpsetMeasure, utilisation
from torchfault.hardware.upset_space import UpsetSpace

__all__ = ["ESTIMATORS", "Cells", "Estimator", "Profile", "cells_of", "check_estimator", "proposal"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Estimator = Literal["UNIFORM", "MAC", "IS", "IS-B", "IS-B-drop", "drop"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
# How many trials the rate of a whole counts in that of its parts: a type in its bit, a cell in its type and bit.
_PRIOR = (1.0, 2.0, 8.0)
_BITLESS = 1000  # families from here on are no bits


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells in columns, shape (cells,): positions of *layer* and type (*kind*), *bit*, and whether they are *control*.

    *p* is the probability that an upset strikes the cell, *used* the utilisation, *variables* their number, *bits* how
    many bits of each the cell is of, *part* the share of this type among those that hold the same variables. Cells of a
    *family* do alike: those of one bit; of a type whose pattern leaves random words, all.
    """

    layer: Ints
    kind: Ints
    bit: Ints
    control: NDArray[np.bool_]
    p: Floats
    used: Floats
    variables: Floats
    bits: Ints
    part: Floats
    family: Ints

    def __len__(self) -> int:
        return len(self.p)

    @property
    def pairs(self) -> int:
        """The number of pairs of a type and a bit of it, all bits of random words included."""
        return int(np.unique(np.stack((self.kind, self.bit, self.bits))[:, ~self.control], axis=1)[2].sum())

    @property
    def mass(self) -> Floats:
        """The probability that an upset strikes data in use, shape (cells,): p times utilisation, 0 for control."""
        return np.where(self.control, 0.0, self.p * self.used)


@dataclass(frozen=True, eq=False)
class Profile:
    """What a few upsets did: how many *changed* the correctness of an answer, of *trials*, cell by cell."""

    changed: Floats
    trials: Floats

    def rate(self, cells: Cells) -> Floats:
        """Return the rate of change of every cell, shape (cells,), never 0.

        A cell with few trials takes after its type and bit, these after the bit, and that after the whole: each adds
        so many trials of its own rate to those of its parts (shrinkage; Efron & Morris, JASA 70, 1975).
        """
        _, group = np.unique(np.stack((cells.kind, cells.family)), axis=1, return_inverse=True)
        rate = np.full(len(cells), (self.changed.sum() + 0.5) / (self.trials.sum() + 1))
        for part, prior in zip((cells.family, group.reshape(-1), np.arange(len(cells))), _PRIOR, strict=True):
            changed, trials = (np.bincount(part, weights=of) for of in (self.changed, self.trials))
            rate = (changed[part] + prior * rate) / (trials[part] + prior)
        return rate


def cells_of(space: UpsetSpace) -> Cells:
    """Return what estimators know of the cells of *space*; their p sum to 1."""
    chip, layer, kind, bit = space.accelerator, space.layer, space.type, space.cells.bit
    weight = np.array([chip.weight_of(one.name) for one in chip.types])
    holds = np.array([one.holds for one in chip.types])
    alike = np.array([weight[holds == one].sum() for one in holds])
    part = np.divide(weight, alike, out=np.zeros_like(weight), where=alike > 0)
    used = np.array([[utilisation(chip, work, one) for one in chip.types] for work in space.works])
    variables = np.array([[work.count(one.holds) for one in chip.types] for work in space.works], dtype=np.float64)
    control = (holds == "control")[kind]
    bits = np.where((bit < 0) & ~control, np.array(space.widths)[layer, 2], 1)
    family = np.where(bit >= 0, bit, _BITLESS + kind)
    p, at = UpsetMeasure().mass(space), (layer, kind)
    return Cells(layer, kind, bit, control, p, used[at], variables[at], bits, part[kind], family)


def proposal(estimator: str, cells: Cells, profile: Profile | None = None) -> Floats:
    """Return q of each cell, shape (cells,), for one of the published *estimators*; it sums to 1.

    ``UNIFORM``: every bit of every variable alike; ``MAC``: layers by their work, alike within; ``IS``: q = p;
    ``IS-B`` and ``IS-B-drop``: p times the profiled change per bit (Tyagi et al. 2022). Raises :class:`HardwareError`
    for an unknown name, for ``drop``, which draws from strata, and where a profile is needed and missing.
    """
    check_estimator(estimator)
    if estimator == "IS":
        return np.asarray(cells.p / cells.p.sum())
    if estimator in ("UNIFORM", "MAC"):
        q = cells.variables * cells.bits * cells.part
        if estimator == "MAC":
            by_layer = np.bincount(cells.layer, weights=q)
            q = q / by_layer[cells.layer] * np.bincount(cells.layer, weights=cells.p)[cells.layer]
        return np.asarray(q / q.sum())
    if estimator == "drop":
        raise HardwareError("estimator 'drop' has no one proposal, but strata; see stratify")
    if profile is None:
        raise HardwareError(f"estimator '{estimator}' needs a profile; see profile_upsets")
    _, alike = np.unique(cells.family, return_inverse=True)
    changed, trials = (np.bincount(alike, weights=of) for of in (profile.changed, profile.trials))
    q = cells.p * np.where(cells.control, 1.0, ((changed + 0.25) / (trials + 0.5))[alike])
    return np.asarray(q / q.sum())


def check_estimator(name: str) -> None:
    """Raise :class:`HardwareError`, with a suggestion, unless *name* is that of an estimator.

    >>> check_estimator("IS-B")
    """
    if name not in ESTIMATORS:
        near = did_you_mean(name, ESTIMATORS)
        raise HardwareError(f"no estimator is called '{name}'{near}; known: {', '.join(ESTIMATORS)}")
