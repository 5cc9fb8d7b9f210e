"""Round float32 values to those that the words of an emulated format stand for, without making words of them."""

import torch
from torch import Tensor

__all__ = ["to_affine", "to_fixed", "to_minifloat"]

_MANTISSA, _INFINITY = 23, 0x7F800000  # of float32


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


def to_minifloat(values: Tensor, *, exponent: int, mantissa: int, finite: bool) -> Tensor:
    """Return *values* as floats of *exponent* and *mantissa* bits hold them; *finite*: without infinity and NaN.

    >>> to_minifloat(torch.tensor([0.3, 100.0]), exponent=3, mantissa=2, finite=True)
    tensor([ 0.3125, 28.0000])
    """
    drop, top = _MANTISSA - mantissa, (1 << exponent - 1) - 1
    smallest = 2.0 ** (1 - top)  # normal number
    largest = (2.0 - 2.0**-mantissa) * 2.0 ** (top + finite)
    magnitude = values.abs()
    if finite:
        magnitude.nan_to_num_(largest).clamp_(max=largest)
    bits = magnitude.view(torch.int32)
    # To the nearest, ties to even: half a step, less one where the last bit that stays is 0, then cut off.
    half = (bits >> drop).bitwise_and_(1).add_(bits).add_((1 << drop >> 1) - 1) if drop else bits.clone()
    normal = half.bitwise_and_(-1 << drop).view(torch.float32)
    # What float32 adds to a number of this size, it rounds to the step of the subnormal numbers.
    bias = smallest * 2.0**drop
    found = torch.where(magnitude < smallest, magnitude.add(bias).sub_(bias), normal)
    if not finite:
        found = torch.where(found > largest, torch.inf, found)
        lost = (bits >> drop).bitwise_and_((1 << mantissa) - 1)
        lost = torch.where(lost == 0, 1 << mantissa - 1, lost).bitwise_left_shift_(drop).bitwise_or_(_INFINITY)
        found = torch.where(magnitude.isnan(), lost.view(torch.float32), found)
    return found.copysign_(values)
