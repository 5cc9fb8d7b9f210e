"""Upper bounds of how far convolutions and linear layers stretch a change, in the l2 norm."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["convolution_norms", "linear_norms", "residual_norms"]

Floats = NDArray[np.float64]
_AT_ONCE = 1 << 22  # entries of frequency responses at a time
_ROUNDED_UP = 1 + 1e-9  # float64 is wrong by far less; bounds stay upper ones


def convolution_norms(
    weight: Tensor, size: Sequence[int], *, groups: int = 1, dilation: Sequence[int] = (1, 1)
) -> tuple[float, Floats]:
    """Return upper bounds of the l2 norm of a convolution: of the whole, and of what it makes of each input channel.

    *weight* has shape (outputs, inputs / groups, *kernel), *size* is that of its input without the channels. Zero
    padding and strides only leave out values of the circular convolution on as many points as the full result has, so
    that its largest singular value, found frequency by frequency, bounds theirs; along an axis where filters have one
    tap all frequencies are alike. Source: Sedghi, Gupta & Long, The singular values of convolutional layers,
    arXiv:1805.10408 (of circular convolutions).

    >>> whole, channels = convolution_norms(torch.ones(1, 2, 3, 3), (8, 8))
    >>> round(whole / 9 / 2**0.5, 6), (channels / 9).round(6).tolist()
    (1.0, [1.0, 1.0])
    """
    outputs, inputs, *kernel = weight.shape
    taps = weight.detach().double().cpu().reshape(groups, outputs // groups, inputs, -1)
    points = [n + (k - 1) * d if k > 1 else 1 for n, k, d in zip(size, kernel, dilation, strict=True)]
    parts = _frequencies(points).split(max(1, _AT_ONCE // weight.numel()))
    return _norms(_responses(taps, kernel, [0] * len(kernel), dilation, part) for part in parts)


def residual_norms(
    weights: Sequence[Tensor],
    size: Sequence[int],
    *,
    paddings: Sequence[Sequence[int]],
    dilations: Sequence[Sequence[int]],
) -> tuple[float, Floats]:
    """Return upper bounds of the l2 norm of I + W2 W1 / 2: of the whole, and of what it makes of each input channel.

    W1 and W2 are the convolutions by *weights*, the first and the second, with strides of 1, whose zero *paddings*
    bring the result back to the *size* that the input has without its channels. What is bounded is their circular
    convolution, from which padding leaves values out in front, amidst and behind.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> round(residual_norms((one, 3 * one), (4, 4), paddings=([0, 0], [0, 0]), dilations=([1, 1], [1, 1]))[0], 6)
    2.5
    """
    kernels = [list(weight.shape[2:]) for weight in weights]
    reach = [[(k - 1) * d for k, d in zip(*both, strict=True)] for both in zip(kernels, dilations, strict=True)]
    points = [n + one + two if one + two else 1 for n, one, two in zip(size, *reach, strict=True)]
    taps = [weight.detach().double().cpu().flatten(2)[None] for weight in weights]

    def response(frequencies: Tensor) -> Tensor:
        given = zip(taps, kernels, paddings, dilations, strict=True)
        one, two = (_responses(*each, frequencies) for each in given)
        half = two @ one / 2
        half.diagonal(dim1=-2, dim2=-1).add_(1.0)
        return half

    parts = _frequencies(points).split(max(1, _AT_ONCE // max(weight.numel() for weight in weights)))
    return _norms(response(part) for part in parts)


def _norms(responses: Iterable[Tensor]) -> tuple[float, Floats]:
    """Return upper bounds of norms from all *responses*, (groups, n, outputs, inputs): the whole, and input channels.

    Whatever the frequency, the norm is the largest singular value there, and of a channel its column's.
    """
    whole, channels = 0.0, None
    for each in responses:
        squares = each.mH @ each  # whose largest eigenvalue is the square of the largest singular value
        whole = max(whole, float(torch.linalg.eigvalsh(squares).amax()))
        found = squares.diagonal(dim1=-2, dim2=-1).real.amax(1)
        channels = found if channels is None else torch.maximum(channels, found)
    assert channels is not None, "there is always one frequency"
    return math.sqrt(max(whole, 0.0)) * _ROUNDED_UP, channels.reshape(-1).sqrt().numpy() * _ROUNDED_UP


def _frequencies(points: Sequence[int]) -> Tensor:
    """Return the frequencies of so many points along each axis, in turns a point, but for their conjugates."""
    axes = [torch.arange(n // 2 + 1 if axis == 0 else n) for axis, n in enumerate(points)]
    return torch.cartesian_prod(*axes).reshape(-1, len(points)).double() / torch.tensor(points)


def _responses(
    taps: Tensor, kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int], frequencies: Tensor
) -> Tensor:
    """Return by what *taps*, (groups, outputs, inputs, taps), multiply frequencies, (groups, n, outputs, inputs)."""
    places = [torch.arange(k) * d - p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    where = torch.cartesian_prod(*places).reshape(-1, len(kernel)).double()
    turns = 2 * torch.pi * frequencies @ where.T
    return (taps.to(torch.complex128) @ torch.complex(turns.cos(), -turns.sin()).T).movedim(-1, 1)


def linear_norms(weight: Tensor) -> tuple[float, Floats]:
    """Return upper bounds of the l2 norm of a linear layer's *weight*, (outputs, inputs), and of its columns.

    >>> linear_norms(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))[1].round(6).tolist()
    [5.0, 0.0]
    """
    held = weight.detach().double().cpu()
    whole, columns = torch.linalg.matrix_norm(held, 2), torch.linalg.vector_norm(held, dim=0)
    return float(whole) * _ROUNDED_UP, columns.numpy() * _ROUNDED_UP
