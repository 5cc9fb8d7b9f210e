"""Rows cut into blocks of neighbours: which elements belong together, and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LARGEST", "Row", "along", "block_of", "cut", "filters", "joined", "largest_in", "members"]

LARGEST = 1 << 16
"""The most neighbours that share a scale or an exponent."""
_MAGNITUDE = 0x7FFFFFFF  # the bits of float32 but for the sign


@dataclass(frozen=True)
class Row:
    """The rows of a tensor: *length* elements each, and *stride* from one to the next, counted in its flat order.

    >>> Row(2, stride=3).rows(torch.arange(6))
    tensor([[0, 3],
            [1, 4],
            [2, 5]])
    """

    length: int
    stride: int = 1

    def column(self, element: Tensor) -> Tensor:
        """Return the position in its row of each flat *element*."""
        return element // self.stride % self.length

    def rows(self, tensor: Tensor) -> Tensor:
        """Return a tensor row by row: (rows, length)."""
        return tensor.reshape(-1, self.length, self.stride).transpose(1, 2).reshape(-1, self.length)

    def whole(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Return *rows* in the *shape* of the tensor that they were made of."""
        return rows.reshape(-1, self.stride, self.length).transpose(1, 2).reshape(tuple(shape)).contiguous()


def along(axis: int, shape: Sequence[int]) -> Row:
    """Return the rows along an *axis* of a tensor of *shape*."""
    return Row(shape[axis], math.prod(shape[axis + 1 :]))


def filters(shape: Sequence[int]) -> Row:
    """Return the rows of a parameter of *shape*: filters, or a vector as a whole."""
    return Row(math.prod(shape) if len(shape) < 2 else math.prod(shape[1:]))


def cut(rows: Tensor, block: int) -> Tensor:
    """Return *rows*, (rows, length, ...), as (rows, blocks, block, ...), the last block filled up with zeros."""
    count, rest = -(-rows.shape[1] // block), rows.shape[2:]
    left = count * block - rows.shape[1]
    filled = torch.nn.functional.pad(rows, (0, 0) * len(rest) + (0, left)) if left else rows
    return filled.reshape(rows.shape[0], count, block, *rest)


def largest_in(blocks: Tensor) -> Tensor:
    """Return the largest magnitude in each block, shape (rows, blocks, ...), and NaN where one holds NaN.

    The bits of float32 magnitudes are in their order, NaN behind all; as whole numbers they take a third of the time.
    """
    if blocks.dtype != torch.float32:
        return blocks.abs().amax(2)
    return blocks.view(torch.int32).bitwise_and(_MAGNITUDE).amax(2).view(torch.float32)


def joined(blocks: Tensor, like: Tensor) -> Tensor:
    """Return blocks in the shape of *like*, without what filled them up."""
    rows = blocks.flatten(1, 2)
    others = rows.numel() // max(rows.shape[1], 1)
    return rows[:, : like.numel() // max(others, 1)].reshape(like.shape)


def block_of(element: Tensor, row: Row, block: int) -> Tensor:
    """Return the number of the block that holds each flat element, block by block and row by row."""
    number = element // (row.length * row.stride) * row.stride + element % row.stride
    return number * -(-row.length // block) + row.column(element) // block


def members(block: Tensor, row: Row, size: int | None) -> Tensor:
    """Return the flat elements of each block, (n, size).

    What would be behind the end of a row repeats its last element.
    """
    size = min(size or row.length, row.length)
    count = -(-row.length // size)
    column = (block % count * size)[:, None] + torch.arange(size, device=block.device)
    number = (block // count)[:, None]
    first = number // row.stride * (row.length * row.stride) + number % row.stride
    return first + column.clamp(max=row.length - 1) * row.stride
