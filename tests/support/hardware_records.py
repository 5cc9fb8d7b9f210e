"""Every upset of a network on every input, run once, by loops that know nothing of closed forms."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.thales.records import Recorded, Records, answers_of
from tests.support.hardware_enumeration import all_upsets
from torchfault.engine import Engine
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.layers import Layers
from torchfault.hardware.upset_space import UpsetSpace, upset_space
from torchfault.hardware.upsets import Upset

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def every_upset(space: UpsetSpace) -> tuple[Ints, Ints, Floats]:
    """Return the number of every upset of data that there is, its cell, and its share of that cell, by loops."""
    found = all_upsets(space.accelerator, list(space.works), list(space.widths))
    index = np.arange(len(space))
    keys = zip(*(column.tolist() for column in space.locate(index)), strict=True)
    p = np.array([found.pop(key, 0.0) for key in keys])
    assert not found, "every upset has a number"
    cell = space.cell_of(index)
    data = (p > 0) & ~space.is_control[cell]
    assert (space.cells.bit[cell[data]] >= 0).all(), "a random word is one of too many"
    whole = np.bincount(cell, p)
    return index[data], cell[data], p[data] / whole[cell[data]]


def record_all(engine: Engine, accelerator: Accelerator, layers: Layers) -> Recorded:
    """Return every upset there is on every input, run now."""
    space = upset_space(accelerator, layers.works, layers.space)
    index, cell, share = every_upset(space)
    answers = answers_of(engine, Upset(layers), space, index)
    return Recorded(engine, accelerator, layers, Records(cell, share, np.arange(len(cell))), answers)
