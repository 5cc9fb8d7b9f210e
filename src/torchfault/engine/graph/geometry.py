"""How a convolution or a pooling reads its input: kernel, stride, padding and dilation per spatial axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Reach", "convolution", "listed", "max_pooling"]


@dataclass(frozen=True)
class Reach:
    """Per axis, output position o reads the inputs ``o * stride - padding + dilation * k`` for k below *kernel*.

    *padding* is what stands before the image; *same* tells that as many outputs as inputs were asked for, so that
    there may be one more behind it.
    """

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    same: bool = False

    @property
    def even(self) -> bool:
        """Whether there is as much padding behind the image as before it."""
        spreads = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        return not self.same or all(spread % 2 == 0 for spread in spreads)

    def outputs(self, image: Sequence[int]) -> list[int]:
        """Return the sizes of the output for the sizes of the input."""
        if self.same:
            return list(image)
        columns = zip(image, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in columns]


def listed(value: Any, dims: int) -> list[int]:
    """Return a number, or a list of one, repeated for every axis.

    >>> listed(3, 2), listed([1, 2], 2)
    ([3, 3], [1, 2])
    """
    numbers = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return numbers * dims if len(numbers) == 1 else numbers


def convolution(argument: Callable[[int, Any], Any], kernel: Sequence[int]) -> Reach:
    """Return the geometry of a convolution from its arguments by position, as in ``aten::conv2d``."""
    dims = len(kernel)
    stride, dilation, padding = listed(argument(3, 1), dims), listed(argument(5, 1), dims), argument(4, 0)
    if padding == "same":
        before = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
        return Reach(list(kernel), stride, before, dilation, same=True)
    return Reach(list(kernel), stride, listed(0 if padding == "valid" else padding, dims), dilation)


def max_pooling(argument: Callable[[int, Any], Any], dims: int) -> Reach:
    """Return the geometry of a maximum pooling from its arguments by position, as in ``aten::max_pool2d``."""
    kernel = listed(argument(1, None), dims)
    stride = listed(argument(2, None) or kernel, dims)
    return Reach(kernel, stride, listed(argument(3, 0), dims), listed(argument(4, 1), dims))
