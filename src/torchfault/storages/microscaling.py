"""Storages in blocks of narrow numbers that share a scale, itself a word: OCP microscaling (MX), and NVFP4."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from torchfault.errors import StorageError
from torchfault.storages.base import Part, Words, as_matrix
from torchfault.storages.blocks import LARGEST, Row, along, block_of, cut, filters, joined, largest_in, members
from torchfault.words import rounded, word

__all__ = ["MICROSCALED", "Microscaled"]


@dataclass(frozen=True)
class _Kind:
    """The format of the elements, its largest number and the exponent of that, and how many share a scale."""

    element: str
    largest: float
    exponent: int
    block: int = 32


MICROSCALED: Mapping[str, _Kind] = MappingProxyType(
    {
        "mxfp8_e4m3": _Kind("float8_e4m3fn", 448.0, 8),
        "mxfp8_e5m2": _Kind("float8_e5m2", 57344.0, 15),
        "mxfp6_e3m2": _Kind("e3m2fn", 28.0, 4),
        "mxfp6_e2m3": _Kind("e2m3fn", 7.5, 2),
        "mxfp4": _Kind("e2m1fn", 6.0, 2),
        "mxint8": _Kind("q1.6", 127 / 64, 0),
        "nvfp4": _Kind("e2m1fn", 6.0, 2, block=16),
    }
)
"""The formats by name: those of the OCP Microscaling specification v1.0, and NVFP4."""

_BIAS, _NAN = 127, 255  # of e8m0 scales
_MANTISSA, _INFINITY, _QUIET = 23, 0x7F800000, 0x7FC00000  # of float32, the last being NaN
_LARGEST_SCALE = 448.0  # of e4m3 scales
_LEAST_SCALE, _LEAST_TENSOR = 2.0**-6, 2.0**-120  # the smallest normal e4m3; what has a reciprocal with it


@dataclass(frozen=True)
class Microscaled:
    """Numbers of the format *kind* in blocks of *block* neighbours (by default as specified: 32, in NVFP4 16).

    Neighbours are those along *axis*, or in a row (a filter, a vector) without one. The parts are the elements and
    ``scale``, one for each block: a power of two (``float8_e8m0fnu``, whose word 255 makes a block NaN), or with NVFP4
    a ``float8_e4m3fn``, beside a ``per_tensor_scale`` (float32; taken from the tensor, or *fixed*). A value is the
    product of all. Scales are the largest power of two of a block over that of the format (OCP MX v1.0, section 6.3);
    elements round to nearest, ties to even, and saturate. With NVFP4 the scale of the tensor is max |x| / (448 x 6),
    and that of a block its max |x| / 6, rounded to nearest, from 2^-6 to 448.

    >>> from torchfault.storages import keep
    >>> stored = keep(torch.tensor([[1.0, 0.4, -7.0, 0.0]]), Microscaled("mxfp4", 2))
    >>> stored.value().tolist(), stored.words["scale"].view(torch.uint8).tolist()
    ([[1.0, 0.375, -6.0, 0.0]], [[125, 127]])
    """

    kind: str
    block: int = 0
    axis: int | None = None
    fixed: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in MICROSCALED:
            raise StorageError(f"blocks with a scale are {', '.join(MICROSCALED)}, got '{self.kind}'; name one of them")
        object.__setattr__(self, "block", self.block or self._kind.block)
        if not 1 <= self.block <= LARGEST:
            raise StorageError(f"blocks have 1 to {LARGEST} numbers, got {self.block}")
        if self.fixed is not None and not (self._in_two_steps and _LEAST_TENSOR <= self.fixed < math.inf):
            raise StorageError(f"the scale of a tensor is NVFP4's alone, and from {_LEAST_TENSOR} on, got {self.fixed}")

    @property
    def name(self) -> str:
        """``mxfp8_e4m3``, ``mxfp4:16``, ``mxfp4:32@1`` (along axis 1), ``nvfp4[0.001]`` (of a fixed scale), ..."""
        plain = self.axis is None and self.block == self._kind.block
        along = "" if self.axis is None else f"@{self.axis}"
        return f"{self.kind}{'' if plain else f':{self.block}{along}'}{f'[{self.fixed!r}]' if self.fixed else ''}"

    @property
    def formats(self) -> Mapping[str, str]:
        """The word format of each part."""
        if self._in_two_steps:
            return {"": self._kind.element, "scale": "float8_e4m3fn", "per_tensor_scale": "float32"}
        return {"": self._kind.element, "scale": "float8_e8m0fnu"}

    @property
    def two_steps_open(self) -> bool:
        """Whether the scale of a tensor is taken from it."""
        return self._in_two_steps and self.fixed is None

    @property
    def _kind(self) -> _Kind:
        return MICROSCALED[self.kind]

    @property
    def _in_two_steps(self) -> bool:
        return self.kind == "nvfp4"

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return elements and scales; what is in a block with NaN becomes NaN."""
        rows = self._rows(tensor)
        scales, quotients = self._scaled(rows)
        element = word(self._kind.element)
        elements = joined(rounded(quotients, element), rows).to(element.dtype)
        if self.axis is not None:
            others = (*tensor.shape[: self.axis], *tensor.shape[self.axis + 1 :])
            scales["scale"] = scales["scale"].reshape(*others, -1)
        return {"": self._back(elements, tensor.shape), **scales}

    def round(self, rows: Tensor) -> Tensor:
        """Return what the words of *rows*, (rows, length, ...), stand for, in a new tensor of float32."""
        scales, quotients = self._scaled(rows)
        return joined(rounded(quotients, word(self._kind.element)).mul_(_total(scales).unsqueeze(2)), rows)

    def _scaled(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the scales of *rows*, (rows, length, ...), and the numbers over these, in blocks and saturated."""
        blocks, kind = cut(rows, self.block), self._kind
        largest = largest_in(blocks)
        if self._in_two_steps:
            if self.fixed:
                per_tensor = rows.new_full((), self.fixed)
            else:
                per_tensor = (rows.abs().max() / (kind.largest * _LARGEST_SCALE)).clamp(min=_LEAST_TENSOR)
            scale = (largest / kind.largest / per_tensor).clamp(_LEAST_SCALE, _LARGEST_SCALE).to(torch.float8_e4m3fn)
            scales = {"scale": scale, "per_tensor_scale": per_tensor}
            factor = per_tensor.reciprocal() / scale.float()  # in this order, as kernels have it
        else:
            code, factor = _powers_of_two(largest, kind.exponent)
            scales = {"scale": code.view(word("float8_e8m0fnu").dtype)}
        return scales, (blocks * factor.unsqueeze(2)).clamp_(-kind.largest, kind.largest)

    def parts(self, words: Words, shape: Sequence[int]) -> dict[str, Part]:
        """Return elements and scales."""
        del words
        apart = self.axis is None or self._axis(shape) > 0  # else a block holds words of several output channels
        kinds = {"": Part("", channel=0 if shape else None), "scale": Part("", "scale", 0 if apart else None)}
        return {part: replace(kinds.get(part, Part("", "scale")), word=name) for part, name in self.formats.items()}

    def decode(self, words: Words, shape: Sequence[int]) -> Tensor:
        """Return elements times scales."""
        rows = self._rows(words[""].float().reshape(tuple(shape)))
        blocks = cut(rows, self.block)
        return self._back(joined(blocks * _total(words).reshape(blocks.shape[:2]).unsqueeze(2), rows), shape)

    def spread(
        self, words: Words, shape: Sequence[int], part: str, element: Tensor, new: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return the element of a number, or all those that share a scale."""
        if part == "per_tensor_scale":
            return None
        if not part:
            return element, new.float() * _total(words).reshape(-1)[self.shared(element, shape)]
        place = members(element, self._row(shape), self.block)
        total = _total({**words, "scale": new}).reshape(-1, 1)
        return place, words[""].reshape(-1)[place].float() * total

    def shared(self, element: Tensor, shape: Sequence[int]) -> Tensor:
        """Return which of the block scales each flat *element* of a tensor of *shape* has."""
        return block_of(element, self._row(shape), self.block)

    # Rows along an axis.

    def _axis(self, shape: Sequence[int]) -> int:
        assert self.axis is not None
        if not 0 <= self.axis < len(shape):
            raise StorageError(f"{self.name} needs a tensor of {self.axis + 1} axes or more, got {len(shape)}")
        return self.axis

    def _row(self, shape: Sequence[int]) -> Row:
        return filters(shape) if self.axis is None else along(self._axis(shape), shape)

    def _rows(self, tensor: Tensor) -> Tensor:
        return as_matrix(tensor) if self.axis is None else self._row(tensor.shape).rows(tensor)

    def _back(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Return *rows* in the *shape* of the tensor that they were made of."""
        return rows.reshape(tuple(shape)) if self.axis is None else self._row(shape).whole(rows, shape)


def _powers_of_two(largest: Tensor, exponent: int) -> tuple[Tensor, Tensor]:
    """Return the e8m0 words of scales, by the *largest* of each block in float32, and what blocks are multiplied by.

    By the bits, where the exponent stands: to scale lanes takes a fifth less time than in floating point.

    >>> _powers_of_two(torch.tensor([12.0, torch.nan]), 2)
    (tensor([128, 255], dtype=torch.uint8), tensor([0.5000,    nan]))
    """
    bits = largest.view(torch.int32)
    lost = bits.neg().add_(_INFINITY).bitwise_right_shift_(31)  # -1 for NaN, 0 for numbers
    code = bits.bitwise_right_shift(_MANTISSA).sub_(exponent).clamp_(0, 2 * _BIAS)
    inverse = code.neg().add_(2 * _BIAS).bitwise_left_shift_(_MANTISSA).clamp_(min=1 << _MANTISSA - 1)  # 2^-127 at last
    factor = inverse.bitwise_or_(lost.bitwise_and(_QUIET)).bitwise_and_(lost.bitwise_and(_QUIET) | ~lost)
    return code.bitwise_or_(lost.bitwise_and(_NAN)).to(torch.uint8), factor.view(torch.float32)


def _total(words: Words) -> Tensor:
    """Return what the elements of each block are multiplied by, in float32."""
    scale = words["scale"].float()
    if "per_tensor_scale" not in words:
        return scale
    return words["per_tensor_scale"].reshape(-1, *[1] * (scale.ndim - 1)) * scale
