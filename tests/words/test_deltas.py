"""What the flip of a bit does to a value: every format against a slow decoder written from its definition."""

import math
import struct

import numpy as np
import pytest
import torch

from benchmarks.deepvigor.distribution import flipped_deltas
from torchfault.sampling.bits import bit_changes, bit_derivatives
from torchfault.sampling.statistical import bit_probabilities
from torchfault.words import WORDS, flip_changes, flip_deltas, masks_to_words, word
from torchfault.words.deltas import values_of, words_of

PACKED = {"float64": "d", "float32": "f", "float16": "e", "int64": "q", "int32": "i", "int16": "h", "int8": "b"}
PACKED |= {"uint8": "B", "bool": "?"}
MINIFLOATS = {  # exponent and mantissa bits; what the top exponent holds
    "bfloat16": (8, 7, "ieee"),
    "float8_e5m2": (5, 2, "ieee"),
    "float8_e4m3fn": (4, 3, "one nan"),
    "e5m2": (5, 2, "ieee"),
    "e4m3": (4, 3, "ieee"),
    "e3m2": (3, 2, "ieee"),
    "e3m2fn": (3, 2, "finite"),
    "e2m3fn": (2, 3, "finite"),
    "e2m1fn": (2, 1, "finite"),
    "e5m10": (5, 10, "ieee"),
}
WHOLE = {"int4": (4, True, 1), "uint4": (4, False, 1), "int2": (2, True, 1), "uint7": (7, False, 1)}
FIXED = {"q3.4": (8, 4), "q0.7": (8, 7), "q7.0": (8, 0), "q7.8": (16, 8), "q1.1": (3, 1)}
AFFINE = {
    "uint8[0.02:128]": (8, False, 0.02, 128),
    "int8[0.5:-3]": (8, True, 0.5, -3),
    "int4[0.1:3]": (4, True, 0.1, 3),
}
NAMES = [*PACKED, *MINIFLOATS, *WHOLE, *FIXED, *AFFINE]


def signed(pattern, width):
    return pattern - (pattern >> width - 1 << width)


def minifloat(pattern, exponent, mantissa, top):
    """Decode a float word by the definition of its format."""
    sign = -1 if pattern >> exponent + mantissa else 1
    field, tail = pattern >> mantissa & (1 << exponent) - 1, pattern & (1 << mantissa) - 1
    if field == (1 << exponent) - 1:
        if top == "ieee":
            return sign * math.inf if not tail else math.nan
        if top == "one nan" and tail == (1 << mantissa) - 1:
            return math.nan
    bias = (1 << exponent - 1) - 1
    return sign * math.ldexp(tail + (1 << mantissa) * (field > 0), max(field, 1) - bias - mantissa)


def by_hand(pattern, name):
    """Return the value of a word, by its definition; whole numbers exactly."""
    if name in PACKED:
        width = WORDS[name].width
        return struct.unpack(f"<{PACKED[name]}", pattern.to_bytes(max(width // 8, 1), "little"))[0]
    if name in MINIFLOATS:
        return minifloat(pattern, *MINIFLOATS[name])
    if name in WHOLE:
        width, two, _ = WHOLE[name]
        return signed(pattern, width) if two else pattern
    if name in FIXED:
        width, fraction = FIXED[name]
        return signed(pattern, width) / 2**fraction
    width, two, scale, zero = AFFINE[name]
    return float(np.float32(((signed(pattern, width) if two else pattern) - zero) * scale))


def patterns_of(name, rng):
    """Return every word of a short format, and many of a long one, the edges among them."""
    width = word(name).width
    if width <= 10:
        return list(range(1 << width))
    near = {(1 << bit) + step & (1 << width) - 1 for bit in range(width) for step in (-1, 0, 1)}
    return sorted(near | {int(w) for w in rng.integers(0, (1 << width) - 1, 300, dtype=np.uint64, endpoint=True)})


def change(old, new):
    if isinstance(old, float):
        return new - old if not (math.isinf(old) and old == new) else math.nan
    return float(int(new) - int(old))


@pytest.mark.parametrize("name", NAMES)
def test_every_flip_moves_its_value_as_the_definition_says(name, rng):
    patterns, width = patterns_of(name, rng), word(name).width
    words = np.array(patterns, dtype=np.uint64)
    expected = [[change(by_hand(p, name), by_hand(p ^ 1 << bit, name)) for bit in range(width)] for p in patterns]
    assert np.array_equal(flip_deltas(words, name), np.array(expected), equal_nan=True)
    tensor = flip_changes(masks_to_words(words, word(name)), word(name)).numpy()
    assert np.array_equal(tensor, np.array(expected), equal_nan=True)
    bit = rng.integers(0, width, len(words))
    alone = flip_deltas(words, name, bit=bit)
    assert np.array_equal(alone, np.array(expected)[np.arange(len(bit)), bit], equal_nan=True)
    values = [float(by_hand(p, name)) for p in patterns]
    assert np.array_equal(values_of(words, name), np.array(values), equal_nan=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("int64", "float8_e4m3fn")])
def test_values_give_their_words_again(name, rng):
    words = np.array([p for p in patterns_of(name, rng) if not math.isnan(by_hand(p, name))], dtype=np.uint64)
    whole = not word(name).dtype.is_floating_point
    back = words_of([by_hand(int(p), name) for p in words], name)
    zeros = values_of(words, name) == 0
    assert back[~zeros].tolist() == words[~zeros].tolist()
    assert whole or (values_of(back, name)[zeros] == 0).all()


@pytest.mark.parametrize("name", ["e3m2fn", "e2m1fn", "q3.4", "int8[0.5:-3]", "int4", "float16"])
def test_the_users_of_deltas_agree_on_emulated_formats(name, rng):
    fmt, width = word(name), word(name).width
    words = np.unique(rng.integers(0, 1 << width, 40, dtype=np.uint64))
    words = words[[not math.isnan(by_hand(int(p), name)) for p in words]]
    deltas, values = flip_deltas(words, name), values_of(words, name)
    far = np.where(np.isnan(deltas), np.inf, np.abs(deltas))
    if name != "float16":  # where -0 is its own word, and NaN payloads differ
        assert np.array_equal(bit_changes(values[values != 0], name, width), far[values != 0])
    tensor = torch.from_numpy(values).to(fmt.dtype)
    assert np.array_equal(flipped_deltas(tensor[tensor != 0], name).numpy(), deltas[values != 0], equal_nan=True)
    p, means = np.array(bit_probabilities(values[values != 0], name)), far[values != 0].mean(0)
    assert (np.diff(p[np.argsort(means, kind="stable")]) >= 0).all()
    assert p.max() == 0.5


def test_a_small_float_is_no_integer_for_the_rules_of_bits():
    assert bit_changes([1.5], "e3m2fn", 6).tolist() == [[0.25, 0.5, 0.75, 1.125, 22.5, 3.0]]
    assert bit_changes([1.5], "q3.4", 8).tolist() == [[0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]]
    ln2 = math.log(2) * 1.5
    assert bit_derivatives([1.5], "e3m2fn", 6)[0].tolist() == pytest.approx([0.25, 0.5, ln2, 2 * ln2, 4 * ln2, 3.0])
    assert bit_derivatives([1.5], "q3.4", 8)[0].tolist() == [2.0 ** (i - 4) for i in range(8)]
    assert bit_derivatives([1.0], "uint8[0.25:128]", 8)[0, :2].tolist() == [0.25, 0.5]
