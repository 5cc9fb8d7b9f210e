"""One contract, two executors: every trial must come out as the slow reference says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.agreement import assert_agree, assert_reference, collect, random_trials
from tests.support.networks import NETWORKS
from torchfault.data import Data, leaves
from torchfault.engine.engine import Engine
from torchfault.engine.graph.executor import GraphExecutor
from torchfault.engine.hooks.executor import HooksExecutor
from torchfault.errors import EngineError, ModelError
from torchfault.faults import RandomWord, StuckAt

EXECUTORS = {"graph": GraphExecutor, "hooks": HooksExecutor}


@pytest.mark.parametrize("faults", [1, 3, 40])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", EXECUTORS)
def test_every_trial_comes_out_as_the_reference_says(kind: str, name: str, faults: int) -> None:
    model, data = NETWORKS[name]()
    executor = EXECUTORS[kind](model, data, memory=2**28, buffers=True)
    trials = random_trials(executor.space, len(data), 60, faults=faults, seed=faults)
    assert_reference(executor, model, data, trials)


@pytest.mark.parametrize("model", [StuckAt(0), StuckAt(1), RandomWord()])
def test_other_fault_models_agree_too(model: object) -> None:
    network, data = NETWORKS["depthwise"]()
    executor = GraphExecutor(network, data, memory=2**28)
    trials = random_trials(executor.space, len(data), 80, seed=5, model=model)
    assert_reference(executor, network, data, trials)


@pytest.mark.parametrize("kind", EXECUTORS)
def test_golden_outputs_are_those_of_the_model(kind: str) -> None:
    model, data = NETWORKS["transformer"]()
    with torch.no_grad():
        expected = leaves(model(**data.inputs))
    for mine, theirs in zip(leaves(EXECUTORS[kind](model, data, memory=2**28).golden()), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


class Convolutions(nn.Module):
    """Every geometry that has a closed form: groups, dilation, stride, padding modes, transposes, one to three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.b = nn.Conv2d(8, 8, (3, 2), padding="same", dilation=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 8, 3, groups=8, padding=(1, 0), padding_mode="reflect")
        self.d = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.e = nn.ConvTranspose2d(6, 4, 2, dilation=2)
        self.f = nn.Conv1d(4, 6, 5, stride=3, padding=2, groups=2)
        self.g = nn.ConvTranspose1d(6, 4, 3, stride=2)
        self.h = nn.Conv3d(1, 4, 3, stride=2, padding=1)
        self.i = nn.ConvTranspose3d(4, 2, 2, stride=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.linear = nn.Linear(2, 5)

    def forward(self, image: Tensor, volume: Tensor) -> Tensor:
        x = F.relu(self.norm(self.b(self.a(image))))
        x = self.e(F.gelu(self.d(self.c(self.pool(x)))))
        line = self.g(F.relu(self.f(x.flatten(2))))
        cube = self.i(F.relu(self.h(volume)))
        return self.linear(cube.mean((2, 3, 4))) + line.mean(2).sum(1, keepdim=True)


class PerPixel(nn.Module):
    """Operations whose constants differ from pixel to pixel, between convolutions: no box may mix them up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.scale, self.top = nn.Parameter(torch.rand(16, 16)), nn.Parameter(torch.rand(1, 4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(self.conv1(x), max=self.top) * self.scale + self.top
        return torch.cat((x, self.conv2(F.pad(x, (0, 0, 0, 0, 0, 0))) - x), 1).amax((2, 3))


@pytest.mark.parametrize("faults", [1, 3])
def test_boxes_do_not_mix_up_pixels(faults: int) -> None:
    torch.manual_seed(0)
    model, data = PerPixel().eval(), Data(torch.randn(4, 2, 16, 16))
    executor = GraphExecutor(model, data, memory=2**28)
    trials = random_trials(executor.space, len(data), 200, faults=faults)
    assert_reference(executor, model, data, trials)


@pytest.mark.parametrize("faults", [1, 2])
def test_every_geometry_of_convolution_agrees(faults: int) -> None:
    torch.manual_seed(0)
    model = Convolutions().eval()
    data = Data((torch.randn(5, 4, 21, 17), torch.randn(5, 1, 5, 6, 4)))
    executor = GraphExecutor(model, data, memory=2**28)
    trials = random_trials(executor.space, len(data), 300, faults=faults)
    assert_reference(executor, model, data, trials)


def test_resnet20_agrees_on_every_kind_of_site(resnet20: nn.Module, cifar100: tuple[Tensor, Tensor]) -> None:
    data = Data(cifar100[0][:20])
    executor = GraphExecutor(resnet20, data, memory=2**28)
    trials = random_trials(executor.space, len(data), 250, seed=2)
    assert_reference(executor, resnet20, data, trials)


def test_small_memory_means_smaller_chunks_and_the_same_outcome(resnet20: nn.Module, cifar100) -> None:
    data = Data(cifar100[0][:12])
    wide, narrow = (GraphExecutor(resnet20, data, memory=m) for m in (2**30, 12 * 2**20))
    assert narrow.chunk < wide.chunk == 12
    trials = random_trials(wide.space, len(data), 60, seed=3)
    assert_agree(collect(narrow, trials), collect(wide, trials))


def test_a_budget_below_one_input_is_refused(resnet20: nn.Module, cifar100) -> None:
    with pytest.raises(EngineError, match="raise memory"):
        GraphExecutor(resnet20, Data(cifar100[0][:2]), memory=2**20)


class Branching(nn.Module):
    """A model whose path depends on its input, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if float(x.sum()) > 0 else -self.fc(x)


class Mixing(nn.Module):
    """A model in which the inputs of a batch influence each other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x - x.mean(0))


class Fixed(nn.Module):
    """A model that walks over its batch in Python, to whose size a graph is then bound."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.fc(row) for row in x])


@pytest.mark.parametrize(
    ("model", "reason"), [(Branching(), "cannot capture"), (Mixing(), "mixes the inputs"), (Fixed(), "one batch size")]
)
def test_what_cannot_be_captured_falls_back_and_says_why(model: nn.Module, reason: str) -> None:
    torch.manual_seed(0)
    data = Data(torch.randn(4, 3))
    with pytest.raises(ModelError, match=reason):
        Engine(model.eval(), data, executor="graph")
    engine = Engine(model.eval(), data)
    assert engine.executor == "hooks"
    assert engine.fallback is not None
    assert reason in engine.fallback
    trials = random_trials(engine.space.select("fc.*"), len(data), 30)
    assert_reference(engine, model, data, trials)


def test_training_mode_is_refused_unless_asked_for() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    data = Data(torch.randn(6, 3, 4, 4))
    with pytest.raises(ModelError, match=r"call model\.eval"):
        Engine(model.train(), data)
    assert Engine(model.train(), data, training=True).executor == "hooks"


class Positions(nn.Module):
    """A model that looks up its own row by the position in the batch, as masks of language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        own = padding[torch.arange(ids.shape[0])[:, None], torch.arange(ids.shape[1])]
        blank = ids.new_zeros((ids.shape[1],), dtype=torch.float32)
        return self.fc((self.embed(ids) * own[..., None] + blank[:, None]).mean(1))


@pytest.mark.parametrize("faults", [1, 3])
def test_values_that_depend_on_the_place_in_the_batch_are_computed_for_the_lanes_on_board(faults: int) -> None:
    torch.manual_seed(0)
    data = Data((torch.randint(0, 9, (6, 5)), torch.randint(0, 2, (6, 5)).float()))
    model = Positions().eval()
    executor = GraphExecutor(model, data, memory=2**28)
    assert any(node.positional for node in executor.program.nodes)
    trials = random_trials(executor.space, len(data), 80, faults=faults)
    assert_reference(executor, model, data, trials)


def test_trials_beyond_the_data_are_refused() -> None:
    model, data = NETWORKS["digits"]()
    for kind in EXECUTORS.values():
        executor = kind(model, data, memory=2**28)
        trials = random_trials(executor.space, 99, 20)
        with pytest.raises(EngineError, match="inputs run from 0 to 5"):
            list(executor.run(trials))


def test_masked_lanes_are_bit_identical_to_golden() -> None:
    model, data = NETWORKS["digits"]()
    executor = GraphExecutor(model, data, memory=2**28)
    trials = random_trials(executor.space, len(data), 400, seed=9)
    masked = 0
    for lanes in executor.run(trials):
        for golden, faulty in zip(leaves(lanes.golden), leaves(lanes.faulty), strict=True):
            assert torch.equal(golden[lanes.masked], faulty[lanes.masked])
        masked += int(lanes.masked.sum())
    assert masked > 50


def test_the_model_is_left_as_it_was() -> None:
    model, data = NETWORKS["lstm"]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = Engine(model, data)
    list(engine.run(random_trials(engine.space, len(data), 40, faults=3)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_lanes_that_end_where_they_are_struck_are_told_together():
    """Judging a few lanes takes about as long as judging hundreds."""
    model, data = NETWORKS["digits"]()
    engine = Engine(model, data, executor="graph")
    drawn = random_trials(engine.space.select(kinds="weight"), len(data), 60, seed=4)
    trials = replace(drawn, toggle=np.zeros_like(drawn.toggle), keep=np.full_like(drawn.keep, 2**64 - 1))
    told = list(engine.run(trials))
    assert len(np.unique(trials.site)) > 2
    assert len(told) == 1
    assert told[0].masked.all()
    assert sorted(told[0].trial.tolist()) == list(range(60))
