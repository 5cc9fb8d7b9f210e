"""Lanes go on in the one channel that their weight changes, and end as the reference says."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.agreement import assert_agree, assert_reference, collect, random_trials
from torchfault.data import Data
from torchfault.engine.graph import boxes
from torchfault.engine.graph.channels import Channel, ChannelLanes, Spread
from torchfault.engine.graph.executor import GraphExecutor
from torchfault.faults import BitFlip
from torchfault.trials import strike


class Images(nn.Module):
    """Every rule for channels of images: (N, 3, 13, 11) to logits (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)
        self.apart = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)
        self.b = nn.Conv2d(4, 6, (3, 2), padding="same", dilation=(1, 3))
        self.shared = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.c, self.end = nn.Conv2d(6, 8, 3, stride=(2, 1), padding=(0, 2), bias=False), nn.BatchNorm2d(8)
        self.hidden, self.head = nn.Linear(8, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        x = F.relu6(self.apart(x)) + x
        x = F.gelu(self.b(x))
        wide = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        x = F.relu(self.end(self.c(self.shared(F.max_pool2d(x, 2, 1)))))
        x = F.adaptive_avg_pool2d(F.avg_pool2d(x, 2, 1), 1).flatten(1) + wide.mean((2, 3))
        return self.head(F.relu(self.hidden(x)))


class Lines(nn.Module):
    """Sequences and volumes: (N, 2, 19) and (N, 1, 5, 6, 4) to logits (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 4, 5, stride=2), nn.Conv1d(4, 3, 4, dilation=2, padding=3)
        self.c, self.d = nn.Conv3d(1, 4, 2), nn.Conv3d(4, 3, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1))

    def forward(self, line: Tensor, volume: Tensor) -> Tensor:
        return self.b(F.relu(self.a(line))).mean(2) + self.d(F.elu(self.c(volume))).mean((2, 3, 4))


def images(lanes: int = 5) -> tuple[nn.Module, Data]:
    torch.manual_seed(1)
    model = Images()
    for norm in (model.norm, model.end):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval(), Data(torch.randn(lanes, 3, 13, 11))


def lines() -> tuple[nn.Module, Data]:
    torch.manual_seed(2)
    return Lines().eval(), Data((torch.randn(4, 2, 19), torch.randn(4, 1, 5, 6, 4)))


@pytest.fixture
def seen(monkeypatch) -> dict[str, set[str]]:
    """Gather the operations that went on in a channel, and those whose outputs were golden and a change."""
    found: dict[str, set[str]] = {"channels": set(), "spread": set()}
    step = ChannelLanes.step

    def watched(self, node):
        part = step(self, node)
        for kind, what in (("channels", Channel), ("spread", Spread)):
            if isinstance(part, what):
                found[kind].add(node.op if kind == "channels" else node.module)
        return part

    monkeypatch.setattr(ChannelLanes, "step", watched)
    return found


def test_channels_of_images_come_out_as_the_reference_says(seen) -> None:
    model, data = images()
    executor = GraphExecutor(model, data, memory=2**28)
    weights = executor.space.select(kinds=["weight", "bias"])
    assert_reference(executor, model, data, random_trials(weights, len(data), 240))
    assert "hooks" not in vars(executor)  # no lane has crashed in the graph
    rules = {"batch_norm", "relu", "conv2d", "add", "slice", "pad", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
    assert rules <= seen["channels"]
    assert seen["spread"] >= {"b", "c", "hidden", "head"}


def test_channels_of_sequences_and_volumes_come_out_as_the_reference_says(seen) -> None:
    model, data = lines()
    executor = GraphExecutor(model, data, memory=2**28)
    weights = executor.space.select(kinds=["weight", "bias"])
    assert_reference(executor, model, data, random_trials(weights, len(data), 200))
    assert "hooks" not in vars(executor)
    assert {"mean", "elu"} <= seen["channels"]
    assert seen["spread"] == {"b", "d"}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_single_input_in_any_layout_comes_out_as_the_reference_says(layout, seen) -> None:
    model, data = images(1)
    executor = GraphExecutor(model.to(memory_format=layout), Data(data.inputs.to(memory_format=layout)), memory=2**28)
    weights = executor.space.select(kinds="weight")
    assert_reference(executor, model, data, random_trials(weights, 1, 80))
    assert "c" in seen["spread"]


class Loud(nn.Module):
    """A first channel that is so much larger than the second that no sum of both keeps what the second says."""

    def __init__(self, loud: float) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([loud, 0.3]).view(2, 1, 1, 1))
            self.b.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))).flatten(1)


@pytest.mark.parametrize(("loud", "alone"), [(3e7, False), (2.0, True)])
def test_a_loud_channel_that_falls_silent_leaves_the_others_their_digits(loud: float, alone: bool, seen) -> None:
    model, data = Loud(loud).eval(), Data(1 + torch.rand(6, 1, 4, 4))
    executor = GraphExecutor(model, data, memory=2**28)
    where = executor.space.locate(executor.space.number(*np.array([[executor.space.names.index("a.weight"), 0, 31]]).T))
    trials = strike(executor.space, where, model=BitFlip(), rng=np.random.default_rng(0), inputs=np.array([2]))
    [found] = collect(executor, trials)
    torch.testing.assert_close(found, 0.3 * data.inputs[2:3].flatten(1), rtol=1e-5, atol=0)
    assert bool(seen["spread"]) == alone


def test_a_difference_in_a_single_pixel_keeps_a_lane_in_the_sweep(monkeypatch) -> None:
    monkeypatch.setattr(boxes, "_LARGEST_SHARE", 0.0)  # so that lanes are compared with golden as a whole
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten()).eval()
    data = Data(torch.rand(2, 2, 7, 6))
    executor = GraphExecutor(model, data, memory=2**28)
    elements = np.arange(2 * 7 * 6)
    site, bit = np.full_like(elements, executor.space.names.index("input:data")), np.full_like(elements, 30)
    where = executor.space.locate(executor.space.number(site, elements, bit))
    trials = strike(executor.space, where, model=BitFlip(), rng=np.random.default_rng(0), inputs=elements % 2)
    assert_reference(executor, model, data, trials)
    assert_agree(collect(executor, trials), collect(GraphExecutor(model, data, memory=2**28), trials))
