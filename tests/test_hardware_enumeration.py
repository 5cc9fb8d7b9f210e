"""Every upset there is: probabilities that sum to 1 and are those with which upsets are drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from torchfault.data import Data
from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import FLAT, NVDLA_LIKE, OUTPUT_STATIONARY, WEIGHT_STATIONARY
from torchfault.hardware.enumeration import every_upset
from torchfault.hardware.layers import layers_of
from torchfault.hardware.proposals import cells_of
from torchfault.hardware.upsets import locate_upsets

LAYERS = {
    "padded": (nn.Conv2d(2, 3, 3, padding=1), (2, 3, 4)),
    "with inputs that nothing uses": (nn.Conv2d(1, 2, 1, stride=2), (1, 4, 3)),
    "linear": (nn.Linear(5, 3), (5,)),
    "recurrent": (nn.GRU(3, 2, batch_first=True), (4, 3)),
}
CHIPS = (OUTPUT_STATIONARY, replace(WEIGHT_STATIONARY, height=4, width=4), FLAT)
WITHOUT_RANDOM = replace(NVDLA_LIKE, types=tuple(one for one in NVDLA_LIKE.types if one.name != "local control"))


@pytest.mark.parametrize("chip", [*CHIPS, WITHOUT_RANDOM], ids=lambda chip: chip.name)
@pytest.mark.parametrize("name", LAYERS)
def test_upsets_are_drawn_as_often_as_the_enumeration_says(name, chip, rng):
    module, shape = LAYERS[name]
    layers = layers_of(module.eval(), Data(torch.randn(2, *shape)))
    cells = cells_of(chip, layers)
    upsets, cell, share = every_upset(chip, layers)
    assert np.bincount(cell, share, len(cells))[~cells.control] == pytest.approx(1, abs=1e-12)
    assert (share > 0).all()
    for kind, one in enumerate(chip.types):
        if one.holds == "control":
            continue
        here = np.flatnonzero((upsets.kind == kind) & (upsets.bit == 7))
        n = 4000
        drawn = locate_upsets(chip, layers, np.zeros(n, int), np.full(n, kind), np.full(n, 7), rng=rng)
        names = ("element", "group", "row", "step", "column") if _served(one, layers) else ("element",)
        keys, p = _keys(upsets.take(here), names), share[here]
        seen, counts = np.unique(_keys(drawn, names), axis=0, return_counts=True)
        unique, where = np.unique(keys, axis=0, return_inverse=True)
        expected = n * np.bincount(where.reshape(-1), p)
        table = {tuple(key): count for key, count in zip(seen.tolist(), counts, strict=True)}
        observed = np.array([table.pop(tuple(key), 0) for key in unique.tolist()])
        assert not table, "drawn, but not enumerated"
        statistic = ((observed - expected) ** 2 / expected).sum()
        assert len(unique) == 1 or stats.chi2.sf(statistic, len(unique) - 1) > 1e-6


def _served(one, layers):
    return layers.works[0].product is not None and one.pattern not in ("every use", "one output")


def _keys(upsets, names):
    columns = np.stack([getattr(upsets, name) for name in names], axis=1)
    if "row" in names:
        columns[columns[:, names.index("row")] < 0, 1:] = -1  # of an unused input, the element alone matters
    return columns


def test_random_words_are_too_many():
    layers = layers_of(nn.Linear(2, 2).eval(), Data(torch.randn(2, 2)))
    with pytest.raises(HardwareError, match="'local control' leaves random words"):
        every_upset(NVDLA_LIKE, layers)
