"""What rounding may do to a sum: the threshold of checksums, from a bound instead of a number chosen by hand."""

import math

import torch
from torch import Tensor

__all__ = ["rounding", "wide"]

_LAMBDA = 6.0


def rounding(terms: Tensor, additions: int, dtype: torch.dtype) -> Tensor:
    """Return what rounding to *dtype* may do to a sum of *terms*, their magnitudes added up, in so many *additions*.

    6 sqrt(n) u sum |t|, which is exceeded with a probability below 2 n exp(-18), u being half the distance from 1 to
    the next number; and as many of the smallest numbers, for what underflows. Source: Higham and Mary, SIAM J. Sci.
    Comput. 2019, theorem 2.4.

    >>> rounding(torch.tensor(1.0), 4, torch.bfloat16)
    tensor(0.0469)
    """
    known = torch.finfo(dtype)
    return _LAMBDA * math.sqrt(additions) * known.eps / 2 * terms + additions * known.tiny * known.eps


def wide(tensor: Tensor) -> torch.dtype:
    """Return the type that sums of *tensor* are kept in: float32 at least.

    >>> wide(torch.zeros(1, dtype=torch.bfloat16)), wide(torch.zeros(1, dtype=torch.float64))
    (torch.float32, torch.float64)
    """
    return torch.promote_types(tensor.dtype, torch.float32)
