"""Storages that keep what is not zero: values and the indices that say where they belong.

A tensor is a matrix with one row per output channel here. An index that points outside it is detected by whoever
follows it; any other set of indices is read as a plain loop over the format reads it: entries that meet are added up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchfault.errors import StorageError
from torchfault.storages.base import Part, Words, as_matrix

__all__ = ["Bsr", "Coo", "Csr"]

_INDEX = {"int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64}


def _index_type(name: str, largest: int) -> torch.dtype:
    if name not in _INDEX:
        raise StorageError(f"indices are {', '.join(_INDEX)}, got '{name}'")
    if largest > torch.iinfo(_INDEX[name]).max:
        raise StorageError(f"{name} indices reach {torch.iinfo(_INDEX[name]).max}, got {largest}; choose a wider type")
    return _INDEX[name]


def _suffix(index: str) -> str:
    return "" if index == "int32" else f":{index}"


def _size(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a tensor of *shape* as a matrix."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return int(shape[0]), math.prod(shape[1:])


_LARGEST = 1 << 12  # rows or columns of a block


@dataclass(frozen=True)
class Coo:
    """Coordinates: ``values`` (n,) and ``indices`` (2, n), the row and the column of each, of type *index*.

    >>> from torchfault.storages import keep
    >>> keep(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), Coo()).words["indices"].tolist()
    [[0, 1], [1, 0]]
    """

    index: str = "int32"

    @property
    def name(self) -> str:
        """``coo``, ``coo:int16``, ..."""
        return f"coo{_suffix(self.index)}"

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return values and coordinates of all that is not zero."""
        matrix = as_matrix(tensor)
        where = matrix.nonzero().T.contiguous()
        return {
            "values": matrix[where[0], where[1]],
            "indices": where.to(_index_type(self.index, max(matrix.shape))),
        }

    def parts(self, words: Words, shape: Sequence[int]) -> dict[str, Part]:
        """Return values and indices."""
        del words
        rows, columns = _size(shape)
        return {"values": Part("float32"), "indices": Part(self.index, "index", 0, (rows - 1, columns - 1))}

    def decode(self, words: Words, shape: Sequence[int]) -> Tensor:
        """Return the matrix with every value added at its place."""
        (rows, columns), (row, column) = _size(shape), words["indices"].to(torch.int64)
        return _gathered(row * columns + column, words["values"], rows * columns).reshape(tuple(shape))

    def spread(
        self, words: Words, shape: Sequence[int], part: str, element: Tensor, new: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return the place of each value."""
        if part != "values":
            return None
        where = words["indices"].to(torch.int64)
        return where[0, element] * _size(shape)[1] + where[1, element], new


@dataclass(frozen=True)
class Csr:
    """Compressed rows: ``values`` and ``col_indices`` (n,), and ``crow_indices`` (rows + 1,), where each row begins.

    A row runs from its own beginning to that of the next; where a fault puts the end before the beginning, it is empty.
    """

    index: str = "int32"

    @property
    def name(self) -> str:
        """``csr``, ``csr:int16``, ..."""
        return f"csr{_suffix(self.index)}"

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return values, row pointers and columns."""
        matrix = as_matrix(tensor)
        row, column = matrix.nonzero().T
        held = _index_type(self.index, max(len(row), matrix.shape[1]))
        return {
            "values": matrix[row, column],
            "crow_indices": _pointers(row, matrix.shape[0]).to(held),
            "col_indices": column.to(held),
        }

    def parts(self, words: Words, shape: Sequence[int]) -> dict[str, Part]:
        """Return values, row pointers and columns."""
        return {
            "values": Part("float32"),
            "crow_indices": Part(self.index, "index", 0, (len(words["values"]),)),
            "col_indices": Part(self.index, "index", 0, (_size(shape)[1] - 1,)),
        }

    def decode(self, words: Words, shape: Sequence[int]) -> Tensor:
        """Return the matrix with every value added at its place."""
        rows, columns = _size(shape)
        found = torch.zeros(rows * columns, dtype=words["values"].dtype, device=words["values"].device)
        for row, entry in _entries(words["crow_indices"]):
            place = row * columns + words["col_indices"].to(torch.int64)[entry]
            found.index_put_((place,), words["values"][entry], accumulate=True)
        return found.reshape(tuple(shape))

    def spread(
        self, words: Words, shape: Sequence[int], part: str, element: Tensor, new: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return the place of each value, or of a column both the old one, now empty, and the new one."""
        if part == "crow_indices":
            return None
        row = torch.searchsorted(words["crow_indices"].to(torch.int64), element, right=True) - 1
        first, value = row * _size(shape)[1], words["values"][element]
        old = first + words["col_indices"].to(torch.int64)[element]
        if part == "values":
            return old, new
        fresh = first + new.to(torch.int64)
        met = self.decode(words, shape).reshape(-1)[fresh]
        stays = fresh == old
        left, joined = torch.where(stays, value, 0), torch.where(stays, value, met + value)
        return torch.stack((old, fresh), 1), torch.stack((left, joined), 1)


@dataclass(frozen=True)
class Bsr:
    """Compressed rows of *height* x *width* blocks: ``values`` (n, height, width), the rest as in :class:`Csr`.

    A block is kept whole if anything in it is not zero. A matrix that is no multiple of the block is filled up with
    zeros, which are stored too, and read by nobody.
    """

    height: int = 4
    width: int = 4
    index: str = "int32"

    def __post_init__(self) -> None:
        if not 1 <= self.height <= _LARGEST or not 1 <= self.width <= _LARGEST:
            raise StorageError(f"blocks have 1 to {_LARGEST} rows and columns, got {self.height}x{self.width}")

    @property
    def name(self) -> str:
        """``bsr:4x4``, ..."""
        return f"bsr:{self.height}x{self.width}{_suffix(self.index)}"

    def _blocks(self, matrix: Tensor) -> Tensor:
        """Return a matrix cut into blocks: (rows of blocks, columns of blocks, height, width)."""
        down, right = -(-matrix.shape[0] // self.height), -(-matrix.shape[1] // self.width)
        margin = (0, right * self.width - matrix.shape[1], 0, down * self.height - matrix.shape[0])
        return F.pad(matrix, margin).reshape(down, self.height, right, self.width).transpose(1, 2)

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return blocks, row pointers and columns."""
        blocks = self._blocks(as_matrix(tensor))
        row, column = (blocks != 0).flatten(2).any(2).nonzero().T
        held = _index_type(self.index, max(len(row), blocks.shape[1]))
        return {
            "values": blocks[row, column],
            "crow_indices": _pointers(row, blocks.shape[0]).to(held),
            "col_indices": column.to(held),
        }

    def _columns(self, shape: Sequence[int]) -> int:
        return -(-_size(shape)[1] // self.width)

    def parts(self, words: Words, shape: Sequence[int]) -> dict[str, Part]:
        """Return blocks, row pointers and columns."""
        return {
            "values": Part("float32", channel=0),
            "crow_indices": Part(self.index, "index", 0, (len(words["values"]),)),
            "col_indices": Part(self.index, "index", 0, (self._columns(shape) - 1,)),
        }

    def decode(self, words: Words, shape: Sequence[int]) -> Tensor:
        """Return the matrix with every block added at its place."""
        (rows, columns), right, values = _size(shape), self._columns(shape), words["values"]
        down = -(-rows // self.height)
        found = values.new_zeros(down * right, self.height, self.width)
        for row, entry in _entries(words["crow_indices"]):
            found.index_put_(
                (row * right + words["col_indices"].to(torch.int64)[entry],), values[entry], accumulate=True
            )
        whole = found.reshape(down, right, self.height, self.width).transpose(1, 2)
        return whole.reshape(down * self.height, right * self.width)[:rows, :columns].reshape(tuple(shape))

    def spread(
        self, words: Words, shape: Sequence[int], part: str, element: Tensor, new: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return the place of each value, unless some of them have none."""
        rows, columns = _size(shape)
        if part != "values" or rows % self.height or columns % self.width:
            return None
        block, inside = element // (self.height * self.width), element % (self.height * self.width)
        row = torch.searchsorted(words["crow_indices"].to(torch.int64), block, right=True) - 1
        down = row * self.height + inside // self.width
        right = words["col_indices"].to(torch.int64)[block] * self.width + inside % self.width
        return down * columns + right, new


def _pointers(row: Tensor, rows: int) -> Tensor:
    counts = torch.bincount(row, minlength=rows)
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))


def _entries(pointers: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return row and number of the entries that a loop over the rows reads, in lists no longer than the entries are.

    With sound pointers that is a single list; with faults in several of them rows may overlap.
    """
    starts, ends = pointers[:-1].to(torch.int64), pointers[1:].to(torch.int64)
    counts = (ends - starts).clamp(min=0)
    row = torch.arange(len(counts), device=pointers.device)
    lists, most = [], int(pointers.max())
    while int(counts.sum()):
        # As many rows at a time as have at most as many entries as there are, one at least.
        aboard = max(1, int((counts.cumsum(0) <= most).sum()))
        mine = row[:aboard].repeat_interleave(counts[:aboard])
        first = (counts[:aboard].cumsum(0) - counts[:aboard]).repeat_interleave(counts[:aboard])
        rank = torch.arange(len(mine), device=pointers.device) - first
        lists.append((mine, starts[:aboard].repeat_interleave(counts[:aboard]) + rank))
        row, starts, counts = row[aboard:], starts[aboard:], counts[aboard:]
    return lists


def _gathered(place: Tensor, values: Tensor, size: int) -> Tensor:
    return values.new_zeros(size).index_put_((place,), values, accumulate=True)
