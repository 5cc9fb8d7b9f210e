"""Models that take the batch size from ``len(x)``, on both executors, against the slow reference."""

import gc
import linecache

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.reference import reference
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import ModelError


class Base(nn.Module):
    """Two linear layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)


class Leaky(Base):
    """Begins its state with zeros, and spikes for three steps."""

    def forward(self, x):
        v, out = torch.zeros(len(x), 16), 0
        for _ in range(3):
            v = 0.8 * v + self.a(x)
            spike = (v > 0.5).float()
            v, out = v - spike, out + self.b(spike)
        return out


class Recurrent(Base):
    """Goes through time steps from a state of ones, which it writes to."""

    def __init__(self):
        super().__init__()
        self.h = nn.Linear(16, 16)

    def forward(self, x):
        state = x.new_ones((len(x), 16))
        state[:, 2] = 0.5
        for step in range(x.shape[1] // 4):
            state = torch.tanh(self.a(x[:, 4 * step : 4 * step + 4]) + self.h(state))
        return self.b(state)


class Reshaped(Base):
    """Puts heads next to the batch, pads with a constant, and turns the batch around."""

    def forward(self, x):
        n = len(x)
        heads = self.a(x).reshape(n * 4, 4) + torch.full((4 * n, 1), 0.25)
        last = heads.reshape(n, 16)[:, :15].T
        return self.b(torch.cat([last, torch.ones(1, len(x))]).T)


class Like(Base):
    """Begins with zeros of the shape of another value, and a column for each input."""

    def forward(self, x):
        v = 0.8 * torch.zeros_like(self.a(x)) + self.a(x)
        return self.b(v * torch.full((16, len(x)), 0.5).T) + torch.zeros(len(x))[:, None]


MODELS = {Leaky: 4, Recurrent: 8, Reshaped: 4, Like: 4}


def built(kind, *, features=4, inputs=5):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return kind().eval(), Data(torch.randn(inputs, features))


@pytest.mark.parametrize("inputs", [2, 3, 7])
@pytest.mark.parametrize("executor", ["graph", "hooks"])
@pytest.mark.parametrize("kind", MODELS)
def test_states_that_begin_with_the_batch_size(kind, executor, inputs):
    model, data = built(kind, features=MODELS[kind], inputs=inputs)
    engine = Engine(model, data, executor=executor)
    torch.testing.assert_close(engine.golden(), model(data.inputs).detach())
    trials = random_trials(engine.space, inputs, 150, seed=inputs)
    assert_agree(collect(engine, trials), [reference(model, data, trials)])


@pytest.mark.parametrize("kind", MODELS)
def test_they_run_on_the_graph_executor(kind):
    model, data = built(kind, features=MODELS[kind])
    assert Engine(model, data, executor="graph").executor == "graph"


class Numbered(Base):
    """Tells the inputs of a batch apart."""

    def forward(self, x):
        return self.b(self.a(x) + torch.arange(len(x)).float()[:, None])


class Mean(Base):
    """Divides by the number of inputs."""

    def forward(self, x):
        return self.b(self.a(x) * (3 / len(x)))


class Unrolled(Base):
    """Runs one input after the other."""

    def forward(self, x):
        return torch.stack([self.b(self.a(x[i])) for i in range(len(x))])


class Listed(Base):
    """Holds a table of as many rows as there are inputs."""

    def forward(self, x):
        return self.b(self.a(x) + torch.tensor(np.ones((len(x), 16), dtype=np.float32)))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Numbered, "mixes the inputs"),
        (Mean, "mixes the inputs|operation 'mul' of 'the model' computes with it"),
        (Unrolled, r"3 inputs take \d+ operations, 5 take \d+"),
        (Listed, "a constant of shape .3, 16. depends on it"),
    ],
)
def test_what_grows_by_more_than_sizes_is_no_graph(kind, why):
    with pytest.raises(ModelError, match=why):
        Engine(*built(kind), executor="graph")


class Tokens(Base):
    """Runs two tokens an input."""

    def forward(self, x):
        n = x.size(0)
        return self.b(self.a(x).view(2 * n, 8).relu().view(n, 16))


def test_the_lines_of_formulas_never_vanish_while_others_walk_them():
    """SymPy drops the lines of a collected formula, and ``linecache.checkcache`` of Python 3.11 fails amid that."""

    def lines():
        assert Engine(Tokens().eval(), Data(torch.rand(3, 4))).executor == "graph"
        gc.collect()
        return {name for name in linecache.cache if name.startswith("<lambdify")}

    first = lines()
    assert first
    assert lines() == first
