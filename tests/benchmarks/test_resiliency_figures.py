"""The benchmark of Resiliency Accuracy: records stand in for runs, and convergence is told as defined."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.thales.outcomes import STRUCK, enumerated, sampled
from benchmarks.thales.published import ESTIMATORS, NEAR, WINDOW, estimate, running, until_near
from tests.support.hardware_records import record_all
from torchfault.campaign import run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.hardware.accelerator import FLAT
from torchfault.hardware.layers import layers_of
from torchfault.recipes import upsets
from torchfault.results import resiliency
from torchfault.statistics import MaxTrials


@pytest.fixture(scope="module")
def engine():
    """Return an engine on 15 inputs that a network of 27 variables gets right and wrong."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, inputs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(15, 3)
    return Engine(model, Data(inputs, torch.arange(15) % 2))


def test_records_of_every_upset_stand_in_for_runs(engine, tmp_path):
    held = enumerated(engine, FLAT, folder=tmp_path, name="small")
    again = enumerated(engine, FLAT, folder=tmp_path, name="small")  # from the folder
    assert (held.answers == again.answers).all()
    layers = layers_of(engine.model, engine.data)
    by_loops = record_all(engine, FLAT, layers)
    truth = held.truth()
    assert truth == pytest.approx(by_loops.truth())
    stop = MaxTrials(1100)
    runs = {
        "records": [resiliency(run(held.campaign(stop=stop, seed=seed))) for seed in range(20)],
        "engine": [resiliency(run(upsets(engine, FLAT, layers=layers, stop=stop, seed=seed))) for seed in range(20)],
    }
    for found in runs.values():
        values = np.array([one.ra.value for one in found])
        assert abs(values.mean() - truth["ra"]) < 4.5 * values.std() / np.sqrt(20)
    for images in (None, 1):
        whole = resiliency(run(held.campaign(inputs_per_fault=images, stop=MaxTrials(3000 * (images or 15)))))
        assert whole.ra.low <= truth["ra"] <= whole.ra.high


def test_further_rounds_add_to_the_records(engine, tmp_path):
    one, three = (sampled(engine, FLAT, rounds=rounds, folder=tmp_path, name="some") for rounds in (1, 3))
    assert len(one.answers) == 2 * 3 * len(STRUCK)
    assert len(three.answers) == 2 * 3 * (len(STRUCK) + 2)
    data, bit = ~one.space.is_control, one.space.cells.bit
    for held in (one, three):
        assert np.bincount(held.records.cell, held.records.share, len(data))[data] == pytest.approx(1)
        assert (np.diff(held.records.cell) >= 0).all()
    counts = np.bincount(three.records.cell, minlength=len(data))[data]
    assert (counts == np.where(bit[data] == 30, 3, 1)).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_published_estimates_are_means_of_what_they_say(engine, name):
    held, estimator = record_all(engine, FLAT, layers_of(engine.model, engine.data)), ESTIMATORS[name]
    truth, values, covered = held.truth()["ra"], [], 0
    for seed in range(30):
        results = run(held.campaign(proposal=estimator.proposal, stop=MaxTrials(3072), seed=seed))
        found, shown = estimate(results, estimator), running(results, estimator)
        assert shown.mean() == pytest.approx(found.value)
        assert len(shown) == 3072 - (1024 if estimator.proposal in ("strata", "IS-B") else 0)
        values.append(found.value)
        covered += found.low <= truth <= found.high
    assert abs(np.mean(values) - truth) < 4.5 * np.std(values) / np.sqrt(30)
    assert covered >= 25 or name == "IS-B"  # whose draws seldom meet what weighs most


def test_convergence_is_the_end_of_the_first_window_near_the_truth():
    far = [1.0 + 10 * NEAR] * 50
    settled = np.array([*far, 1.0 - 500 * NEAR, *[1.0] * 3000])  # means settle at 1
    means = np.cumsum(settled) / np.arange(1, len(settled) + 1)
    near = np.abs(means - 1.0) <= NEAR
    expected = next(n for n in range(WINDOW, len(near) + 1) if near[n - WINDOW : n].all())
    assert until_near(settled, 1.0) == expected
    assert until_near(np.ones(WINDOW), 1.0) == WINDOW
    assert until_near(np.zeros(900), 1.0) == float("inf")
