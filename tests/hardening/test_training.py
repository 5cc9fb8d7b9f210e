"""Fault-aware training: gradients of the faulty network, words without faults, and the same again from its seed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchfault.data import Data
from torchfault.engine import inject
from torchfault.errors import DataError, FaultError
from torchfault.faults import Value
from torchfault.hardening import FaultDraws, train_with_faults
from torchfault.model.discover import find


@pytest.fixture
def data():
    images = torch.randn(90, 6, generator=torch.Generator().manual_seed(0))
    return Data(images, images[:, :4].argmax(1))


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def trained(model, data, draws, **options):
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    told = train_with_faults(twin, data, optimizer, draws, batch=30, **options)
    return twin, optimizer, told


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_step_has_the_gradients_of_the_faulty_network_but_for_the_struck_word(model, data):
    draws = FaultDraws(find(model, data).space.select("0.weight"), model=Value(3.0), seed=4)
    trial = draws.trial(0)
    expected, element = copy.deepcopy(model), int(trial.element[0])
    order = torch.from_numpy(np.random.default_rng([0, 0]).permutation(90))
    with inject(expected, trial):
        torch.autograd.backward(F.cross_entropy(expected(data.inputs[order]), data.labels[order]))
    twin = copy.deepcopy(model)
    train_with_faults(twin, data, torch.optim.SGD(twin.parameters(), lr=0.1), draws, batch=90, clip=1e9)
    expected[0].weight.grad.view(-1)[element] = 0
    for before, after, theirs in zip(model.parameters(), twin.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(after, before - 0.1 * theirs.grad, atol=1e-6)
    assert twin[0].weight.view(-1)[element] == model[0].weight.view(-1)[element]


@pytest.mark.parametrize("sites", ["*.weight", "*:output", "*"])
def test_the_same_seed_trains_the_same_and_a_resumed_training_too(model, data, sites):
    draws = FaultDraws(find(model, data).space.select(sites), faults=3, share=0.7, seed=2)
    whole, _, told = trained(model, data, draws, epochs=4)
    assert same(whole, trained(model, data, draws, epochs=4)[0])
    half, optimizer, _ = trained(model, data, draws, epochs=2)
    rest = train_with_faults(half, data, optimizer, draws, epochs=2, first=2, batch=30)
    assert same(whole, half)
    assert rest.step == told.step == 12
    assert not same(whole, trained(model, data, None, epochs=4)[0])


def test_a_fault_that_explodes_moves_weights_by_no_more_than_the_bound(model, data):
    draws = FaultDraws(find(model, data).space.select("0.weight", bits=[29, 30]), faults=4, seed=0)
    twin = copy.deepcopy(model)
    told = train_with_faults(
        twin, data, torch.optim.SGD(twin.parameters(), lr=0.1), draws, epochs=10, batch=30, clip=0.5
    )
    moved = (
        sum(float((a - b).detach().square().sum()) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
        ** 0.5
    )
    assert moved <= 30 * 0.1 * 0.5 * 1.001
    assert 0 < told.skipped < 30
    assert all(parameter.isfinite().all() for parameter in twin.parameters())


def test_faults_come_from_the_pool_and_in_the_share_of_steps_asked_for(model, data):
    space = find(model, data).space.select("*.weight")
    draws = FaultDraws(space, pool=np.array([7, 1000]), share=0.25)
    trials = [draws.trial(step) for step in range(800)]
    struck = [trial for trial in trials if trial is not None]
    assert 150 < len(struck) < 250
    pool = space.locate(np.array([7, 1000]))
    assert {(int(t.site[0]), int(t.element[0])) for t in struck} == set(
        zip(pool.site.tolist(), pool.element.tolist(), strict=True)
    )


def test_training_with_faults_learns_what_training_learns(model, data):
    draws = FaultDraws(find(model, data).space.select("*:output", bits=range(23)), seed=3)
    plain, faulty = (trained(model, data, one, epochs=30)[0] for one in (None, draws))
    right = [float((one(data.inputs).argmax(1) == data.labels).float().mean()) for one in (plain, faulty)]
    assert right[1] > 0.95
    assert right[1] > right[0] - 0.05


def test_bad_input_is_refused_in_one_line(model, data):
    space = find(model, data).space
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(DataError, match="training needs labels"):
        train_with_faults(model, Data(data.inputs), optimizer, None)
    for options in ({"faults": 0}, {"share": 0.0}, {"pool": np.zeros(0, dtype=np.int64)}):
        with pytest.raises(FaultError, match="1 fault or more in a share of the steps above 0"):
            FaultDraws(space, **options)
