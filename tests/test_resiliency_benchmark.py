"""The benchmark of Resiliency Accuracy: records stand in for runs, and convergence is told as defined."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.hardware.accelerator import FLAT
from torchfault.hardware.layers import layers_of
from torchfault.hardware.resiliency import resiliency_of
from torchfault.hardware.striking import target_of

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from outcomes import STRUCK, enumerated, sampled
from resiliency import NEAR, WINDOW, until_near


@pytest.fixture(scope="module")
def target():
    """Return a target of 15 inputs that a network of 27 variables gets right and wrong."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, inputs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(15, 3)
    data = Data(inputs, torch.arange(15) % 2)
    return target_of(Engine(model, data), FLAT, layers_of(model, data))


def test_records_of_every_upset_stand_in_for_runs(target, tmp_path):
    held = enumerated(target, folder=tmp_path, name="small")
    again = enumerated(target, folder=tmp_path, name="small")  # from the folder
    assert (held.fates == again.fates).all()
    runs = {
        name: np.array([resiliency_of(one, faults=300, seed=seed).ra.value for seed in range(20)])
        for name, one in (("records", held), ("engine", target))
    }
    for values in runs.values():
        assert abs(values.mean() - held.truth()) < 4.5 * values.std() / np.sqrt(20)
    whole, lanes = (resiliency_of(held, faults=2000, images=images) for images in (None, 1))
    assert whole.ra.low <= held.truth() <= whole.ra.high
    assert lanes.ra.low <= held.truth() <= lanes.ra.high


def test_further_rounds_add_to_the_records(target, tmp_path):
    one, three = (sampled(target, rounds=rounds, folder=tmp_path, name="some") for rounds in (1, 3))
    assert one.fates.shape[1] == 2 * 3 * len(STRUCK)
    assert three.fates.shape[1] == 2 * 3 * (len(STRUCK) + 2)
    data = ~target.cells.control
    for held in (one, three):
        assert np.bincount(held.cell, held.share, len(target.cells))[data] == pytest.approx(1)
        assert (np.diff(held.cell) >= 0).all()
    assert (np.bincount(three.cell, minlength=len(data))[data] == np.where(target.cells.bit[data] == 30, 3, 1)).all()


def test_convergence_is_the_end_of_the_first_window_near_the_truth():
    far = [1.0 + 10 * NEAR] * 50
    settled = SimpleNamespace(samples=np.array([*far, 1.0 - 500 * NEAR, *[1.0] * 3000]))  # means settle at 1
    running = np.cumsum(settled.samples) / np.arange(1, len(settled.samples) + 1)
    near = np.abs(running - 1.0) <= NEAR
    expected = next(n for n in range(WINDOW, len(near) + 1) if near[n - WINDOW : n].all())
    assert until_near(settled, 1.0) == expected
    assert until_near(SimpleNamespace(samples=np.ones(WINDOW)), 1.0) == WINDOW
    assert until_near(SimpleNamespace(samples=np.zeros(900)), 1.0) == float("inf")
