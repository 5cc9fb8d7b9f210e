"""Injection: the right word, in the right place, for as long as the scope, in every mode of torch."""

import _thread
import asyncio
import contextlib
import copy
import gc
import signal
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.networks import NETWORKS
from torchfault.adapters.represent import represent
from torchfault.engine.inject import inject
from torchfault.errors import FaultError, SpaceError
from torchfault.faults import BitFlip, RandomWord, StuckAt, Value
from torchfault.model.discover import find, parameter_sites
from torchfault.model.undo import Undo, Uninterrupted
from torchfault.space import Fault, FaultSpace
from torchfault.trials import strike
from torchfault.words import WORDS, Edits, word

SIGN, TOP = 31, 30


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


def state(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(t) for name, t in (*model.named_parameters(), *model.named_buffers())}


class Recorder:
    """Keeps what a module reads."""

    def __init__(self, module: nn.Module) -> None:
        self.inputs: list[Tensor] = []
        module.register_forward_hook(self.keep)

    def keep(self, _: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        del output
        self.inputs.append(args[0].detach().clone())


# -- weights and buffers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(WORDS) - {"bool", "float4_e2m1fn_x2"}))  # which no torch operation fills
def test_a_weight_changes_in_just_the_struck_bit(name):
    fmt = word(name)
    model = nn.Module()
    content = torch.arange(12).view(3, 4).to(fmt.dtype)
    model.register_buffer("table", content.clone())
    before = state(model)
    with inject(model, Fault("table", (1, 2), bit=fmt.width - 1)):
        change = np.frombuffer(bits(model.table), np.uint8) ^ np.frombuffer(before["table"], np.uint8)
        assert int.from_bytes(change.tobytes(), "little") == 1 << (7 * fmt.width - 1)
    assert state(model) == before


def test_a_bool_buffer_flips():
    model = nn.Module()
    model.register_buffer("mask", torch.tensor([True, False]))
    with inject(model, [Fault("mask", 0, 0), Fault("mask", 1, 0)]):
        assert model.mask.tolist() == [False, True]
    assert model.mask.tolist() == [True, False]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_weights_come_back_after_exceptions(error):
    model, _ = NETWORKS["digits"]()
    before = state(model)
    faults = [Fault("conv1.weight", 0, TOP), Fault("fc2.bias", 3, TOP)]
    during = []
    with pytest.raises(error), inject(model, faults):  # noqa: PT012
        during.append(state(model))
        raise error
    assert during[0] != before
    assert state(model) == before


def test_an_interrupt_during_the_restoration_waits_for_its_end(monkeypatch):
    model, _ = NETWORKS["digits"]()
    before = state(model)
    put, calls = Edits.put, []

    def interrupted(self, first, values):
        calls.append(1)
        if len(calls) in (3, 5):  # two faults written, then the first and the second restoration
            raise KeyboardInterrupt
        put(self, first, values)

    monkeypatch.setattr(Edits, "put", interrupted)
    with pytest.raises(KeyboardInterrupt), inject(model, [Fault("conv1.weight", 0, TOP), Fault("fc2.bias", 3, TOP)]):
        pass
    assert len(calls) == 6
    assert state(model) == before


def test_an_interrupt_while_entering_leaves_nothing_behind(monkeypatch):
    model, _ = NETWORKS["digits"]()
    before = state(model)
    put, calls = Edits.put, []

    def interrupted(self, first, values):
        calls.append(1)
        put(self, first, values)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Edits, "put", interrupted)
    with pytest.raises(KeyboardInterrupt), inject(model, [Fault("conv1.weight", 0, TOP), Fault("fc2.bias", 3, TOP)]):
        raise AssertionError("the scope must not be entered")
    assert state(model) == before


def test_scopes_nest_and_unwind_in_reverse():
    model = nn.Linear(2, 2)
    before = state(model)
    with inject(model, Fault("weight", 0, SIGN)):
        outer = state(model)
        with inject(model, [Fault("weight", 0, SIGN), Fault("weight", 1, 3, StuckAt(1))]):
            assert model.weight.flatten()[0].item() == pytest.approx(np.frombuffer(before["weight"], np.float32)[0])
            with inject(model, Fault("weight", 0, 0, Value(7.0))):
                assert model.weight[0, 0].item() == 7.0
        assert state(model) == outer
    assert state(model) == before


def test_faults_in_one_word_compose_in_their_order():
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
    with inject(model, [Fault("weight", 0, SIGN), Fault("weight", 0, SIGN, StuckAt(0)), Fault("weight", 0, SIGN)]):
        assert model.weight.item() == -1.0
    assert model.weight.item() == 1.0


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_weights_in_any_memory_format_come_back(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    order = data.draw(st.permutations(range(len(shape))))
    plain = torch.randn(shape)
    held = plain.permute(order).contiguous().permute([order.index(i) for i in range(len(shape))])
    model = nn.Module()
    model.weight = nn.Parameter(held[tuple(slice(None, None, data.draw(st.sampled_from([1, 2]))) for _ in shape)])
    before, strides = state(model), model.weight.stride()
    size = model.weight.numel()
    picks = data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 31)), min_size=1, max_size=6))
    expected = model.weight.detach().flatten().clone().view(torch.int32).numpy().view(np.uint32)
    for element, bit in picks:
        expected[element] ^= np.uint32(1 << bit)
    with inject(model, [Fault("weight", element, bit) for element, bit in picks]):
        assert bits(model.weight.flatten()) == expected.tobytes()
        assert model.weight.stride() == strides
    assert state(model) == before


def test_channels_last_and_tied_weights():
    model = nn.Sequential(nn.Conv2d(4, 3, 3)).to(memory_format=torch.channels_last)
    before = state(model)
    with inject(model, Fault("0.weight", (2, 1, 0, 2), SIGN)):
        changed = (model[0].weight.detach().flatten().view(torch.int32).numpy().tobytes()) != before["0.weight"]
        assert changed
        assert bits(model[0].weight[2, 1, 0, 2]) != before["0.weight"]
    assert state(model) == before
    tied, data = NETWORKS["tied"]()
    with torch.no_grad():
        golden = tied(data.inputs)
        for name in ("encode.weight", "decode.weight"):
            with inject(tied, Fault(name, (1, 1), TOP)):
                assert torch.equal(tied.encode.weight, tied.decode.weight)
                assert not torch.equal(tied(data.inputs), golden)
        assert torch.equal(tied(data.inputs), golden)


def test_one_word_under_two_names_comes_back():
    tied, _ = NETWORKS["tied"]()
    before = state(tied)
    with inject(tied, [Fault("encode.weight", 0, SIGN), Fault("decode.weight", 0, 0, StuckAt(1))]):
        assert state(tied) != before
    assert state(tied) == before


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        model = nn.Linear(2, 2)
        x = torch.ones(1, 2)
    before = state(model)
    with inject(model, Fault("weight", 0, TOP)), torch.inference_mode():
        assert state(model) != before
        model(x)
    assert state(model) == before


# -- activations --------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """One tensor read by two layers, and their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return self.left(y) + self.right(y)


def test_an_input_is_struck_for_its_reader_alone():
    model, x = Branches(), torch.randn(3, 4)
    left, right = Recorder(model.left), Recorder(model.right)
    with torch.no_grad():
        model(x)
        with inject(model, Fault("left:input", 2, SIGN)):
            model(x)
    assert torch.equal(right.inputs[0], right.inputs[1])
    flipped = left.inputs[0].clone()
    flipped[:, 2] *= -1
    assert torch.equal(left.inputs[1], flipped)


def test_an_output_is_struck_for_every_reader():
    model, x = Branches(), torch.randn(3, 4)
    left, right = Recorder(model.left), Recorder(model.right)
    with torch.no_grad(), inject(model, Fault("tanh:output", 2, SIGN)):
        model(x)
    flipped = torch.tanh(x)
    flipped[:, 2] *= -1
    assert torch.equal(left.inputs[0], flipped)
    assert torch.equal(right.inputs[0], flipped)


def test_callers_keep_their_inputs():
    for model in (nn.Sequential(nn.ReLU(inplace=False)), nn.Sequential(nn.Dropout()), nn.Sequential(nn.Flatten())):
        x = torch.randn(2, 3)
        before = bits(x)
        for end in ("0:input", "0:output"):
            with torch.no_grad(), inject(model.eval(), Fault(end, 0, SIGN)):
                model(x)
            assert bits(x) == before


def test_only_the_chosen_sample_is_struck():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    x = torch.randn(4, 3)
    with torch.no_grad():
        expected = F.linear(x, model[0].weight, model[0].bias)
    expected[2, 1] *= -1
    expected[:, 0] *= -1
    faults = [Fault("0:output", 1, SIGN, sample=2), Fault("0:output", 0, SIGN)]
    assert torch.equal(torch.relu(expected), _last(model, x, faults))


def _last(model: nn.Module, x: Tensor, faults: list[Fault]) -> Tensor:
    with torch.no_grad(), inject(model, faults):
        return model(x)


def test_faults_on_all_and_on_one_sample_keep_their_order():
    model, x = nn.Sequential(nn.Identity()), torch.ones(2, 1)
    flip, stuck = Fault("0:output", 0, SIGN, sample=1), Fault("0:output", 0, SIGN, StuckAt(0))
    assert _last(model, x, [flip, stuck]).tolist() == [[1.0], [1.0]]
    assert _last(model, x, [stuck, flip]).tolist() == [[1.0], [-1.0]]


def test_repeated_calls_count_anew_in_every_pass():
    model, data = NETWORKS["folded"]()
    calls = Recorder(model.shared)
    with torch.no_grad():
        model(data.inputs)
        with inject(model, Fault("shared@1:input", 0, SIGN)):
            for _ in range(3):
                model(data.inputs)
    first, second = calls.inputs[0::2], calls.inputs[1::2]
    assert all(torch.equal(x, first[0]) for x in first)
    assert all(torch.equal(x[:, 1:], second[0][:, 1:]) for x in second)
    assert all(torch.equal(x[:, 0], -second[0][:, 0]) for x in second[1:])


def test_a_batch_axis_that_is_not_the_first():
    model, data = NETWORKS["lstm-time-first"]()
    found = find(model, data)
    lstm = Recorder(model.lstm)
    with torch.no_grad():
        model(*data.inputs)
        with inject(model, Fault("lstm:input", (3, 5), SIGN, sample=1), space=found):
            model(*data.inputs)
    golden, faulty = lstm.inputs
    assert golden.shape == (7, 6, 6)
    golden[3, 1, 5] *= -1
    assert torch.equal(golden, faulty)


def test_a_batch_axis_merged_with_another():
    model, data = NETWORKS["folded"]()
    found = find(model, data)
    assert found.space.site("conv:output").shape == (4, 5, 4, 4)
    behind = Recorder(model.shared)
    faults = [Fault("conv:output", (2, 1, 3, 0), SIGN, sample=4), Fault("conv:output", (0, 0, 0, 2), SIGN)]
    with torch.no_grad(), inject(model, faults, space=found):
        model(data.inputs)
        expected = F.conv2d(data.inputs.flatten(0, 1), model.conv.weight, model.conv.bias)
    apart = expected.view(6, 4, 5, 4, 4)
    apart[4, 2, 1, 3, 0] *= -1
    apart[:, 0, 0, 0, 2] *= -1
    assert torch.equal(behind.inputs[0], expected)


def test_channels_last_activations_keep_their_format():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    behind = Recorder(model[1])
    for count in (1, 8 * 36):  # single places, and a dense mask
        faults = [Fault("0:output", i, SIGN) for i in range(count)]
        with torch.no_grad(), inject(model, faults):
            model(x)
            expected = F.conv2d(x, model[0].weight, model[0].bias, padding=1)
        assert expected.is_contiguous(memory_format=torch.channels_last)
        signs = torch.ones(8 * 36)
        signs[:count] = -1
        assert torch.equal(behind.inputs[-1], expected * signs.view(8, 6, 6))


# -- autograd, inference mode, training ---------------------------------------------------------------------------


def test_the_gradient_passes_straight_through_also_at_nan():
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), torch.ones(1, 2, requires_grad=True)
    with inject(model, Fault("0:output", 0, 0, Value(float("nan")))):
        out = model(x)
        out.backward()
    assert out.isnan().all()
    assert torch.allclose(x.grad, model[1].weight @ model[0].weight)
    assert model[0].weight.grad.isfinite().all()
    # The layer behind saw the NaN, and its own gradient says so.
    assert model[1].weight.grad.isnan().tolist() == [[True, False]]


def test_gradients_agree_with_finite_differences_where_the_fault_is_constant():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with inject(model, Fault("1:output", 1, 63)):  # a sign flip is y -> -y, whose straight-through gradient is +1
        model(x).sum().backward()
    hidden = torch.tanh(model[0](x.detach()))
    expected = ((1 - hidden**2) * model[2].weight) @ model[0].weight
    assert torch.allclose(x.grad, expected)


@pytest.mark.parametrize("name", ["conv1.weight", "fc1.weight", "fc2.bias"])
def test_backward_sees_struck_weights_inside_and_works_behind_the_scope(name):
    model, data = NETWORKS["digits"]()
    x = data.inputs.clone().requires_grad_()

    @torch.enable_grad()
    def gradient() -> Tensor:
        return torch.autograd.grad(model(x).sum(), x)[0]

    golden = gradient()
    weight = dict(model.named_parameters())[name]
    with torch.no_grad():
        saved = weight.clone()
        weight.view(-1)[0] = 3.0
        by_hand = gradient()
        weight.copy_(saved)
    with inject(model, Fault(name, 0, 0, Value(3.0))):
        inside = gradient()
        later = model(x).sum()
    assert not torch.allclose(golden, by_hand) or name == "fc2.bias"
    assert torch.allclose(inside, by_hand)
    assert torch.allclose(gradient(), golden)
    # Behind the scope autograd does not complain about a changed weight; it uses the one that is there.
    assert torch.autograd.grad(later, x)[0].isfinite().all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["conv1:input", "conv2:output", "relu@1:output", "max_pool2d:input", "fc2:output"])
def test_every_grad_mode_gives_the_same_outputs(mode, name):
    model, data = NETWORKS["digits"]()
    with torch.no_grad():
        golden = model(data.inputs)
        with inject(model, Fault(name, 3, 0, Value(5.0))):
            expected = model(data.inputs)
    assert not torch.allclose(expected, golden)
    with mode(), inject(model, Fault(name, 3, 0, Value(5.0))):
        assert torch.allclose(model(data.inputs), expected, atol=1e-6)


def test_training_works_with_faults():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 1, 4, 4), torch.arange(8) % 2
    faults = [Fault("0:output", 5, SIGN), Fault("2:output", 1, SIGN), Fault("4.weight", 0, SIGN)]
    before = state(model)
    for _ in range(3):
        optimiser.zero_grad()
        with inject(model, faults):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
        optimiser.step()
    assert loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model[0].parameters())
    assert state(model) != before
    assert model.training
    assert int(model[1].num_batches_tracked) == 3


# -- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("conv1.weigth", 0, 0), r"'conv1.weigth'; did you mean 'conv1.weight'"),
        (Fault("convl:output", 0, 0), r"'convl' in 'convl:output'; did you mean 'conv2' or 'conv1'"),
        (Fault("conv1:outputs", 0, 0), r"got 'conv1:outputs'"),
        (Fault("conv1.reluu:output", 0, 0), r"no module or operation is called 'conv1.reluu'"),
        (Fault("conv1.weight", 144, 0), r"element 144 is outside"),
        (Fault("conv1.weight", 0, 32), r"bit 32 is outside"),
        (Fault("conv1.weight", 0, 0, sample=1), r"leave it out"),
    ],
)
def test_nonsense_is_refused_on_entry(fault, message):
    model, _ = NETWORKS["digits"]()
    before = state(model)
    with pytest.raises((SpaceError, FaultError), match=message), inject(model, fault):
        raise AssertionError("the scope must not be entered")
    assert state(model) == before


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (Fault("conv1:output", (0, 9, 0), 0), SpaceError, r"element \(0, 9, 0\) is outside 'conv1:output'"),
        (Fault("conv1:output", 0, 40), SpaceError, r"bit 40 is outside"),
        (Fault("conv1:output", 0, 0, sample=6), FaultError, r"sample 6 is outside the batch of 6"),
    ],
)
def test_nonsense_that_only_the_run_shows(fault, error, message):
    model, data = NETWORKS["digits"]()
    with pytest.raises(error, match=message), inject(model, fault):
        model(data.inputs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model(data.inputs)


@pytest.mark.parametrize("name", ["relu@7:output", "conv1@1:output", "conv1:output1", "conv1:input1", "matmul:output"])
def test_a_fault_that_never_strikes_is_an_error(name):
    model, data = NETWORKS["digits"]()
    with pytest.raises(FaultError, match="must strike"), inject(model, Fault(name, 0, 0)):
        model(data.inputs)
    with pytest.raises(FaultError, match="run the model in the scope"), inject(model, Fault(name, 0, 0)):
        pass


def test_a_suggestion_for_a_call_that_never_came():
    model, data = NETWORKS["digits"]()
    with pytest.raises(FaultError, match=r"did you mean 'relu@2:output'"), inject(model, Fault("relu@3:output", 0, 0)):
        model(data.inputs)


def test_an_exception_on_its_way_is_not_masked():
    model, _ = NETWORKS["digits"]()
    with pytest.raises(ValueError, match="mine"), inject(model, Fault("conv1:output", 0, 0)):
        raise ValueError("mine")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_no_faults_and_too_many_trials_are_errors():
    model, data = NETWORKS["digits"]()
    with pytest.raises(FaultError, match="at least one fault"), inject(model, []):
        pass
    space = find(model, data).space
    trials = strike(space, space.locate([0, 1]), model=BitFlip(), rng=np.random.default_rng(0))
    with pytest.raises(FaultError, match=r"one trial at a time, got 2"), inject(model, trials):
        pass


def test_words_of_another_precision_are_refused():
    model, data = NETWORKS["digits"]()
    found = find(model, data)
    model.half()
    message = "has float32 words in the fault space, got float16"
    with pytest.raises(FaultError, match=message), inject(model, Fault("conv1.weight", 0, 0), space=found):
        pass
    with pytest.raises(FaultError, match=message), inject(model, Fault("conv1:output", 0, 0), space=found):
        model(data.inputs.half())


# -- whole trials -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [BitFlip(), StuckAt(1), RandomWord(), Value(0.5)])
def test_a_trial_strikes_everything_at_once(fault, rng):
    model, data = NETWORKS["depthwise"]()
    found = find(model, data)
    space = found.space.select(kinds=["weight", "bias"]) | found.space.select("stem:output")
    number = rng.integers(0, len(space), 4000)
    trial = strike(space, space.locate(number), model=fault, rng=rng, counts=np.array([4000]))
    before = state(model)
    expected = {}
    for position in np.unique(trial.site):
        site, rows = space.sites[position], trial.site == position
        if not site.is_activation:
            words = np.frombuffer(before[site.name], np.uint32).copy()
            at = trial.element[rows]
            words[at] = (words[at] & trial.keep[rows].astype(np.uint32)) ^ trial.toggle[rows].astype(np.uint32)
            expected[site.name] = words.tobytes()
    behind = Recorder(model.norm)
    with torch.no_grad(), inject(model, trial, space=found):
        assert {name: state(model)[name] for name in expected} == expected
        model(data.inputs)
        stem = F.conv2d(data.inputs, model.stem.weight, stride=2, padding=1)
    rows = trial.site == space.position("stem:output")
    words = stem.flatten(1).view(torch.int32).numpy().view(np.uint32)
    at = trial.element[rows]
    words[:, at] = (words[:, at] & trial.keep[rows].astype(np.uint32)) ^ trial.toggle[rows].astype(np.uint32)
    assert rows.sum() > 100
    assert bits(behind.inputs[0]) == words.tobytes()
    assert state(model) == before


def test_a_random_word_depends_on_the_generator_alone():
    model = nn.Linear(4, 4)
    seen = []
    for seed in (1, 1, 2):
        with inject(model, Fault("weight", 3, 0, RandomWord()), rng=np.random.default_rng(seed)):
            seen.append(state(model)["weight"])
    assert seen[0] == seen[1] != seen[2]


def test_a_filtered_space_refuses_what_it_left_out():
    model = nn.Linear(4, 4)
    space = FaultSpace(tuple(parameter_sites(model))).select("weight", bits=[30])
    with (
        pytest.raises(SpaceError, match=r"bit 31 is outside 'weight'"),
        inject(model, Fault("weight", 0, 31), space=space),
    ):
        pass


def test_the_image_is_struck_where_the_model_takes_it():
    model, data = NETWORKS["digits"]()
    with inject(model, Fault("x:data", (0, 2, 3), 25)), torch.no_grad():
        mine = model(data.inputs)
    image = data.inputs.clone()
    image[:, 0, 2, 3] = (image[:, 0, 2, 3].view(torch.int32) ^ (1 << 25)).view(torch.float32)
    with torch.no_grad():
        assert torch.equal(mine, model(image))
    assert not torch.equal(mine, model(data.inputs))


# -- scopes that overlap, in any order ----------------------------------------------------------------------------


class Busy(nn.Module):
    """Modules, functional operations, an LSTM whose steps are sites, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(2, 4, 3, padding=1), nn.LSTM(4, 5, batch_first=True)
        self.attention, self.fc = nn.MultiheadAttention(5, 1, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.conv(x) + 0.5).transpose(1, 2)
        h = self.lstm(h)[0]
        return self.fc(self.attention(h, h, h)[0].mean(1))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in model.modules())


KINDS = {
    "same word": ([Fault("fc.weight", 4, 30)], [Fault("fc.weight", 4, 30)], [Fault("fc.weight", 4, 22, StuckAt(1))]),
    "one tensor": (
        [Fault("fc.weight", 4, 30)],
        [Fault("fc.weight", 7, 20)],
        [Fault("fc.weight", (1, 0), 0, Value(3.0))],
    ),
    "everything": (
        [Fault("conv.weight", 2, 29), Fault("conv:output", (1, 2), SIGN)],
        [Fault("gelu:output", (0, 3), SIGN), Fault("add:output", (2, 1), TOP)],
        [Fault("lstm:state.h", 1, SIGN, step=2), Fault("conv.weight", 2, 3)],
    ),
    "steps": (
        [Fault("lstm:state.h", 1, SIGN, step=2)],
        [Fault("lstm:state.c", 0, SIGN, step=1)],
        [Fault("lstm:state.h", 2, SIGN, step=0)],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["012", "021", "102", "120", "201", "210"])
def test_scopes_that_overlap_may_end_in_any_order(kind, order):
    torch.manual_seed(3)
    model, x = Busy().eval(), torch.randn(2, 2, 6)
    found = find(model, x)
    before, hooks, fast = state(model), hooks_of(model), torch.backends.mha.get_fastpath_enabled()
    scopes = [inject(model, faults, space=found) for faults in KINDS[kind]]
    alive: list[int] = []

    def expected(alive):
        """What scopes that nest as they began would give."""
        with contextlib.ExitStack() as nested, torch.no_grad():
            for one in alive:
                nested.enter_context(inject(twin, KINDS[kind][one], space=twins))
            return twin(x), state(twin)

    twin = copy.deepcopy(model)
    twins = find(twin, x)
    for number, scope in enumerate(scopes):
        scope.__enter__()
        alive.append(number)
    for step in order:
        with torch.no_grad():
            outputs, stored = model(x), state(model)
        wanted, words = expected(alive)
        assert torch.equal(outputs, wanted)
        assert stored == words
        scopes[int(step)].__exit__(None, None, None)
        alive.remove(int(step))
    assert state(model) == before
    assert hooks_of(model) == hooks
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert not torch.overrides._get_current_function_mode_stack()
    with torch.no_grad():
        assert torch.equal(model(x), expected([])[0])


@pytest.mark.parametrize("order", ["01", "10"])
@pytest.mark.parametrize("how", ["int8", "csr", "q3.4"])
def test_scopes_overlap_in_words_that_stand_for_a_value_together(how, order):
    model = represent(nn.Sequential(nn.Linear(6, 4)).eval(), how)
    code = "0.weight:values" if how == "csr" else "0.weight"
    faults = [[Fault(code, 3, 0), Fault(code, 1, 5)], [Fault(code, 3, 4)]]
    before = state(model)
    alone = []
    for one in faults:
        with inject(model, one):
            alone.append(state(model))
    with inject(model, [*faults[0], *faults[1]]):
        both = state(model)
    assert len({before["0.weight"], both["0.weight"], *(one["0.weight"] for one in alone)}) == 4
    scopes = [inject(model, one) for one in faults]
    for scope in scopes:
        scope.__enter__()
    assert state(model) == both
    scopes[int(order[0])].__exit__(None, None, None)
    assert state(model) == alone[int(order[1])]
    scopes[int(order[1])].__exit__(None, None, None)
    assert state(model) == before


def test_tasks_that_take_turns_each_leave_the_model_right():
    model, x = Busy().eval(), torch.randn(2, 2, 6)
    before = state(model)
    rng = np.random.default_rng(1)

    async def task(number: int) -> None:
        for _ in range(4):
            with inject(model, [Fault("fc.weight", number % 3, 30), Fault("gelu:output", (0, number % 4), SIGN)]):
                await asyncio.sleep(0.001 * rng.random())
                with torch.no_grad():
                    model(x)
                await asyncio.sleep(0.001 * rng.random())

    async def everything() -> None:
        await asyncio.gather(*(task(number) for number in range(6)))

    asyncio.run(everything())
    assert state(model) == before
    assert hooks_of(model) == 0
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_generator_that_nobody_finishes_leaves_the_model_right():
    model, x = Busy().eval(), torch.randn(1, 2, 6)
    before = state(model)

    def struck(element):
        with inject(model, [Fault("fc.weight", element, 30), Fault("gelu:output", element, SIGN)]):
            while True:
                yield model(x)

    with torch.no_grad():
        first, second = struck(1), struck(2)
        next(first), next(second)
        del first
        gc.collect()
        with inject(model, Fault("fc.weight", 2, 30)):
            pass
        next(second)
    del second
    gc.collect()
    assert state(model) == before
    assert hooks_of(model) == 0
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_scope_may_end_in_another_thread():
    model, x = Busy().eval(), torch.randn(1, 2, 6)
    before = state(model)
    scope = inject(model, [Fault("fc.weight", 2, 30), Fault("gelu:output", 1, SIGN)])
    scope.__enter__()
    with torch.no_grad():
        model(x)
    thread = threading.Thread(target=scope.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert state(model) == before
    with torch.no_grad():
        golden = model(x)
    assert torch.equal(golden, plainly(model, x))
    torch.overrides._pop_mode()  # which only this thread can


def plainly(model, x):
    with torch.no_grad():
        return copy.deepcopy(model)(x)


@pytest.mark.parametrize("convert", [lambda m: m.half(), lambda m: m.double(), lambda m: m.to(torch.bfloat16)])
def test_a_model_that_is_converted_inside_a_scope_is_refused_and_made_right(convert):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    whole = convert(copy.deepcopy(model))
    with (
        pytest.raises(FaultError, match=r"converted or moved inside the scope: '0.weight' \(torch.float32 on cpu, now"),
        inject(model, [Fault("0.weight", 5, 30), Fault("1.bias", 1, 26)]),
    ):
        convert(model)
    assert state(model) == state(whole)


def test_a_parameter_that_is_replaced_inside_a_scope_is_told():
    model = nn.Linear(4, 3)
    fresh = nn.Parameter(torch.randn(3, 4))
    content = fresh.detach().clone()
    with pytest.raises(FaultError, match="load the model again"), inject(model, Fault("weight", 5, 30)):
        model.weight = fresh
    assert torch.equal(model.weight, content)


# -- asynchronous interrupts --------------------------------------------------------------------------------------


@pytest.fixture
def _interruptible():
    """Let interrupts come, as they do in a terminal; a process in the background ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(body, after: float) -> bool:
    """Run *body* again and again until an interrupt comes, *after* so many seconds."""
    timer = threading.Timer(after, _thread.interrupt_main)
    end = time.monotonic() + 60
    try:
        timer.start()
        while time.monotonic() < end:
            body()
    except KeyboardInterrupt:
        return True
    finally:
        timer.join()
    return False


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("kind", ["weights", "operations"])
@pytest.mark.parametrize("times", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_time_leaves_nothing_behind(kind, times):
    model, x = Busy().eval(), torch.randn(1, 2, 6)
    faults = [Fault("fc.weight", 4, 30), Fault("conv.weight", 1, 22)]
    if kind == "operations":
        faults += [Fault("gelu:output", 1, SIGN), Fault("conv:output", 2, SIGN)]
    before, rng = state(model), np.random.default_rng(0)
    golden = plainly(model, x)

    def body():
        with torch.no_grad(), inject(model, faults):
            model(x)

    for number in range(times):
        assert interrupted(body, 0.002 + 0.01 * rng.random())
        assert state(model) == before, number
        assert hooks_of(model) == 0, number
        assert not torch.overrides._get_current_function_mode_stack(), number
        assert torch.backends.mha.get_fastpath_enabled(), number
        with torch.no_grad():
            assert torch.equal(model(x), golden), number


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("others", [False, True])
def test_an_uninterrupted_scope_passes_the_interrupt_on_at_its_end(others):
    done = []
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Uninterrupted():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        if others:
            signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is handler
    Thread = threading.Thread(target=lambda: Uninterrupted().__enter__())
    Thread.start()
    Thread.join()
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_of_one_action_does_not_keep_the_others_from_being_done():
    done = []

    def fails():
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"), Undo() as undo:  # noqa: PT012
        undo.add(lambda: done.append("last"))
        undo.add(fails)
        undo.add(lambda: done.append("before"))
    assert done == ["before", "last"]
