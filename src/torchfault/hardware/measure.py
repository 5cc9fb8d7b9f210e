"""How likely an upset of an accelerator strikes each bit of each variable of a model: a product measure; NumPy only.

p(j, bit) = LP(L) w_T / (V_{T,L} B), with LP the layer's share of all multiply-accumulates, w_T the type's share of all
upsets, V the number of variables and B of bits (Tyagi et al., arXiv 2212.02649, in closed form).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import Accelerator, FlipFlops
from torchfault.hardware.patterns import find_pattern
from torchfault.hardware.work import Work
from torchfault.measures import Measure, probability
from torchfault.space import FaultSpace

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "HardwareMeasure",
    "hardware_measure",
    "hardware_space",
    "layer_shares",
    "layer_table",
    "utilisation",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HardwareMeasure:
    """Where an upset strikes: with probability *control* no variable, else one of *space*, drawn from *measure*.

    *measure* is the distribution over *space* given that a variable is struck, and sums to 1 by itself.
    """

    space: FaultSpace
    measure: Measure
    control: float

    def probability(self, index: ArrayLike) -> Floats:
        """Return p of each fault number of *index*, control's share taken off, shape (n,)."""
        return (1 - self.control) * probability(self.measure, self.space, index)


def layer_shares(works: Sequence[Work]) -> Floats:
    """Return LP: each layer's share of all multiply-accumulates, shape (layers,); it sums to 1.

    >>> works = [Work(str(n), "linear", n, (), (), (), (1, 1, 1)) for n in (144_000, 320_000, 16_000, 500)]
    >>> layer_shares(works).round(4).tolist()
    [0.2997, 0.666, 0.0333, 0.001]
    """
    macs = np.array([work.macs for work in works], dtype=np.float64)
    if not macs.sum() > 0:
        raise HardwareError("shares need layers that multiply and accumulate, got none; see measure_work")
    return np.asarray(macs / macs.sum())


def hardware_space(works: Sequence[Work], space: FaultSpace) -> FaultSpace:
    """Return the part of *space* in which an accelerator holds variables: inputs, weights and outputs of layers."""
    names = {name for work in works for name in (*work.inputs, *work.weights, *work.outputs)}
    for name in names:
        space.position(name)
    return FaultSpace(tuple(site for site in space.sites if site.name in names))


def hardware_measure(accelerator: Accelerator, works: Sequence[Work], space: FaultSpace) -> HardwareMeasure:
    """Return where upsets of *accelerator* strike while it computes *works*, over the variables of *space*.

    *space* may hold more sites than the layers have; it is cut to theirs. Raises :class:`HardwareError` for variables
    that are no sites (weights computed from others), and for sites some of whose bits were filtered out.
    """
    held = hardware_space(works, space)
    mass = np.zeros(len(held.sites))
    control = 0.0
    for share, work in zip(layer_shares(works), works, strict=True):
        for one in accelerator.types:
            p = share * accelerator.weight_of(one.name)
            if one.holds == "control":
                control += p
                continue
            positions = _positions(work, one, held)
            elements = np.array([held.sites[i].elements for i in positions], dtype=np.float64)
            mass[positions] += p * elements / elements.sum()
    if control >= 1:
        raise HardwareError(f"accelerator '{accelerator.name}' has control flip-flops alone; add one that holds data")
    return HardwareMeasure(held, Measure(mass / mass.sum()), control)


def _positions(work: Work, one: FlipFlops, space: FaultSpace) -> list[int]:
    names = work.sites(one.holds)
    found = [space.position(name) for name in names]
    sites = [space.sites[i] for i in found]
    if sum(site.elements for site in sites) != work.count(one.holds):
        raise HardwareError(
            f"layer '{work.layer}' has {work.count(one.holds)} {one.holds} variables, of which "
            f"{sum(site.elements for site in sites)} are sites; a measure needs all (fold computed weights first)"
        )
    partial = [site.name for site in sites if len(site.bits) != site.width]
    if partial:
        raise HardwareError(f"an upset may strike every bit of '{partial[0]}', got a space with some; keep all bits")
    return found


def utilisation(accelerator: Accelerator, work: Work, one: FlipFlops) -> float:
    """Return UF: the share of the time in which flip-flops of the type *one* hold a variable of *work*.

    From tile fill: the mean share of the array that the layer's tiles cover. An output-stationary tile covers output
    rows and columns, a weight-stationary one depth and columns; there, sums pass through idle rows and stay exposed.
    A layer that is no matrix product, and control, count as always in use. Source: Tyagi et al. 2022, equation 10.

    >>> from torchfault.hardware.accelerator import OUTPUT_STATIONARY
    >>> utilisation(OUTPUT_STATIONARY, Work("fc", "linear", 1, (), (), (), (1, 1, 1)), OUTPUT_STATIONARY.types[0])
    1.0
    """
    given = accelerator.utilisation
    if isinstance(given, tuple):
        return dict(given).get(one.name, 1.0)
    if not isinstance(given, str):
        return float(given) if one.holds != "control" else 1.0
    if work.product is None or one.holds == "control" or accelerator.dataflow == "flat":
        return 1.0
    across = _fill(work.product.columns, accelerator.width)
    if accelerator.dataflow == "output-stationary":
        return across * _fill(work.product.rows, accelerator.height)
    through = find_pattern(one.pattern).effect == "tile-partial"
    return across if through else across * _fill(work.product.depth, accelerator.height)


def _fill(size: int, tile: int) -> float:
    return size / (-(-size // tile) * tile)


def layer_table(accelerator: Accelerator, works: Sequence[Work]) -> "pd.DataFrame":
    """Return a data frame with one row per layer and type: how likely an upset strikes there.

    Columns: layer, type, holds, macs, layer_share (LP), type_share (w_T), utilisation, p (their product without
    utilisation; it sums to 1), variables, and p_variable = p / variables.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> table = layer_table(FLAT, [Work("fc", "linear", 320, (), (), (), (32, 320, 10))])
    >>> table["variables"].tolist(), round(float(table["p"].sum()), 12)
    ([32, 320, 10, 1], 1.0)
    """
    import pandas as pd

    rows = []
    for share, work in zip(layer_shares(works), works, strict=True):
        for one in accelerator.types:
            weight, count = accelerator.weight_of(one.name), work.count(one.holds)
            used = utilisation(accelerator, work, one)
            p = share * weight
            rows.append((work.layer, one.name, one.holds, work.macs, share, weight, used, p, count, p / count))
    columns = ["layer", "type", "holds", "macs", "layer_share", "type_share", "utilisation", "p"]
    return pd.DataFrame(rows, columns=[*columns, "variables", "p_variable"])
