"""Every upset there is, with its probability: the truth that estimators are held to, for networks small enough."""

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import Accelerator, FlipFlops
from torchfault.hardware.layers import Layers
from torchfault.hardware.operands import input_element, output_element, weight_element
from torchfault.hardware.patterns import find_pattern
from torchfault.hardware.proposals import cells_of
from torchfault.hardware.upsets import Upsets, sum_slots
from torchfault.hardware.work import Product, Work

__all__ = ["every_upset"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def every_upset(accelerator: Accelerator, layers: Layers) -> tuple[Upsets, Ints, Floats]:
    """Return all upsets of *accelerator* on *layers*, the cell of each, and its share of that cell, shape (upsets,).

    Cells are those of :func:`torchfault.hardware.proposals.cells_of`; the shares of each data cell sum to 1. There is
    one upset per bit, variable and use: 32 times the multiply-accumulates for a type that serves single products.
    Raises :class:`HardwareError` for patterns that leave random words, of which there are too many.
    """
    cells = cells_of(accelerator, layers)
    parts: list[NDArray[np.float64]] = []
    for number in np.flatnonzero(~cells.control):
        at, kind, bit = int(cells.layer[number]), int(cells.kind[number]), int(cells.bit[number])
        places, share = _places(accelerator, layers.works[at], accelerator.types[kind])
        n = len(share)
        fixed = np.tile(np.array([[at], [kind], [bit], [number]]), n)
        parts.append(np.vstack((fixed, places, share)))
    layer, kinds, bits, cell, element, group, row, step, column, shares = np.concatenate(parts, axis=1)
    whole = [part.astype(np.int64) for part in (layer, kinds, element, bits, group, row, step, column)]
    nothing = np.zeros(len(cell), dtype=np.uint64)
    upsets = Upsets(whole[0], whole[1], whole[2], whole[3], whole[4], whole[5], whole[6], whole[7], nothing)
    return upsets, cell.astype(np.int64), shares


def _places(accelerator: Accelerator, work: Work, one: FlipFlops) -> tuple[Ints, Floats]:
    """Return (element, group, row, step, column), shape (5, places), and the share of each place."""
    effect, count = find_pattern(one.pattern).effect, work.count(one.holds)
    if effect == "random":
        raise HardwareError(f"'{one.name}' leaves random words, 2^32 for each output; enumerate other types")
    if work.product is None or effect in ("everywhere", "word"):
        return np.vstack((np.arange(count), np.zeros((4, count), dtype=np.int64))), np.full(count, 1 / count)
    product = work.product
    if one.holds == "input":
        return _input_places(product, count)
    if one.holds == "weight":
        sizes = (product.groups, product.rows, product.depth, product.columns)
        group, row, step, column = np.indices(sizes).reshape(4, -1)
        element = weight_element(product, group, step, column)
        return np.vstack((element, group, row, step, column)), np.full(len(row), 1 / len(row))
    slots = np.bincount(sum_slots(accelerator, product, one), minlength=product.depth)
    sizes = (product.groups, product.rows, product.depth, product.columns)
    group, row, step, column = np.indices(sizes).reshape(4, -1)
    element = output_element(product, group, row, column)
    return np.vstack((element, group, row, step, column)), slots[step] / slots.sum() / count


def _input_places(product: Product, count: int) -> tuple[Ints, Floats]:
    """Return the uses of every input; an input without one has a place in row -1, which changes nothing."""
    group, row, step = np.indices((product.groups, product.rows, product.depth)).reshape(3, -1)
    element = input_element(product, group, row, step)
    used = element >= 0
    uses = np.bincount(element[used], minlength=count)
    columns = product.columns
    there = np.repeat(np.vstack((element, group, row, step))[:, used], columns, axis=1)
    places = np.vstack((there, np.tile(np.arange(columns), int(used.sum()))))
    idle = np.flatnonzero(uses == 0)
    nowhere = np.zeros((5, len(idle)), dtype=np.int64)
    nowhere[0], nowhere[2] = idle, -1
    share = np.concatenate((1 / (count * uses[there[0]] * columns), np.full(len(idle), 1 / count)))
    return np.hstack((places, nowhere)), share
