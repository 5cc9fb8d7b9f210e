"""Two small systolic arrays, stepped cycle by cycle, register by register: slow, plain, and written for reading.

Both compute out = a @ b for whole numbers, a of shape (rows, depth) and b of shape (depth, columns), tile by tile, with
operands entering skewed by one cycle per row or column. One bit of one register may be flipped in one cycle, after
the register was loaded and before anyone reads it. Nothing here knows of patterns or probabilities.
"""

from typing import NamedTuple

import numpy as np


class Upset(NamedTuple):
    """A flip of *bit* in the register *kind* (input, weight or sum) of element (*i*, *j*), in *cycle* of *tile*."""

    kind: str
    tile: int
    cycle: int
    i: int
    j: int
    bit: int


def _flip(registers, kind, tile, cycle, upset):
    if upset is not None and (upset.kind, upset.tile, upset.cycle) == (kind, tile, cycle):
        registers[upset.i, upset.j] ^= 1 << upset.bit


def output_stationary_tiles(rows, columns, size):
    """Return the first row and column of each tile."""
    return [(row, column) for row in range(0, rows, size) for column in range(0, columns, size)]


def output_stationary(a, b, size, upset=None):
    """Return a @ b from a *size* x *size* array in which sums stay, inputs move right and weights move down."""
    (rows, depth), columns = a.shape, b.shape[1]
    out = np.zeros((rows, columns), dtype=np.int64)
    for tile, (row0, column0) in enumerate(output_stationary_tiles(rows, columns, size)):
        inputs, weights, sums = (np.zeros((size, size), dtype=np.int64) for _ in range(3))
        for cycle in range(depth + 2 * size - 2):
            inputs[:, 1:] = inputs[:, :-1].copy()
            weights[1:, :] = weights[:-1, :].copy()
            for lane in range(size):
                step = cycle - lane
                fed = 0 <= step < depth
                inputs[lane, 0] = a[row0 + lane, step] if fed and row0 + lane < rows else 0
                weights[0, lane] = b[step, column0 + lane] if fed and column0 + lane < columns else 0
            _flip(inputs, "input", tile, cycle, upset)
            _flip(weights, "weight", tile, cycle, upset)
            for i in range(size):
                for j in range(size):
                    step = cycle - i - j
                    if step == 0:
                        sums[i, j] = 0  # a tile begins with empty sums
                    sums[i, j] += inputs[i, j] * weights[i, j]
            _flip(sums, "sum", tile, cycle, upset)
            for i in range(size):
                for j in range(size):
                    if cycle - i - j == depth - 1 and row0 + i < rows and column0 + j < columns:
                        out[row0 + i, column0 + j] = sums[i, j]  # drained as soon as it is complete
    return out


def weight_stationary_tiles(depth, columns, size):
    """Return the first step and column of each tile."""
    return [(step, column) for step in range(0, depth, size) for column in range(0, columns, size)]


def weight_stationary(a, b, size, upset=None):
    """Return a @ b from a *size* x *size* array in which weights stay, inputs move right and sums move down."""
    (rows, depth), columns = a.shape, b.shape[1]
    out = np.zeros((rows, columns), dtype=np.int64)
    for tile, (step0, column0) in enumerate(weight_stationary_tiles(depth, columns, size)):
        inputs, weights, sums = (np.zeros((size, size), dtype=np.int64) for _ in range(3))
        block = b[step0 : step0 + size, column0 : column0 + size]
        weights[: block.shape[0], : block.shape[1]] = block
        for cycle in range(rows + 2 * size - 2):
            inputs[:, 1:] = inputs[:, :-1].copy()
            for lane in range(size):
                row = cycle - lane
                fed = 0 <= row < rows and step0 + lane < depth
                inputs[lane, 0] = a[row, step0 + lane] if fed else 0
            _flip(inputs, "input", tile, cycle, upset)
            _flip(weights, "weight", tile, cycle, upset)
            above = np.zeros_like(sums)
            above[1:, :] = sums[:-1, :]
            sums = above + inputs * weights
            _flip(sums, "sum", tile, cycle, upset)
            for j in range(size):
                row = cycle - (size - 1) - j
                if 0 <= row < rows and column0 + j < columns:
                    out[row, column0 + j] += sums[size - 1, j]  # a protected buffer adds the tiles up
    return out
