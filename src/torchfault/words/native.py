"""Word formats: a tensor to integer words and back, bit for bit; and the formats that torch has types for."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.errors import WordError
from torchfault.names.word_names import FIELDS, NATIVE
from torchfault.words.grids import to_minifloat

__all__ = [
    "WORDS",
    "Coding",
    "WordFormat",
    "bits_of",
    "converted",
    "decode",
    "encode",
    "float_fields",
    "held_in",
    "integer_fields",
    "lying_in",
    "masks_to_words",
    "picked",
    "rounded",
]


class Coding(Protocol):
    """How whole tensors of any shape become words and values again: a frozen value, so that equal ones convert alike.

    *round* gives, in a new tensor, the values that the words of *values* stand for.
    """

    def to_words(self, values: Tensor, integer: torch.dtype) -> Tensor:
        """Return the words of *values*, of the type *integer*."""
        ...

    def to_values(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the values, of the type *dtype*, that *words* stand for."""
        ...

    def round(self, values: Tensor) -> Tensor:
        """Return *values* as words hold them, in a new tensor."""
        ...


@dataclass(frozen=True)
class _Memory:
    """The same memory under another type, so that NaN payloads, -0 and subnormals survive; of a word, the bits *kept*.

    A bool with any other byte than 0 and 1 is undefined behaviour in torch's kernels, and so is a code with more bits.
    """

    kept: int | None = None

    def to_words(self, values: Tensor, integer: torch.dtype) -> Tensor:
        return values.view(integer)

    def to_values(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        return (words if self.kept is None else words & self.kept).view(dtype)

    def round(self, values: Tensor) -> Tensor:
        return values.clone()


@dataclass(frozen=True)
class WordFormat:
    """How one element of a tensor is stored: *width* bits, held in the integer type *integer*.

    *coding* converts tensors of *dtype* to words and back; for the native formats it reinterprets the same memory.
    *fields* names groups of bits, lowest first. A word that holds two numbers names the format of its *halves*. Formats
    are equal where all of these are.

    >>> FLOAT32 = WORDS["float32"]
    >>> FLOAT32.width, FLOAT32.fields["exponent"]
    (32, (23, 24, 25, 26, 27, 28, 29, 30))
    """

    name: str
    width: int
    dtype: torch.dtype
    integer: torch.dtype
    fields: dict[str, tuple[int, ...]]
    coding: Coding = _Memory()
    halves: str = ""

    def __hash__(self) -> int:
        return hash((self.name, self.dtype))

    @property
    def in_memory(self) -> bool:
        """Whether the words are the very memory of a tensor."""
        return isinstance(self.coding, _Memory)


def encode(tensor: Tensor, fmt: WordFormat) -> Tensor:
    """Return the words of *tensor*, an integer tensor of the same shape (for native formats, the same memory).

    Raises :class:`WordError` where the tensor has another type.

    >>> hex(encode(torch.tensor(1.0), WORDS["float32"]).item())
    '0x3f800000'
    """
    if tensor.dtype != fmt.dtype:
        raise WordError(f"{fmt.name} words need a {fmt.dtype} tensor, got {tensor.dtype}; convert it first")
    return fmt.coding.to_words(tensor, fmt.integer)


def decode(words: Tensor, fmt: WordFormat) -> Tensor:
    """Return the values that *words* stand for, a tensor of the same shape.

    >>> decode(torch.tensor(0x7F800000, dtype=torch.int32), WORDS["float32"])
    tensor(inf)
    """
    return fmt.coding.to_values(words, fmt.dtype)


def rounded(values: Tensor, fmt: WordFormat) -> Tensor:
    """Return floating-point *values* as words of *fmt* hold them, in a new tensor of the same shape and type.

    >>> rounded(torch.tensor([1.0, 1.001]), WORDS["bfloat16"])
    tensor([1., 1.])
    """
    return held_in(fmt, values.dtype).coding.round(values)


def picked(values: Tensor, element: Tensor) -> Tensor:
    """Return the values at flat positions *element*, of any type: not every torch can index the narrow ones.

    >>> picked(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([3, 0]))
    tensor([4., 1.])
    """
    flat = values.reshape(-1)
    return flat.view(torch.uint8)[element].view(flat.dtype) if flat.itemsize == 1 else flat[element]


def converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return *values* as *dtype*, where ``float8_e4m3fn`` saturates: conversions of older versions overflow to NaN.

    >>> converted(torch.tensor([1e6]), torch.float8_e4m3fn).float()
    tensor([448.])
    """
    if dtype != torch.float8_e4m3fn or values.dtype == dtype:
        return values.to(dtype)
    return (values if values.itemsize > 1 else values.float()).clamp(-448, 448).to(dtype)


@dataclass(frozen=True)
class _Converted:
    """The words of *fmt* for values of another floating-point type, which are converted on the way."""

    fmt: WordFormat

    def to_words(self, values: Tensor, integer: torch.dtype) -> Tensor:
        return self.fmt.coding.to_words(converted(values, self.fmt.dtype), integer)

    def to_values(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        return decode(words, self.fmt).to(dtype)

    def round(self, values: Tensor) -> Tensor:
        if self.fmt.dtype == torch.float8_e4m3fn and values.dtype == torch.float32:
            # Torch's own conversions of this type take four times as long.
            return to_minifloat(values, exponent=4, mantissa=3, largest=448.0, exact=self._by_conversion)
        return self._by_conversion(values)

    def _by_conversion(self, values: Tensor) -> Tensor:
        return self.fmt.coding.round(converted(values, self.fmt.dtype)).to(values.dtype)


@lru_cache(maxsize=1024)
def held_in(fmt: WordFormat, dtype: torch.dtype) -> WordFormat:
    """Return *fmt* for values that a floating-point tensor of *dtype* holds: they are converted on the way.

    Raises :class:`WordError` where one of the two types is no floating-point type.

    >>> words = encode(torch.tensor([1.0]), held_in(WORDS["bfloat16"], torch.float32))
    >>> hex(words.item()), words.dtype
    ('0x3f80', torch.int16)
    """
    if fmt.dtype == dtype or str(dtype) == f"torch.{fmt.name}":  # torch's own sub-byte integers
        return lying_in(fmt, dtype)
    if not (fmt.dtype.is_floating_point and dtype.is_floating_point):
        raise WordError(f"{fmt.name} words need a {fmt.dtype} tensor, got {dtype}; convert it first")
    return replace(fmt, dtype=dtype, coding=_Converted(fmt))


def lying_in(fmt: WordFormat, dtype: torch.dtype) -> WordFormat:
    """Return *fmt* for tensors of *dtype* whose bytes are the words themselves, as of codes and of sub-byte types.

    >>> fmt = lying_in(WORDS["float8_e4m3fn"], torch.uint8)
    >>> encode(torch.tensor([0x7E], dtype=torch.uint8), fmt), fmt.name
    (tensor([126], dtype=torch.uint8), 'float8_e4m3fn')
    """
    if fmt.dtype == dtype:
        return fmt
    whole = fmt.width == 8 * dtype.itemsize
    return replace(fmt, dtype=dtype, coding=_Memory(None if whole else (1 << fmt.width) - 1))


def masks_to_words(masks: NDArray[np.uint64], fmt: WordFormat, *, device: torch.device | str = "cpu") -> Tensor:
    """Return unsigned 64-bit *masks* as a tensor of the format's integer type, shape (n,).

    >>> masks_to_words(np.array([2**31], dtype=np.uint64), WORDS["float32"])
    tensor([-2147483648], dtype=torch.int32)
    """
    target = torch.empty(0, dtype=fmt.integer, device="cpu").numpy().dtype
    narrow = masks.astype(np.dtype(f"u{target.itemsize}")).view(target)
    return torch.from_numpy(narrow).to(device)


def bits_of(tensor: Tensor) -> Tensor:
    """Return the bits of any strided *tensor* as integers, so that a NaN equals itself and 0 differs from -0.

    The two parts of a complex number come along a last axis of their own.

    >>> bits_of(torch.tensor([1.0, torch.nan])).tolist()
    [1065353216, 2143289344]
    """
    plain = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return plain.view(_INTEGERS[plain.itemsize])


def float_fields(exponent: int, mantissa: int) -> dict[str, tuple[int, ...]]:
    """Return the fields of a floating-point word."""
    top = mantissa + exponent
    return {"mantissa": tuple(range(mantissa)), "exponent": tuple(range(mantissa, top)), "sign": (top,)}


def integer_fields(width: int, *, signed: bool) -> dict[str, tuple[int, ...]]:
    """Return the fields of a whole number."""
    fields = {"magnitude": tuple(range(width - signed)), "sign": (width - 1,) if signed else ()}
    return {name: bits for name, bits in fields.items() if bits}


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _native(name: str, width: int) -> WordFormat:
    dtype: torch.dtype = getattr(torch, name)
    if name == "bool":
        return WordFormat(name, width, dtype, torch.uint8, {"value": (0,)}, _Memory(kept=1))
    integer = _INTEGERS[width // 8]
    if name == "float4_e2m1fn_x2":
        fields = {"mantissa": (0, 4), "exponent": (1, 2, 5, 6), "sign": (3, 7)}
        return WordFormat(name, width, dtype, integer, fields, halves="e2m1fn")
    if name in FIELDS:
        mantissa, exponent = FIELDS[name]
        fields = {field: bits for field, bits in float_fields(exponent, mantissa).items() if bits and bits[-1] < width}
        return WordFormat(name, width, dtype, integer, fields)
    return WordFormat(name, width, dtype, integer, integer_fields(width, signed=dtype.is_signed))


# Of the newest types an older torch has none.
WORDS: dict[str, WordFormat] = {name: _native(name, width) for name, width in NATIVE.items() if hasattr(torch, name)}
