"""The suite for word formats."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.testing.rules import MOST, equal, hold, rule
from torchfault.words import WordFormat, decode, encode, masks_to_words

__all__ = ["check_word_format"]


def check_word_format(fmt: WordFormat) -> None:
    """Raise AssertionError, naming the rule, where *fmt* is no word format.

    The rules: 1 to 64 bits in an integer type wide enough; fields of different bits inside the word, lowest first;
    every word survives the way to a value and back, in tensors of any shape and layout; no conversion alters its
    argument.

    >>> from torchfault.words import WORDS
    >>> check_word_format(WORDS["bfloat16"])
    """
    name = fmt.name
    with rule(name, "a word has 1 to 64 bits, held in an integer type that is wide enough"):
        held = torch.iinfo(fmt.integer).bits
        hold(1 <= fmt.width <= min(64, held), f"got {fmt.width} bits in {fmt.integer}")
    with rule(name, "fields are disjoint bits of the word, lowest first"):
        bits = [bit for field in fmt.fields.values() for bit in field]
        hold(len(set(bits)) == len(bits) and all(0 <= bit < fmt.width for bit in bits), f"got {fmt.fields}")
        hold(all(list(field) == sorted(field) for field in fmt.fields.values()), f"got {fmt.fields}")
    words = masks_to_words(_patterns(fmt.width), fmt)
    with rule(name, "every word comes back from its value, bit for bit"):
        _same_words(words, fmt)
    with rule(name, "shape and layout of a tensor do not matter"):
        even = words[: len(words) // 2 * 2]
        for tensor in (words[:1].reshape(()), words[:0], even.reshape(2, -1), even.reshape(2, -1).T, even[::2]):
            _same_words(tensor, fmt)


def _patterns(width: int) -> NDArray[np.uint64]:
    """Return every word of a short format; of a long one the extremes, all words near a single bit, and random ones."""
    if width <= 16:
        return np.arange(1 << width, dtype=np.uint64)
    full = (1 << width) - 1
    near = {(1 << bit) + step & full for bit in range(width + 1) for step in (-1, 0, 1)}
    edges = np.array(sorted(near | {full ^ word for word in near}), dtype=np.uint64)
    drawn = np.random.default_rng(20261121).integers(0, full, MOST, dtype=np.uint64, endpoint=True)
    return np.concatenate((edges, drawn))


def _same_words(words: Tensor, fmt: WordFormat) -> None:
    given = words.clone()
    values = decode(words, fmt)
    hold(values.dtype == fmt.dtype and values.shape == words.shape, f"got {values.dtype} of shape {values.shape}")
    kept = values.clone()
    back = encode(values, fmt)
    hold(back.dtype == fmt.integer and back.shape == words.shape, f"got {back.dtype} of shape {back.shape} back")
    wrong = back != given
    hold(not wrong.any(), f"{given[wrong][:3].tolist()} became {back[wrong][:3].tolist()}")
    hold(torch.equal(words, given) and equal(values, kept), "the argument of a conversion was altered")
