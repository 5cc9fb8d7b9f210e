"""Lanes compute as one input alone does, whichever kernels torch has for batches of their size."""

import numpy as np
import pytest
import torch
from torch import nn

from torchfault.data import Data, leaves
from torchfault.engine import Engine
from torchfault.faults import StuckAt
from torchfault.model.disturb import plain_kernels
from torchfault.trials import strike

LANES = 24  # NNPACK takes over at sixteen

NETWORKS = {
    "3x3": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 4, 3)),
    "5x5": lambda: nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.Hardtanh(), nn.Conv2d(6, 4, 5)),
    "1x1": lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1, stride=2)),
}


@pytest.fixture
def without_onednn():
    before = torch.backends.mkldnn.set_flags(False)[0]
    yield
    torch.backends.mkldnn.set_flags(before)


@pytest.mark.usefixtures("without_onednn")
@pytest.mark.parametrize("executor", ["graph", "hooks"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_huge_value_stays_where_the_convolution_reads_it(name, executor, rng):
    torch.manual_seed(0)
    model, data = NETWORKS[name]().eval(), Data(torch.randn(LANES, 3, 16, 16))
    engine = Engine(model, data, executor=executor)
    space = engine.space.select("input:data", bits=[30])  # stuck at 1: numbers from 2 to 10^38, and no NaN
    places = rng.choice(len(space), LANES, replace=False)
    trials = strike(space, space.locate(places), model=StuckAt(1), rng=rng, inputs=np.arange(LANES))
    for lanes in engine.run(trials):
        for lane, row in zip(lanes.trial, leaves(lanes.outputs)[0], strict=True):
            struck = data.inputs[lane].clone()
            word = struck.view(-1).numpy().view(np.uint32)
            word[trials.element[lane]] |= 1 << 30
            with torch.no_grad():
                alone = model(struck[None])[0]
            assert torch.allclose(row, alone, rtol=1e-4, atol=1e-5, equal_nan=True), (name, lane)


def test_the_switches_of_torch_come_back_and_scopes_nest():
    torch.backends.nnpack.set_flags(True)
    with plain_kernels():
        with plain_kernels():
            assert not torch.backends.mha.get_fastpath_enabled()
        assert torch._C._get_nnpack_enabled() is False
    assert torch._C._get_nnpack_enabled() is True
    assert torch.backends.mha.get_fastpath_enabled()
