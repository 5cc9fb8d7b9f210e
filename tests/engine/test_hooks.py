"""The hooks executor agrees with the slow reference, on every kind of network, and leaves the model as it was."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.support.networks import NETWORKS
from tests.support.reference import reference
from torchfault.data import Data, concatenate, leaves, rows
from torchfault.engine import memory
from torchfault.engine.hooks.executor import HooksExecutor
from torchfault.errors import EngineError, ModelError, SpaceError
from torchfault.faults import BitFlip, RandomWord, StuckAt
from torchfault.space import FaultSpace, Site
from torchfault.trials import Trials, strike

MEMORY = 2**28


def draw(space: FaultSpace, n: int, inputs: int, rng: np.random.Generator, *, faults: int = 1, model=None) -> Trials:
    """Draw *n* trials so that every site is struck: a site first, then a place in it."""
    site = np.arange(n * faults) % len(space.sites)
    first = np.concatenate(([0], np.cumsum(space.sizes)))[:-1]
    index = first[site] + rng.integers(0, space.sizes[site])
    counts, which = np.full(n, faults), rng.integers(0, inputs, n)
    return strike(
        space, space.locate(rng.permutation(index)), model=model or BitFlip(), rng=rng, counts=counts, inputs=which
    )


def outputs(executor: HooksExecutor, trials: Trials) -> tuple[list[Tensor], list[Tensor]]:
    """Return the golden and the faulty output tensors of every trial, in the order of the trials."""
    done = list(executor.run(trials))
    order = np.concatenate([lanes.trial for lanes in done])
    assert sorted(order.tolist()) == list(range(len(trials)))
    assert all(np.array_equal(lanes.inputs, trials.inputs[lanes.trial]) for lanes in done)
    back = torch.from_numpy(np.argsort(order))
    faulty = rows(concatenate([lanes.outputs for lanes in done]), back)
    return leaves(rows(concatenate([lanes.golden for lanes in done]), back)), leaves(faulty)


def close(a: Tensor, b: Tensor) -> Tensor:
    """Return which rows agree up to the order of additions, in proportion to the largest value of the row."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    scale = torch.where(b.isfinite(), b, 0).abs().amax(1, keepdim=True)
    return (torch.isclose(a, b, rtol=1e-4, atol=0, equal_nan=True) | ((a - b).abs() <= 1e-5 * scale + 1e-6)).all(1)


def bits(model: nn.Module) -> list[bytes]:
    return [t.detach().contiguous().numpy().tobytes() for t in (*model.parameters(), *model.buffers())]


def agree(executor: HooksExecutor, trials: Trials, *, exactly: bool = False) -> None:
    """Check every trial against the reference: bit for bit, or up to the order of additions."""
    _, faulty = outputs(executor, trials)
    for mine, theirs in zip(faulty, leaves(reference(executor.model, executor.data, trials)), strict=True):
        assert mine.shape == theirs.shape
        if exactly:
            assert mine.numpy().tobytes() == theirs.numpy().tobytes()
        else:
            # Near the end of the range a value may overflow or not by the order of additions: one lane in fifty.
            assert int((~close(mine, theirs)).sum()) <= len(trials) // 50


@pytest.mark.parametrize("name", NETWORKS)
def test_lanes_agree_with_the_reference(name, rng):
    model, data = NETWORKS[name]()
    before = bits(model)
    executor = HooksExecutor(model, data, memory=MEMORY, buffers=True)
    agree(executor, draw(executor.space, len(executor.space.sites), len(data), rng))
    agree(executor, draw(executor.space, 30, len(data), rng, faults=4, model=StuckAt(1)))
    assert bits(model) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_lane_alone_is_the_reference_bit_for_bit(name, rng, monkeypatch):
    monkeypatch.setitem(memory._MOST, "cpu", 1)
    model, data = NETWORKS[name]()
    executor = HooksExecutor(model, data, memory=MEMORY)
    for fault in (BitFlip(), RandomWord()):
        # A recurrent layer runs step by step here, and in one kernel with its own order of additions there.
        exactly = not name.startswith("lstm")
        agree(executor, draw(executor.space, 20, len(data), rng, faults=5, model=fault), exactly=exactly)


def test_resnet20_with_real_weights_and_images(resnet20, cifar100, rng):
    data = Data(*cifar100).take(slice(0, 20))
    executor = HooksExecutor(resnet20, data, memory=MEMORY)
    before = bits(resnet20)
    space = executor.space.select(bits=range(23, 32))  # sign and exponent, so that some faults matter
    trials = draw(space, 240, len(data), rng)
    golden, faulty = outputs(executor, trials)
    expected = reference(resnet20, data, trials)
    with torch.no_grad():
        assert close(golden[0], resnet20(data.inputs)[torch.from_numpy(trials.inputs)]).all()
    different = faulty[0].argmax(1) != expected.argmax(1)
    top = expected.sort(1).values[:, -2:]
    tied = ((top[:, 1] - top[:, 0]).abs() <= 1e-4 * top.abs().amax(1)) | ~top.isfinite().all(1)
    assert int((different & ~tied).sum()) == 0
    assert int((faulty[0].argmax(1) != golden[0].argmax(1)).sum()) > 10  # faults that matter were among them
    assert bits(resnet20) == before


def test_only_the_struck_module_runs_again_for_weights(rng):
    model, data = NETWORKS["digits"]()
    executor = HooksExecutor(model, data, memory=MEMORY)
    space = executor.space.select(kinds=["weight", "bias"])
    executor.golden()
    calls = dict.fromkeys(["conv1", "conv2", "fc1", "fc2"], 0)
    for name in calls:
        module = model.get_submodule(name)

        def counted(*args, _name=name, _plain=module.forward):
            calls[_name] += 1
            return _plain(*args)

        module.forward = counted
    trials = draw(space, 40, len(data), rng)
    outputs(executor, trials)
    struck = {name: sum(space.sites[s].module == name for s in trials.site) for name in calls}
    assert calls == {name: 1 + times for name, times in struck.items()}


def test_equal_faults_share_a_pass():
    model, data = NETWORKS["tied"]()  # a weight with two readers changes in place
    executor = HooksExecutor(model, data, memory=MEMORY)
    space = executor.space.select("encode.weight")
    one = strike(space, space.locate([31, 63]), model=BitFlip(), rng=np.random.default_rng(0))
    trials = one.on(np.arange(len(data)))
    executor.golden()
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    agree(executor, trials)
    assert sum(passes) == 2 + len(trials)  # two for the executor, the others for the reference


def test_hooks_of_others_see_every_lane(rng):
    model, data = NETWORKS["digits"]()
    model.conv2.register_forward_hook(lambda _m, _a, out: out * 2)
    model.conv1.register_forward_pre_hook(lambda _m, args: (args[0] + 1,))
    executor = HooksExecutor(model, data, memory=MEMORY)
    agree(executor, draw(executor.space, 60, len(data), rng))


def test_pruned_weights_are_struck_where_they_are_stored(rng):
    model, data = NETWORKS["digits"]()
    for layer in (model.conv2, model.fc1):
        prune.l1_unstructured(layer, "weight", 0.5)
    executor = HooksExecutor(model, data, memory=MEMORY, buffers=True)
    space = executor.space.select(["conv2.weight_orig", "fc1.weight_orig", "fc1.weight_mask"])
    agree(executor, draw(space, 30, len(data), rng))


def test_golden_outputs_are_the_models(rng):
    for name, build in NETWORKS.items():
        model, data = build()
        with torch.no_grad():
            plain = leaves(model(**data.inputs) if isinstance(data.inputs, dict) else model(*_arguments(data)))
        executor = HooksExecutor(model, data, memory=MEMORY)
        for mine, theirs in zip(leaves(executor.golden()), plain, strict=True):
            assert close(mine, theirs).all(), name
        golden, _ = outputs(executor, draw(executor.space, 9, len(data), rng))
        assert all(len(leaf) == 9 for leaf in golden)


def _arguments(data: Data) -> tuple[Tensor, ...]:
    return data.inputs if isinstance(data.inputs, tuple) else (data.inputs,)


def test_masked_lanes_are_told():
    model, data = NETWORKS["tied"]()
    executor = HooksExecutor(model, data, memory=MEMORY)
    space = executor.space.select("encode.weight")
    stuck = strike(
        space,
        space.locate([31, 30]),
        model=StuckAt(int(model.encode.weight.flatten()[0] < 0)),
        rng=np.random.default_rng(0),
    )
    [lanes] = executor.run(stuck.take(np.array([0])).on(np.arange(6)))
    assert lanes.masked.all()  # the sign bit is stuck at what it is
    flip = strike(space, space.locate([30]), model=BitFlip(), rng=np.random.default_rng(0))
    [lanes] = executor.run(flip)
    assert not lanes.masked.any()


# -- memory -------------------------------------------------------------------------------------------------------


def test_memory_bounds_the_lanes_of_a_pass(rng):
    model, data = NETWORKS["depthwise"]()
    sizes = []
    model.register_forward_pre_hook(lambda _m, args: sizes.append(len(args[0])))
    one = memory.peak_bytes(model, data.inputs[:1])
    for lanes in (1, 3, 50):
        executor = HooksExecutor(model, data, memory=int(lanes * (2 * one + data.inputs[0].numel() * 4)))
        sizes.clear()
        outputs(executor, draw(executor.space.select(kinds=["input", "output"]), 100, len(data), rng))
        assert max(sizes) == max(lanes, 1)
    with pytest.raises(EngineError, match=r"one lane of Depthwise needs .* raise memory"):
        HooksExecutor(model, data, memory=one // 2)


def test_the_measured_peak_is_that_of_a_known_network():
    model = nn.Sequential(nn.Linear(8, 1000), nn.ReLU(), nn.Linear(1000, 8), nn.ReLU()).eval()
    # At the first ReLU two tensors of 1000 are alive; one more is what a strike may copy.
    assert memory.peak_bytes(model, torch.zeros(5, 8)) == 5 * 4 * (1000 + 1000 + 1000)


# -- models that are not plain functions of a row -----------------------------------------------------------------


class Centred(nn.Module):
    """Takes the mean of the batch away: its rows depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + 0.5 * (y - y.mean(0))


class Counting(nn.Module):
    """Adds the number of its calls to its output, and keeps it in a buffer and as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.inner(x) + self.calls
        return self.last


@pytest.mark.parametrize("build", [Centred, Counting])
def test_models_with_memory_or_mixing_run_as_if_alone(build, rng):
    torch.manual_seed(0)
    model, data = build().eval(), Data(torch.randn(5, 4))
    before = bits(model)
    executor = HooksExecutor(model, data, memory=MEMORY)
    trials = draw(executor.space.select("inner*"), 25, len(data), rng)
    _, faulty = outputs(executor, trials)
    assert bits(model) == before
    assert getattr(model, "last", None) is None
    for lane, mine in enumerate(faulty[0]):
        theirs = reference(model, data, trials.take(np.array([lane])))
        if build is Counting:
            model.calls.zero_()
            model.last = None
        assert close(mine[None], theirs).all()


def test_a_model_in_training_mode_repeats_its_dropout(rng):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16, momentum=None), nn.Dropout(0.5), nn.Linear(16, 3))
    model[1].eval()
    data, before = Data(torch.randn(5, 4)), bits(model)
    executor = HooksExecutor(model, data, memory=MEMORY)
    trials = draw(executor.space.select("3.bias"), 20, len(data), rng, model=StuckAt(0))
    golden, faulty = outputs(executor, trials)
    same = torch.isclose(golden[0], faulty[0]).sum(1)
    assert bool(
        (same >= 2).all()
    )  # a fault in the last bias moves one output; everything else is as in the golden pass
    assert bits(model) == before
    assert model.training
    model[1].train()
    with pytest.raises(
        ModelError, match=r"must run on one input alone; got ValueError: Expected more than 1 value.*call model.eval"
    ):
        HooksExecutor(model, data, memory=MEMORY)


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_trials_of_another_space_are_refused(rng):
    model, data = NETWORKS["digits"]()
    executor = HooksExecutor(model, data, memory=MEMORY)
    other = FaultSpace((Site("conv1.weight", (3, 3)),))
    with pytest.raises(EngineError, match=r"has float32 words in shape \(16, 1, 3, 3\), got float32 in \(3, 3\)"):
        list(executor.run(draw(other, 2, 2, rng)))
    unknown = FaultSpace((Site("conv1.weigth", (16, 1, 3, 3)),))
    with pytest.raises(SpaceError, match=r"did you mean 'conv1.weight'"):
        list(executor.run(draw(unknown, 2, 2, rng)))
    with pytest.raises(EngineError, match="inputs run from 0 to 5, got 3 to 6"):
        list(executor.run(draw(executor.space, 1, 1, rng).on(np.array([3, 6]))))


def test_models_without_rows_are_refused():
    with pytest.raises(ModelError, match=r"need an axis that counts the inputs, got shape \(2,\)"):
        HooksExecutor(_Returning(lambda y: y.sum(0)), Data(torch.randn(4, 2)), memory=MEMORY)
    turned = HooksExecutor(_Returning(lambda y: y.t()), Data(torch.randn(4, 2)), memory=MEMORY)
    assert turned.golden().shape == (4, 2)  # rows come first, wherever the model has them
    with pytest.raises(ModelError, match="must give tensors"):
        HooksExecutor(_Returning(lambda y: y.tolist()), Data(torch.randn(4, 2)), memory=MEMORY)
    with pytest.raises(ModelError, match=r"must run on batches of 3 and fewer .* RuntimeError: mat1"):
        HooksExecutor(_Returning(lambda y: y), Data(torch.randn(4, 5)), memory=MEMORY)


class _Returning(nn.Module):
    def __init__(self, wrap) -> None:
        super().__init__()
        self.inner, self.wrap = nn.Linear(2, 2), wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.inner(x))


class Rms(nn.Module):
    """A module without children that is several operations and has a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def test_a_weight_and_an_operation_of_one_module_are_struck_together(rng):
    model, data = nn.Sequential(nn.Linear(4, 4), Rms(), nn.Linear(4, 3)).eval(), Data(torch.randn(5, 4))
    executor = HooksExecutor(model, data, memory=MEMORY)
    space = executor.space.select(["1.weight", "1.rsqrt:output", "1.mul:input", "1.mul@1:output"], bits=[22, 31])
    agree(executor, draw(space, 40, len(data), rng, faults=4))


def test_an_exception_in_a_pass_leaves_the_model_whole(rng):
    model, data = NETWORKS["tied"]()
    executor = HooksExecutor(model, data, memory=MEMORY)
    trials, before = draw(executor.space, 30, len(data), rng, faults=3), bits(model)
    executor.golden()
    model.decode.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(executor.run(trials))
    assert bits(model) == before
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(m._forward_hooks for m in model.modules())
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == 1
