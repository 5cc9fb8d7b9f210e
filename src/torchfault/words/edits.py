"""Changed words of one tensor: which ones, how, and the one place that writes them."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.errors import FaultError
from torchfault.words.native import WordFormat, bits_of, decode, encode, held_in, masks_to_words

__all__ = ["Edits", "edit"]

# One pass over every word costs as much as visiting about this fraction of them singly (measured on a CPU).
_DENSE = 32


def edit(values: Tensor, keep: Tensor | None, toggle: Tensor, fmt: WordFormat) -> Tensor:
    """Return a new tensor in which every word w became ``(w & keep) ^ toggle``; the masks broadcast.

    Without *keep* every bit stays before it is toggled.

    >>> from torchfault.words import WORDS
    >>> flip_sign = torch.tensor(-(2**31), dtype=torch.int32)
    >>> edit(torch.tensor([1.5, 2.0]), None, flip_sign, WORDS["float32"])
    tensor([-1.5000, -2.0000])
    """
    words = encode(values, fmt)
    return decode((words if keep is None else words & keep) ^ toggle, fmt)


class _Spots(Protocol):
    """The words to change in a tensor with the lanes first."""

    def read(self, first: Tensor) -> Tensor: ...

    def write(self, first: Tensor, values: Tensor) -> None: ...


@dataclass(frozen=True, eq=False)
class Edits:
    """Words to change in one tensor, ``(w & keep) ^ toggle`` at flat *element* of a lane, all of shape (m,).

    *lane* says which row of a tensor with the lanes first each of them strikes, shape (m,); ``None`` strikes every row.
    Masks are words of *fmt*; *keep* is ``None`` where every bit is kept. *name* is that of the site, and *part* that of
    the tensor of words in which a storage keeps it.

    >>> from torchfault.words import word
    >>> one = Edits.of("fc:output", word("float32"), np.array([1]), np.array([2**32 - 1]), np.array([2**31]))
    >>> values = torch.ones(2, 3)
    >>> one.write(values)
    >>> values
    tensor([[ 1., -1.,  1.],
            [ 1., -1.,  1.]])
    """

    name: str
    fmt: WordFormat
    element: Tensor
    keep: Tensor | None
    toggle: Tensor
    lane: Tensor | None = None
    part: str = ""
    _ready: dict[object, "_Spots | _Everywhere"] = field(init=False, default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        fmt: WordFormat,
        element: NDArray[np.int64],
        keep: NDArray[np.uint64],
        toggle: NDArray[np.uint64],
        *,
        lane: NDArray[np.int64] | None = None,
        part: str = "",
        device: torch.device | str = "cpu",
    ) -> "Edits":
        """Return the edits that columns of trials tell, on *device*."""
        every = keep.astype(np.uint64) == np.uint64((1 << fmt.width) - 1)
        kept = None if every.all() else masks_to_words(keep, fmt, device=device)
        return cls(
            name,
            fmt,
            torch.from_numpy(element).to(device),
            kept,
            masks_to_words(toggle, fmt, device=device),
            None if lane is None else torch.from_numpy(lane).to(device),
            part,
        )

    def __len__(self) -> int:
        return len(self.element)

    def to(self, device: torch.device) -> "Edits":
        """Return the same on *device*."""
        if self.element.device == device:
            return self
        keep, lane = (None if column is None else column.to(device) for column in (self.keep, self.lane))
        return replace(self, element=self.element.to(device), keep=keep, toggle=self.toggle.to(device), lane=lane)

    def on_lanes(self, lanes: int) -> "Edits":
        """Return the same with the lane of each named, for a tensor of so many *lanes*."""
        if self.lane is not None:
            return self
        lane = torch.arange(lanes, device=self.element.device).repeat_interleave(len(self))
        keep = None if self.keep is None else self.keep.repeat(lanes)
        return replace(self, element=self.element.repeat(lanes), keep=keep, toggle=self.toggle.repeat(lanes), lane=lane)

    def changed(self, old: Tensor) -> Tensor:
        """Return what the values *old* become, one for each edit along the last axis."""
        return edit(old.contiguous(), self.keep, self.toggle, held_in(self.fmt, old.dtype))

    def read(self, first: Tensor) -> Tensor:
        """Return a copy of the values to change in *first*, lanes first: (m,), or (lanes, m) where all are struck."""
        return self._spots(first).read(first)

    def put(self, first: Tensor, values: Tensor) -> None:
        """Overwrite these values with others, in place."""
        self._spots(first).write(first, values)

    def write(self, first: Tensor) -> None:
        """Change the words of *first*, lanes first, in place.

        Raises :class:`FaultError` where *first* has no such element.
        """
        dense = self._dense(first)
        if dense is not None:
            dense.write(encode(first, self.fmt))
        elif first.numel():
            spots = self._spots(first)
            spots.write(first, self.changed(spots.read(first)))

    def copied(self, first: Tensor) -> Tensor:
        """Return *first* with its words changed, in memory of its own."""
        dense = self._dense(first)
        if dense is not None:
            return decode(dense.changed(encode(first, self.fmt)), self.fmt)
        fresh = first.clone()
        self.write(fresh)
        return fresh

    @cached_property
    def _largest(self) -> tuple[int, int]:
        """The largest element and lane, -1 where none is named."""
        named = (column if column is not None and len(self) else None for column in (self.element, self.lane))
        element, lane = (-1 if column is None else int(column.max()) for column in named)
        return element, lane

    def check(self, first: Tensor) -> None:
        """Raise :class:`FaultError` where *first*, lanes first, has no such element or lane."""
        element, lane = self._largest
        if len(first) and element >= first[0].numel():
            raise FaultError(
                f"element {element} is outside '{self.name}', which has {first[0].numel()} per sample here; "
                "find the sites with inputs of the same size"
            )
        if lane >= len(first):
            raise FaultError(
                f"sample {lane} is outside the batch of {len(first)} that reached '{self.name}'; "
                f"use 0 to {len(first) - 1}"
            )

    def _dense(self, first: Tensor) -> "_Everywhere | None":
        """Return the masks of every word of a lane where one pass over all of them is cheaper than single visits."""
        few = self.lane is not None or not self.fmt.in_memory or first.dtype != self.fmt.dtype
        if few or not first.numel() or len(self) * _DENSE < first[0].numel():
            return None
        key = ("dense", first.shape, first.stride(), first.device)
        if key not in self._ready:
            self.check(first)
            self._ready[key] = _everywhere(first, self.to(first.device))
        found = self._ready[key]
        assert isinstance(found, _Everywhere)
        return found

    def _spots(self, first: Tensor) -> _Spots:
        if self.lane is not None:
            return _Rows((self.lane, *_unravel(self.element, first.shape[1:])))
        key = (first.shape, first.stride(), first.device)
        if key not in self._ready:
            self.check(first)
            self._ready[key] = _distances(first, self.element.to(first.device))
        found = self._ready[key]
        assert not isinstance(found, _Everywhere)
        return found


@dataclass(frozen=True, eq=False)
class _Rows:
    """Single words of some of the lanes, by their index along every axis."""

    index: tuple[Tensor, ...]

    def read(self, first: Tensor) -> Tensor:
        return bits_of(first)[self.index].view(first.dtype)

    def write(self, first: Tensor, values: Tensor) -> None:
        bits_of(first)[self.index] = bits_of(values)


@dataclass(frozen=True, eq=False)
class _Distances:
    """The same words of every lane by their distance in memory, so that strides of any kind cost nothing more."""

    index: Tensor
    sizes: tuple[int, int]
    steps: tuple[int, int]

    def read(self, first: Tensor) -> Tensor:
        return self._bits(first).gather(1, self.index).view(first.dtype)

    def write(self, first: Tensor, values: Tensor) -> None:
        self._bits(first).scatter_(1, self.index, bits_of(values))

    def _bits(self, first: Tensor) -> Tensor:
        # Torch gathers no 8-bit floats, and indexes no narrower types.
        return bits_of(first).as_strided(self.sizes, self.steps)


def _distances(first: Tensor, element: Tensor) -> _Distances:
    shape, strides = first.shape, first.stride()
    offset = torch.zeros_like(element)
    for place, stride in zip(_unravel(element, shape[1:]), strides[1:], strict=True):
        offset += place * stride
    reach = 1 + sum((size - 1) * stride for size, stride in zip(shape[1:], strides[1:], strict=True))
    return _Distances(offset.expand(shape[0], -1), (shape[0], reach), (strides[0], 1))


def _unravel(element: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    return torch.unravel_index(element, shape) if len(shape) else ()


@dataclass(frozen=True, eq=False)
class _Everywhere:
    """Masks for every word of a lane, laid out in memory as a lane is, to broadcast over all lanes."""

    keep: Tensor | None
    toggle: Tensor

    def write(self, words: Tensor) -> None:
        if self.keep is not None:
            words.bitwise_and_(self.keep)
        words.bitwise_xor_(self.toggle)

    def changed(self, words: Tensor) -> Tensor:
        return words ^ self.toggle if self.keep is None else (words & self.keep).bitwise_xor_(self.toggle)


def _everywhere(first: Tensor, edits: Edits) -> _Everywhere:
    def spread(masks: Tensor, otherwise: int) -> Tensor:
        flat = torch.full((first[0].numel(),), otherwise, dtype=masks.dtype, device=masks.device)
        laid = torch.empty_like(first[:1], dtype=masks.dtype, memory_format=torch.preserve_format)
        return laid.copy_(flat.index_copy_(0, edits.element, masks).view(laid.shape))

    full = -1 if edits.toggle.dtype.is_signed else 255
    return _Everywhere(None if edits.keep is None else spread(edits.keep, full), spread(edits.toggle, 0))
