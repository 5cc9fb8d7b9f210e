"""The cells of an accelerator's probabilities, layer by type by bit, and how often estimators draw from each.

Within a cell all variables are equally likely, so a proposal over cells is a proposal over all faults.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import HardwareError, did_you_mean
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.measure import layer_shares, utilisation
from torchfault.hardware.work import Layers

__all__ = ["ESTIMATORS", "Cells", "Estimator", "Profile", "cells_of", "check_estimator", "draw_cells", "proposal"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Estimator = Literal["UNIFORM", "MAC", "IS", "IS-B", "drop"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells in columns, shape (cells,): positions of *layer* and type (*kind*), *bit*, and whether they are *control*.

    *p* is the probability that an upset strikes the cell, *used* the utilisation, *variables* their number, *part* the
    share of this type among those that hold the same variables.
    """

    layer: Ints
    kind: Ints
    bit: Ints
    control: NDArray[np.bool_]
    p: Floats
    used: Floats
    variables: Floats
    part: Floats

    def __len__(self) -> int:
        return len(self.p)


@dataclass(frozen=True, eq=False)
class Profile:
    """What a few upsets of each type and bit did: how many *changed* the correctness of an answer, of *trials* each.

    *changed* has shape (types, bits).
    """

    changed: Floats
    trials: int

    @property
    def rate(self) -> Floats:
        """The rate of change, shape (types, bits), never 0: a quarter of a change and half a trial are added."""
        return (self.changed + 0.25) / (self.trials + 0.5)


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
            for bit in range(bits):
                columns.append((at, kind, bit, control, share * weight / bits, used, work.count(one.holds), part))
    layer, kind_, bit_, is_control, p, uf, variables, parts = np.array(columns, dtype=np.float64).T
    whole = [column.astype(np.int64) for column in (layer, kind_, bit_)]
    return Cells(whole[0], whole[1], whole[2], is_control.astype(bool), p, uf, variables, parts)


def proposal(estimator: str, cells: Cells, profile: Profile | None = None) -> Floats:
    """Return q of each cell, shape (cells,), for the *estimator* of that name; it sums to 1.

    ``UNIFORM``: every bit of every variable alike; ``MAC``: layers by their work, alike within; ``IS``: q = p;
    ``IS-B``: p times the profiled change per bit (Tyagi et al. 2022); ``drop``: p times utilisation times the profiled
    change per type and bit, without control, which is summed. Raises :class:`HardwareError` for an unknown name, and
    where a profile is needed and missing.
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
    if profile is None:
        raise HardwareError(f"estimator '{estimator}' needs a profile; see profile_upsets")
    if estimator == "IS-B":
        data = np.unique(cells.kind[~cells.control])
        pooled = (profile.changed[data].sum(0) + 0.25) / (profile.trials * len(data) + 0.5)
        q = cells.p * np.where(cells.control, 1.0, pooled[cells.bit])
    else:
        q = cells.p * cells.used * np.where(cells.control, 0.0, profile.rate[cells.kind, cells.bit])
    if not q.sum() > 0:
        raise HardwareError("upsets need a type that holds data and is in use, got none; see utilisation")
    return np.asarray(q / q.sum())


def check_estimator(name: str) -> None:
    """Raise :class:`HardwareError`, with a suggestion, unless *name* is that of an estimator.

    >>> check_estimator("IS-B")
    """
    if name not in ESTIMATORS:
        near = did_you_mean(name, ESTIMATORS)
        raise HardwareError(f"no estimator is called '{name}'{near}; known: {', '.join(ESTIMATORS)}")


def draw_cells(q: Floats, n: int, *, even: bool, rng: np.random.Generator) -> Ints:
    """Return *n* cells drawn from *q*, shape (n,); *even* spreads them over the cells as evenly as whole numbers allow.

    Even draws (systematic sampling: Cochran, Sampling Techniques, chapter 8) are in random order, and every one of them
    alone has distribution q.

    >>> sorted(draw_cells(np.array([0.5, 0.25, 0.25]), 4, even=True, rng=np.random.default_rng(0)).tolist())
    [0, 0, 1, 2]
    """
    if not even:
        return rng.choice(len(q), size=n, p=q)
    ends = np.cumsum(q)
    points = (rng.random() + np.arange(n)) / n * ends[-1]
    found = np.minimum(np.searchsorted(ends, points, side="right"), len(q) - 1)
    return rng.permutation(found)
