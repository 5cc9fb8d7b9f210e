"""Word formats: every bit pattern survives, edits are bit arithmetic, fields are those of the standards."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchfault.errors import WordError
from torchfault.words import WORDS, decode, edit, encode, masks_to_words, word, word_of

FLOATS = {"float64": (11, 52), "float32": (8, 23), "float16": (5, 10), "bfloat16": (8, 7), "float8_e5m2": (5, 2)}
NATIVE = [name for name in WORDS if name != "bool"]
STRUCT = {"float64": "<d", "float32": "<f", "float16": "<e", "int64": "<q", "int32": "<i", "int16": "<h", "int8": "<b"}


def as_words(patterns, fmt):
    """Return unsigned bit patterns as the words of *fmt*."""
    return masks_to_words(np.array(patterns, dtype=np.uint64), fmt)


def as_patterns(words, fmt):
    """Return words as unsigned bit patterns."""
    return [int(w) & ((1 << fmt.width) - 1) for w in words.flatten().tolist()]


def value_by_hand(pattern, exponent, mantissa):
    """Decode an IEEE-like pattern by its definition."""
    sign = -1.0 if pattern >> (exponent + mantissa) else 1.0
    e, m = pattern >> mantissa & (1 << exponent) - 1, pattern & (1 << mantissa) - 1
    bias = (1 << exponent - 1) - 1
    if e == (1 << exponent) - 1:
        return math.nan if m else sign * math.inf
    return sign * math.ldexp(m + (1 << mantissa) * (e > 0), max(e, 1) - bias - mantissa)


# Round trips.


@pytest.mark.parametrize("name", [name for name in WORDS if WORDS[name].width <= 16])
def test_every_word_of_a_short_format_survives(name):
    fmt = word(name)
    patterns = np.arange(1 << fmt.width, dtype=np.uint64)
    values = decode(masks_to_words(patterns, fmt), fmt)
    assert values.dtype == fmt.dtype
    assert as_patterns(encode(values, fmt), fmt) == patterns.tolist()


@pytest.mark.parametrize("name", [name for name in WORDS if WORDS[name].width > 16])
@given(data=st.data())
def test_every_word_of_a_long_format_survives(name, data):
    fmt = word(name)
    patterns = data.draw(st.lists(st.integers(0, (1 << fmt.width) - 1), max_size=20))
    words = as_words(patterns, fmt)
    assert as_patterns(encode(decode(words, fmt), fmt), fmt) == patterns
    reshaped = decode(words, fmt)[None, :, None].expand(2, -1, 3)
    assert as_patterns(encode(reshaped, fmt)[1, :, 2], fmt) == patterns


@pytest.mark.parametrize("name", FLOATS)
def test_nan_payloads_signed_zeros_and_extremes_survive(name):
    fmt, (exponent, mantissa) = word(name), FLOATS[name]
    top, sign = ((1 << exponent) - 1) << mantissa, 1 << (exponent + mantissa)
    payloads = [top | m for m in {1, 2, (1 << mantissa) - 1, 1 << (mantissa - 1)} if 0 < m < 1 << mantissa]
    edges = [0, 1, (1 << mantissa) - 1, 1 << mantissa, top - 1, top, *payloads]
    patterns = [s | edge for edge in edges for s in (0, sign)]
    values = decode(as_words(patterns, fmt), fmt)
    assert as_patterns(encode(values, fmt), fmt) == patterns
    limits, got = torch.finfo(fmt.dtype), values.double().tolist()
    assert got[:2] == [0.0, 0.0]
    assert math.copysign(1, got[1]) == -1
    assert got[2] == limits.smallest_normal * 2.0**-mantissa  # the least subnormal
    assert got[6] == limits.smallest_normal
    assert got[8:12] == [limits.max, -limits.max, math.inf, -math.inf]
    assert all(math.isnan(v) for v in got[12:])


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e5m2"])
def test_short_floats_mean_what_their_bits_say(name):
    fmt = word(name)
    patterns = range(1 << fmt.width)
    got = decode(as_words(patterns, fmt), fmt).double().tolist()
    for pattern, value in zip(patterns, got, strict=True):
        expected = value_by_hand(pattern, *FLOATS[name])
        assert value == expected or (math.isnan(value) and math.isnan(expected))


def test_e4m3fn_has_no_infinity_and_one_nan():
    fmt = word("float8_e4m3fn")
    got = decode(as_words(range(256), fmt), fmt).double().tolist()
    for pattern, value in enumerate(got):
        e, m, sign = pattern >> 3 & 15, pattern & 7, -1.0 if pattern >> 7 else 1.0
        if pattern & 127 == 127:
            assert math.isnan(value)
        else:
            assert value == sign * math.ldexp(m + 8 * (e > 0), max(e, 1) - 7 - 3)


@given(data=st.data())
@pytest.mark.parametrize("name", STRUCT)
def test_words_are_the_bytes_that_python_packs(name, data):
    fmt, code = word(name), STRUCT[name]
    limits = {"min_value": -(1 << fmt.width - 1), "max_value": (1 << fmt.width - 1) - 1}
    value = data.draw(st.floats(width=fmt.width, allow_nan=False) if name in FLOATS else st.integers(**limits))
    packed = int.from_bytes(struct.pack(code, value), "little")
    assert as_patterns(encode(torch.tensor([value], dtype=fmt.dtype), fmt), fmt) == [packed]


# Edits.


@pytest.mark.parametrize("name", WORDS)
@given(data=st.data())
def test_edits_are_bit_arithmetic(name, data):
    fmt = word(name)
    pattern = st.integers(0, (1 << fmt.width) - 1)
    rows = data.draw(st.lists(st.tuples(pattern, pattern, pattern), min_size=1, max_size=10))
    words, keep, toggle = (as_words([row[i] for row in rows], fmt) for i in range(3))
    values = decode(words, fmt)
    before = encode(values, fmt).clone()
    edited = encode(edit(values, keep, toggle, fmt), fmt)
    assert as_patterns(edited, fmt) == [(w & k) ^ t for w, k, t in rows]
    assert torch.equal(encode(values, fmt), before)


@pytest.mark.parametrize("name", WORDS)
def test_masks_broadcast(name):
    fmt = word(name)
    full = (1 << fmt.width) - 1
    values = decode(as_words([0, full, 0, full, 0, full], fmt), fmt).reshape(2, 3)
    flipped = edit(values, as_words([full], fmt), as_words([full], fmt), fmt)
    assert flipped.shape == (2, 3)
    assert as_patterns(encode(flipped, fmt), fmt) == [full, 0] * 3


@given(st.lists(st.integers(0, 2**64 - 1), max_size=10), st.sampled_from(NATIVE))
def test_masks_keep_their_low_bits(patterns, name):
    fmt = word(name)
    words = as_words(patterns, fmt)
    assert words.dtype == fmt.integer
    assert as_patterns(words, fmt) == [p & (1 << fmt.width) - 1 for p in patterns]


def test_masks_do_not_share_memory_with_the_words_made_of_them():
    masks = np.array([1, 2], dtype=np.uint64)
    words = masks_to_words(masks, word("int64"))
    words.zero_()
    assert masks.tolist() == [1, 2]


@pytest.mark.parametrize("name", NATIVE)
def test_native_words_are_the_same_memory(name):
    tensor = torch.zeros(2, 3, dtype=word(name).dtype)
    words = encode(tensor, word(name))
    assert words.data_ptr() == tensor.data_ptr()
    assert decode(words, word(name)).data_ptr() == tensor.data_ptr()


def test_bools_stay_zero_or_one():
    fmt = word("bool")
    values = decode(torch.tensor([0, 1, 2, 3, 255], dtype=torch.uint8), fmt)
    assert values.view(torch.uint8).tolist() == [0, 1, 0, 1, 1]
    flipped = edit(torch.tensor([True, False]), as_words([1], fmt), as_words([1], fmt), fmt)
    assert flipped.tolist() == [False, True]


def test_words_of_what_needs_a_gradient_and_of_any_layout():
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    assert not encode(weight, word("float32")).requires_grad
    columns = torch.arange(6.0).reshape(2, 3).T[:, ::2]
    assert decode(encode(columns, word("float32")), word("float32")).equal(columns)
    assert encode(torch.tensor(1.0), word("float32")).shape == ()


# Fields.


@pytest.mark.parametrize("name", WORDS)
def test_fields_hold_every_bit_once_lowest_first(name):
    fields = word(name).fields
    found = [bit for bits in fields.values() for bit in bits]
    assert (sorted(found) if word(name).halves else found) == list(range(word(name).width))


@pytest.mark.parametrize("name", [name for name in WORDS if WORDS[name].dtype.is_floating_point])
def test_float_fields_are_those_of_the_format(name):
    fmt = word(name)
    if fmt.halves:
        assert fmt.fields == {"mantissa": (0, 4), "exponent": (1, 2, 5, 6), "sign": (3, 7)}
        return
    if name == "float8_e8m0fnu":
        assert fmt.fields == {"exponent": tuple(range(8))}
        return
    # Torch tells another epsilon for float8_e5m2fnuz than its numbers have.
    mantissa = 2 if "e5m2" in name else round(-math.log2(torch.finfo(fmt.dtype).eps))
    assert {field: len(bits) for field, bits in fmt.fields.items()} == {
        "mantissa": mantissa,
        "exponent": fmt.width - 1 - mantissa,
        "sign": 1,
    }


@pytest.mark.parametrize("name", [name for name in WORDS if len(WORDS[name].fields.get("sign", ())) == 1])
def test_the_sign_bit_makes_numbers_negative(name):
    fmt = word(name)
    (sign,) = fmt.fields["sign"]
    one = torch.ones(1).to(fmt.dtype)
    flipped = edit(one, as_words([(1 << fmt.width) - 1], fmt), as_words([1 << sign], fmt), fmt)
    assert flipped.double().item() < 0


# Names.


def test_formats_are_found_by_name_and_by_tensor():
    for name, fmt in WORDS.items():
        assert word(name) is fmt
        assert fmt.name == name
        assert word_of(torch.empty(0, dtype=fmt.dtype)) is fmt
        assert hash(fmt) == hash(word(name))
    assert {"float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"} <= set(WORDS)
    assert {"int8", "int16", "int32", "uint8", "bool"} <= set(WORDS)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: word("float23"), "no word format is called 'float23'; did you mean .*'float32'.*; known: float64, "),
        (lambda: word_of(torch.zeros(1, dtype=torch.complex64)), "faults need a tensor of .*, got torch.complex64"),
        (lambda: encode(torch.zeros(1), word("int8")), "int8 words need a torch.int8 tensor, got torch.float32"),
        (lambda: edit(torch.zeros(1), *[torch.zeros(1)] * 2, word("float16")), "float16 words need a torch.float16"),
    ],
)  # fmt: skip
def test_what_has_no_words_is_refused(attempt, message):
    with pytest.raises(WordError, match=message):
        attempt()
