"""Round float32 values to those that the words of an emulated format stand for, without making words of them."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["to_affine", "to_fixed", "to_minifloat"]

_MANTISSA, _EXPONENT, _BIAS, _INFINITY, _SIGN = 23, 8, 127, 0x7F800000, -1 << 31  # of float32
_LEAST_DROP = 2  # bits, with which a value is less than half of what it is added to


def to_fixed(values: Tensor, *, scale: float, width: int) -> Tensor:
    """Return *values* in fixed point of *width* bits, the lowest of them worth *scale*, a power of two.

    >>> to_fixed(torch.tensor([1.03, -9.0, torch.nan]), scale=2**-4, width=8)
    tensor([ 1., -8.,  0.])
    """
    end = float(1 << width - 1)
    # Scaling by a power of two is exact in float32, and so is every code of 24 bits.
    codes = (values * (1 / scale)).nan_to_num_(0.0).round_().clamp_(-end, end - 1)
    return codes.mul_(scale).add_(0.0)  # a word has one zero: -0 becomes it


def to_affine(values: Tensor, *, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """Return *values* as integer codes from *low* to *high* stand for them, (code - *zero_point*) x *scale*.

    >>> to_affine(torch.tensor([1.2, -1e9]), scale=0.5, zero_point=128, low=0, high=255)
    tensor([  1., -64.])
    """
    codes = values.double().div_(scale).round_().nan_to_num_(0.0).clamp_(low - zero_point, high - zero_point)
    return codes.mul_(scale).add_(0.0).to(values.dtype)


def to_minifloat(
    values: Tensor, *, exponent: int, mantissa: int, largest: float | None, exact: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return float32 *values* as floats of *exponent* and *mantissa* bits hold them.

    They saturate at *largest*, and NaN becomes what *exact* says; or they become infinity (``None``), and NaN keeps its
    upper bits. *exact* rounds by way of words, and is asked for formats nearly as wide as float32, too.

    >>> to_minifloat(torch.tensor([0.3, 100.0]), exponent=3, mantissa=2, largest=28.0, exact=torch.nan_to_num)
    tensor([ 0.3125, 28.0000])
    """
    drop, top = _MANTISSA - mantissa, (1 << exponent - 1) - 1
    if exponent == _EXPONENT:
        found = _by_bits(values, drop)
    elif drop < _LEAST_DROP:
        return exact(values)
    else:
        found = _by_sums(values, drop, top)
        if largest is not None:
            found.clamp_(-largest, largest)
        else:  # what is too large becomes infinity, and all else comes back
            found.mul_(2.0 ** (_BIAS - top)).mul_(2.0 ** (top - _BIAS))
        found.view(torch.int32).bitwise_or_(values.view(torch.int32).bitwise_and(_SIGN))  # faster than to copy signs
    # Few rows, lanes mostly, are lost to NaN, but most batches have some.
    if values.numel() and (lost := values.amax(tuple(range(1, values.ndim))).isnan()).any():
        rows = lost.nonzero().squeeze(1) if lost.ndim else ...
        kept = None if largest is None else exact(values.new_full((), torch.nan))
        found[rows] = _with_nan(found[rows], values[rows], drop, kept)
    return found


def _with_nan(found: Tensor, values: Tensor, drop: int, kept: Tensor | None) -> Tensor:
    """Return *found*, but where *values* are NaN these without the *drop* lowest bits, or *kept* with their sign.

    By whole numbers, since to select by a mask takes as long as forty of these operations: lanes of e4m3 take 25 % less
    time, of MX 10 %.
    """
    bits, mine = values.view(torch.int32), found.view(torch.int32)
    if kept is None:
        words = bits.bitwise_and(-1 << drop)
        quiet = words.bitwise_and((1 << _MANTISSA) - 1).sub_(1).bitwise_right_shift_(31)  # -1 where nothing is left
        words.bitwise_or_(quiet.bitwise_and_(1 << _MANTISSA - 1))
    else:
        words = bits.bitwise_and(_SIGN).bitwise_or_(kept.view(torch.int32))
    lost = bits.bitwise_and(~_SIGN).neg_().add_(_INFINITY).bitwise_right_shift_(31)  # -1 for NaN, 0 for numbers
    return words.bitwise_xor_(mine).bitwise_and_(lost).bitwise_xor_(mine).view(torch.float32)


def _by_bits(values: Tensor, drop: int) -> Tensor:
    """Return *values* without the *drop* lowest bits: half a step is added, less one where the last that stays is 0."""
    if not drop:
        return values.clone()
    bits = values.view(torch.int32)
    half = (bits >> drop).bitwise_and_(1).add_(bits).add_((1 << drop - 1) - 1)
    return half.bitwise_and_(-1 << drop).view(torch.float32)


def _by_sums(values: Tensor, drop: int, top: int) -> Tensor:
    """Return *values* with *drop* bits fewer, in steps no finer than those of subnormal numbers; zeros lose their sign.

    What float32 adds to one and a half times a power of two, it rounds to the step of that: to the nearest, ties to
    even. So the power is that of the value itself, but for the bits to be dropped.
    """
    ends = (1 - top + _BIAS) << _MANTISSA, (top + 1 + _BIAS) << _MANTISSA
    power = values.view(torch.int32).bitwise_and(_INFINITY).clamp_(*ends)
    magic = power.add_(drop << _MANTISSA | 1 << _MANTISSA - 1).view(torch.float32)
    return values.add(magic).sub_(magic)
