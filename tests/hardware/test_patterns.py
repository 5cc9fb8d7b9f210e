"""The patterns against two arrays stepped cycle by cycle: every register in every cycle of several layers."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.support.array_reference import (
    Upset,
    output_stationary,
    output_stationary_tiles,
    weight_stationary,
    weight_stationary_tiles,
)
from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import OUTPUT_STATIONARY, WEIGHT_STATIONARY
from torchfault.hardware.measure import utilisation
from torchfault.hardware.patterns import PATTERNS, Grid, find_pattern, reach_of
from torchfault.hardware.work import Product, Work

SIZE = 4
LAYERS = ((4, 3, 4), (4, 4, 4), (6, 5, 5), (3, 9, 2), (9, 2, 7))  # rows, depth, columns
BIT = 3


def operands(rows, depth, columns):
    """Return whole numbers without a zero, so that every wrong operand shows."""
    rng = np.random.default_rng([rows, depth, columns])
    return rng.integers(1, 100, (rows, depth)), rng.integers(1, 100, (depth, columns))


def upsets(kind, tiles, cycles):
    """Yield one upset for every register of the kind in every cycle of every tile."""
    for tile in range(tiles):
        for cycle in range(cycles):
            for i in range(SIZE):
                for j in range(SIZE):
                    yield Upset(kind, tile, cycle, i, j, BIT)


def served_by_output_stationary(upset, tile, layer):
    """Return the product that the struck register serves, or None where it holds nothing."""
    rows, depth, columns = layer
    row, step, column = tile[0] + upset.i, upset.cycle - upset.i - upset.j, tile[1] + upset.j
    return (row, step, column) if row < rows and 0 <= step < depth and column < columns else None


def served_by_weight_stationary(upset, tile, layer):
    """Return the same for an array whose weights stay; they count from when they are loaded, sums also in idle rows."""
    rows, depth, columns = layer
    row, step, column = upset.cycle - upset.i - upset.j, tile[0] + upset.i, tile[1] + upset.j
    if upset.kind == "weight":
        row = max(row, 0)  # struck before its first use
    if upset.kind == "sum":
        step = min(step, depth - 1)  # below the last step, the finished sum passes through
    return (row, step, column) if 0 <= row < rows and step < depth and column < columns else None


def predicted(kind, pattern, product, layer, a, b):
    """Return the outputs that the pattern model gives."""
    row, step, column = product
    out = a @ b
    reach = reach_of(pattern, [row], [column], Grid(*layer, SIZE, SIZE))
    rows, columns = slice(reach.row[0], reach.row_end[0]), slice(reach.column[0], reach.column_end[0])
    if kind == "input":
        out[rows, columns] += ((a[row, step] ^ 1 << BIT) - a[row, step]) * b[step, columns]
    elif kind == "weight":
        out[rows, columns] += ((b[step, column] ^ 1 << BIT) - b[step, column]) * a[rows, step][:, None]
    else:
        first = step // SIZE * SIZE if find_pattern(pattern).effect == "tile-partial" else 0
        total = a[row, first : step + 1] @ b[first : step + 1, column]
        out[rows, columns] += (total ^ 1 << BIT) - total
    return out


ARRAYS = {
    "output-stationary": (output_stationary, output_stationary_tiles, served_by_output_stationary, OUTPUT_STATIONARY),
    "weight-stationary": (weight_stationary, weight_stationary_tiles, served_by_weight_stationary, WEIGHT_STATIONARY),
}


def schedule(name, layer):
    """Return the tiles and the cycles that each takes."""
    rows, depth, columns = layer
    if name == "output-stationary":
        return output_stationary_tiles(rows, columns, SIZE), depth + 2 * SIZE - 2
    return weight_stationary_tiles(depth, columns, SIZE), rows + 2 * SIZE - 2


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("name", ARRAYS)
def test_without_upset_the_arrays_multiply(name, layer):
    a, b = operands(*layer)
    assert (ARRAYS[name][0](a, b, SIZE) == a @ b).all()


@pytest.mark.parametrize("kind", ["input", "weight", "sum"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("name", ARRAYS)
def test_every_register_in_every_cycle_does_what_its_pattern_says(name, layer, kind):
    run, _, served, accelerator = ARRAYS[name]
    pattern = accelerator.type_of("output" if kind == "sum" else kind).pattern
    tiles, cycles = schedule(name, layer)
    a, b = operands(*layer)
    golden, idle, busy = a @ b, 0, 0
    for upset in upsets(kind, len(tiles), cycles):
        found = run(a, b, SIZE, upset)
        product = served(upset, tiles[upset.tile], layer)
        if product is None:
            idle += 1
            assert (found == golden).all(), upset
        else:
            busy += 1
            assert (found == predicted(kind, pattern, product, layer, a, b)).all(), upset
            assert (found != golden).any(), upset
    assert busy > 0
    assert idle > 0


def residency(name, layer, kind):
    """Return how many register-cycles hold each variable, and how many there are in all."""
    tiles, cycles = schedule(name, layer)
    served, held = ARRAYS[name][2], Counter()
    for upset in upsets(kind, len(tiles), cycles):
        product = served(upset, tiles[upset.tile], layer)
        if product is not None:
            row, step, column = product
            held[{"input": (row, step), "weight": (step, column), "sum": (row, column)}[kind]] += 1
    return held, len(tiles) * cycles * SIZE * SIZE


def work_of(layer):
    """Return the layer's work, as far as utilisation needs it."""
    rows, depth, columns = layer
    variables = (rows * depth, depth * columns, rows * columns)
    return Work("fc", "linear", rows * depth * columns, (), (), (), variables, Product(1, rows, depth, columns))


@pytest.mark.parametrize("kind", ["input", "weight", "sum"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("name", ARRAYS)
def test_measured_residency_is_the_formulas_p(name, layer, kind):
    """Given that a register of the type holds a variable, each is held equally often: VP = 1 / V, exactly.

    The share of the time that it holds any is the tile fill times the share of the cycles that are not skew: the
    paper's assumption on utilisation is that tiles follow one another without a gap, which leaves the tile fill.
    """
    accelerator = replace(ARRAYS[name][3], height=SIZE, width=SIZE, utilisation="tile")
    one = accelerator.type_of("output" if kind == "sum" else kind)
    held, register_cycles = residency(name, layer, kind)
    work = work_of(layer)
    waiting = name == "weight-stationary" and kind == "weight"  # also held while the skewed inputs are on their way
    assert len(held) == work.count(one.holds)
    _, cycles = schedule(name, layer)
    streamed = layer[1] if name == "output-stationary" else layer[0]
    if not waiting:
        assert set(held.values()) == {sum(held.values()) // work.count(one.holds)}
        measured = sum(held.values()) / register_cycles
        assert measured == pytest.approx(utilisation(accelerator, work, one) * streamed / cycles)
    print(name, layer, kind, f"held {sum(held.values()) / register_cycles:.4f}", f"tile fill "
          f"{utilisation(accelerator, work, one):.4f}", f"without skew {streamed / cycles:.4f}")  # fmt: skip


def test_waiting_weights_are_held_longer_by_their_distance_alone():
    """A weight at (i, j) waits i + j cycles for its first input: the only way in which residency is uneven."""
    layer = (9, 2, 7)
    held, _ = residency("weight-stationary", layer, "weight")
    for (step, column), cycles in held.items():
        assert cycles == layer[0] + step % SIZE + column % SIZE


def test_the_patterns_of_an_nvdla_like_design():
    grid = Grid(20, 4, 40, height=64, width=16)
    reach = reach_of("16 channels", [7], [35], grid)
    assert [part.tolist() for part in reach] == [[7], [8], [32], [40]]
    reach = reach_of("16 pixels", [3], [35], grid)
    assert [part.tolist() for part in reach] == [[0], [16], [35], [36]]
    assert reach_of("every use", [3], [5], grid).outputs == 800
    assert reach_of("random output", [3], [5], grid).outputs == 1
    assert PATTERNS["crash"].effect == "crash"


def test_products_outside_the_layer_are_refused():
    with pytest.raises(HardwareError, match="20 rows and 40 columns"):
        reach_of("one output", [20], [0], Grid(20, 4, 40))
    with pytest.raises(HardwareError, match="1 or more"):
        Grid(0, 4, 40)
    with pytest.raises(HardwareError, match="did you mean 'systolic input'"):
        find_pattern("systolic inputs")
