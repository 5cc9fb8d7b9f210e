"""Searches for faults that lower the accuracy by a share, against the enumeration of every fault."""

import numpy as np
import pytest
import torch
from torch import nn

from torchfault.campaign import Campaign, run
from torchfault.criteria import accuracy
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import CampaignError, DataError, StatisticsError
from torchfault.hardening import FaultDraws, Refreshed, train_with_faults
from torchfault.recipes import CriticalPool, drops
from torchfault.results import dropped
from torchfault.sampling import Exhaustive
from torchfault.sensitivity import rising
from torchfault.statistics import Dropped, MaxTrials, Progress


@pytest.fixture(scope="module")
def engine():
    torch.manual_seed(0)
    inputs = torch.randn(40, 5)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    data = Data(inputs, inputs[:, :3].argmax(1))
    train_with_faults(model, data, torch.optim.Adam(model.parameters(), lr=0.05), None, epochs=30)
    return Engine(model, data, executor="graph")


@pytest.fixture(scope="module")
def space(engine):
    return engine.space.select("*.weight")


@pytest.fixture(scope="module")
def truth(engine, space):
    """The drop of every fault, as a share of the accuracy without faults."""
    results = run(Campaign(engine, space, sampler=Exhaustive(), metric=accuracy))
    order = np.argsort(results.columns.faults)
    return results.columns.values[order] / results.record.golden["metric"]


@pytest.mark.parametrize("drop", [0.05, 0.4, 0.6])
@pytest.mark.parametrize("by", ["uniform", "rising"])
def test_it_finds_the_first_draw_that_drops_so_far(engine, space, truth, drop, by):
    sampler = None if by == "uniform" else rising(engine.model, engine.data, space, floor=0.05)
    results = run(drops(engine, space, drop=drop, found=2, sampler=sampler, seed=3))
    found = dropped(results)
    expected = np.flatnonzero(truth[results.columns.faults] >= drop - 1e-9)
    assert found.trials.tolist() == expected.tolist()
    assert found.draws == expected[0] + 1
    assert len(expected) >= 2
    assert found.values.tolist() == pytest.approx(truth[found.faults].tolist())
    assert found.golden == accuracy(engine.golden(), engine.data.labels)


def test_one_that_finds_nothing_says_so(engine, space):
    harmless = space.select(bits=range(3))
    found = dropped(run(drops(engine, harmless, drop=0.9, stop=MaxTrials(50))))
    assert (found.draws, found.seconds, len(found.faults)) == (None, None, 0)


def test_a_pool_holds_critical_faults_of_the_model_as_it_is(engine, space, truth):
    pool = CriticalPool(space, engine.data, drop=0.4, faults=5, draws=200)(engine.model)
    assert 0 < len(pool) <= 5
    assert len(set(pool.tolist())) == len(pool)
    assert (truth[pool] >= 0.4 - 1e-9).all()


@pytest.mark.parametrize("gradient", ["faulty", "clean"])
def test_a_training_takes_what_was_found(engine, space, gradient):
    network = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    network.load_state_dict(engine.model.state_dict())
    search = CriticalPool(space, engine.data, drop=0.4, faults=5, draws=30)
    draws = FaultDraws(space, pool=Refreshed(search, every=6))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    told = train_with_faults(network, engine.data, optimizer, draws, epochs=10, gradient=gradient)
    assert len(told.state["pool"]) > 0
    assert accuracy(network(engine.data.inputs), engine.data.labels) > 0.8


def test_what_cannot_be_is_refused(engine, space):
    for wrong in (0.0, -0.1, 1.5):
        with pytest.raises(CampaignError, match="a drop is a share of the accuracy above 0"):
            drops(engine, space, drop=wrong)
    with pytest.raises(DataError, match="needs labels"):
        drops(Engine(engine.model, Data(engine.data.inputs), executor="hooks"), space, drop=0.1)
    wrong = Data(engine.data.inputs, (engine.golden().argmax(1) + 1) % 3)
    with pytest.raises(DataError, match="the metric is 0 without faults, of which nothing can be lost"):
        drops(Engine(engine.model, wrong, executor="hooks"), space, drop=0.1)
    with pytest.raises(CampaignError, match="looked for no drop"):
        dropped(run(Campaign(engine, space, metric=accuracy, stop=MaxTrials(5))))
    with pytest.raises(StatisticsError, match="a campaign without one; give metric=accuracy"):
        Dropped(0.1)(Progress(trials=1, failures=0, seconds=0.0))
    with pytest.raises(StatisticsError, match="a drop above 0 and 1 fault or more, got 0 and 1"):
        Dropped(0.0)
