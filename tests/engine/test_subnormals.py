"""Subnormal numbers: the words that are edited are exact; what operations make of them is the machine's."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import assert_agree, collect
from tests.support.reference import reference
from torchfault.data import Data
from torchfault.engine import Engine, inject
from torchfault.faults import BitFlip
from torchfault.space import Fault
from torchfault.trials import strike
from torchfault.words import bits_of

TINY = [0.0, -0.0, 1e-45, -3e-42, 1.1e-38, 1.2e-38, 5e-39]


@pytest.fixture(params=[False, True], ids=["kept", "flushed"])
def flush(request):
    if not torch.set_flush_denormal(request.param) and request.param:
        pytest.skip("this processor cannot flush subnormal numbers")
    yield request.param
    torch.set_flush_denormal(False)


def tiny(*shape: int) -> torch.Tensor:
    return torch.tensor(TINY).repeat(1 + int(np.prod(shape)) // len(TINY))[: int(np.prod(shape))].view(shape)


@pytest.mark.parametrize("bit", [0, 5, 22, 23, 31])
@pytest.mark.usefixtures("flush")
def test_what_a_flip_makes_of_a_stored_word_is_exact(bit):
    layer = nn.Linear(7, 3)
    layer.weight.data.copy_(tiny(3, 7))
    before = bits_of(layer.weight.data).clone()
    with inject(layer, [Fault("weight", element, bit) for element in range(0, 21, 2)]):
        during = bits_of(layer.weight.data).clone()
    mask = torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)
    assert torch.equal((during ^ before).view(-1)[::2], mask.expand(11))
    assert torch.equal(during.view(-1)[1::2], before.view(-1)[1::2])
    assert torch.equal(bits_of(layer.weight.data), before)


@pytest.mark.parametrize("bit", [0, 22, 31])
@pytest.mark.parametrize("count", [1, 7])  # single words, and a mask over all of them
@pytest.mark.usefixtures("flush")
def test_what_a_flip_makes_of_an_activation_is_exact(bit, count):
    model, seen = nn.Sequential(nn.Identity(), nn.Linear(7, 2)), []
    model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    x = tiny(2, 7)
    with torch.no_grad(), inject(model, [Fault("0:output", element, bit) for element in range(count)]):
        model(x)
    expected = bits_of(x).clone()
    expected[:, :count] ^= torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)
    assert torch.equal(bits_of(seen[0]), expected)


@pytest.mark.parametrize("executor", ["graph", "hooks"])
@pytest.mark.usefixtures("flush")
def test_outcomes_agree_with_plain_passes_but_for_what_may_be_flushed(executor, rng):
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(tiny(5, 7))
        model[2].weight[0].copy_(tiny(5))
    data = Data(torch.randn(4, 7))
    engine = Engine(model, data, executor=executor)
    space = engine.space.select(["*.weight", "0:output", "input:data"])
    where = space.locate(rng.choice(len(space), 300, replace=False))
    trials = strike(space, where, model=BitFlip(), rng=rng, inputs=rng.integers(0, 4, 300))
    assert_agree(collect(engine, trials), [reference(model, data, trials)])
