"""Models whose inputs of one batch change each other's outcomes, if only under faults: every lane runs alone."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchfault as tf
from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.networks import NETWORKS
from tests.support.reference import reference
from torchfault.data import Data, leaves
from torchfault.model.discover import find


class Guard(nn.Module):
    """Scales what is large down, by the largest value of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().max().clamp(min=10)


class Branch(nn.Module):
    """One of two activations for the whole batch, by a threshold that plain values do not reach."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where((x > 30).any(), torch.tanh(x), torch.relu(x))


class Standing(nn.Module):
    """Sums of a batch with a weight of 0: only infinity and NaN come through."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.eye(len(x)).logical_not().float() * 0 @ x


class Ranks(nn.Module):
    """Adds the least of the batch where it lies below a limit."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.sort(0).values[:1].clamp(max=-40) + 40


class Least(nn.Module):
    """Scales up what is small, by the smallest distance of the batch from 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs() + 0.5).amin().clamp(max=0.1)


class OverBatch(nn.Module):
    """Softmax over the inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(0) * 2 + x


class Longest(nn.Module):
    """A mean over as many steps as the longest input of the batch has."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        mask = (torch.arange(x.shape[1]) < length.max()).float()
        return self.head((torch.relu(self.lift(x)) * mask[:, None]).sum(1) / mask.sum())


class Observed(nn.Module):
    """Rounds to 8 bits by a range that every call moves, in evaluation mode too, as some observers do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("top", torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        self.top = 0.9 * self.top + 0.1 * x.detach().abs().max()
        step = self.top / 127
        return (x / step).round().clamp(-128, 127) * step


def between(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(7, 9), module, nn.ReLU(), nn.Linear(9, 4))


def fake_quantised() -> nn.Module:
    """A network of torch's own quantisation-aware training, whose observers go on in evaluation mode."""
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

    return between(FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8))


KINDS = {
    "guard": lambda: between(Guard()),
    "branch": lambda: between(Branch()),
    "standing": lambda: between(Standing()),
    "ranks": lambda: between(Ranks()),
    "least": lambda: between(Least()),
    "over the batch": lambda: between(OverBatch()),
    "observed": lambda: between(Observed()),
    "fake-quantised": fake_quantised,
    "longest": Longest,
}


def network(name: str) -> tuple[nn.Module, Data]:
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = KINDS[name]().eval()
    if name != "longest":
        return model, Data(torch.randn(9, 7))
    # The first of them are of one length.
    return model, Data((torch.randn(9, 6, 3), torch.tensor([4, 4, 4, 4, 6, 2, 5, 1, 3])))


@pytest.mark.parametrize("executor", ["auto", "hooks"])
@pytest.mark.parametrize("name", KINDS)
def test_lanes_run_one_by_one_where_a_struck_input_reaches_others(name: str, executor: str) -> None:
    model, data = network(name)
    engine = tf.Engine(model, data, executor=executor)
    assert engine.executor == "hooks"
    assert engine.alone
    assert engine.alone in repr(engine)
    if executor == "auto":
        assert engine.alone in engine.fallback
    assert {"0:input", "3:output"} < set(engine.space.names) or name == "longest"
    n = 1000 if name in ("guard", "fake-quantised") else 100
    trials = random_trials(engine.space, len(data), n)
    # Each on a copy: what an observer has seen in one trial must not be there in the next.
    one_by_one = [reference(copy.deepcopy(model), data, trials.take(np.array([i]))) for i in range(n)]
    assert_agree(collect(engine, trials), [torch.cat(one_by_one)])
    few = [copy.deepcopy(model)(*(part[i : i + 1] for part in leaves(data.inputs))) for i in range(len(data))]
    assert torch.equal(engine.golden(), torch.cat(few))


@pytest.mark.parametrize("name", ["guard", "observed"])
def test_a_mixing_model_has_the_sites_of_one_that_does_not_mix(name: str) -> None:
    model, data = network(name)
    plain = find(between(nn.Identity()).eval(), data).space.names
    assert set(plain) <= set(find(model, data).space.names)


def test_what_lets_inputs_mix_is_named() -> None:
    model, data = network("guard")
    assert find(model, data).mixes == "operation 'div' of '1' lets one input depend on a struck one beside it"
    model, data = network("over the batch")
    assert "depends on the others" in find(model, data).mixes


class Checked(nn.Module):
    """Raises where one input of the batch is not finite, or large; *after* it something may mix the inputs."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        torch._assert_async((x.isfinite() & (x.abs() < 20)).all())
        return self.after(x)


@pytest.mark.parametrize("after", [Guard(), Least(), Ranks(), Branch()])
def test_what_mixes_behind_an_operation_that_raises_is_seen(after: nn.Module) -> None:
    torch.manual_seed(5)
    assert find(between(Checked(after)).eval(), Data(torch.randn(4, 7))).mixes


def test_a_model_that_raises_beside_a_struck_input_runs_the_others_on() -> None:
    assert not find(between(Checked(nn.Identity())).eval(), Data(torch.randn(4, 7))).mixes


def test_a_model_for_one_input_alone_says_so() -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(1, 7)

    engine = tf.Engine(nn.Sequential(nn.Linear(7, 7), Alone()).eval(), torch.randn(4, 7))
    assert engine.alone == "it runs on one input alone"
    assert engine.fallback.endswith("; lanes run one by one: it runs on one input alone")


def groups() -> tuple[nn.Module, Data]:
    layers = (
        nn.Conv2d(2, 6, 3),
        nn.GroupNorm(2, 6),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.LayerNorm(96),
        nn.Linear(96, 3),
    )
    return nn.Sequential(*layers).eval(), Data(torch.randn(6, 2, 6, 6))


@pytest.mark.parametrize("name", [*NETWORKS, "norms by input"])
def test_inputs_that_do_not_mix_share_their_passes(name: str) -> None:
    model, data = groups() if name == "norms by input" else NETWORKS[name]()
    engine = tf.Engine(model, data, executor="hooks")
    assert (engine.alone, engine.fallback, find(model, data).mixes) == ("", None, "")
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    trials = random_trials(engine.space.select(kinds=["input", "output"]), len(data), 64)
    collect(engine, trials)
    assert len(calls) <= 4
