"""What once came out wrong in silence agrees with the slow reference, trial by trial, on both executors."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.engine import test_conduct, test_mixing
from tests.model.test_one_space import Auxiliary, InPlace
from tests.support.agreement import agreeing, assert_reference, collect, random_trials
from tests.support.networks import NETWORKS
from tests.support.reference import reference
from tests.support.spiking_networks import spiking
from torchfault.data import Data, concatenate, leaves
from torchfault.engine import Engine


class Autocast(nn.Module):
    """Casts its weights to bfloat16 in its own forward pass, and keeps the casts for that long."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(torch.relu(self.head(torch.relu(self.body(x))))).float()


class Shared(nn.Module):
    """Three layers, and one memory for their weights: by ``.data``, and by a view of its first rows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.few = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.two.weight.data = self.one.weight.data
        self.few.weight = nn.Parameter(self.one.weight.data[1:5])

    def forward(self, x: Tensor) -> Tensor:
        return self.few(torch.tanh(self.two(F.gelu(self.one(x)))))


class Renormalised(nn.Module):
    """Looks up vectors that the look-up itself makes shorter where they are too long."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 5, max_norm=1.0), nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids).sum(1))


class Halves(nn.Module):
    """A network in half precision with its normalisation in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)
        self.half()
        self.norm.float()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x.half()).float())).half()
        return self.head(x.mean((2, 3))).float()


class Spectrum(nn.Module):
    """Complex values inside: a filter of frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gain, self.head = nn.Linear(6, 8), nn.Parameter(torch.rand(5)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.irfft(torch.fft.rfft(self.body(x)) * self.gain, n=8))


class Steps(nn.Module):
    """A gated cell over time, its state passed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 5)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Sliced(nn.Module):
    """Slices, by views, before it picks by numbers: by a tensor, by a list, and by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)[:, 1:]
        x = x[..., torch.tensor([6, 0, 3, 5, 2])][:, None, 1:, None]
        return self.head(x[:, 0, [3, 1, 0]][:, :, 0] * x[:, 0][:, torch.tensor([True, False, True, True]), 0])


@dataclass(frozen=True)
class Case:
    """A model and inputs, the executor of ``auto`` (by the version of torch, if empty), and how both are compared.

    What *keeps* something of each pass runs in the reference on a copy for each trial; sums that are kept in few bits
    have a coarse *tolerance*.
    """

    build: Callable[[], tuple[nn.Module, Data]]
    executor: str = "graph"
    faults: int = 1
    keeps: bool = False
    reached: bool = True
    tolerance: float = 2e-4


def ids() -> Data:
    return Data(torch.randint(0, 9, (7, 4)))


CASES = {
    "autocast inside": Case(lambda: (Autocast(), Data(torch.randn(7, 6))), tolerance=2e-2),
    "memory shared": Case(lambda: (Shared(), Data(torch.randn(7, 6)))),
    "observers that go on": Case(lambda: test_mixing.network("fake-quantised"), "hooks", keeps=True),
    "range that moves": Case(lambda: test_mixing.network("observed"), "hooks", keeps=True),
    "written into its input": Case(lambda: (InPlace(), Data(torch.randn(7, 4)))),
    "renormalised by forward": Case(lambda: (Renormalised(), ids()), "hooks", keeps=True),
    "half precision": Case(lambda: (Halves(), Data(torch.randn(7, 2, 6, 6))), tolerance=5e-3),
    "complex inside": Case(lambda: (Spectrum(), Data(torch.randn(7, 6))), ""),
    "switch by values": Case(lambda: test_conduct.network("switch"), "hooks", reached=False),
    "early exit": Case(lambda: test_conduct.network("early exit"), "hooks", reached=False),
    "slices before indices": Case(lambda: (Sliced(), Data(torch.randn(7, 6)))),
    "unused head": Case(lambda: (Auxiliary(), Data(torch.randn(7, 4)))),
    "recurrent spiking": Case(lambda: spiking("snntorch_recurrent")),
    "recurrent layers": Case(lambda: spiking("Cells")),
    "many faults": Case(NETWORKS["digits"], faults=5),
    "gated cell": Case(lambda: (Steps(), Data(torch.randn(7, 4, 3)))),
}


@pytest.mark.parametrize("trials", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["auto", "hooks"])
@pytest.mark.parametrize("name", CASES)
def test_every_trial_is_the_references(name: str, kind: str, trials: int) -> None:
    case = CASES[name]
    torch.manual_seed(2)
    model, data = case.build()
    model.eval()
    engine = Engine(model, data, executor=kind)
    assert engine.executor == (case.executor or engine.executor if kind == "auto" else "hooks"), engine.fallback
    drawn = random_trials(engine.space, len(data), trials, faults=case.faults, seed=4)
    if not case.keeps:
        assert_reference(engine, model, data, drawn, tolerance=case.tolerance, reached=case.reached)
        return
    alone = [reference(copy.deepcopy(model), data, drawn.take(np.array([i]))) for i in range(trials)]
    assert agreeing(collect(engine, drawn), leaves(concatenate(alone))).all()
