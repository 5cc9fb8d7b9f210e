"""Rounding in a few passes, against words and back, bit for bit."""

import pytest
import torch

from tests.support.torch_types import skip_without
from torchfault.words import decode, encode, rounded, word
from torchfault.words.native import held_in

# All signs and exponents with all upper mantissa bits, and behind these what is on, and on both sides of, ties.
BEHIND = (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF)
FORMATS = (
    *("e4m3", "e5m2", "e3m2", "e2m1", "e6m9", "e7m16", "e7m21", "e2m21", "e5m22", "e4m23", "e5m10"),
    *("e3m2fn", "e2m3fn", "e2m1fn", "e5m2fn", "e7m3fn", "e6m20fn"),
    *("e8m1", "e8m7", "e8m10", "e8m23"),
    *("bfloat16", "float16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3fn[nan]", "float8_e4m3fnuz"),
)


@pytest.fixture(scope="module")
def edges():
    """Return float32 numbers of every upper half of a word: subnormals, infinities and NaN of all kinds among them."""
    upper = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    return torch.cat([upper + low for low in BEHIND]).view(torch.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_rounded_numbers_are_those_that_words_stand_for(name, edges):
    skip_without(name)
    fmt = word(name)
    held = held_in(fmt, torch.float32)
    mine, wanted = rounded(edges, fmt), decode(encode(edges, held), held)
    assert torch.equal(mine.view(torch.int32), wanted.view(torch.int32))


@pytest.mark.parametrize("name", ["e4m3", "e3m2fn", "e8m10", "float8_e4m3fn"])
def test_rounding_keeps_shapes_and_takes_any_layout(name, edges):
    skip_without(name)
    images = edges[: 6 * 4 * 8 * 8].reshape(6, 4, 8, 8)
    turned = images.contiguous(memory_format=torch.channels_last)
    one, other = rounded(images, word(name)), rounded(turned, word(name))
    assert torch.equal(one.view(torch.int32), other.view(torch.int32))
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert rounded(images[:0], word(name)).shape == (0, 4, 8, 8)
    assert rounded(edges[5], word(name)).shape == ()


@pytest.mark.parametrize("name", ["e4m3", "e3m2fn", "e8m7", "float8_e4m3fn"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_nan_in_some_rows_come_out_as_by_words_and_leave_the_others_alone(name, layout):
    """All of a row, a few of many payloads and of either sign, and one that stands alone."""
    skip_without(name)
    values = torch.linspace(-500, 500, 6 * 4 * 3 * 5).reshape(6, 4, 3, 5).contiguous(memory_format=layout)
    values[1] = torch.nan
    values[4, 2, :, 1] = torch.tensor([0x7F800001, 0x7FC00123, -0x00000001], dtype=torch.int32).view(torch.float32)
    held = held_in(word(name), torch.float32)
    for some in (values, values[4, 2], values[4, 2, :, 1], values[1, 0, 0, 0], values[:1]):
        wanted = decode(encode(some, held), held)
        assert torch.equal(rounded(some, word(name)).view(torch.int32), wanted.view(torch.int32))
