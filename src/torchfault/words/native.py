"""Word formats: a tensor to integer words and back, bit for bit; and the formats that torch has types for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.errors import WordError

__all__ = [
    "WORDS",
    "WordFormat",
    "decode",
    "edit",
    "encode",
    "float_fields",
    "held_in",
    "integer_fields",
    "masks_to_words",
    "rounded",
    "word_of",
]


def _view(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.view(dtype)


@dataclass(frozen=True)
class WordFormat:
    """How one element of a tensor is stored: *width* bits, held in the integer type *integer*.

    *to_words* and *to_values* convert whole tensors of any shape; for the native formats they reinterpret the
    same memory, so that NaN payloads, -0 and subnormals survive. *fields* names groups of bits, lowest first. *round*,
    where there is one, rounds values to those of words in fewer passes than there and back.

    >>> FLOAT32 = WORDS["float32"]
    >>> FLOAT32.width, FLOAT32.fields["exponent"]
    (32, (23, 24, 25, 26, 27, 28, 29, 30))
    """

    name: str
    width: int
    dtype: torch.dtype
    integer: torch.dtype
    fields: dict[str, tuple[int, ...]]
    to_words: Callable[[Tensor, torch.dtype], Tensor] = _view
    to_values: Callable[[Tensor, torch.dtype], Tensor] = _view
    round: Callable[[Tensor], Tensor] | None = None

    def __hash__(self) -> int:
        return hash(self.name)


def encode(tensor: Tensor, fmt: WordFormat) -> Tensor:
    """Return the words of *tensor*, an integer tensor of the same shape (for native formats, the same memory).

    Raises :class:`WordError` where the tensor has another type.

    >>> hex(encode(torch.tensor(1.0), WORDS["float32"]).item())
    '0x3f800000'
    """
    if tensor.dtype != fmt.dtype:
        raise WordError(f"{fmt.name} words need a {fmt.dtype} tensor, got {tensor.dtype}; convert it first")
    return fmt.to_words(tensor, fmt.integer)


def decode(words: Tensor, fmt: WordFormat) -> Tensor:
    """Return the values that *words* stand for, a tensor of the same shape.

    >>> decode(torch.tensor(0x7F800000, dtype=torch.int32), WORDS["float32"])
    tensor(inf)
    """
    return fmt.to_values(words, fmt.dtype)


def rounded(values: Tensor, fmt: WordFormat) -> Tensor:
    """Return floating-point *values* as words of *fmt* hold them, in a new tensor of the same shape and type.

    >>> rounded(torch.tensor([1.0, 1.001]), WORDS["bfloat16"])
    tensor([1., 1.])
    """
    held = held_in(fmt, values.dtype)
    if held.round is not None:
        return held.round(values)
    return values.clone() if held.name in WORDS else decode(encode(values, held), held)


@lru_cache(maxsize=1024)
def held_in(fmt: WordFormat, dtype: torch.dtype) -> WordFormat:
    """Return *fmt* for values that a floating-point tensor of *dtype* holds: they are converted on the way.

    Raises :class:`WordError` where one of the two types is no floating-point type.

    >>> words = encode(torch.tensor([1.0]), held_in(WORDS["bfloat16"], torch.float32))
    >>> hex(words.item()), words.dtype
    ('0x3f80', torch.int16)
    """
    if fmt.dtype == dtype:
        return fmt
    if not (fmt.dtype.is_floating_point and dtype.is_floating_point):
        raise WordError(f"{fmt.name} words need a {fmt.dtype} tensor, got {dtype}; convert it first")
    return replace(
        fmt,
        dtype=dtype,
        to_words=lambda values, integer: fmt.to_words(values.to(fmt.dtype), integer),
        to_values=lambda words, wide: fmt.to_values(words, fmt.dtype).to(wide),
        round=lambda values: rounded(values.to(fmt.dtype), fmt).to(dtype),
    )


def edit(tensor: Tensor, keep: Tensor, toggle: Tensor, fmt: WordFormat) -> Tensor:
    """Return a new tensor in which every word w became ``(w & keep) ^ toggle``; the masks broadcast.

    >>> flip_sign = torch.tensor(-(2**31), dtype=torch.int32)
    >>> edit(torch.tensor([1.5, 2.0]), torch.tensor(-1, dtype=torch.int32), flip_sign, WORDS["float32"])
    tensor([-1.5000, -2.0000])
    """
    return decode((encode(tensor, fmt) & keep) ^ toggle, fmt)


def masks_to_words(masks: NDArray[np.uint64], fmt: WordFormat, *, device: torch.device | str = "cpu") -> Tensor:
    """Return unsigned 64-bit *masks* as a tensor of the format's integer type, shape (n,).

    >>> masks_to_words(np.array([2**31], dtype=np.uint64), WORDS["float32"])
    tensor([-2147483648], dtype=torch.int32)
    """
    target = torch.empty(0, dtype=fmt.integer).numpy().dtype
    narrow = masks.astype(np.dtype(f"u{target.itemsize}")).view(target)
    return torch.from_numpy(narrow).to(device)


def float_fields(exponent: int, mantissa: int) -> dict[str, tuple[int, ...]]:
    """Return the fields of a floating-point word."""
    top = mantissa + exponent
    return {"mantissa": tuple(range(mantissa)), "exponent": tuple(range(mantissa, top)), "sign": (top,)}


def integer_fields(width: int, *, signed: bool) -> dict[str, tuple[int, ...]]:
    """Return the fields of a whole number."""
    magnitude = width - signed
    return {"magnitude": tuple(range(magnitude))} | ({"sign": (width - 1,)} if signed else {})


def _make(name: str, width: int, integer: torch.dtype, fields: dict[str, tuple[int, ...]]) -> WordFormat:
    return WordFormat(name, width, getattr(torch, name), integer, fields)


def _only_bit_zero(words: Tensor, dtype: torch.dtype) -> Tensor:
    # A bool with any other byte than 0 and 1 is undefined behaviour in torch's kernels.
    return (words & 1).view(dtype)


_FORMATS = (
    _make("float64", 64, torch.int64, float_fields(11, 52)),
    _make("float32", 32, torch.int32, float_fields(8, 23)),
    _make("float16", 16, torch.int16, float_fields(5, 10)),
    _make("bfloat16", 16, torch.int16, float_fields(8, 7)),
    _make("float8_e4m3fn", 8, torch.uint8, float_fields(4, 3)),
    _make("float8_e5m2", 8, torch.uint8, float_fields(5, 2)),
    _make("int64", 64, torch.int64, integer_fields(64, signed=True)),
    _make("int32", 32, torch.int32, integer_fields(32, signed=True)),
    _make("int16", 16, torch.int16, integer_fields(16, signed=True)),
    _make("int8", 8, torch.int8, integer_fields(8, signed=True)),
    _make("uint8", 8, torch.uint8, integer_fields(8, signed=False)),
    WordFormat("bool", 1, torch.bool, torch.uint8, {"value": (0,)}, to_values=_only_bit_zero),
)
WORDS: dict[str, WordFormat] = {fmt.name: fmt for fmt in _FORMATS}
_BY_DTYPE = {fmt.dtype: fmt for fmt in _FORMATS}


def word_of(tensor: Tensor) -> WordFormat:
    """Return the native word format of *tensor*, or raise :class:`WordError` where its type has none.

    >>> word_of(torch.zeros(1, dtype=torch.bfloat16)).name
    'bfloat16'
    """
    if tensor.dtype not in _BY_DTYPE:
        raise WordError(f"faults need a tensor of one of {', '.join(WORDS)}, got {tensor.dtype}; convert it first")
    return _BY_DTYPE[tensor.dtype]
