"""Codes of 8 bits as parameters: the same values and faults, every method on them, and a code in their free bits."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from torchfault import represent
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import ModelError
from torchfault.faults import BitFlip
from torchfault.hardening import (
    Checksums,
    InvariantBits,
    Parity,
    Secded,
    WeightChecksums,
    WeightRanges,
    ZeroSpace,
    detecting,
    guards,
    harden,
    unpacked,
)
from torchfault.hardening.zero_space import _columns
from torchfault.testing import check_hardening
from torchfault.trials import strike


def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    return nn.Sequential(*layers).eval().requires_grad_(False)


DATA = Data(torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("how", ["int8", "int8:tensor", "int8:16", "uint8"])
def test_an_unpacked_model_computes_the_same_bit_by_bit(how):
    model = represent(network(), how)
    plain = unpacked(model)
    assert torch.equal(plain(DATA.inputs), model(DATA.inputs))
    assert plain[0].weight.dtype == (torch.uint8 if how == "uint8" else torch.int8)
    assert {"0.weight_scale", "3.weight_scale"} <= set(plain.state_dict())
    twin = unpacked(model)
    for held in twin.parameters():
        held.zero_()
    twin.load_state_dict(plain.state_dict())
    assert torch.equal(twin(DATA.inputs), model(DATA.inputs))


def test_the_same_faults_in_codes_have_the_outcomes_of_the_represented_model():
    model = represent(network(), "int8")
    found = []
    for one in (model, unpacked(model)):
        engine, rng = Engine(one, DATA, executor="hooks"), np.random.default_rng(4)
        space = engine.space.select(["0.weight", "3.weight"])
        where, inputs = space.locate(rng.integers(0, len(space), 60)), rng.integers(0, len(DATA), 60)
        outputs = torch.zeros(60, 5)
        for lanes in engine.run(strike(space, where, model=BitFlip(), rng=rng, inputs=inputs)):
            outputs[lanes.trial] = lanes.outputs
        found.append(outputs)
    assert torch.allclose(*found, rtol=1e-5, atol=1e-6)
    assert len(found[0].unique(dim=0)) > 20


@pytest.mark.parametrize(
    "method", [InvariantBits(), WeightRanges(), WeightChecksums(), Checksums(), ZeroSpace()], ids=repr
)
def test_methods_pass_the_suite_on_codes(method):
    check_hardening(method, represent(network(), "int8"), DATA, tolerance=0.05 if method == ZeroSpace() else 0.0)


def test_the_code_corrects_any_flip_and_tells_any_two():
    columns = _columns()
    assert len(set(columns)) == 64
    assert all(column.bit_count() % 2 for column in columns)  # the sum of two is even, and not 0


@pytest.mark.parametrize("features", [8, 21])
def test_zero_space_protection_puts_every_flip_right_and_leaves_two(features, rng):
    torch.manual_seed(2)
    model = represent(nn.Sequential(nn.Linear(features, 3, bias=False)).requires_grad_(False), "int8")
    safe, look = harden(model, ZeroSpace()), torch.eye(features)
    clean, words = safe(look), safe[0].weight.view(-1)
    guard = next(guards(safe))[2]
    assert not guard.alarms(safe[0], (), None)
    for element, bit in itertools.product(range(len(words) // 8 * 8), range(8)):
        words[element] ^= np.uint8(1 << bit).view(np.int8).item()
        assert torch.equal(safe(look), clean), (element, bit)
        assert guard.alarms(safe[0], (), None)
        words[element] ^= np.uint8(1 << bit).view(np.int8).item()
    for one, two in rng.integers(0, 8, (30, 2)):
        if one != two:
            words[one] ^= 2
            words[two] ^= 8
            assert guard.alarms(safe[0], (), None)
            words[one] ^= 2
            words[two] ^= 8
    assert torch.equal(safe(look), clean)


@pytest.mark.parametrize("how", ["int8", "int8:tensor", "int8:16"])
def test_seven_of_eight_codes_are_small_and_scales_fit_them(how):
    torch.manual_seed(3)
    weight = torch.randn(6, 64)
    layer = nn.Linear(64, 6, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    safe = harden(represent(nn.Sequential(layer), how), ZeroSpace())
    codes = detecting(safe, mend=False).model[0].weight.view(-1, 8)  # with their check bits
    assert (codes[:, :7] >> 6 != codes[:, :7] >> 7).any()
    moved = safe(torch.eye(64)).t() - weight
    step = weight.abs().max() / 63  # of codes of 7 bits, one scale for all; those of 8 bits were rounded before
    assert moved.square().mean() < step**2 / 12 * 1.3


def test_guards_of_scales_come_before_values_are_made():
    safe = harden(represent(network(), "int8"), ZeroSpace(), InvariantBits("*_scale"))
    clean = safe(DATA.inputs)
    safe[0].weight_scale.view(torch.int32)[1] ^= 1 << 30
    safe[3].weight.view(-1)[7] ^= 64
    assert torch.equal(safe(DATA.inputs), clean)


def test_checksums_check_against_the_weights_that_a_layer_computes_with():
    model = network()
    safe = harden(model, Secded(), Checksums())
    clean = safe(DATA.inputs)
    assert not detecting(safe)(DATA.inputs)["detected"].any()
    safe[0].weight.view(torch.int32)[0, 0, 0, 0] ^= 1 << 30
    assert torch.equal(safe(DATA.inputs), clean)
    with_codes = harden(represent(model, "int8"), ZeroSpace(), Checksums())
    assert not detecting(with_codes)(DATA.inputs)["detected"].any()


def test_what_does_not_fit_is_refused_in_one_line():
    for call, message in (
        (lambda: harden(represent(network(), "csr"), InvariantBits()), "'0.weight' is kept as csr"),
        (lambda: harden(represent(network(), "mxfp8_e4m3"), Secded("*.weight")), "kept as mxfp8_e4m3"),
        (lambda: harden(network(), ZeroSpace()), "torch.int8, got torch.float32"),
        (lambda: harden(represent(network(), "uint8"), ZeroSpace()), "needs parameters of torch.int8"),
        (lambda: harden(represent(network(), "int8"), Secded("*.weight")), "torch.float32, got torch.int8"),
        (lambda: harden(represent(nn.Linear(3, 2), "int8"), ZeroSpace()), "8 codes or more"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_detector_that_does_not_mend_computes_what_it_should():
    safe = harden(represent(network(), "int8"), ZeroSpace(), InvariantBits(), WeightRanges())
    for mend in (True, False):
        found = detecting(safe, mend=mend)(DATA.inputs)
        assert torch.equal(found["output"], safe(DATA.inputs))
        assert not found["detected"].any()
    safe[0].weight.view(-1)[3] ^= 32
    assert detecting(safe, mend=False)(DATA.inputs)["detected"].all()


def test_an_encoding_does_not_change_words_that_a_guard_knows():
    for methods in ((InvariantBits(), Secded()), (Parity(), Secded()), (WeightRanges(), Parity())):
        with pytest.raises(ModelError, match="give the encoding before other methods"):
            harden(network(), *methods)
    with pytest.raises(ModelError, match="give the encoding before other methods"):
        harden(represent(network(), "int8"), InvariantBits(), ZeroSpace())
    model = network()
    safe = harden(model, Secded(), InvariantBits(), WeightRanges())
    assert torch.allclose(safe(DATA.inputs), model(DATA.inputs), atol=1e-3)
