"""Storages that keep every element: in a number format, as quantised codes with scales, in blocks with an exponent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchfault.errors import StorageError
from torchfault.storages.base import Part, Words, as_matrix
from torchfault.storages.blocks import LARGEST, block_of, cut, filters, joined, largest_in, members
from torchfault.words import converted, decode, encode, word
from torchfault.words.emulated import power_of_two

__all__ = ["Affine", "BlockFloat", "Formatted"]

_BIAS = 127


@dataclass(frozen=True)
class Formatted:
    """Every element by itself in the word format called *format*: ``q3.4``, ``e3m2fn``, ``bfloat16``, ...

    >>> from torchfault.storages import keep
    >>> keep(torch.tensor([1.03]), Formatted("q3.4")).value()
    tensor([1.])
    """

    format: str

    def __post_init__(self) -> None:
        fmt = word(self.format)
        if not fmt.dtype.is_floating_point:
            raise StorageError(f"a number format keeps real numbers, got {fmt.name}; for integer codes use Affine")
        if fmt.halves or fmt.fields.keys() == {"exponent"}:
            lacks = "two numbers in a word; use mxfp4 or nvfp4" if fmt.halves else "no signs; use it for scales"
            raise StorageError(f"a number format keeps single real numbers, and {fmt.name} has {lacks}")

    @property
    def name(self) -> str:
        """The name of the word format."""
        return self.format

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return the rounded values themselves."""
        fmt = word(self.format)
        return {"": decode(encode(converted(tensor, fmt.dtype), fmt), fmt)}

    def parts(self, words: Words, shape: Sequence[int]) -> dict[str, Part]:
        """Return the only part."""
        del words
        return {"": Part(self.format, channel=0 if shape else None)}

    def decode(self, words: Words, shape: Sequence[int]) -> Tensor:
        """Return the values."""
        return words[""].float().reshape(tuple(shape))

    def spread(
        self, words: Words, shape: Sequence[int], part: str, element: Tensor, new: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the same element with the new value."""
        del words, shape, part
        return element, new.float()


@dataclass(frozen=True)
class Affine:
    """Integer codes q of *width* bits for values (q - zero point) x scale, as quantised networks are deployed.

    The parts are the codes, ``scale`` (float32, one per *group* of neighbours in a row; ``None`` means one per output
    channel, 0 one for the whole tensor) and, unless *symmetric*, ``zero_point`` (one each, of the codes' format).
    Symmetric codes are signed, with a scale of max |x| / (2^(width-1) - 1); others are unsigned and span the range
    from min(x, 0) to max(x, 0). Values round to the nearest code, ties to even. The scheme is that of Jacob et al.
    2018, equation 1.
    """

    width: int = 8
    group: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.width <= 8 or not 0 <= (self.group or 0) <= LARGEST:
            raise StorageError(f"codes have 2 to 8 bits and groups 1 to {LARGEST}, got {self.width} and {self.group}")

    @property
    def name(self) -> str:
        """``int8``, ``uint8``, ``int8:tensor``, ``int4:32``, ..."""
        kind = f"{'int' if self.symmetric else 'uint'}{self.width}"
        return kind if self.group is None else f"{kind}:{self.group or 'tensor'}"

    def _grouped(self, tensor: Tensor) -> Tensor:
        """Return the rows cut into groups, filled up with zeros: (rows, groups, elements)."""
        rows = tensor.reshape(1, -1) if self.group == 0 else as_matrix(tensor)
        return cut(rows, self.group or max(rows.shape[1], 1))

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return codes, scales and zero points."""
        groups = self._grouped(tensor)
        if self.symmetric:
            top = (1 << self.width - 1) - 1
            zero, low, high, held = torch.zeros_like(groups[..., 0]), -top, top, torch.int8
            scale = _bounded(_safe(groups.abs().amax(2) / top), torch.full_like(zero, top))
        else:
            high, low, held = (1 << self.width) - 1, 0, torch.uint8
            # A quarter of them all, and back, so that no difference overflows; powers of two round nothing.
            least, most = groups.amin(2).clamp(max=0) / 4, groups.amax(2).clamp(min=0) / 4
            scale = _safe((most - least) / high * 4)
            zero = (-least / scale * 4).round().clamp(low, high)
            scale = _bounded(scale, torch.maximum(zero, high - zero))
        codes = ((groups / scale.unsqueeze(2)).round() + zero.unsqueeze(2)).clamp(low, high).to(held)
        words = {"": joined(codes, tensor), "scale": self._per_group(scale)}
        return words if self.symmetric else {**words, "zero_point": self._per_group(zero.to(held))}

    def _per_group(self, column: Tensor) -> Tensor:
        return column.reshape(()) if self.group == 0 else column.squeeze(1) if self.group is None else column

    def parts(self, words: Words, shape: Sequence[int]) -> dict[str, Part]:
        """Return codes, scales and zero points."""
        code = f"{'int' if self.symmetric else 'uint'}{self.width}"
        channel = None if self.group == 0 else 0
        found = {"": Part(code, channel=0 if shape else None), "scale": Part("float32", "scale", channel)}
        return found if "zero_point" not in words else {**found, "zero_point": Part(code, "zero_point", channel)}

    def decode(self, words: Words, shape: Sequence[int]) -> Tensor:
        """Return (q - zero point) x scale in float32."""
        groups = self._grouped(words[""].reshape(tuple(shape)).float())  # which holds differences of codes exactly
        scale = words["scale"].reshape(groups.shape[:2])
        zero = words["zero_point"].reshape(groups.shape[:2]).float() if "zero_point" in words else None
        whole = groups if zero is None else groups - zero.unsqueeze(2)
        return joined(whole * scale.unsqueeze(2), words[""].reshape(tuple(shape)))

    def spread(
        self, words: Words, shape: Sequence[int], part: str, element: Tensor, new: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return the element of a code, or all those that a scale or a zero point belongs to."""
        if part and self.group == 0:
            return None
        place = element if not part else members(element, filters(shape), self.group)
        group = self._group_of(element, shape) if not part else element
        codes = new if not part else words[""].reshape(-1)[place]
        zero = None if "zero_point" not in words else words["zero_point"].reshape(-1)[group]
        scale = words["scale"].reshape(-1)[group]
        if part:
            scale = (new if part == "scale" else scale).unsqueeze(1)
            zero = zero if zero is None else (new if part == "zero_point" else zero).unsqueeze(1)
        whole = codes.to(torch.int32)
        return place, (whole if zero is None else whole - zero.to(torch.int32)).float() * scale

    def _group_of(self, element: Tensor, shape: Sequence[int]) -> Tensor:
        if self.group == 0:
            return torch.zeros_like(element)
        return block_of(element, filters(shape), self.group or max(filters(shape).length, 1))


@dataclass(frozen=True)
class BlockFloat:
    """Block floating point: *block* neighbours in a row share an exponent; each has a signed code of *width* bits.

    The parts are the codes m (two's complement) and ``exponent`` (uint8, one per block, biased by 127); a value is
    m x 2^(exponent - 127 - (width - 2)). The exponent is that of the largest magnitude in the block; values round to
    the nearest code, ties to even, and saturate at +-(2^(width-1) - 1). A value beyond float32 becomes infinity.
    """

    width: int = 8
    block: int = 16

    def __post_init__(self) -> None:
        if not 2 <= self.width <= 8 or not 1 <= self.block <= LARGEST:
            raise StorageError(f"codes have 2 to 8 bits and blocks 1 to {LARGEST}, got {self.width} and {self.block}")

    @property
    def name(self) -> str:
        """``bfp8:16``, ..."""
        return f"bfp{self.width}:{self.block}"

    @property
    def formats(self) -> Mapping[str, str]:
        """The word format of each part."""
        return {"": f"int{self.width}", "exponent": "uint8"}

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return codes and exponents."""
        blocks = cut(as_matrix(tensor), self.block).double()
        largest = largest_in(blocks)
        top = torch.where(largest == 0, -_BIAS, torch.frexp(largest).exponent.to(torch.int64) - 1)
        exponent = (top + _BIAS).clamp(0, 255)
        bound = (1 << self.width - 1) - 1
        codes = (blocks / self._step(exponent).unsqueeze(2)).round().clamp(-bound, bound)
        return {"": joined(codes.to(torch.int8), tensor), "exponent": exponent.to(torch.uint8)}

    def round(self, rows: Tensor) -> Tensor:
        """Return what the words of *rows*, (rows, length, ...), stand for, in a new tensor.

        Infinity counts as the largest float32, NaN as 0.

        Exact but for the rounding itself: the steps are powers of two, and no code times its step is out of range.
        """
        blocks = cut(rows.nan_to_num(0.0), self.block)
        largest = largest_in(blocks).unsqueeze(2)
        top = torch.where(largest == 0, -_BIAS, torch.frexp(largest).exponent - 1).clamp(-_BIAS, _BIAS)
        step, end = power_of_two(top - (self.width - 2)).float(), (1 << self.width - 1) - 1
        return joined((blocks / step).round_().clamp_(-end, end).mul_(step).add_(0.0), rows)

    def _step(self, exponent: Tensor) -> Tensor:
        return power_of_two(exponent.to(torch.int64) - _BIAS - (self.width - 2))

    def parts(self, words: Words, shape: Sequence[int]) -> dict[str, Part]:
        """Return codes and exponents."""
        del words
        kinds = {"": Part("", channel=0 if shape else None), "exponent": Part("", "exponent", 0)}
        return {part: replace(kinds[part], word=name) for part, name in self.formats.items()}

    def decode(self, words: Words, shape: Sequence[int]) -> Tensor:
        """Return codes times powers of two."""
        codes = words[""].reshape(tuple(shape))
        blocks = cut(as_matrix(codes), self.block).double()
        return joined((blocks * self._step(words["exponent"]).unsqueeze(2)).float(), codes)

    def spread(
        self, words: Words, shape: Sequence[int], part: str, element: Tensor, new: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the element of a code, or all those that share an exponent."""
        if part:
            place = members(element, filters(shape), self.block)
            return place, (words[""].reshape(-1)[place].double() * self._step(new).unsqueeze(1)).float()
        step = self._step(words["exponent"].reshape(-1)[self.shared(element, shape)])
        return element, (new.double() * step).float()

    def shared(self, element: Tensor, shape: Sequence[int]) -> Tensor:
        """Return which of the exponents each flat *element* of a tensor of *shape* has."""
        return block_of(element, filters(shape), self.block)


def _bounded(scale: Tensor, furthest: Tensor) -> Tensor:
    """Return *scale*, reduced where the code *furthest* from zero would stand for more than a float32 holds."""
    largest = torch.finfo(scale.dtype).max / furthest
    largest = torch.where((largest * furthest).isinf(), torch.nextafter(largest, torch.zeros_like(largest)), largest)
    return scale.minimum(largest)


def _safe(scale: Tensor) -> Tensor:
    # Also for a group of zeros, or of numbers so small that their scale would be 0, codes need a scale to divide by.
    return torch.where(scale > 0, scale, torch.ones_like(scale))
