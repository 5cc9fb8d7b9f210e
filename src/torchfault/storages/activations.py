"""How activations are kept: each value in a number format, or in blocks of neighbours that share an exponent."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from torchfault.errors import StorageError, WordError
from torchfault.storages.base import Words
from torchfault.storages.blocks import Row, along, block_of, members
from torchfault.storages.dense import BlockFloat, Formatted
from torchfault.storages.microscaling import Microscaled
from torchfault.storages.naming import BLOCKS, microscaled
from torchfault.words import Edits, bits_of, edit, rounded, word
from torchfault.words.emulated import affine

__all__ = [
    "ActivationStorage",
    "EachValue",
    "InBlocks",
    "activation_storage",
    "needs_range",
]

_RANGED = re.compile(r"(u?)int([2-8])|nvfp4(?::[1-9][0-9]*(?:@[0-9])?)?")
_NOTATION = (
    "a number format such as q7.8, e4m3, bfloat16 or uint8[0.02:128], blocks such as bfp8:16, mxfp8_e4m3 or "
    "mxfp4:32@1 (along axis 1), or int8, uint8 (2 to 8 bits) or nvfp4 (with data, from which their range comes)"
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


Blocks = BlockFloat | Microscaled
WHOLE = "per_tensor_scale"
"""The part that concerns all values of an activation together."""


@dataclass(frozen=True)
class InBlocks:
    """Neighbours share a scale or an exponent, as *kept* has it: block floating point, MX or NVFP4.

    With an *axis* (MX and NVFP4 alone), counted with that of the inputs, which is before it, neighbours are those along
    it. Else they are those in a row: a channel of an image, a token, or a vector. Scales are those of the values as
    they are computed, anew for every input; the scale of a whole NVFP4 tensor is fixed, and a word of every input.

    >>> InBlocks(BlockFloat(4, 2)).round(torch.tensor([[4.0, 1.4, 0.3, 0.31]]))
    tensor([[4.0000, 1.0000, 0.3125, 0.3125]])
    """

    kept: Blocks
    axis: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.kept, Microscaled) and (self.kept.axis is not None or self.kept.two_steps_open):
            raise StorageError(f"give blocks of activations their axis apart, and a fixed scale, got {self.kept.name}")
        if self.axis is not None and (self.axis < 1 or not isinstance(self.kept, Microscaled)):
            raise StorageError(
                f"blocks of activations are MX or NVFP4 along axis 1 or a later one, since axis 0 has the inputs, got "
                f"{self.kept.name} along axis {self.axis}"
            )

    @property
    def name(self) -> str:
        """``bfp8:16``, ``mxfp8_e4m3``, ``mxfp4:32@1``, ..."""
        return replace(self.kept, axis=self.axis).name if isinstance(self.kept, Microscaled) else self.kept.name

    @property
    def words(self) -> Mapping[str, str]:
        """The word format of each part: of the codes, and of what they share."""
        return self.kept.formats

    def first_axis(self, shape: Sequence[int]) -> int:
        """Return the first axis along which blocks run in a batch of *shape*.

        >>> [activation_storage(how).first_axis((8, 16, 32, 32)) for how in ("mxfp4", "mxfp4:32@1")]
        [2, 1]
        """
        return self.axis or (2 if len(shape) > 3 else max(len(shape) - 1, 1))

    def row(self, shape: Sequence[int]) -> Row:
        """Return the rows that are cut into blocks, in lanes of a batch of *shape*.

        >>> [activation_storage(how).row((8, 16, 32, 32)) for how in ("mxfp4", "mxfp4:32@1")]
        [Row(length=1024, stride=1), Row(length=16, stride=1024)]
        """
        if self.axis is None:
            return Row(math.prod(shape[self.first_axis(shape) :]))
        if self.axis >= len(shape):
            raise StorageError(f"{self.name} needs activations of {self.axis + 1} axes or more, got {len(shape)}")
        return along(self.axis, shape)

    def shape(self, part: str, shape: Sequence[int], row: Row) -> tuple[int, ...]:
        """Return the shape of a *part* of one lane of *shape*: that of scales is rows, and blocks in each.

        >>> InBlocks(BlockFloat(8, 16)).shape("exponent", (8, 6, 6), Row(36))
        (8, 3)
        """
        if part == WHOLE:
            return ()
        return (math.prod(shape) // max(row.length, 1), -(-row.length // self.kept.block)) if part else tuple(shape)

    def round(self, values: Tensor) -> Tensor:
        """Return *values* as their words hold them, in a new tensor.

        Where channels come last in memory, blocks are cut as they lie there: to put them in order and back takes 0.7 of
        1.8 ms for lanes of 3 MiB.
        """
        last = values.ndim > 2 and values.movedim(1, -1).is_contiguous()
        lying = values.movedim(1, -1) if last else values
        row = self.row(values.shape)
        if last and self.axis is not None:
            row = along(self.axis - 1 or values.ndim - 1, lying.shape)
        elif last:
            row = Row(row.length, values.shape[1])
        found = self.kept.round(lying.reshape(-1, row.length, row.stride)).reshape(lying.shape)
        found = found.movedim(-1, 1) if last else found
        return found if found.stride() == values.stride() else torch.empty_like(values).copy_(found)

    def struck(self, first: Tensor, row: Row, edits: Sequence[Edits]) -> None:
        """Change words of lanes together, in place: *first* holds rounded values, lanes first, which *row* cuts."""
        edits = [one.on_lanes(len(first)) for one in edits]
        count = math.prod(self.shape("scale", first.shape[1:], row))
        reached = [self._reached(one, row, count) for one in edits]
        found, inverse = torch.cat([block for _, block in reached]).unique(return_inverse=True)
        held, place, where = self._held(first, found // count, found % count, row)
        for one, (event, _), mine in zip(edits, reached, inverse.split([len(e) for e, _ in reached]), strict=True):
            self._write(held, mine, one, event, row)
        first[where] = self._values(held, place, row)

    def alone(self, first: Tensor, row: Row, edits: Edits) -> tuple[Tensor, Tensor] | None:
        """Return which values of its lane each of *edits* changes if it alone is made, and to what: (n, k) each.

        ``None`` where those are all. A value behind the end of a row repeats the last one of it.
        """
        assert edits.lane is not None
        if edits.part == WHOLE:
            return None
        block = edits.element if edits.part else block_of(edits.element, row, self.size(row))
        held, place, _ = self._held(first, edits.lane, block, row)
        every = torch.arange(len(block), device=block.device)
        self._write(held, every, edits, every, row)
        fresh = self._values(held, place, row)
        if edits.part:
            return place, fresh
        at = self._within(edits, row)[:, None]
        return place.gather(1, at), fresh.gather(1, at)

    def words_of(self, first: Tensor, row: Row, part: str) -> Tensor:
        """Return the words of *part* of rounded values, lanes first: (lanes, words in each)."""
        held = self.kept.encode(row.rows(first))[part]
        if part == WHOLE:
            return held.expand(len(first), 1)
        return held.reshape(len(first), -1) if part else row.whole(held, first.shape).flatten(1)

    def size(self, row: Row) -> int:
        """Return how many values of a *row* a block has at most."""
        return min(self.kept.block, row.length)

    def _within(self, edits: Edits, row: Row) -> Tensor:
        return row.column(edits.element) % self.size(row)

    def _reached(self, edits: Edits, row: Row, count: int) -> tuple[Tensor, Tensor]:
        """Return the blocks that *edits* reach, numbered over all lanes of *count* blocks, and which edit does."""
        assert edits.lane is not None
        event = torch.arange(len(edits), device=edits.element.device)
        if edits.part == WHOLE:
            every = torch.arange(count, device=event.device)
            return event.repeat_interleave(count), (edits.lane[:, None] * count + every).reshape(-1)
        block = edits.element if edits.part else block_of(edits.element, row, self.size(row))
        return event, edits.lane * count + block

    def _held(
        self, first: Tensor, lane: Tensor, block: Tensor, row: Row
    ) -> tuple[dict[str, Tensor], Tensor, tuple[Tensor, ...]]:
        """Return the words of a *block* of each *lane*, one in a row, the places of its values, and the way there."""
        place = members(block, row, self.size(row))
        where = (lane[:, None], *torch.unravel_index(place, first.shape[1:]))
        held = self.kept.encode(first[where])
        if WHOLE in held:
            held[WHOLE] = held[WHOLE].repeat(len(place), 1)
        return held, place, where

    def _write(self, held: dict[str, Tensor], block: Tensor, edits: Edits, event: Tensor, row: Row) -> None:
        """Change words of the blocks *held*: one for each *event*, which says by which of *edits*."""
        at = torch.zeros_like(event) if edits.part else self._within(edits, row)
        keep = None if edits.keep is None else edits.keep[event]
        words, fmt = held[edits.part], word(self.words[edits.part])
        bits = bits_of(words)
        bits[block, at] = bits_of(edit(bits[block, at].view(words.dtype), keep, edits.toggle[event], fmt))

    def _values(self, held: Words, place: Tensor, row: Row) -> Tensor:
        """Return the values of blocks; behind the end of a row the last one of it."""
        last = (row.length - 1 - row.column(place[:, :1])).clamp(max=place.shape[1] - 1)
        every = torch.arange(place.shape[1], device=place.device)
        return self.kept.decode(held, place.shape).gather(1, every.minimum(last))


ActivationStorage = EachValue | InBlocks


@lru_cache(maxsize=1024)
def activation_storage(name: str, low: float | None = None, high: float | None = None) -> ActivationStorage:
    """Return how activations called *name* are kept; ``int8``, ``nvfp4`` and the like need the range *low* to *high*.

    Signed codes are symmetric, with a scale of max(-low, high) / (2^(width-1) - 1); unsigned ones span the range
    from min(low, 0) to max(high, 0); the scale of an NVFP4 tensor is max(-low, high) / 2688. Scales have six digits.
    Raises :class:`StorageError` with the notation for anything else.

    >>> activation_storage("bfp8:16"), activation_storage("uint8", -1.0, 1.55).name
    (InBlocks(kept=BlockFloat(width=8, block=16), axis=None), 'uint8[0.01:100]')
    """
    if found := _RANGED.fullmatch(name):
        if low is None or high is None:
            one = f"{name}[{'0.001' if found[2] is None else '0.02:0'}]"
            raise StorageError(f"'{name}' activations need a range; give data to take it from, or '{one}'")
        if found[2] is None:
            scale = float(f"{max(-low, high, 0.0) / 2688:.6g}") or 1.0
            return activation_storage(f"{name}[{scale!r}]")
        return _codes_over(min(low, 0.0), max(high, 0.0), width=int(found[2]), signed=not found[1])
    if found := re.fullmatch(r"bfp([2-8]):([1-9][0-9]*)", name):
        return InBlocks(BlockFloat(int(found[1]), int(found[2])))
    if found := BLOCKS.fullmatch(name):
        kept = microscaled(*found.groups())
        return InBlocks(replace(kept, axis=None), kept.axis)
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

    >>> [needs_range(how) for how in ("int8", "int8[0.02:0]", "q3.4", "nvfp4:16@1")]
    [True, False, False, True]
    """
    return _RANGED.fullmatch(name) is not None
