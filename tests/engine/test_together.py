"""Several changed words in one lane: summed in closed form where that is exact, run anew where it is not."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.engine.test_executors import Convolutions
from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.reference import reference
from torchfault.data import Data, leaves
from torchfault.engine.graph import combination
from torchfault.engine.graph.executor import GraphExecutor
from torchfault.engine.graph.recompute import Anew
from torchfault.faults import BitFlip, Burst, StuckAt, Value
from torchfault.trials import Trials, strike


class Normed(nn.Module):
    """Each operation whose parameters have a closed form, once or twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 36)
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6, affine=False)
        self.fc = nn.Linear(54, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).mean(1).view(-1, 1, 6, 6)
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.fc(torch.relu(self.norm2(self.conv2(x))).flatten(1))


def normed() -> tuple[nn.Module, Data]:
    torch.manual_seed(1)
    return Normed().eval(), Data(torch.randint(0, 11, (5, 7)))


def convolutions() -> tuple[nn.Module, Data]:
    torch.manual_seed(0)
    return Convolutions().eval(), Data((torch.randn(5, 4, 11, 9), torch.randn(5, 1, 5, 6, 4)))


def parameters(executor: GraphExecutor, n: int, faults: int, *, bits: Sequence[int] = (), **given) -> Trials:
    """Draw trials in parameters and buffers alone, in *bits* if told; words may be drawn twice."""
    stored = [name for name in executor.space.names if ":" not in name and "num_batches" not in name]
    space = executor.space.select(stored, bits=bits)
    return random_trials(space, len(executor.data), n, faults=faults, **given)


def assert_right(executor: GraphExecutor, model: nn.Module, trials: Trials) -> None:
    assert_agree(collect(executor, trials), leaves(reference(model, executor.data, trials)))


@pytest.mark.parametrize("faults", [2, 16, 100])
@pytest.mark.parametrize("build", [normed, convolutions])
def test_many_faults_in_parameters_come_out_as_the_reference_says(build, faults: int) -> None:
    model, data = build()
    executor = GraphExecutor(model, data, memory=2**28, buffers=True)
    assert_right(executor, model, parameters(executor, 30, faults, seed=faults))


@pytest.mark.parametrize("model", [Burst(9), StuckAt(1), Value(float("inf")), Value(float("nan")), Value(3e38)])
def test_infinities_nans_and_overflow_come_out_as_the_reference_says(model) -> None:
    network, data = normed()
    executor = GraphExecutor(network, data, memory=2**28, buffers=True)
    assert_right(executor, network, parameters(executor, 40, 6, model=model))


def test_top_exponent_bits_with_inputs_struck_in_the_same_operation() -> None:
    network, data = normed()
    executor = GraphExecutor(network, data, memory=2**28)
    space = executor.space.select(bits=[30, 24, 3]).select("*conv2*")
    trials = random_trials(space, len(data), 100, faults=4)
    assert_right(executor, network, trials)


def never(*_: object, **__: object) -> None:
    raise AssertionError("an operation ran anew")


@pytest.mark.parametrize("build", [normed, convolutions])
def test_small_changes_are_summed_without_running_anything_anew(build, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = build()
    executor = GraphExecutor(model, data, memory=2**28)
    trials = parameters(executor, 60, 15, bits=[18, 20])
    monkeypatch.setattr(Anew, "on_parameters", never)
    assert_right(executor, model, trials)


def struck(executor: GraphExecutor, *faults: tuple[str, int, int]) -> Trials:
    """Return one trial of the flips (site, element, bit), all together."""
    names, element, bit = zip(*faults, strict=True)
    where = executor.space.locate(executor.space.number([executor.space.names.index(n) for n in names], element, bit))
    return strike(executor.space, where, model=BitFlip(), rng=np.random.default_rng(0), counts=np.array([len(faults)]))


def test_several_flips_of_one_word_are_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = normed()
    executor = GraphExecutor(model, data, memory=2**28)
    trials = struck(executor, *(("conv2.weight", *place) for place in ((5, 22), (5, 21), (5, 22), (5, 3), (7, 22))))
    monkeypatch.setattr(Anew, "on_parameters", never)
    assert_right(executor, model, trials)


def test_small_blocks_and_early_reruns_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = normed()
    executor = GraphExecutor(model, data, memory=2**28)
    trials = parameters(executor, 60, 12, bits=[20, 31])
    whole = collect(executor, trials)
    monkeypatch.setitem(combination._MOST_VISITS, "cpu", 40)
    assert_agree(collect(executor, trials), whole)
    ran = []
    real = Anew.on_parameters
    monkeypatch.setattr(Anew, "on_parameters", lambda *args: (ran.append(args[4]), real(*args))[1])
    monkeypatch.setattr(combination, "_VISITS_PER_CALL", 0)
    monkeypatch.setattr(combination, "_PRODUCTS_PER_VISIT", 10**6)
    assert_agree(collect(executor, trials), whole)
    assert ran


def test_a_huge_input_that_a_struck_weight_cuts_off_leaves_no_rounding_error_behind() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).eval(), Data(torch.rand(4, 3) / 8)
    with torch.no_grad():
        for layer in model:
            nn.init.constant_(layer.weight, 0.75)
    executor = GraphExecutor(model, data, memory=2**28)
    # 0.75 becomes 3e38 in the first layer, and 4e-20 in the only weight that reads what comes of it.
    assert_right(executor, model, struck(executor, ("0.weight", 0, 30), ("1.weight", 0, 29)))
