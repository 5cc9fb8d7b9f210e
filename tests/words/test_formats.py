"""Emulated number formats: rounding, saturation and every code agree with ml_dtypes, NumPy, or exact fractions."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.support.torch_types import skip_without
from torchfault.errors import FaultError, WordError
from torchfault.faults import Value
from torchfault.testing import check_word_format
from torchfault.words import WORDS, decode, encode, flip_changes, lying_in, masks_to_words, rounded, word, word_of
from torchfault.words.deltas import flip_deltas, values_of, words_of

THEIRS = {
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
    "e5m10": np.float16,
    "e8m7": ml_dtypes.bfloat16,
}
NAMES = [
    *THEIRS,
    "q3.4",
    "q0.7",
    "q7.0",
    "q7.16",
    "e8m23",
    "e2m1",
    "int4",
    "uint4",
    "int1",
    "uint8[0.023:128]",
    "int4[0.1:3]",
]
NAMES += ["float8_e4m3fn[nan]"]


def numbers(rng):
    """Return float32 numbers of all sizes, all kinds of bit patterns, and the special ones."""
    sizes = rng.standard_normal(50_000) * np.exp2(rng.integers(-30, 30, 50_000))
    patterns = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    return np.concatenate((sizes.astype(np.float32), patterns, np.float32([0.0, -0.0, np.inf, -np.inf, np.nan])))


def fractions(rng, steps, n=300):
    """Return numbers around the words of a format with *steps*, ties among them, as float32."""
    near = rng.integers(-600, 600, n) / 2
    return np.concatenate((near * steps, rng.normal(0, 40 * steps, n))).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_every_emulated_format_conforms(name):
    fmt = word(name)
    assert fmt.name == name
    check_word_format(fmt)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("name", THEIRS)
def test_a_minifloat_rounds_overflows_and_decodes_as_the_reference(name, rng):
    fmt, theirs, x = word(name), THEIRS[name], numbers(rng)
    with np.errstate(all="ignore"):
        expected = x.astype(theirs)
    unsigned = np.dtype(f"u{expected.itemsize}")
    nan, mine = np.isnan(x), encode(torch.from_numpy(x), fmt).numpy().view(unsigned)
    assert np.array_equal(mine[~nan], expected.view(unsigned)[~nan])
    codes = np.arange(1 << fmt.width, dtype=np.uint64)
    values = decode(masks_to_words(codes, fmt), fmt).numpy()
    assert np.array_equal(values, codes.astype(unsigned).view(theirs).astype(np.float32), equal_nan=True)
    stands_for = decode(encode(torch.tensor([math.nan]), fmt), fmt).item()
    assert stands_for == values[np.isfinite(values)].max() if name.endswith("fn") else math.isnan(stands_for)


def nearest(value, low, high, step):
    """Return the nearest multiple of *step*, ties to even, between *low* and *high* steps, in exact arithmetic."""
    return min(max(round(Fraction(float(value)) / step), low), high)


@pytest.mark.parametrize(("integer", "fraction"), [(3, 4), (0, 7), (7, 0), (7, 16), (2, 1)])
def test_fixed_point_agrees_with_exact_fractions(integer, fraction, rng):
    fmt, step = word(f"q{integer}.{fraction}"), Fraction(1, 1 << fraction)
    low, high = -(1 << integer + fraction), (1 << integer + fraction) - 1
    x = np.concatenate((fractions(rng, float(step)), np.float32([1e30, -1e30, 2.0**integer, -(2.0**integer)])))
    expected = [nearest(value, low, high, step) * step for value in x]
    words = encode(torch.from_numpy(x), fmt)
    assert [Fraction(value) for value in decode(words, fmt).tolist()] == expected
    assert [int(w) & (1 << fmt.width) - 1 for w in words] == [int(e / step) & (1 << fmt.width) - 1 for e in expected]
    ends = decode(encode(torch.tensor([math.inf, -math.inf, math.nan]), fmt), fmt).tolist()
    assert ends == [high * step, low * step, 0]


@pytest.mark.parametrize("name", ["uint8[0.023:128]", "int8[0.5:-3]", "uint4[0.1:0]"])
def test_quantised_words_agree_with_exact_fractions(name, rng):
    kind, _, rest = name.partition("[")
    scale, zero = float(rest.partition(":")[0]), int(rest.partition(":")[2][:-1])
    width = int(kind[-1])
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if kind[0] == "i" else (0, (1 << width) - 1)
    x = rng.normal(0, 100 * scale, 400).astype(np.float32)
    step = Fraction(scale)
    expected = [nearest(value, low - zero, high - zero, step) for value in x]
    got = decode(encode(torch.from_numpy(x), word(name)), word(name)).numpy()
    assert np.array_equal(got, np.array([float(e * step) for e in expected]).astype(np.float32))


def test_quantised_words_are_those_of_torchs_fake_quantisation(rng):
    x = torch.from_numpy(rng.normal(0, 2, 10_000).astype(np.float32))
    theirs = torch.fake_quantize_per_tensor_affine(x, 0.03125, 117, 0, 255)
    fmt = word("uint8[0.03125:117]")
    assert torch.equal(decode(encode(x, fmt), fmt), theirs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("q9.20", "q9.20 has 30 bits with its sign; a fixed-point word has 2 to 24"),
        ("e9m3", "2 to 8 exponent and 1 to 23 mantissa bits, got 9 and 3"),
        ("e8m3fn", "float32 cannot hold"),
        ("e4m3fn", "use float8_e4m3fn"),
        ("uint8[0:1]", "a scale above 0"),
        ("uint8[0.1:256]", "a zero point from 0 to 255"),
        ("q3,4", "no word format is called 'q3,4'"),
    ],
)
def test_a_format_that_cannot_be_is_refused(name, message):
    with pytest.raises(WordError, match=message.replace("[", r"\[")):
        word(name)


def test_a_value_that_an_emulated_format_cannot_hold_is_refused(rng):
    keep, toggle = Value(-8.0).masks(word("q3.4"), np.array([0]), rng=rng)
    assert (keep.tolist(), toggle.tolist()) == ([0], [0x80])
    for value, name in [
        (math.inf, "float8_e4m3fnuz"),
        (8.0, "q3.4"),
        (math.inf, "q3.4"),
        (29.0, "e3m2fn"),
        (8.0, "int4"),
        (1e9, "e5m2"),
    ]:
        with pytest.raises(FaultError, match="cannot hold"):
            Value(value).masks(word(name), np.array([0]), rng=rng)
    Value(math.inf).masks(word("e5m2"), np.array([0]), rng=rng)


def test_a_value_that_torchs_newest_types_cannot_hold_is_refused(rng):
    skip_without("float8_e8m0fnu", "float4_e2m1fn_x2")
    for value, name in [(1.0, "float4_e2m1fn_x2"), (0.0, "float8_e8m0fnu"), (-2.0, "float8_e8m0fnu")]:
        with pytest.raises(FaultError, match="cannot hold"):
            Value(value).masks(word(name), np.array([0]), rng=rng)
    assert Value(4.0).masks(word("float8_e8m0fnu"), np.array([0]), rng=rng)[1].tolist() == [129]


@pytest.mark.parametrize("name", ["float8_e8m0fnu", "float4_e2m1fn_x2", "uint64"])
def test_a_type_that_an_older_torch_lacks_is_told(name, monkeypatch):
    word.cache_clear()
    monkeypatch.delitem(WORDS, name, raising=False)
    with pytest.raises(WordError, match=f"'{name}' words need a torch that has this type, got torch 2"):
        word(name)
    word.cache_clear()


# What torch has types for, and ml_dtypes too.

TORCH8 = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "float8_e4m3fn[nan]": ml_dtypes.float8_e4m3fn,
}


@pytest.mark.parametrize("name", TORCH8)
def test_every_word_of_8_bits_stands_for_what_the_reference_says_and_so_does_each_flip(name):
    skip_without(name)
    codes = np.arange(256, dtype=np.uint8)
    theirs = codes.view(TORCH8[name]).astype(np.float64)
    assert np.array_equal(values_of(codes, name), theirs, equal_nan=True)
    flipped = (codes[:, None] ^ (1 << np.arange(8)).astype(np.uint8)[None]).view(TORCH8[name]).astype(np.float64)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(flip_deltas(codes, name), flipped - theirs[:, None], equal_nan=True)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("name", TORCH8)
def test_rounding_to_8_bits_is_that_of_the_reference_but_where_torch_saturates(name, rng):
    skip_without(name)
    x = numbers(rng)
    if name == "float8_e8m0fnu":  # torch drops the sign, and gives zero the smallest word; the reference has NaN
        x = np.abs(x[x != 0])
    with np.errstate(all="ignore"):
        expected = x.astype(TORCH8[name]).astype(np.float32)
    if name == "float8_e4m3fn":
        expected = np.where(np.isnan(expected) & ~np.isnan(x), np.copysign(np.float32(448), x), expected)
    got = rounded(torch.from_numpy(x), word(name)).numpy()
    assert np.array_equal(got, expected, equal_nan=True)
    held = values_of(words_of(x, name), name)
    assert np.array_equal(held, expected, equal_nan=True)


def test_beyond_448_torch_saturates_and_the_other_choice_is_nan():
    x = torch.tensor([448.0, 464.0, 465.0, -1e6, math.inf, math.nan])
    assert rounded(x, word("float8_e4m3fn")).tolist()[:5] == [448, 448, 448, -448, 448]
    assert rounded(x, word("float8_e4m3fn[nan]")).isnan().tolist() == [False, False, True, True, True, True]


def test_a_packed_word_of_two_numbers_flips_one_of_them():
    skip_without("float4_e2m1fn_x2")
    fmt = word("float4_e2m1fn_x2")
    words = np.arange(256, dtype=np.uint8)
    low, high = ((words >> shift & 15).view(ml_dtypes.float4_e2m1fn).astype(float) for shift in (0, 4))
    changes = flip_changes(torch.from_numpy(words), fmt).numpy()
    for bit in range(8):
        half, held = (words >> 4, high) if bit > 3 else (words & 15, low)
        moved = (half ^ (1 << bit % 4)).astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(float)
        assert np.array_equal(changes[:, bit], moved - held)
    assert np.array_equal(flip_deltas(words, fmt.name, bit=words % 8), changes[np.arange(256), words % 8])
    with pytest.raises(WordError, match="stands for two values; take its halves, in e2m1fn"):
        values_of(words, fmt.name)


@pytest.mark.parametrize("name", ["uint16", "uint32", "uint64"])
def test_a_flip_in_an_unsigned_word_is_worth_a_power_of_two(name, rng):
    width = int(name[4:])
    words = rng.integers(0, 2**width, 50, dtype=np.uint64)
    held = (words[:, None] >> np.arange(width, dtype=np.uint64)) & np.uint64(1)
    worth = np.exp2(np.arange(width))
    assert np.array_equal(flip_deltas(words, name), np.where(held != 0, -worth, worth))


@pytest.mark.parametrize("name", [f"{kind}{width}" for kind in ("int", "uint") for width in range(1, 8)])
def test_torchs_sub_byte_integers_are_the_lowest_bits_of_their_bytes(name):
    codes = torch.arange(1 << int(name.lstrip("uint")), dtype=torch.uint8)
    held = codes.view(getattr(torch, name))
    fmt = word_of(held)
    assert fmt.name == name
    assert torch.equal(encode(held, fmt), codes)
    assert torch.equal(decode(codes ^ 1, fmt).view(torch.uint8), codes ^ 1)
    assert fmt == lying_in(word(name), held.dtype)


def test_every_type_with_a_fixed_width_has_words():
    for name in WORDS:
        assert word_of(torch.zeros(2, dtype=getattr(torch, name))) == WORDS[name]
    with pytest.raises(WordError, match="complex64"):
        word_of(torch.zeros(1, dtype=torch.complex64))
