"""Upper bounds of how far convolutions and linear layers stretch a change, in the l2 norm."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["convolution_norms", "linear_norms"]

Floats = NDArray[np.float64]
_AT_ONCE = 1 << 22  # entries of frequency responses at a time
_ROUNDED_UP = 1 + 1e-9  # float64 is wrong by far less; bounds stay upper ones


def convolution_norms(
    weight: Tensor, size: Sequence[int], *, groups: int = 1, dilation: Sequence[int] = (1, 1)
) -> tuple[float, Floats]:
    """Return upper bounds of the l2 norm of a convolution: of the whole, and of what it makes of each input channel.

    *weight* has shape (outputs, inputs / groups, *kernel), *size* is that of its input without the channels. Zero
    padding and strides only leave out values of the circular convolution on as many points as the full result has, so
    that its largest singular value, found frequency by frequency, bounds theirs. Source: Sedghi, Gupta & Long, The
    singular values of convolutional layers, arXiv:1805.10408 (of circular convolutions).

    >>> whole, channels = convolution_norms(torch.ones(1, 2, 3, 3), (8, 8))
    >>> round(whole / 9 / 2**0.5, 6), (channels / 9).round(6).tolist()
    (1.0, [1.0, 1.0])
    """
    outputs, inputs, *kernel = weight.shape
    taps = weight.detach().double().cpu().reshape(groups, outputs // groups, inputs, -1)
    points = [n + (k - 1) * d for n, k, d in zip(size, kernel, dilation, strict=True)]
    where = torch.cartesian_prod(*(torch.arange(k) * d for k, d in zip(kernel, dilation, strict=True)))
    where = where.reshape(-1, len(kernel)).double() / torch.tensor(points)  # turns for each step of a frequency
    points[0] = points[0] // 2 + 1  # the others are conjugates
    frequencies = torch.cartesian_prod(*(torch.arange(n) for n in points)).reshape(-1, len(kernel)).double()
    whole, channels = 0.0, torch.zeros(groups, inputs, dtype=torch.float64)
    for part in frequencies.split(max(1, _AT_ONCE // weight.numel())):
        turns = 2 * torch.pi * part @ where.T
        responses = taps.to(torch.complex128) @ torch.complex(turns.cos(), -turns.sin()).T
        each = responses.movedim(-1, 1)  # groups, frequencies, outputs, inputs
        squares = each.mH @ each  # whose largest eigenvalue is the square of the largest singular value
        whole = max(whole, float(torch.linalg.eigvalsh(squares).amax()))
        channels = torch.maximum(channels, squares.diagonal(dim1=-2, dim2=-1).real.amax(1))
    return math.sqrt(max(whole, 0.0)) * _ROUNDED_UP, channels.reshape(-1).sqrt().numpy() * _ROUNDED_UP


def linear_norms(weight: Tensor) -> tuple[float, Floats]:
    """Return upper bounds of the l2 norm of a linear layer's *weight*, (outputs, inputs), and of its columns.

    >>> linear_norms(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))[1].round(6).tolist()
    [5.0, 0.0]
    """
    held = weight.detach().double().cpu()
    whole, columns = torch.linalg.matrix_norm(held, 2), torch.linalg.vector_norm(held, dim=0)
    return float(whole) * _ROUNDED_UP, columns.numpy() * _ROUNDED_UP
