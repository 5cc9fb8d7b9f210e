"""By how much a flip of each bit changes the value that a word stands for: one answer for every word format.

:func:`flip_changes` takes words in a tensor; the others take and give NumPy arrays, for the half of the package that
loads no torch by itself.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from torchfault.errors import WordError
from torchfault.words.emulated import word as format_of
from torchfault.words.native import WordFormat, converted, decode, encode, masks_to_words

__all__ = ["flip_changes", "flip_deltas", "values_of", "words_of"]

Floats = NDArray[np.float64]
Unsigned = NDArray[np.unsignedinteger]


def flip_changes(words: Tensor, fmt: WordFormat) -> Tensor:
    """Return by how much the flip of each bit changes the value of each of *words*: shape (n, width), float64.

    Bits stand lowest first. A change is exact but for the rounding of float64, in whole numbers always; it is infinite
    or NaN where one of the two values is. Of a word that holds two numbers it is the change of one of them.

    >>> from torchfault.words import word
    >>> flip_changes(encode(torch.tensor([1.0]), word("float32")), word("float32"))[0, [0, 22, 23, 30, 31]].tolist()
    [1.1920928955078125e-07, 0.5, -0.5, inf, -2.0]
    """
    if fmt.halves:
        half = format_of(fmt.halves)
        low, high = words.reshape(-1) & 15, words.reshape(-1) >> 4
        return torch.cat((flip_changes(low, half), flip_changes(high, half)), 1)
    flat = words.reshape(-1)[:, None]
    hot = np.left_shift(np.uint64(1), np.arange(fmt.width, dtype=np.uint64))
    if not fmt.dtype.is_floating_point:  # a word of 64 bits has more digits than float64
        worth = torch.from_numpy(hot.astype(np.float64)).to(flat.device)
        worth[-1] *= -1 if "sign" in fmt.fields else 1
        held = flat & masks_to_words(hot, fmt, device=flat.device)
        return torch.where(held != 0, -worth, worth)
    moved = decode(flat ^ masks_to_words(hot, fmt, device=flat.device), fmt)
    return moved.to(torch.float64) - decode(flat, fmt).to(torch.float64)


def flip_deltas(words: Unsigned, word: str, *, bit: NDArray[np.integer] | None = None) -> Floats:
    """Return :func:`flip_changes` of *words*, shape (n,), of the format called *word*: shape (n, width).

    With *bit*, shape (n,), only the change by that bit of each word: shape (n,).

    >>> flip_deltas(np.array([0b010110]), "e3m2fn").tolist()  # 6.0 in six bits
    [[1.0, -2.0, -3.0, 18.0, -5.625, -12.0]]
    """
    fmt = format_of(word)
    if bit is None or fmt.halves or not fmt.dtype.is_floating_point:
        every: Floats = flip_changes(masks_to_words(words.astype(np.uint64), fmt), fmt).numpy()
        return every if bit is None else every[np.arange(len(bit)), bit]
    moved = words.astype(np.uint64) ^ np.left_shift(np.uint64(1), bit.astype(np.uint64))
    with np.errstate(invalid="ignore"):
        return np.asarray(values_of(moved, word) - values_of(words, word))


def values_of(words: Unsigned, word: str) -> Floats:
    """Return the values that *words*, of any shape, of the format called *word* stand for.

    >>> values_of(np.array([0x3F800000, 0xFF800000]), "float32")
    array([  1., -inf])
    """
    fmt = _of_one_number(word)
    held = masks_to_words(words.reshape(-1).astype(np.uint64), fmt)
    values: Floats = decode(held, fmt).to(torch.float64).numpy().reshape(words.shape)
    return values


def words_of(values: ArrayLike | Tensor, word: str) -> NDArray[np.uint64]:
    """Return the words of the format called *word* that hold *values*, rounded where they must be: shape (n,).

    >>> [hex(w) for w in words_of([1.0, -0.0], "float32")]
    ['0x3f800000', '0x80000000']
    """
    fmt = _of_one_number(word)
    held = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    words = encode(converted(held.detach().cpu().reshape(-1), fmt.dtype), fmt).numpy()
    return words.view(f"u{words.itemsize}").astype(np.uint64) & np.uint64((1 << fmt.width) - 1)


def _of_one_number(name: str) -> WordFormat:
    fmt = format_of(name)
    if fmt.halves:
        raise WordError(f"a word of {name} stands for two values; take its halves, in {fmt.halves}")
    return fmt
