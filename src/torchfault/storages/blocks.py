"""Rows cut into blocks of neighbours: which elements belong together, and back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LARGEST", "block_of", "columns", "cut", "joined", "members"]

LARGEST = 1 << 16
"""The most neighbours that share a scale or an exponent."""


def cut(rows: Tensor, block: int) -> Tensor:
    """Return *rows* cut into blocks, the last one filled up with zeros: (rows, blocks, block)."""
    count = -(-rows.shape[1] // block)
    filled = torch.nn.functional.pad(rows, (0, count * block - rows.shape[1]))
    return filled.reshape(rows.shape[0], count, block)


def joined(blocks: Tensor, like: Tensor) -> Tensor:
    """Return blocks in the shape of *like*, without what filled them up."""
    rows = blocks.reshape(blocks.shape[0], -1)
    return rows[:, : like.numel() // max(blocks.shape[0], 1)].reshape(like.shape)


def block_of(element: Tensor, width: int, block: int) -> Tensor:
    """Return the number of the block that holds each flat element, in rows of *width*."""
    row, column = element // width, element % width
    return row * -(-width // block) + column // block


def columns(shape: Sequence[int]) -> int:
    """Return the length of a row of a parameter of *shape*: of a filter, or of a vector as a whole."""
    return math.prod(shape) if len(shape) < 2 else math.prod(shape[1:])


def members(block: Tensor, width: int, size: int | None) -> Tensor:
    """Return the flat elements of each block, (n, size), in rows of *width*.

    What would be behind the end of a row repeats its last element.
    """
    size = min(size or width, width)
    count = -(-width // size)
    column = (block % count * size)[:, None] + torch.arange(size, device=block.device)
    return (block // count)[:, None] * width + column.clamp(max=width - 1)
