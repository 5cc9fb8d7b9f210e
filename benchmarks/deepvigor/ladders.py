"""What can be tried on a word, ordered by size: the changes of value that stand for its single bit flips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.deepvigor.distribution import candidates, flipped_deltas
from benchmarks.deepvigor.refinements import Refinements
from torchfault.words import WordFormat, encode, word

__all__ = ["HARMFUL", "HARMLESS", "Ladders", "Storage", "candidate_ladders", "flip_ladders", "words_of"]

HARMLESS, HARMFUL = -1, -2
_LARGEST = 10  # log2 of the largest candidate; 10 below 1 is the smallest


@dataclass(frozen=True)
class Storage:
    """How words are thought to be stored: in the format *word*, an integer step being worth *scale*.

    Flips of a format that is not the tensor's own are worked out here and tried as changes of value.

    >>> Storage.of(torch.tensor([0.5, -127.0]), "int8")
    Storage(word='int8', scale=1.0)
    """

    word: str
    scale: float = 1.0

    @property
    def width(self) -> int:
        """The bits of a word."""
        return word(self.word).width

    @classmethod
    def of(cls, tensor: Tensor, name: str) -> "Storage":
        """Return the storage of *tensor* in the format *name*: symmetric, one scale for all, where it is an integer."""
        fmt = word(name)
        if fmt.dtype.is_floating_point or not tensor.is_floating_point():
            return cls(name)
        largest = float(tensor.detach().double().abs().max()) if tensor.numel() else 0.0
        return cls(name, round(largest / torch.iinfo(fmt.dtype).max, 12) or 1.0)

    def stored(self, values: Tensor) -> Tensor:
        """Return *values* in the format: rounded, and integers kept in range."""
        fmt = word(self.word)
        if values.dtype == fmt.dtype:
            return values
        if fmt.dtype.is_floating_point:
            return values.to(fmt.dtype)
        info = torch.iinfo(fmt.dtype)
        return (values.double() / self.scale).round().clamp(info.min, info.max).to(fmt.dtype)

    def deltas(self, values: Tensor, bits: Sequence[int]) -> NDArray[np.float64]:
        """Return by how much each of the flips *bits* changes each value, shape (values, bits), to NaN by inf."""
        found = flipped_deltas(self.stored(values), self.word, scale=self.scale)
        wanted = found[:, list(bits)].cpu().numpy()
        return np.where(np.isnan(wanted), np.inf, wanted)


@dataclass(frozen=True, eq=False)
class Ladders:
    """What can be tried on each target, in columns, and which column stands for each flip.

    *value*, shape (targets,), is the golden value; *delta*, shape (targets, columns), what a column adds to it: NaN
    where there is nothing to try, infinite where the outcome is not finite. *stands*, shape (targets, bits), is the
    column of each flip, :data:`HARMLESS` or :data:`HARMFUL` where none is tried. Columns below *flips* are the flips
    themselves, of the bit positions *bits*.
    """

    value: NDArray[np.float64]
    delta: NDArray[np.float64]
    own: NDArray[np.float64]
    stands: NDArray[np.int16]
    bits: tuple[int, ...]
    flips: bool

    def __len__(self) -> int:
        return len(self.value)

    def flipped(self, harmful: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which flips are harmful, shape (targets, bits), given which columns are."""
        columns = np.maximum(self.stands, 0).astype(np.int64)
        return np.where(self.stands >= 0, np.take_along_axis(harmful, columns, 1), self.stands == HARMFUL)

    def masks(
        self, fmt: WordFormat, target: NDArray[np.int64], column: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the masks *keep* and *toggle* that try *column* on *target*, in words of *fmt*."""
        flips = (column < len(self.bits)) & self.flips
        keep = np.where(flips, np.uint64((1 << fmt.width) - 1), np.uint64(0))
        toggle = np.zeros(len(column), dtype=np.uint64)
        toggle[flips] = np.left_shift(np.uint64(1), np.array(self.bits, dtype=np.uint64)[column[flips]])
        if not flips.all():
            at = np.flatnonzero(~flips)
            values = self.value[target[at]] + self.delta[target[at], column[at]]
            toggle[at] = words_of(values, fmt)
        return keep, toggle


def words_of(values: NDArray[np.float64], fmt: WordFormat) -> NDArray[np.uint64]:
    """Return the words that hold *values* in *fmt*, rounded; integers stay in range.

    >>> [hex(w) for w in words_of(np.array([1.0, -2.0]), word("float32")).tolist()]
    ['0x3f800000', '0xc0000000']
    """
    wide = torch.from_numpy(np.ascontiguousarray(values))
    if not fmt.dtype.is_floating_point:
        info = torch.iinfo(fmt.dtype)
        wide = wide.round().clamp(info.min, info.max)
    held = encode(wide.to(fmt.dtype), fmt).numpy()
    return held.view(f"u{held.itemsize}").astype(np.uint64)


def flip_ladders(
    values: Tensor, storage: Storage, bits: tuple[int, ...], refinements: Refinements, *, native: bool
) -> Ladders:
    """Return the ladders of words with these golden *values*, shape (targets,), whose own flips are the errors.

    Flips are tried themselves, but for those that :attr:`Refinements.exact` or :attr:`Refinements.tails` bar: a
    candidate 2^rho of the same sign stands for these. *native* tells that *storage* is the tensor's own format.

    >>> one = flip_ladders(torch.tensor([1.0]), Storage("float32"), (22, 30, 31), Refinements(exact=False), native=True)
    >>> one.stands.tolist(), one.delta[0, [1, 12, 34]].tolist()  # to 1.5, to infinity and to -1
    ([[12, 1, 35]], [inf, 0.5, nan])
    """
    own = storage.deltas(values, bits)
    value = values.detach().double().cpu().numpy()
    stands = np.broadcast_to(np.arange(len(bits), dtype=np.int16), own.shape)
    if refinements.exact and refinements.tails:
        return Ladders(value, own, own, stands, bits, native)
    finite = np.isfinite(own)
    exponent = np.frexp(np.where(finite, own, 0.0))[1] - 1
    place = len(bits) + np.where(own < 0, 2 * _LARGEST + 1, 0) + np.clip(exponent, -_LARGEST, _LARGEST) + _LARGEST
    tail = finite & (exponent >= _LARGEST)
    whole = tail if refinements.exact else finite & (exponent >= -_LARGEST) & ~tail
    if not refinements.exact and not refinements.tails:
        whole |= tail
    if refinements.tails:
        whole &= ~tail
    stands = np.where(whole, place, stands)
    if not refinements.exact:
        stands = np.where(finite & ((exponent < -_LARGEST) | (own == 0)), HARMLESS, stands)
    if not refinements.tails:
        stands = np.where(finite, stands, HARMFUL)
    steps = candidates().numpy()
    delta = np.full((len(own), len(bits) + 2 * len(steps)), np.nan)
    delta[:, : len(bits)] = np.where(stands == np.arange(len(bits)), own, np.nan)
    row, bit = np.nonzero(stands >= len(bits))
    column = stands[row, bit]
    delta[row, column] = np.concatenate((steps, -steps))[column - len(bits)]
    return Ladders(value, delta, own, stands.astype(np.int16), bits, native)


def candidate_ladders(values: Tensor, steps: NDArray[np.float64], *, not_finite: bool) -> Ladders:
    """Return ladders whose rungs are *steps* and their negatives, the same for every one of the golden *values*.

    With *not_finite* infinity of either sign is tried as well, in the last two columns.

    >>> candidate_ladders(torch.zeros(1), np.array([0.5, 2.0]), not_finite=True).delta.tolist()
    [[0.5, 2.0, -0.5, -2.0, inf, -inf]]
    """
    ends = [np.inf, -np.inf] if not_finite else []
    line = np.concatenate((steps, -steps, ends))
    value = values.detach().double().cpu().numpy()
    delta = np.broadcast_to(line, (len(value), len(line)))
    none = np.empty((len(value), 0))
    return Ladders(value, delta, none, none.astype(np.int16), (), False)
