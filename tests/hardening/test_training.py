"""Fault-aware training: gradients of the faulty network, words without faults, and the same again from its seed."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchfault import FaultSpace, Site
from torchfault.data import Data
from torchfault.engine import inject
from torchfault.errors import DataError, FaultError
from torchfault.faults import Value
from torchfault.hardening import FaultDraws, InvariantBits, Refreshed, harden, train_with_faults
from torchfault.model.discover import find
from torchfault.sampling import BitErrorRate, Exhaustive, Importance, Search, Table


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


def test_clean_gradients_are_those_of_a_straight_through_estimate(model, data):
    """A struck weight is its clean value plus a constant, so that all derivatives are at clean weights."""
    draws = FaultDraws(find(model, data).space.select("2.weight"), model=Value(3.0), seed=4)
    element = int(draws.trial(0).element[0])
    order = torch.from_numpy(np.random.default_rng([0, 0]).permutation(90))
    expected, images = copy.deepcopy(model), data.inputs[order]
    hidden = F.relu(expected[0](images))
    clean = expected[2](hidden)
    struck = expected[2].weight.detach().clone()
    struck.view(-1)[element] = 3.0
    faulty = F.linear(hidden.detach(), struck, expected[2].bias.detach())
    torch.autograd.backward(F.cross_entropy(clean + (faulty - clean).detach(), data.labels[order]))
    twin = copy.deepcopy(model)
    options = {"batch": 90, "clip": 1e9, "gradient": "clean"}
    train_with_faults(twin, data, torch.optim.SGD(twin.parameters(), lr=0.1), draws, **options)
    for before, after, theirs in zip(model.parameters(), twin.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(after, before - 0.1 * theirs.grad, atol=1e-6)
    assert twin[2].weight.view(-1)[element] != model[2].weight.view(-1)[element]
    options["gradient"] = "faulty"
    other = copy.deepcopy(model)
    train_with_faults(other, data, torch.optim.SGD(other.parameters(), lr=0.1), draws, **options)
    assert not same(twin, other)


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


@pytest.mark.parametrize("number", [3, 40])
def test_faults_come_from_any_sampler(model, data, number):
    space = find(model, data).space.select("*.weight")
    only = np.zeros(len(space))
    only[number] = 1
    place = space.locate(np.array([number]))
    trial = FaultDraws(
        space,
        sampler=Importance(
            Table({"0.weight": only[: 96 * 32].reshape(96, 32), "2.weight": only[96 * 32 :].reshape(64, 32)}), floor=0.0
        ),
    ).trial(7)
    assert (trial.site.tolist(), trial.element.tolist()) == (place.site.tolist(), place.element.tolist())
    many = [FaultDraws(space, sampler=BitErrorRate(0.01)).trial(step) for step in range(50)]
    assert 0.8 < np.mean([len(one.element) for one in many]) / (0.01 * len(space)) < 1.2
    for sampler in (Search(), Exhaustive()):
        with pytest.raises(FaultError, match=f"without end and without outcomes, got {type(sampler).__name__}"):
            FaultDraws(space, sampler=sampler)


def test_a_pool_is_searched_anew_on_the_current_weights(model, data):
    space = find(model, data).space.select("*.weight")
    seen, rest = [], []

    def search(network):
        seen.append(network[0].weight.detach().clone())
        rest.append(network.training)
        torch.rand(3)  # a search may be random: the training is not
        return np.array([len(seen)])

    draws = FaultDraws(space, pool=Refreshed(search, every=5), seed=2)
    told = trained(model, data, draws, epochs=4)[2]
    assert len(seen) == 3  # 12 steps
    assert torch.equal(seen[0], model[0].weight)
    assert not torch.equal(seen[1], seen[0])
    assert rest == [False] * 3
    assert told.state["pool"] == [3]
    with pytest.raises(FaultError, match="every so many steps from 1 up, got 0"):
        Refreshed(search, every=0)
    fresh = FaultDraws(space, pool=Refreshed(lambda _: np.zeros(0, dtype=np.int64)), seed=2)
    assert same(trained(model, data, fresh)[0], trained(model, data, FaultDraws(space, seed=2))[0])


def test_a_training_goes_on_in_the_middle_of_a_pool(model, data):
    space = find(model, data).space.select("*.weight")

    def largest(network):
        top = network[0].weight.detach().abs().flatten().topk(3).indices.numpy()
        return space.number(np.zeros(3, dtype=np.int64), top, np.full(3, 25))

    draws = FaultDraws(space, pool=Refreshed(largest, every=5), seed=2)
    whole, _, told = trained(model, data, draws, epochs=4)
    half, optimizer, before = trained(model, data, draws, epochs=2)
    state = json.loads(json.dumps(before.state))
    rest = train_with_faults(half, data, optimizer, draws, epochs=2, first=2, state=state, batch=30)
    assert same(whole, half)
    assert rest.state == told.state


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
    with pytest.raises(FaultError, match="through 'faulty' or 'clean' words, got 'plain'"):
        train_with_faults(model, data, optimizer, None, gradient="plain")
    for options in ({"epochs": 0}, {"batch": 0}):
        with pytest.raises(FaultError, match="1 epoch or more in batches of 1 input or more, got"):
            train_with_faults(model, data, optimizer, None, **options)
    for other in (copy.deepcopy(model), copy.deepcopy(model).requires_grad_(False)):
        with pytest.raises(FaultError, match="has no parameter of the model that gets gradients"):
            train_with_faults(other, data, optimizer, None)
    safe = harden(model, InvariantBits())
    with pytest.raises(FaultError, match="no gradient reaches a parameter"):
        train_with_faults(safe, data, torch.optim.SGD(safe.parameters(), lr=0.1), None)
    with pytest.raises(FaultError, match=r"'0.weight' is \(3,\) in the draws and \(16, 6\) in the model"):
        train_with_faults(model, data, optimizer, FaultDraws(FaultSpace((Site("0.weight", (3,)),))))
    with pytest.raises(FaultError, match="bound of gradients is above 0, got 0"):
        train_with_faults(model, data, optimizer, None, clip=0.0)
