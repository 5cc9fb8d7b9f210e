"""The hooks executor agrees with the slow reference, on every kind of network, and leaves the model as it was."""

import numpy as np
import pytest
import torch
from networks import NETWORKS
from reference import reference
from torch import Tensor, nn

from torchfault.engine import footprint
from torchfault.engine.hooks import HooksExecutor
from torchfault.faults import BitFlip, RandomWord, StuckAt, Trials, strike
from torchfault.model.data import concatenate, leaves, rows
from torchfault.space import FaultSpace

MEMORY = 2**28


def draw(space: FaultSpace, n: int, inputs: int, rng: np.random.Generator, *, faults: int = 1, model=None) -> Trials:
    """Draw *n* trials so that every site is struck: a site first, then a place in it."""
    site = np.arange(n * faults) % len(space.sites)
    first = np.concatenate(([0], np.cumsum(space.sizes)))[:-1]
    index = first[site] + rng.integers(0, space.sizes[site])
    counts, which = np.full(n, faults), rng.integers(0, inputs, n)
    return strike(
        space, space.locate(rng.permutation(index)), model=model or BitFlip(), rng=rng, counts=counts, inputs=which
    )


def outputs(executor: HooksExecutor, trials: Trials) -> tuple[list[Tensor], list[Tensor]]:
    """Return the golden and the faulty output tensors of every trial, in the order of the trials."""
    done = list(executor.run(trials))
    order = np.concatenate([lanes.trial for lanes in done])
    assert sorted(order.tolist()) == list(range(len(trials)))
    assert all(np.array_equal(lanes.inputs, trials.inputs[lanes.trial]) for lanes in done)
    back = torch.from_numpy(np.argsort(order))
    faulty = rows(concatenate([lanes.faulty for lanes in done]), back)
    return leaves(rows(concatenate([lanes.golden for lanes in done]), back)), leaves(faulty)


def close(a: Tensor, b: Tensor) -> Tensor:
    """Return which rows agree up to the order of additions, in proportion to the largest value of the row."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    scale = torch.where(b.isfinite(), b, 0).abs().amax(1, keepdim=True)
    return (torch.isclose(a, b, rtol=1e-4, atol=0, equal_nan=True) | ((a - b).abs() <= 1e-5 * scale + 1e-6)).all(1)


def bits(model: nn.Module) -> list[bytes]:
    return [t.detach().contiguous().numpy().tobytes() for t in (*model.parameters(), *model.buffers())]


@pytest.mark.parametrize("name", NETWORKS)
def test_lanes_agree_with_the_reference(name, rng):
    model, data = NETWORKS[name]()
    before = bits(model)
    executor = HooksExecutor(model, data, memory=MEMORY, buffers=True)
    trials = draw(executor.space, 3 * len(executor.space.sites), len(data), rng)
    _, faulty = outputs(executor, trials)
    for mine, theirs in zip(faulty, leaves(reference(model, data, trials)), strict=True):
        assert mine.shape == theirs.shape
        # Values near the end of the range may overflow or not by the order of additions alone: one lane in fifty.
        assert int((~close(mine, theirs)).sum()) <= len(trials) // 50
    assert bits(model) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_lane_alone_is_the_reference_bit_for_bit(name, rng, monkeypatch):
    monkeypatch.setitem(footprint._MOST, "cpu", 1)
    model, data = NETWORKS[name]()
    executor = HooksExecutor(model, data, memory=MEMORY)
    for fault in (BitFlip(), StuckAt(1), RandomWord()):
        trials = draw(executor.space, 40, len(data), rng, faults=5, model=fault)
        _, faulty = outputs(executor, trials)
        for mine, theirs in zip(faulty, leaves(reference(model, data, trials)), strict=True):
            assert mine.numpy().tobytes() == theirs.numpy().tobytes()
