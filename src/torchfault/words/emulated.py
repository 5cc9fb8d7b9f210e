"""Number formats that torch has no type for, emulated on float32 and int8 tensors, each named by its parameters."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from torchfault.errors import WordError, did_you_mean
from torchfault.names.word_names import NATIVE, parameters
from torchfault.words.grids import to_affine, to_fixed, to_minifloat
from torchfault.words.native import WORDS, WordFormat, float_fields, integer_fields, lying_in

__all__ = ["affine", "fixed_point", "minifloat", "narrow_integer", "power_of_two", "word", "word_of"]

_LARGEST_EXPONENT = 8  # of float32, which holds the values
_LARGEST_MANTISSA = 23
_LARGEST_FIXED = 24  # the bits of a whole number that float32 holds exactly
_SYNTAX = (
    "q3.4 (fixed point), e5m2 or e3m2fn (minifloat), float8_e4m3fn[nan] (which overflows to NaN), int4 (narrow "
    "integer) and uint8[0.02:128] (quantised)"
)


@lru_cache(maxsize=4096)
def word(name: str) -> WordFormat:
    """Return the word format called *name*, or raise :class:`WordError` with a suggestion.

    Besides torch's own types there are formats by their parameters: ``q3.4`` (see :func:`fixed_point`), ``e5m2`` and
    ``e3m2fn`` (:func:`minifloat`), ``int4`` (:func:`narrow_integer`), ``uint8[0.02:128]`` (:func:`affine`). Torch
    converts what is beyond 448 to 448 in ``float8_e4m3fn``; in ``float8_e4m3fn[nan]`` it becomes NaN.

    >>> word("int8").fields["sign"], word("q3.4").width, word("e3m2fn").width
    ((7,), 8, 6)
    """
    if name in WORDS:
        return WORDS[name]
    if name in NATIVE:
        raise WordError(f"'{name}' words need a torch that has this type, got torch {torch.__version__}; update torch")
    found = parameters(name)
    if found is None:
        raise WordError(
            f"no word format is called '{name}'{did_you_mean(name, WORDS)}; known: {', '.join(WORDS)}, and {_SYNTAX}"
        )
    kind, given = found
    if kind == "fixed point":
        return fixed_point(int(given["integer"]), int(given["fraction"]))
    if kind == "minifloat":
        return minifloat(int(given["exponent"]), int(given["mantissa"]), finite=bool(given["finite"]))
    if kind == "overflow to NaN":
        return replace(WORDS["float8_e4m3fn"], name=name, dtype=torch.float32, coding=_Overflowing())
    width, signed = int(given["width"]), given["kind"] == "int"
    if kind == "narrow integer":
        return narrow_integer(width, signed=signed)
    return affine(float(given["scale"]), int(given["zero_point"]), width=width, signed=signed)


def word_of(tensor: Tensor) -> WordFormat:
    """Return the word format of *tensor* by its type, or raise :class:`WordError` where that has none.

    Of torch's sub-byte integers, which lie in a byte each, the lowest bits are the word.

    >>> word_of(torch.zeros(1, dtype=torch.bfloat16)).name, word_of(torch.zeros(1, dtype=torch.int4)).width
    ('bfloat16', 4)
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in WORDS and (parameters(name) or ("",))[0] != "narrow integer":
        raise WordError(f"faults need a tensor of one of {', '.join(WORDS)}, got {tensor.dtype}; convert it first")
    return lying_in(word(name), tensor.dtype)


def fixed_point(integer: int, fraction: int) -> WordFormat:
    """Return Qm.n in two's complement: a sign, *integer* bits before the point and *fraction* bits behind it.

    The word w stands for w / 2^n, from -2^m to 2^m - 2^-n. Values round to the nearest word, ties to even; those
    outside saturate, infinities too, and NaN becomes 0. At most 24 bits in all, which float32 holds exactly.

    >>> from torchfault.words import decode, encode
    >>> q = fixed_point(3, 4)
    >>> decode(encode(torch.tensor([1.03, -9.0]), q), q)
    tensor([ 1., -8.])
    """
    width = 1 + integer + fraction
    if not 2 <= width <= _LARGEST_FIXED:
        raise WordError(f"q{integer}.{fraction} has {width} bits with its sign; a fixed-point word has 2 to 24")
    fields = {
        "fraction": tuple(range(fraction)),
        "magnitude": tuple(range(fraction, width - 1)),
        "sign": (width - 1,),
    }
    return WordFormat(
        f"q{integer}.{fraction}",
        width,
        torch.float32,
        _holder(width),
        {name: bits for name, bits in fields.items() if bits},
        _Codes(width, signed=True, scale=2.0**-fraction),
    )


def affine(scale: float, zero_point: int, *, width: int = 8, signed: bool = False) -> WordFormat:
    """Return integer codes q of *width* bits for float32 values (q - *zero_point*) x *scale*, as quantised layers do.

    Values round to the nearest code, ties to even, and saturate at the ends; NaN becomes the zero point.

    >>> from torchfault.words import decode, encode
    >>> code = affine(0.5, 128)
    >>> encode(torch.tensor([0.0, 1.2, -1e9]), code), code.name
    (tensor([128, 130,   0], dtype=torch.uint8), 'uint8[0.5:128]')
    """
    low, high = _range(width, signed)
    if not 2 <= width <= 8 or not 0 < scale < float("inf") or not low <= zero_point <= high:
        raise WordError(
            f"a quantised word has 2 to 8 bits, a scale above 0 and a zero point from {low} to {high}, "
            f"got {width} bits, {scale} and {zero_point}"
        )
    kind = "int" if signed else "uint"
    return WordFormat(
        f"{kind}{width}[{scale!r}:{zero_point}]",
        width,
        torch.float32,
        torch.uint8,
        integer_fields(width, signed=signed),
        _Codes(width, signed, scale, zero_point),
    )


def narrow_integer(width: int, *, signed: bool) -> WordFormat:
    """Return whole numbers of 1 to 7 bits, in two's complement if *signed*, held in int8 or uint8 tensors.

    Values outside saturate.

    >>> from torchfault.words import encode
    >>> encode(torch.tensor([-1, 7], dtype=torch.int8), narrow_integer(4, signed=True))
    tensor([15,  7], dtype=torch.uint8)
    """
    name, held = ("int", torch.int8) if signed else ("uint", torch.uint8)
    fields = integer_fields(width, signed=signed)
    return WordFormat(f"{name}{width}", width, held, torch.uint8, fields, _Whole(width, signed))


def minifloat(exponent: int, mantissa: int, *, finite: bool = False) -> WordFormat:
    """Return a float of a sign, *exponent* and *mantissa* bits, with subnormals and a bias of 2^(exponent - 1) - 1.

    Values round to nearest, ties to even. By itself the format is as IEEE 754 has it: the top exponent holds infinity
    and NaN, and what is too large becomes infinity. *finite* (``e3m2fn``, as in the OCP microscaling formats) gives
    every code a finite value: what is too large saturates, and NaN becomes the largest value.

    >>> from torchfault.words import decode, encode
    >>> e3m2, e3m2fn = minifloat(3, 2), minifloat(3, 2, finite=True)
    >>> [decode(encode(torch.tensor([0.3, 100.0]), fmt), fmt).tolist() for fmt in (e3m2, e3m2fn)]
    [[0.3125, inf], [0.3125, 28.0]]
    """
    if not 2 <= exponent <= _LARGEST_EXPONENT or not 1 <= mantissa <= _LARGEST_MANTISSA:
        raise WordError(f"a minifloat has 2 to 8 exponent and 1 to 23 mantissa bits, got {exponent} and {mantissa}")
    if finite and exponent == _LARGEST_EXPONENT:
        raise WordError(f"float32 cannot hold the values of e8m{mantissa}fn; use e8m{mantissa}, or fewer exponent bits")
    width = 1 + exponent + mantissa
    name = f"e{exponent}m{mantissa}{'fn' if finite else ''}"
    if finite and f"float8_{name}" in WORDS:
        raise WordError(f"'{name}' is taken for torch's own format, which has NaN; use float8_{name}")
    return WordFormat(
        name,
        width,
        torch.float32,
        _holder(width),
        float_fields(exponent, mantissa),
        _Minifloat(exponent, mantissa, finite),
    )


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2 to a whole power from -1022 to 1023, exactly, as float64; library functions may be off by a rounding.

    >>> power_of_two(torch.tensor([-3, 0, 8]))
    tensor([1.2500e-01, 1.0000e+00, 2.5600e+02], dtype=torch.float64)
    """
    return (exponent.to(torch.int64) + 1023 << 52).view(torch.float64)


def _holder(width: int) -> torch.dtype:
    return torch.uint8 if width <= 8 else torch.int16 if width <= 16 else torch.int32


def _range(width: int, signed: bool) -> tuple[int, int]:
    return (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)


def _extended(words: Tensor, width: int, signed: bool) -> Tensor:
    """Return the whole numbers that words of *width* bits stand for, as int64."""
    code = words.to(torch.int64) & ((1 << width) - 1)
    return code - ((code >> width - 1) << width) if signed else code


@dataclass(frozen=True)
class _Whole:
    """Whole numbers of *width* bits, in two's complement if *signed*."""

    width: int
    signed: bool

    def to_words(self, values: Tensor, integer: torch.dtype) -> Tensor:
        return (values.clamp(*_range(self.width, self.signed)) & ((1 << self.width) - 1)).to(integer)

    def to_values(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        return _extended(words, self.width, self.signed).to(dtype)

    def round(self, values: Tensor) -> Tensor:
        return values.clamp(*_range(self.width, self.signed))


@dataclass(frozen=True)
class _Codes:
    """Integer codes q of *width* bits for the values (q - *zero_point*) x *scale*."""

    width: int
    signed: bool
    scale: float
    zero_point: int = 0

    def to_words(self, values: Tensor, integer: torch.dtype) -> Tensor:
        # In double precision the quotient rounds once, and powers of two do not round at all.
        code = (values.double() / self.scale).round().nan_to_num(0.0) + self.zero_point
        code = code.clamp(*_range(self.width, self.signed))
        return (code.to(torch.int64) & ((1 << self.width) - 1)).to(integer)

    def to_values(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        return ((_extended(words, self.width, self.signed) - self.zero_point).double() * self.scale).to(dtype)

    def round(self, values: Tensor) -> Tensor:
        low, high = _range(self.width, self.signed)
        power = 2.0**-_LARGEST_FIXED <= self.scale <= 1 and math.frexp(self.scale)[0] == 0.5
        if power and self.signed and not self.zero_point:  # fixed point, which takes fewer passes
            return to_fixed(values, scale=self.scale, width=self.width)
        return to_affine(values, scale=self.scale, zero_point=self.zero_point, low=low, high=high)


@dataclass(frozen=True)
class _Overflowing:
    """The words of ``float8_e4m3fn``, in which what is beyond 464, half a step above the largest value, becomes NaN."""

    def to_words(self, values: Tensor, integer: torch.dtype) -> Tensor:
        held = values.masked_fill(values.abs() > 464.0, torch.nan).copysign(values)
        return held.to(torch.float8_e4m3fn).view(integer)

    def to_values(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        return words.view(torch.float8_e4m3fn).to(dtype)

    def round(self, values: Tensor) -> Tensor:
        return self.to_values(self.to_words(values, torch.uint8), values.dtype)


@dataclass(frozen=True)
class _Minifloat:
    """Floats of *exponent* and *mantissa* bits; *finite* ones have neither infinity nor NaN."""

    exponent: int
    mantissa: int
    finite: bool

    def to_words(self, values: Tensor, integer: torch.dtype) -> Tensor:
        exponent, mantissa = self.exponent, self.mantissa
        lowest = 2 - (1 << exponent - 1)  # the exponent of the smallest normal number
        magnitude = values.double().abs()
        scale = torch.frexp(magnitude).exponent.to(torch.int64) - 1
        scale = torch.where(magnitude == 0, lowest, scale).clamp(lowest, 1 << exponent - 1)
        quotient = (magnitude * power_of_two(mantissa - scale)).nan_to_num(0.0).clamp(max=4 << mantissa)
        quotient = quotient.round().to(torch.int64)
        # A quotient that rounded up to the next power of two carries into the exponent by itself.
        code = ((scale - lowest) << mantissa) + quotient
        infinity = ((1 << exponent) - 1) << mantissa
        end = (1 << exponent + mantissa) - 1 if self.finite else infinity
        code = torch.where(magnitude.isinf(), end, code.clamp(max=end))
        bits = values.contiguous().view(torch.int32).to(torch.int64)
        payload = (bits & 0x7FFFFF) >> (_LARGEST_MANTISSA - mantissa)
        quiet = torch.where(payload == 0, 1 << mantissa - 1, payload)
        code = torch.where(magnitude.isnan(), end if self.finite else infinity + quiet, code)
        return (code | ((bits >> 31 & 1) << exponent + mantissa)).to(integer)

    def to_values(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        exponent, mantissa = self.exponent, self.mantissa
        lowest = 2 - (1 << exponent - 1)
        word = words.to(torch.int64)
        field, tail = word >> mantissa & ((1 << exponent) - 1), word & ((1 << mantissa) - 1)
        whole = tail + ((field > 0).to(torch.int64) << mantissa)
        value = (whole * power_of_two(field.clamp(min=1) - 1 + lowest - mantissa)).to(torch.float32)
        bits = value.contiguous().view(torch.int32).to(torch.int64)
        if not self.finite:
            special = 0x7F800000 | tail << (_LARGEST_MANTISSA - mantissa)
            bits = torch.where(field == (1 << exponent) - 1, special, bits)
        sign = word >> exponent + mantissa & 1
        return (bits - (sign << 31)).to(torch.int32).view(dtype)

    def round(self, values: Tensor) -> Tensor:
        exponent, mantissa = self.exponent, self.mantissa
        largest = (2.0 - 2.0**-mantissa) * 2.0 ** (1 << exponent - 1) if self.finite else None
        return to_minifloat(values, exponent=exponent, mantissa=mantissa, largest=largest, exact=self._by_words)

    def _by_words(self, values: Tensor) -> Tensor:
        return self.to_values(self.to_words(values, torch.int32), values.dtype)
