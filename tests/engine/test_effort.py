"""The executor that finishes first, by the work to do."""

import pytest
import torch
from torch import Tensor, nn

import torchfault as tf
from tests.support.networks import NETWORKS
from torchfault.engine.effort import Effort, effort


class Unrolled(nn.Module):
    """An LSTM cell over 24 steps, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0])


class _Product(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


class Halves(nn.Module):
    """Gives a module a part of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.product = nn.Parameter(torch.ones(6, 3)), _Product()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight.chunk(2)[0].t())


def test_a_pass_is_counted_where_modules_are_given_parts_of_parameters() -> None:
    model = Halves()
    assert effort(model, torch.ones(2, 3)).flops == 2 * 2 * 3 * 3
    assert model.weight.requires_grad


def test_a_pass_is_counted() -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    found = effort(nn.Sequential(*layers).eval(), torch.zeros(1, 3, 6, 6))
    assert found.flops == 2 * (4 * 16 * 27 + 64 * 5)
    assert 4 <= found.calls <= 8  # with views, and the copy of the input
    short, long = (effort(Unrolled().eval(), torch.randn(1, steps, 4)) for steps in (6, 24))
    assert long.calls > 3 * short.calls > 30 * 3


def test_what_is_counted_leaves_no_trace() -> None:
    norm = nn.BatchNorm1d(3).train()
    before = norm.running_mean.clone()
    effort(nn.Sequential(norm).eval(), torch.ones(1, 3))
    assert torch.equal(norm.running_mean, before)


def test_few_trials_run_under_hooks_and_many_in_the_graph() -> None:
    model, data = NETWORKS["digits"]()
    few, many = (tf.Engine(model, data, trials=trials) for trials in (20, 2_000_000))
    assert (few.executor, many.executor) == ("hooks", "graph")
    assert "20 trials are sooner done" in few.fallback
    assert many.fallback is None
    assert few.space.digest() == many.space.digest()
    assert torch.allclose(few.golden(), many.golden(), atol=1e-5)


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_an_executor_that_was_asked_for_is_taken(executor: str) -> None:
    model, data = NETWORKS["digits"]()
    engine = tf.Engine(model, data, executor=executor, trials=5)
    assert (engine.executor, engine.fallback) == (executor, None)


def test_more_trials_never_turn_the_choice_back() -> None:
    for calls in (1, 30, 500, 5000):
        for flops in (1_000, 10**7, 10**9, 10**12):
            choices = [Effort(calls, flops).sooner_without_capture(10**k) for k in range(9)]
            assert choices == sorted(choices, reverse=True)
            assert choices[0] or flops > 10**9
            assert not choices[-1]


def test_the_dearer_a_pass_the_fewer_trials_run_without_capture() -> None:
    def most(work: Effort) -> int:
        return max(n for n in range(0, 100_000, 50) if work.sooner_without_capture(n))

    assert most(Effort(160, 600_000_000)) < most(Effort(160, 6_000_000)) < most(Effort(160, 0))
    assert most(Effort(160, 600_000_000)) >= 50  # of a network such as MobileNet
