"""Models followed by ``torch.fx``, whose modules run as they are: every lane as the slow reference says."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.networks import NETWORKS
from tests.support.reference import reference
from torchfault.data import Data, leaves
from torchfault.engine.engine import Engine
from torchfault.engine.graph.executor import GraphExecutor
from torchfault.engine.hooks.executor import HooksExecutor
from torchfault.engine.monitor import Monitor
from torchfault.errors import EngineError, ModelError
from torchfault.model.discover import find
from torchfault.model.opaque.trace import trace


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


class Blocks(nn.Module):
    """A residual block: results that are overwritten, a module called twice, several results, sizes of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.norm, self.mix = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, shift: float = 0.5) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.act(self.norm(self.conv(x)))
        y = self.act(self.mix(self.mix(x)) - shift)
        y += x
        a, b = y.chunk(2, dim=1)
        z = torch.cat([F.max_pool2d(a, 3), b[:, :, ::3, ::3]], dim=1)
        return self.head(z.reshape(z.size(0), -1)), {"mean": z.mean((2, 3))}


OTHERS = {"blocks": lambda: (Blocks().eval(), Data(noise(6, 2, 6, 6)))}
FOLLOWED = ("digits", "depthwise", "transformer", "folded", "blocks")


@pytest.mark.parametrize("faults", [1, 3, 40])
@pytest.mark.parametrize("name", FOLLOWED)
def test_every_trial_comes_out_as_the_reference_says(name: str, faults: int) -> None:
    model, data = (NETWORKS | OTHERS)[name]()
    executor = GraphExecutor(model, data, memory=2**28, buffers=True, traced=True)
    trials = random_trials(executor.space, len(data), 60, faults=faults, seed=faults)
    assert_agree(collect(executor, trials), leaves(reference(model, data, trials)))


def test_sites_are_those_of_hooks_and_nearly_all_have_places() -> None:
    model, data = OTHERS["blocks"]()
    found = find(model, data)
    assert found.space.names == HooksExecutor(model, data, memory=2**28).space.names
    places = trace(model, data, found).places
    assert set(found.space.names) - places.keys() == set()
    model, data = NETWORKS["transformer"]()
    places = trace(model, data, find(model, data)).places
    assert "place" not in places  # no module alone reads it, so that hooks strike it
    assert "head.weight" in places


def test_small_memory_means_smaller_chunks_and_the_same_outcome() -> None:
    model, data = NETWORKS["depthwise"]()
    wide, narrow = (GraphExecutor(model, data, memory=m, traced=True) for m in (2**28, 2**17))
    assert narrow.chunk < wide.chunk
    trials = random_trials(wide.space, len(data), 60, seed=3)
    assert_agree(collect(narrow, trials), collect(wide, trials))
    with pytest.raises(EngineError, match="raise memory"):
        GraphExecutor(model, data, memory=2**10, traced=True)


def test_a_monitor_sees_what_it_sees_under_hooks() -> None:
    model, data = OTHERS["blocks"]()
    traced, hooks = GraphExecutor(model, data, memory=2**28, traced=True), HooksExecutor(model, data, memory=2**28)
    trials = random_trials(traced.space, len(data), 20)
    tables = []
    for executor in (traced, hooks):
        monitor = Monitor(executor.space)
        run = monitor.begin(trials)
        for lanes in executor.run(trials, run):
            run.finish(lanes)
        tables.append(monitor.table())
    assert tables[0].equals(tables[1])


class Reused(nn.Module):
    """A result that is overwritten, and read once more."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x).abs()  # which relu_ overwrites with what it was
        return torch.relu_(y[:, :2]).sum(1, keepdim=True) + y


class Counting(nn.Module):
    """A state that grows with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x)


class Looking(nn.Module):
    """A value of the input decides what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.abs().sum() >= 0 else x


class Measuring(Looking):
    """A number is taken out of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * x.abs().max().item()


class Normed(Looking):
    """Each input is held against all of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x - x.mean(0))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Reused(), "overwrites what is read again later"),
        (Counting(), "changes its own state"),
        (Looking(), r"torch\.fx cannot follow Looking"),
        (Measuring(), "tensors and sizes"),
        (Normed(), "what it gives for one input depends on the others"),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout()), "by chance"),
        (nn.ReLU(), "no module alone reads a weight"),
        (NETWORKS["tied"]()[0], "no module alone reads a weight"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(model: nn.Module, reason: str) -> None:
    if not isinstance(model, nn.Sequential):
        model.eval()
    data = Data(noise(4, next(model.parameters(), noise(1, 3)).shape[-1]))
    with pytest.raises(ModelError, match=reason):
        trace(model, data, find(model, data))


def test_a_model_that_shows_its_words_is_captured_by_export() -> None:
    model, data = NETWORKS["digits"]()
    assert Engine(model, data)._executor.modules is None
