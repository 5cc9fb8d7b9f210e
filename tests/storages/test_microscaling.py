"""Microscaling: every element, scale and rounding agrees with ml_dtypes, exact fractions and torchao's own tensors."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from torchfault.errors import StorageError
from torchfault.storages import MICROSCALED, Microscaled, activation_storage, keep, microscaling, storage
from torchfault.words import encode, masks_to_words, word

mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")

ELEMENTS = {
    "mxfp8_e4m3": ml_dtypes.float8_e4m3fn,
    "mxfp8_e5m2": ml_dtypes.float8_e5m2,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp4": ml_dtypes.float4_e2m1fn,
    "nvfp4": ml_dtypes.float4_e2m1fn,
}
THEIRS = {
    "mxfp8_e4m3": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp6_e3m2": mx.DTYPE_FP6_E3M2,
    "mxfp6_e2m3": mx.DTYPE_FP6_E2M3,
    "mxfp4": torch.float4_e2m1fn_x2,
}
MX = [name for name in MICROSCALED if name != "nvfp4"]


def reference_elements(kind: str) -> np.ndarray:
    """Return what each word of an element stands for, in float64."""
    width = word(MICROSCALED[kind].element).width
    codes = np.arange(1 << width, dtype=np.uint8)
    if kind == "mxint8":
        return codes.view(np.int8) / 64
    return codes.view(ELEMENTS[kind]).astype(np.float64)


def test_the_kinds_are_those_of_the_specification():
    # OCP Microscaling Formats (MX) Specification v1.0, Table 1 and Tables 2 to 5: largest normal numbers.
    largest = {"mxfp8_e4m3": 448, "mxfp8_e5m2": 57344, "mxfp6_e3m2": 28, "mxfp6_e2m3": 7.5, "mxfp4": 6, "nvfp4": 6}
    for kind, given in MICROSCALED.items():
        values = reference_elements(kind)
        assert given.largest == largest.get(kind, 1 + 63 / 64) == values[np.isfinite(values)].max()
        assert given.exponent == math.floor(math.log2(given.largest))
        assert given.block == (16 if kind == "nvfp4" else 32)
        assert storage(kind) == Microscaled(kind)


@pytest.mark.parametrize("kind", MX)
def test_every_element_under_every_scale_stands_for_what_the_specification_says(kind):
    fmt = word(MICROSCALED[kind].element)
    elements, count = reference_elements(kind), 1 << fmt.width
    stored = keep(torch.zeros(256, count), Microscaled(kind, count))
    codes = masks_to_words(np.tile(np.arange(count, dtype=np.uint64), 256), fmt)
    words = {"": fmt.coding.to_values(codes, fmt.dtype).reshape(256, count)}
    words["scale"] = torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu).reshape(256, 1)
    scales = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    assert np.isnan(scales[255])
    assert scales[0] == 2.0**-127
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (elements[None] * scales[:, None]).astype(np.float32)
    got = stored.value(words).numpy()
    assert np.array_equal(got, expected, equal_nan=True)
    assert np.array_equal(np.signbit(got[:, elements == 0]), np.signbit(expected[:, elements == 0]))


def test_every_element_under_every_scale_of_nvfp4():
    elements = reference_elements("nvfp4")
    stored = keep(torch.zeros(256, 16), Microscaled("nvfp4"))
    codes = np.arange(256, dtype=np.uint8)
    scales = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    fmt = word("e2m1fn")
    words = {"": fmt.coding.to_values(torch.arange(16, dtype=torch.uint8), torch.float32).repeat(256, 1)}
    words["scale"] = torch.from_numpy(codes.copy()).view(torch.float8_e4m3fn).reshape(256, 1)
    for per_tensor in (1.0, 0.0371, -3.5e-3, math.inf):
        words["per_tensor_scale"] = torch.tensor(per_tensor)
        with np.errstate(invalid="ignore"):
            expected = (np.float32(per_tensor) * scales)[:, None] * elements[None].astype(np.float32)
        assert np.array_equal(stored.value(words).numpy(), expected, equal_nan=True)


def blocks_of_all_sizes(rng, blocks: int, size: int) -> torch.Tensor:
    """Return blocks of numbers of very different sizes, some with zeros and subnormal numbers, all finite."""
    spread = rng.standard_normal((blocks, size)) * np.exp2(rng.integers(-14, 14, (blocks, size)))
    values = spread * np.exp2(rng.integers(-100, 100, (blocks, 1)))
    values[rng.random((blocks, size)) < 0.1] = 0
    values[:8] = rng.integers(0, 2**32, (8, size), dtype=np.uint32).view(np.float32)
    values[8] = 0
    return torch.from_numpy(np.nan_to_num(values, nan=1.0).astype(np.float32)).clamp(-1e38, 1e38)


def nearest(quotient: Fraction, numbers: np.ndarray) -> float:
    """Return the nearest of *numbers*, which ascend; of two as near the one whose word is even."""
    distances = [abs(Fraction(float(number)) - quotient) for number in numbers]
    best = min(distances)
    found = [i for i, distance in enumerate(distances) if distance == best]
    return float(numbers[found[0] if len(found) == 1 or found[0] % 2 == 0 else found[1]])


@pytest.mark.parametrize("kind", MX)
def test_blocks_are_scaled_and_rounded_as_exact_fractions_are(kind, rng):
    values = blocks_of_all_sizes(rng, 40, 32)
    values[9] = torch.arange(32) * 2.0**-140  # smaller than the smallest scale makes of them
    stored = keep(values, storage(kind))
    positive = np.unique(np.abs(reference_elements(kind)))
    positive = positive[np.isfinite(positive) & (positive <= MICROSCALED[kind].largest)]
    got, codes = stored.value().tolist(), stored.words["scale"].view(torch.uint8).flatten().tolist()
    for row, code, found in zip(values.tolist(), codes, got, strict=True):
        top = max(map(abs, row))
        power = math.frexp(top)[1] - 1 - MICROSCALED[kind].exponent if top else -127
        power = min(max(power, -127), 127)
        assert code == power + 127
        step = Fraction(2) ** power
        for value, mine in zip(row, found, strict=True):
            expected = Fraction(nearest(abs(Fraction(value)) / step, positive)) * step
            assert mine == math.copysign(np.float32(float(expected)), value)


@pytest.mark.parametrize("kind", THEIRS)
def test_words_and_values_are_those_of_torchaos_mx_tensor(kind, rng):
    values = blocks_of_all_sizes(rng, 3000, 32)
    # Where the scale is 2^-127 torchao divides by 2^-126, as it says, for the sake of a compiler.
    values = values[(values.abs().amax(1) > 2.0**-100)]
    theirs = mx.MXTensor.to_mx(values, THEIRS[kind], 32)
    stored = keep(values, storage(kind))
    assert torch.equal(stored.words["scale"].view(torch.uint8), theirs.scale.view(torch.uint8).view(-1, 1))
    assert torch.equal(stored.value(), theirs.dequantize(torch.float32))
    fmt = word(MICROSCALED[kind].element)
    mine = encode(stored.words[""], fmt)
    words = theirs.qdata.view(torch.uint8)
    if kind == "mxfp4":
        words = torch.stack((words & 15, words >> 4), -1).flatten(1)
    assert torch.equal(mine, words)
    for code in (0, 1, 100, 254, 255):
        scale = torch.full((len(values), 1), code, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        theirs.scale = scale
        mine, given = stored.value({"scale": scale}), theirs.dequantize(torch.float32)
        assert torch.equal(mine.nan_to_num(0.5), given.nan_to_num(0.5))


def test_words_and_values_are_those_of_torchaos_nvfp4_tensor(rng):
    for size in (1.0, 3e-6, 7e8):
        values = torch.from_numpy((rng.standard_normal((500, 64)) * size).astype(np.float32))
        values *= torch.from_numpy(np.exp2(rng.integers(-12, 1, (500, 4)))).float().repeat_interleave(16, 1)
        values[3, :16] = 0
        theirs = nv.NVFP4Tensor.to_nvfp4(values, per_tensor_scale=nv.per_tensor_amax_to_scale(values.abs().max()))
        stored = keep(values, storage("nvfp4"))
        assert torch.equal(stored.words["per_tensor_scale"], theirs.per_tensor_scale)
        assert torch.equal(stored.words["scale"].view(torch.uint8), theirs.scale.view(torch.uint8))
        packed = theirs.qdata.view(torch.uint8)
        words = torch.stack((packed & 15, packed >> 4), -1).flatten(1)
        assert torch.equal(encode(stored.words[""], word("e2m1fn")), words)
        assert torch.equal(stored.value(), theirs.dequantize(torch.float32))


@pytest.mark.parametrize(("axis", "kind"), [(0, "mxfp4"), (1, "mxfp8_e4m3"), (2, "mxint8"), (1, "nvfp4")])
def test_blocks_along_an_axis_are_those_of_the_turned_tensor(axis, kind, rng):
    values = torch.from_numpy(rng.standard_normal((5, 6, 7)).astype(np.float32)) * 10
    stored = keep(values, Microscaled(kind, 4, axis))
    turned = keep(values.movedim(axis, -1).reshape(-1, values.shape[axis]), Microscaled(kind, 4))
    assert stored.storage.name == f"{kind}:4@{axis}"
    assert torch.equal(stored.value().movedim(axis, -1).reshape(turned.shape), turned.value())
    assert torch.equal(
        stored.words["scale"].reshape(turned.words["scale"].shape).float(), turned.words["scale"].float()
    )
    assert stored.parts["scale"].channel == (0 if axis else None)
    with pytest.raises(StorageError, match="needs a tensor of 4 axes or more, got 3"):
        keep(values, Microscaled("mxfp4", 4, 3))


@pytest.mark.parametrize(("axis", "kind"), [(1, "mxfp8_e4m3"), (2, "mxfp6_e2m3"), (3, "mxfp4"), (1, "mxfp8_e5m2")])
def test_activations_along_an_axis_are_rounded_as_torchao_rounds_the_turned_tensor(axis, kind, rng):
    shape = [3, 2, 4, 5]
    shape[axis] = 64
    values = torch.from_numpy((rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(np.float32))
    turned = values.movedim(axis, -1).contiguous()
    expected = mx.MXTensor.to_mx(turned, THEIRS[kind], 32).dequantize(torch.float32).movedim(-1, axis)
    for given in (values, values.contiguous(memory_format=torch.channels_last)):
        found = activation_storage(f"{kind}:32@{axis}").round(given)
        assert torch.equal(found, expected)
        assert found.stride() == given.stride()


@pytest.mark.parametrize(
    "name", ["mxfp8_e4m3", "mxfp4:8@1", "mxfp6_e2m3:5@2", "mxint8:7@3", "nvfp4:16[0.001]", "nvfp4:3@1[0.5]", "bfp8:16"]
)
@pytest.mark.parametrize("shape", [(3, 20, 6, 7), (2, 8, 4, 8), (2, 8, 9)])
def test_activations_are_rounded_alike_however_they_lie_in_memory(name, shape, rng):
    """To the bit but for which NaN, with infinities, subnormal numbers and zeros of both signs, blocks of them too."""
    how = activation_storage(name)
    if len(shape) == 3 and "@3" in name:
        pytest.skip("no such axis")
    values = torch.from_numpy((rng.standard_normal(shape) * 10.0 ** rng.integers(-46, 38, shape)).astype(np.float32))
    for at, special in enumerate((-0.0, torch.nan, -torch.nan, torch.inf, 1e-42, 3e38)):
        values.view(-1)[at * 13 :: 97] = special
    values[0, 1], values[1, 2], values[1, 3] = 0.0, torch.nan, 1e-45
    wanted = how.round(values)
    turned = values.movedim(1, -1).contiguous().movedim(-1, 1)
    for given in (turned, values.transpose(0, 1).contiguous().transpose(0, 1)):
        found = how.round(given)
        assert torch.equal(found.isnan(), wanted.isnan())
        mine, theirs = (x.nan_to_num(7.0).contiguous().view(torch.int32) for x in (found, wanted))
        assert torch.equal(mine, theirs)
        assert found.stride() == given.stride()


@pytest.mark.parametrize("exponent", [8, 15, 4, 0])
def test_scales_by_bits_are_those_of_the_specification(exponent):
    upper = torch.arange(1 << 15, dtype=torch.int32) << 16  # all magnitudes' upper halves, NaN of all kinds among them
    largest = torch.cat([upper, upper + 1, upper + 0xFFFF]).view(torch.float32)
    code, factor = microscaling._powers_of_two(largest, exponent)
    for value, mine, times in zip(largest[::37].tolist(), code[::37].tolist(), factor[::37].tolist(), strict=True):
        if math.isnan(value):
            assert (mine, math.isnan(times)) == (255, True)
            continue
        top = 128 if math.isinf(value) else math.frexp(value)[1] - 1 if value else -127
        power = min(max(top - exponent, -127), 127)
        assert (mine, times) == (power + 127, 2.0**-power)


def test_a_flipped_scale_moves_its_whole_block_and_no_other(rng):
    values = torch.from_numpy(rng.standard_normal((2, 64)).astype(np.float32))
    for kind, at in (("mxfp8_e4m3", 1), ("mxfp6_e3m2", 0), ("mxint8", 1)):
        stored = keep(values, storage(kind))
        words = stored.words["scale"].view(torch.uint8).clone()
        before = int(words[1, at])
        words[1, at] ^= 1 << 1
        moved, golden = stored.value({"scale": words.view(torch.float8_e8m0fnu)}), stored.value()
        here = slice(32 * at, 32 * at + 32)
        assert torch.equal(moved[1, here], golden[1, here] * 2.0 ** (int(words[1, at]) - before))
        moved[1, here] = golden[1, here]
        assert torch.equal(moved, golden)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Microscaled("mxfp5"), "blocks with a scale are mxfp8_e4m3, .*, got 'mxfp5'"),
        (lambda: Microscaled("mxfp4", 1 << 17), "blocks have 1 to 65536 numbers, got 131072"),
        (lambda: Microscaled("mxfp4", fixed=0.1), "the scale of a tensor is NVFP4's alone"),
        (lambda: storage("mxfp5"), "no storage is called 'mxfp5'"),
    ],
)
def test_what_cannot_be_is_refused(attempt, message):
    with pytest.raises(StorageError, match=message):
        attempt()
