"""By how much a flip may change a value that is known up to rounding alone."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from torchfault.words.deltas import flip_deltas, words_of
from torchfault.words.emulated import word as format_of

__all__ = ["largest_flips"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def largest_flips(values: Floats, word: str, bit: Ints, *, apart: float) -> Floats:
    """Return the most by which a flip of *bit* may change a value within *apart* of *values*, shape (n,).

    *word* is a binary floating-point format. Between two powers of two the change is largest at an end; a value that
    may be on either side of one, or of 0, is taken to be any that is no larger. NaN and infinity count as infinite.

    >>> largest_flips(np.array([1.5, 1.0, 0.0]), "float32", np.array([22, 22, 29]), apart=0.001).tolist()
    [0.5, 0.5, 1.9999998807907104]
    """
    wider = apart * 1.01 + (np.abs(values) * 1e-6 if apart else 0.0)
    low, high = words_of(values - wider, word), words_of(values + wider, word)
    mantissa = np.uint64(len(format_of(word).fields["mantissa"]))
    ends = np.abs(np.stack([flip_deltas(end, word, bit=bit) for end in (low, high)]))
    largest = words_of(np.maximum(np.abs(values - wider), np.abs(values + wider)), word)
    below = _below(word)[bit, (largest >> mantissa).astype(np.int64)]
    return np.where((low ^ high) >> mantissa == 0, np.nan_to_num(ends, nan=np.inf, posinf=np.inf).max(axis=0), below)


@cache
def _below(word: str) -> Floats:
    """Return the most by which each bit's flip changes a value with each exponent or a lower one, (bits, exponents)."""
    fmt = format_of(word)
    mantissa, exponents = len(fmt.fields["mantissa"]), 1 << len(fmt.fields["exponent"])
    tops = (np.arange(exponents, dtype=np.uint64) << np.uint64(mantissa)) | np.uint64((1 << mantissa) - 1)
    changes = np.nan_to_num(np.abs(flip_deltas(tops, word)), nan=np.inf, posinf=np.inf)
    return np.asarray(np.maximum.accumulate(changes, axis=0).T)
