"""How activations are kept: each value in a number format, or in blocks of neighbours that share an exponent."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from torchfault.errors import StorageError, WordError
from torchfault.storages.blocks import block_of, cut, joined, members
from torchfault.storages.dense import BlockFloat, Formatted
from torchfault.words import Edits, edit, rounded, word
from torchfault.words.emulated import affine, power_of_two

__all__ = [
    "EXPONENT",
    "ActivationStorage",
    "EachValue",
    "InBlocks",
    "activation_storage",
    "needs_range",
    "row_length",
]

EXPONENT = "exponent"
_BIAS = 127
_RANGED = re.compile(r"(u?)int([2-8])")
_NOTATION = (
    "a number format such as q7.8, e4m3, bfloat16 or uint8[0.02:128], blocks such as bfp8:16, "
    "or int8 or uint8 (2 to 8 bits; with data, from which their range comes)"
)


@dataclass(frozen=True)
class EachValue:
    """Every value by itself, rounded to the word format called *format*.

    >>> EachValue("q3.4").round(torch.tensor([1.03, 9.0]))
    tensor([1.0000, 7.9375])
    """

    format: str

    def __post_init__(self) -> None:
        Formatted(self.format)  # which refuses formats of whole numbers

    @property
    def name(self) -> str:
        """The name of the word format."""
        return self.format

    @property
    def words(self) -> Mapping[str, str]:
        """The word format of each part."""
        return {"": self.format}

    def round(self, values: Tensor) -> Tensor:
        """Return *values* as their words hold them, in a new tensor."""
        return rounded(values, word(self.format))


@dataclass(frozen=True)
class InBlocks:
    """Block floating point as :class:`BlockFloat` has it: *block* neighbours in a row share an exponent.

    A row is a channel of an image, a token, or a vector. The exponent is that of the largest value of the block as it
    is computed, anew for every input. Infinity counts as the largest float32, NaN as 0.

    >>> InBlocks(4, 2).round(torch.tensor([[4.0, 1.4, 0.3, 0.31]]))
    tensor([[4.0000, 1.0000, 0.3125, 0.3125]])
    """

    width: int = 8
    block: int = 16

    def __post_init__(self) -> None:
        BlockFloat(self.width, self.block)  # which refuses other numbers of bits

    @property
    def name(self) -> str:
        """``bfp8:16``, ..."""
        return self._one.name

    @property
    def words(self) -> Mapping[str, str]:
        """The word format of each part: of the codes, and of the exponents."""
        return {"": f"int{self.width}", EXPONENT: "uint8"}

    @property
    def _one(self) -> BlockFloat:
        return BlockFloat(self.width, self.block)

    def exponents(self, shape: Sequence[int], row: int) -> tuple[int, int]:
        """Return the shape of the exponents of one lane of *shape* in rows of length *row*: rows, blocks in each."""
        return math.prod(shape) // max(row, 1), -(-row // self.block)

    def round(self, values: Tensor) -> Tensor:
        """Return *values* as their words hold them, in a new tensor."""
        finite = values.nan_to_num(0.0)
        blocks = cut(finite.reshape(-1, row_length(values.shape)), self.block)
        largest = blocks.abs().amax(2, keepdim=True)
        top = torch.where(largest == 0, -_BIAS, torch.frexp(largest).exponent - 1).clamp(-_BIAS, _BIAS)
        step, end = power_of_two(top - (self.width - 2)).float(), (1 << self.width - 1) - 1
        # Exact but for the rounding itself: the steps are powers of two, and no code times its step is out of range.
        found = joined((blocks / step).round_().clamp_(-end, end).mul_(step).add_(0.0), finite)
        return found if found.stride() == values.stride() else torch.empty_like(values).copy_(found)

    def struck(self, first: Tensor, row: int, edits: Sequence[Edits]) -> None:
        """Change words of lanes together, in place: *first* holds rounded values, lanes first, rows of length *row*."""
        edits = [one.on_lanes(len(first)) for one in edits]
        size = min(self.block, row)
        count = -(-first[0].numel() // max(row, 1)) * -(-row // size)
        blocks = [one.element if one.part else block_of(one.element, row, size) for one in edits]
        lanes = torch.cat([one.lane for one in edits if one.lane is not None])
        found, inverse = (lanes * count + torch.cat(blocks)).unique(return_inverse=True)
        lane, place = found // count, members(found % count, row, size)
        where = (lane[:, None], *torch.unravel_index(place, first.shape[1:]))
        held = self._one.encode(first[where])
        for one, mine in zip(edits, inverse.split([len(one) for one in edits]), strict=True):
            words, at = held[one.part], torch.zeros_like(mine) if one.part else one.element % row % size
            words[mine, at] = edit(words[mine, at], one.keep, one.toggle, word(self.words[one.part]))
        fresh = self._one.decode(held, place.shape)
        last = (row - 1 - place[:, :1] % row).clamp(max=size - 1)  # behind it the last value of a row is repeated
        first[where] = fresh.gather(1, torch.arange(size, device=last.device).minimum(last))

    def code_alone(self, first: Tensor, row: int, edits: Edits) -> tuple[Tensor, Tensor]:
        """Return the values at the codes of *edits* as they are, and as each would be if it alone changed, (n,)."""
        assert edits.lane is not None
        size = min(self.block, row)
        place = members(block_of(edits.element, row, size), row, size)
        values = first[(edits.lane[:, None], *torch.unravel_index(place, first.shape[1:]))]
        held, at = self._one.encode(values), (edits.element % row % size)[:, None]
        code = edit(held[""].gather(1, at).squeeze(1), edits.keep, edits.toggle, word(self.words[""]))
        fresh = self._one.decode({"": code[:, None], EXPONENT: held[EXPONENT]}, (len(code), 1))
        return values.gather(1, at).squeeze(1), fresh.squeeze(1)


ActivationStorage = EachValue | InBlocks


@lru_cache(maxsize=1024)
def activation_storage(name: str, low: float | None = None, high: float | None = None) -> ActivationStorage:
    """Return how activations called *name* are kept; ``int8`` and the like need the range from *low* to *high*.

    Signed codes are symmetric, with a scale of max(-low, high) / (2^(width-1) - 1); unsigned ones span the range
    from min(low, 0) to max(high, 0); scales have six digits. Raises :class:`StorageError` with the notation for
    anything else.

    >>> activation_storage("bfp8:16"), activation_storage("uint8", -1.0, 1.55).name
    (InBlocks(width=8, block=16), 'uint8[0.01:100]')
    """
    if found := _RANGED.fullmatch(name):
        if low is None or high is None:
            raise StorageError(f"'{name}' activations need a range; give data to take it from, or '{name}[0.02:0]'")
        return _codes_over(min(low, 0.0), max(high, 0.0), width=int(found[2]), signed=not found[1])
    if found := re.fullmatch(r"bfp([2-8]):([1-9][0-9]*)", name):
        return InBlocks(int(found[1]), int(found[2]))
    try:
        return EachValue(name)
    except (WordError, StorageError):
        raise StorageError(f"activations cannot be kept as '{name}'; use {_NOTATION}") from None


def _codes_over(low: float, high: float, *, width: int, signed: bool) -> EachValue:
    top = (1 << width - signed) - 1
    span = max(-low, high) if signed else high - low
    scale = float(f"{span / top:.6g}") or 1.0
    zero = 0 if signed else min(round(-low / scale), top)
    return EachValue(affine(scale, zero, width=width, signed=signed).name)


def needs_range(name: str) -> bool:
    """Whether activations called *name* need the range of their values.

    >>> needs_range("int8"), needs_range("int8[0.02:0]"), needs_range("q3.4")
    (True, False, False)
    """
    return _RANGED.fullmatch(name) is not None


def row_length(shape: Sequence[int]) -> int:
    """Return the length of a row of a batch of activations: an image's channel as a whole, else the last axis.

    >>> row_length((8, 16, 32, 32)), row_length((8, 5, 64)), row_length((8, 10))
    (1024, 64, 10)
    """
    return math.prod(shape[2:]) if len(shape) > 3 else shape[-1] if len(shape) > 1 else 1
