"""The cells of an accelerator's probabilities, layer by type by bit, and how often estimators draw from each.

Within a cell all variables are equally likely, so a proposal over cells is a proposal over all faults.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import HardwareError, did_you_mean
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.layers import Layers
from torchfault.hardware.measure import layer_shares, utilisation
from torchfault.hardware.patterns import find_pattern

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

    *p* is the probability that an upset strikes the cell, *used* the utilisation, *variables* their number, *part* the
    share of this type among those that hold the same variables. Cells of a *family* do alike: those of one bit; of a
    type whose pattern leaves random words, all.
    """

    layer: Ints
    kind: Ints
    bit: Ints
    control: NDArray[np.bool_]
    p: Floats
    used: Floats
    variables: Floats
    part: Floats
    family: Ints

    def __len__(self) -> int:
        return len(self.p)

    @property
    def pairs(self) -> int:
        """The number of pairs of a type and a bit of it."""
        return int(np.unique(np.stack((self.kind, self.bit))[:, ~self.control], axis=1).shape[1])

    @property
    def bitless(self) -> NDArray[np.bool_]:
        """Which cells are of upsets without a bit: of control, and such as leave random words; shape (cells,)."""
        return np.asarray(self.family >= _BITLESS)

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


def cells_of(accelerator: Accelerator, layers: Layers) -> Cells:
    """Return the cells of *accelerator* on *layers*; their p sum to 1.

    Raises :class:`HardwareError` where a type's variables in a layer are no sites, or have words of different widths.
    """
    columns: list[tuple[float, ...]] = []
    for at, (work, share) in enumerate(zip(layers.works, layer_shares(layers.works), strict=True)):
        for kind, one in enumerate(accelerator.types):
            control = one.holds == "control"
            widths = {layers.space.site(name).width for name in work.sites(one.holds)}
            if not control and len(widths) != 1:
                raise HardwareError(
                    f"the {one.holds} variables of '{work.layer}' need sites with words of one width, got "
                    f"{sorted(widths) or 'none'}; fold computed weights, or convert to one type"
                )
            bits = 1 if control else widths.pop()
            weight = accelerator.weight_of(one.name)
            alike = sum(accelerator.weight_of(other.name) for other in accelerator.types if other.holds == one.holds)
            used, part = utilisation(accelerator, work, one), weight / alike if alike else 0.0
            random = find_pattern(one.pattern).effect == "random"
            for bit in range(bits):
                family = _BITLESS + kind if random or control else bit
                p = share * weight / bits
                columns.append((at, kind, bit, control, p, used, work.count(one.holds), part, family))
    layer, kind_, bit_, is_control, p_, uf, variables, parts, alike_ = np.array(columns, dtype=np.float64).T
    whole = [column.astype(np.int64) for column in (layer, kind_, bit_, alike_)]
    return Cells(whole[0], whole[1], whole[2], is_control.astype(bool), p_, uf, variables, parts, whole[3])


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
        q = cells.variables * cells.part
        if estimator == "MAC":
            by_layer = np.bincount(cells.layer, weights=q)
            q = q / by_layer[cells.layer] * np.bincount(cells.layer, weights=cells.p)[cells.layer]
        return np.asarray(q / q.sum())
    if estimator == "drop":
        raise HardwareError("estimator 'drop' has no one proposal, but strata; see stratify")
    if profile is None:
        raise HardwareError(f"estimator '{estimator}' needs a profile; see profile_upsets")
    data = ~cells.control
    changed, trials = (np.bincount(cells.bit[data], weights=of[data]) for of in (profile.changed, profile.trials))
    q = cells.p * np.where(cells.control, 1.0, ((changed + 0.25) / (trials + 0.5))[cells.bit])
    return np.asarray(q / q.sum())


def check_estimator(name: str) -> None:
    """Raise :class:`HardwareError`, with a suggestion, unless *name* is that of an estimator.

    >>> check_estimator("IS-B")
    """
    if name not in ESTIMATORS:
        near = did_you_mean(name, ESTIMATORS)
        raise HardwareError(f"no estimator is called '{name}'{near}; known: {', '.join(ESTIMATORS)}")
