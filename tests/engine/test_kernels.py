"""Lanes compute as one input alone does, whichever kernels torch has for batches of their size."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import assert_reference, collect, random_trials
from torchfault.data import Data, leaves
from torchfault.engine import Engine
from torchfault.engine.graph.kernels import for_processor
from torchfault.faults import RandomWord, StuckAt, Value
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


class Products(nn.Module):
    """Products by large matrices in every form that a graph has for them, and one by a small matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.small = nn.Linear(300, 256), nn.Linear(256, 4)
        self.mixed = nn.Parameter(torch.randn(256, 256) / 16)
        self.shift, self.turned = nn.Parameter(torch.randn(256)), nn.Parameter(torch.randn(256, 257) / 16)

    def forward(self, x):
        x = self.first(x).relu() @ self.mixed
        rows = torch.addmm(self.shift, x.reshape(-1, 256), self.mixed).tanh()
        return self.small((torch.mm(rows, self.turned)[:, 1:]).reshape(x.shape)).mean(1)


def products() -> tuple[nn.Module, Data]:
    torch.manual_seed(1)
    return Products().eval(), Data(torch.randn(5, 3, 300))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(*products(), executor="graph")


def packed(engine: Engine) -> list[str]:
    """Return the operations of the captured program that read packed matrices."""
    executor = engine._executor
    pairs = zip(executor.captured.program.nodes, executor.program.nodes, strict=True)
    return [mine.op for plain, mine in pairs if mine.target is not plain.target]


@pytest.mark.parametrize("model", [None, RandomWord()], ids=["flips", "words"])
def test_products_by_packed_matrices_are_those_of_the_model(model, engine):
    network, data = products()
    assert packed(engine) == ["linear", "matmul", "addmm", "mm"]
    trials = random_trials(engine.space, len(data), 60, seed=3, model=model)
    assert_reference(engine, network, data, trials)
    several = random_trials(engine.space, len(data), 15, seed=4, faults=5, model=model)
    assert_reference(engine, network, data, several)


def test_infinities_and_nans_pass_through_packed_matrices_as_through_plain_ones(engine):
    network, data = products()
    for value in (torch.inf, torch.nan, 3e38):
        trials = random_trials(engine.space.select("first:input"), len(data), 8, model=Value(value))
        assert_reference(engine, network, data, trials)
    huge = torch.full((2, 3, 300), 3e38)
    huge[1, 0, 0], huge[1, 1, 1] = torch.inf, torch.nan
    found = Engine(network, Data(torch.cat([data.inputs, huge])), executor="graph").golden()
    with torch.no_grad():
        expected = network(torch.cat([data.inputs, huge]))
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_lanes_that_a_fault_leaves_as_they_are_equal_golden_bit_for_bit(engine):
    data = engine.data
    space = engine.space.select("first:input", bits=[31])
    places = np.arange(0, len(space), 7)
    trials = strike(space, space.locate(places), model=StuckAt(1), rng=np.random.default_rng(0), inputs=places % 5)
    negative = data.inputs.reshape(5, -1)[torch.from_numpy(trials.inputs), torch.from_numpy(trials.element)] < 0
    changed = (collect(engine, trials)[0] != engine.golden()[torch.from_numpy(trials.inputs)]).any(1)
    assert not changed[negative].any()
    assert changed[~negative].any()


@pytest.mark.usefixtures("without_onednn")
def test_without_onednn_no_matrix_is_packed():
    assert packed(Engine(*products(), executor="graph")) == []


def test_a_program_of_small_matrices_stays_as_it_is():
    program = Engine(nn.Linear(8, 4).eval(), Data(torch.randn(3, 8)), executor="graph")._executor.captured.program
    assert for_processor(program).nodes == program.nodes


def test_the_switches_of_torch_come_back_and_scopes_nest():
    torch.backends.nnpack.set_flags(True)
    with plain_kernels():
        with plain_kernels():
            assert not torch.backends.mha.get_fastpath_enabled()
        assert torch._C._get_nnpack_enabled() is False
    assert torch._C._get_nnpack_enabled() is True
    assert torch.backends.mha.get_fastpath_enabled()
