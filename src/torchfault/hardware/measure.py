"""How likely an upset of an accelerator strikes each bit of each variable of a model; NumPy only.

p(j, bit) = LP(L) w_T / (V_{T,L} B), with LP the layer's share of all multiply-accumulates, w_T the type's share of all
upsets, V the number of variables and B of bits (Tyagi et al., arXiv 2212.02649, in closed form).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.cells import Space
from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import Accelerator, FlipFlops
from torchfault.hardware.operands import input_uses, offset_of_use, use_of_input
from torchfault.hardware.patterns import find_pattern
from torchfault.hardware.upset_space import UpsetSpace, as_upsets, sum_slots, use_shape
from torchfault.hardware.variables import scale_of
from torchfault.hardware.work import Work
from torchfault.measures import Measure, ProductMeasure, probability
from torchfault.space import FaultSpace

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "HardwareMeasure",
    "Known",
    "UpsetMeasure",
    "hardware_measure",
    "hardware_space",
    "known",
    "layer_shares",
    "layer_table",
    "utilisation",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    """Return the part of *space* in which an accelerator holds variables: inputs, weights and outputs of layers.

    Scales that blocks of them share belong to it.
    """
    names = {name for work in works for name in (*work.inputs, *work.weights, *work.outputs)}
    for name in names:
        space.position(name)
    names |= {scale.name for name in names if (scale := scale_of(space, name)) is not None}
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
            bits = np.array([held.sites[i].size for i in positions], dtype=np.float64)
            mass[positions] += p * bits / bits.sum()
    if control >= 1:
        raise HardwareError(f"accelerator '{accelerator.name}' has control flip-flops alone; add one that holds data")
    return HardwareMeasure(held, ProductMeasure(mass / mass.sum()), control)


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
    return found + [space.position(scale.name) for name in names if (scale := scale_of(space, name)) is not None]


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


@dataclass(frozen=True)
class UpsetMeasure:
    """How likely each upset of a space is; with *in_use*, given that it strikes data while a flip-flop holds some.

    A cell has LP w / B, shared alike by all variables of the kind, and by all uses of one. What is left out with
    *in_use* needs no trial: :func:`known` tells its mass.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> space = UpsetSpace(FLAT, (Work("rnn", "gru", 40, (), (), (), (4, 8, 5)),), ((32, 32, 32),))
    >>> float(UpsetMeasure().mass(space)[:32].sum().round(4)), float(UpsetMeasure(in_use=True).mass(space)[-1])
    (0.2766, 0.0)
    """

    in_use: bool = False

    def mass(self, space: Space) -> Floats:
        """Return the probability of each cell, shape (cells,); they sum to 1.

        Raises :class:`HardwareError` where no data are ever in use, and for a space that is not of upsets.
        """
        p, used = _cell_shares(as_upsets(space))
        if not self.in_use:
            return p
        if not (p * used).sum() > 0:
            raise HardwareError("upsets need a type that holds data and is in use, got none; see utilisation")
        return np.asarray(p * used / (p * used).sum())

    def within(self, space: Space, cell: ArrayLike, place: ArrayLike) -> Floats:
        """Return the probability of each *place* given its *cell*, shape (n,)."""
        cells, places = (np.asarray(part, dtype=np.int64).reshape(-1) for part in (cell, place))
        space = as_upsets(space)
        p = 1 / space.cells.sizes[cells]
        for work, one, here in _served(space, cells):
            product, shape = work.product, use_shape(work, one)
            assert product is not None
            element, *use = np.unravel_index(places[here], shape)
            if one.holds == "input":
                uses, used = input_uses(product, element), use_of_input(product, element, use[0])[1] >= 0
                idle = (uses == 0) & (use[0] == 0) & (use[1] == 0)  # where an element without a use is counted
                p[here] = np.where(used, 1 / np.maximum(uses, 1) / product.columns, idle) / shape[0]
            elif one.holds == "output":
                slots = sum_slots(space.accelerator, product, one)
                p[here] = np.bincount(slots)[use[0]] / len(slots) / shape[0]
        return np.asarray(p)

    def draw_places(self, space: Space, cell: ArrayLike, *, rng: np.random.Generator) -> Ints:
        """Return a random place for each given *cell*, by its probability within it, shape (n,)."""
        cells = np.asarray(cell, dtype=np.int64).reshape(-1)
        space = as_upsets(space)
        places = rng.integers(0, space.cells.sizes[cells])
        for work, one, here in _served(space, cells):
            product, shape = work.product, use_shape(work, one)
            assert product is not None
            element, *use = np.unravel_index(places[here], shape)
            if one.holds == "input":
                uses = input_uses(product, element)
                offset = offset_of_use(product, element, rng.integers(0, np.maximum(uses, 1)))
                places[here] = np.ravel_multi_index((element, offset, np.where(uses > 0, use[1], 0)), shape)
            elif one.holds == "output":
                slots = sum_slots(space.accelerator, product, one)
                step = slots[rng.integers(0, len(slots), size=len(here))]
                places[here] = np.ravel_multi_index((element, step), shape)
        return np.asarray(places)


def _served(space: UpsetSpace, cells: Ints) -> Iterator[tuple[Work, FlipFlops, Ints]]:
    """Yield layer and type of those *cells* whose upsets serve a product, with their positions."""
    for at, which, here in space.by_pair(cells):
        work, one = space.works[at], space.accelerator.types[which]
        if len(use_shape(work, one)) > 1:
            yield work, one, here


class Known(NamedTuple):
    """What needs no trial: upsets of *control* are crashes, *idle* flip-flops change nothing; *in_use* is the rest.

    RA = SA - control SA - in_use E[SA - A], the mean being that under ``UpsetMeasure(in_use=True)``.
    """

    control: float
    idle: float
    in_use: float


def known(space: UpsetSpace) -> Known:
    """Return the probabilities that an upset strikes control, flip-flops without data, and data in use.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> space = UpsetSpace(FLAT, (Work("rnn", "gru", 40, (), (), (), (4, 8, 5)),), ((32, 32, 32),))
    >>> [round(part, 4) for part in known(space)]
    [0.1702, 0.0, 0.8298]
    """
    (p, used), control = _cell_shares(space), space.is_control
    return Known(float(p[control].sum()), float((p * (1 - used))[~control].sum()), float((p * used).sum()))


def _cell_shares(space: UpsetSpace) -> tuple[Floats, Floats]:
    """Return LP w / B of each cell, and the share of the time in which it holds data, 0 for control."""
    chip = space.accelerator
    shares, bits = layer_shares(space.works), np.zeros((len(space.works), len(chip.types)))
    np.add.at(bits, (space.layer, space.type), space.words)  # of a variable, and of its part of a scale
    weights = np.array([chip.weight_of(one.name) for one in chip.types])
    used = np.array(
        [
            [utilisation(chip, work, one) if one.holds != "control" else 0.0 for one in chip.types]
            for work in space.works
        ]
    )
    at = (space.layer, space.type)
    return (shares[:, None] * weights / bits)[at] * space.words, used[at]


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
