"""What weight guards and encodings do to words, bit by bit."""

import numpy as np
import pytest
import torch
from torch import nn

from torchfault.errors import ModelError, SpaceError
from torchfault.hardening import (
    InvariantBits,
    Parity,
    Ranges,
    Secded,
    Triplicate,
    WeightRanges,
    ZeroSpace,
    detecting,
    guards,
    harden,
    overhead,
    profile,
)
from torchfault.hardening import method as method_of
from torchfault.hardening.encodings import _parity

WEIGHTS = torch.tensor([[0.5, -0.25, 0.03, 1.5, -1.0], [1e-3, 0.75, -0.6, 0.1, 0.0]])


class Exposed(nn.Module):
    """Gives its weight as it computes with it, one row for each input."""

    def __init__(self, weight):
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], len(weight), bias=False)
        self.layer.weight = nn.Parameter(weight.clone(), requires_grad=False)

    def forward(self, x):
        return self.layer(x)


def decoded(safe):
    """Return the weight as the hardened layer computes with it."""
    with torch.no_grad():
        return safe.layer(torch.eye(safe.layer.in_features)).t().contiguous()


def flipped(safe, element, *bits):
    """Flip bits of a stored weight, return what it decodes to, and put it back."""
    words = safe.layer.weight.data.view(torch.int32).view(-1)
    saved = int(words[element])
    for bit in bits:
        words[element] ^= np.int32(np.uint32(1 << bit).astype(np.int32)).item()
    try:
        return decoded(safe)
    finally:
        words[element] = saved


@pytest.mark.parametrize("bit", range(32))
def test_invariant_bits_undo_flips_of_bits_that_never_vary(bit):
    safe = harden(Exposed(WEIGHTS[:, :3]), InvariantBits())
    words = WEIGHTS[:, :3].contiguous().view(torch.int32).flatten().tolist()
    varies = len({word >> bit & 1 for word in words}) > 1
    for element in range(6):
        assert torch.equal(flipped(safe, element, bit), decoded(safe)) == (not varies)


@pytest.mark.parametrize("bit", range(16, 32))
def test_secded_corrects_every_flip_of_the_upper_half(bit):
    safe = harden(Exposed(WEIGHTS), Secded())
    for element in range(10):
        assert torch.equal(flipped(safe, element, bit), decoded(safe))


@pytest.mark.parametrize("bit", range(9))
def test_a_flipped_check_bit_harms_nothing(bit):
    for method in (Secded(), Triplicate(bits=5), *([Triplicate()] if bit < 8 else [])):
        safe = harden(Exposed(WEIGHTS), method)
        for element in range(10):
            assert torch.equal(flipped(safe, element, bit), decoded(safe))


def test_secded_zeroes_two_flips_of_the_upper_half(rng):
    safe = harden(Exposed(WEIGHTS), Secded())
    clean = decoded(safe)
    for _ in range(60):
        element = int(rng.integers(10))
        one, two = rng.permutation(np.arange(16, 32))[:2].tolist()
        found = flipped(safe, element, one, two)
        expected = clean.clone()
        expected.view(-1)[element] = 0
        assert torch.equal(found, expected), (element, one, two)


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_triplicated_bits_survive_any_flips_of_one_copy(bits, rng):
    safe = harden(Exposed(WEIGHTS), Triplicate(bits=bits))
    clean = decoded(safe)
    for _ in range(30):
        chosen = 30 - rng.permutation(bits)[: rng.integers(1, bits + 1)]
        assert torch.equal(flipped(safe, int(rng.integers(10)), *chosen.tolist()), clean)


def test_parity_zeroes_a_weight_with_one_flip_of_the_upper_half():
    safe = harden(Exposed(WEIGHTS), Parity())
    clean = decoded(safe)
    for bit in (0, *range(16, 32)):
        expected = clean.clone()
        expected.view(-1)[3] = 0
        assert torch.equal(flipped(safe, 3, bit), expected)


@pytest.mark.parametrize(
    ("method", "exponent"), [(Parity(), -23), (Triplicate(), -15), (Triplicate(bits=5), -13), (Secded(), -14)]
)
def test_an_encoding_moves_a_weight_by_no_more_than_it_says(method, exponent, rng):
    weight = torch.from_numpy(rng.standard_normal((40, 50)).astype(np.float32)) * 0.1
    moved = (decoded(harden(Exposed(weight), method)) - weight).abs() / weight.abs()
    assert 0 < moved.max() <= 2.0**exponent


def test_parity_of_words_is_the_number_of_set_bits():
    words = torch.tensor([0, 1, -1, 3, -(2**31), 0x7FFFFFFF], dtype=torch.int32)
    assert _parity(words).tolist() == [0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("value", "clamped", "zeroed"),
    [(1e30, 1.5, 0.0), (-1e30, -1.0, 0.0), (float("nan"), 1.5, 0.0), (float("-inf"), -1.0, 0.0), (1.2, 1.2, 1.2)],
)
def test_weights_outside_their_range_come_back(value, clamped, zeroed):
    for action, expected in (("clamp", clamped), ("zero", zeroed)):
        safe = harden(Exposed(WEIGHTS), WeightRanges(action=action, per="layer"))
        safe.layer.weight[1, 2] = value
        assert decoded(safe)[1, 2].item() == pytest.approx(expected)


def test_ranges_of_channels_are_narrower():
    safe = harden(Exposed(WEIGHTS), WeightRanges(per="channel"))
    safe.layer.weight[1, 2] = 1.4
    assert decoded(safe)[1, 2].item() == pytest.approx(0.75)


def test_what_hides_a_parameter_is_gone_after_an_exception():
    safe = harden(Exposed(WEIGHTS), InvariantBits())
    with pytest.raises(RuntimeError):
        safe(torch.ones(1, 7))
    assert "weight" not in safe.layer.__dict__
    assert safe.layer.weight is safe.layer._parameters["weight"]


def test_a_recurrent_layer_computes_with_guarded_weights():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, batch_first=True).requires_grad_(False)
    inputs = torch.randn(2, 5, 3)
    safe, clean = harden(model, InvariantBits()), model(inputs)[0]
    safe.weight_hh_l0.view(torch.int32)[0, 0] ^= 1 << 30
    assert torch.equal(safe(inputs)[0], clean)
    assert safe._flat_weights[0] is safe.weight_ih_l0


def test_methods_stack_and_a_second_of_a_kind_is_refused():
    model = Exposed(WEIGHTS)
    safe = harden(model, Secded(), WeightRanges())
    assert torch.equal(flipped(safe, 3, 30), decoded(safe))
    with pytest.raises(ModelError, match=r"'layer.weight' is guarded in this way already"):
        harden(safe, WeightRanges())


def test_bad_input_is_refused_in_one_line():
    model = Exposed(WEIGHTS)
    for call, message in (
        (lambda: harden(model), "needs a method"),
        (lambda: harden(model, Secded("layer.wieght")), "no parameter matches"),
        (lambda: harden(model.half(), Secded()), "needs parameters of torch.float32, got torch.float16"),
        (lambda: Triplicate(bits=6), "from 1 to 5 bits"),
        (lambda: WeightRanges(action="mean"), "got 'mean'"),
    ):
        with pytest.raises((ModelError, SpaceError), match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


class Firing(nn.Module):
    """A leaky neuron whose decay and threshold are buffers of its state, and its potential is not."""

    def __init__(self):
        super().__init__()
        self.register_buffer("beta", torch.tensor(0.9))
        self.register_buffer("threshold", torch.tensor(1.0))
        self.register_buffer("mem", torch.zeros(1), persistent=False)

    def forward(self, x):
        potential = self.mem * 0 + self.beta * x
        return (potential > self.threshold) * potential


@pytest.mark.parametrize("method", [InvariantBits(buffers=True), WeightRanges(buffers=True)], ids=repr)
@pytest.mark.parametrize("name", ["0.running_mean", "0.running_var", "1.beta", "1.threshold"])
def test_buffers_of_the_state_are_guarded_and_what_neurons_keep_is_not(method, name):
    model = nn.Sequential(nn.BatchNorm1d(3), Firing()).eval().requires_grad_(False)
    model[0].running_mean.copy_(torch.tensor([0.5, -0.3, 0.1]))
    look = torch.rand(5, 3) * 3
    safe = harden(model, method)
    assert torch.equal(safe(look), model(look))
    assert not [guard for _, _, guard in guards(safe) if guard.place in ("mem", "num_batches_tracked")]
    dict(safe.named_buffers())[name].view(-1).view(torch.int32)[0] ^= 1 << 30
    assert torch.allclose(safe(look), model(look), atol=0.7)  # a clamped mean is another one of the three
    if isinstance(method, InvariantBits):
        assert torch.equal(safe(look), model(look))


def test_the_bounds_of_ranges_can_be_guarded_too():
    model, look = nn.Sequential(nn.Linear(3, 2)).requires_grad_(False), torch.rand(9, 3)
    safe = harden(model, Ranges(), InvariantBits(buffers=True), profile=profile(model, look))
    safe[0].input_high.view(torch.int32).bitwise_xor_(1 << 30)
    assert torch.equal(safe(look), model(look))


def test_guards_of_buffers_have_an_option():
    assert method_of("invariant-bits:buffers") == InvariantBits(buffers=True)
    assert method_of("weight-ranges:zero:buffers") == WeightRanges(action="zero", buffers=True)
    assert method_of("zero-space") == ZeroSpace()
    with pytest.raises(ModelError, match="parity has no option 'buffers'"):
        method_of("parity:buffers")


def test_a_model_that_holds_what_it_computed_last_is_hardened_and_watched():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].register_buffer("mem", model[0](torch.ones(3)), persistent=False)
    model.last = model[0](torch.ones(3))
    watched = detecting(harden(model, InvariantBits()))
    assert torch.equal(watched(torch.ones(1, 3))["output"], model(torch.ones(1, 3)))
    assert watched.model[0].mem.grad_fn is None
    assert torch.equal(watched.model[0].mem, model[0].mem)


def test_what_neurons_hold_of_the_last_batch_is_no_memory_of_hardening():
    model = nn.Sequential(nn.Linear(3, 2), Firing())
    safe = harden(model, InvariantBits("0.weight"))
    safe[1].mem = torch.zeros(500)
    stored = 4 * (6 + 2 + 2)  # weight, bias, beta and threshold
    assert overhead(model, safe) == pytest.approx(2 * 4 / stored)


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_weights_with_nan_have_no_range(per):
    weight = WEIGHTS.clone()
    weight[1, 2] = float("nan")
    with pytest.raises(ModelError, match=r"'layer.weight' holds NaN, so it has no range; mend the model"):
        harden(Exposed(weight), WeightRanges(per=per))
