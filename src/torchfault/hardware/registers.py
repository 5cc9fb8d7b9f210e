"""What registers hold of variables in blocks: elements, the scale that a block shares, and outputs rounded anew."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.hardware.operands import input_offsets, use_of_input, use_of_weight
from torchfault.hardware.work import Product
from torchfault.storages import BlockFloat, InBlocks, Microscaled, Stored
from torchfault.storages.blocks import Row, block_of, members
from torchfault.words import Edits, WordFormat, bits_of, edit, masks_to_words, word

__all__ = ["ActivationBlocks", "Register", "StoredBlocks", "flipping", "products_of"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


class Register(Protocol):
    """A variable whose words stand for values with the scales that they share, site by site.

    *lane* is the row of golden values, *element* the flat variable and *bit* the struck bit of its word, or of its
    scale's, all of shape (n,).
    """

    def element(self, lane: Ints, element: Ints, bit: Ints) -> Tensor:
        """Return what each variable stands for with the bit of its own word flipped, shape (n,)."""
        ...

    def block(self, lane: Ints, element: Ints, bit: Ints) -> tuple[Ints, Tensor]:
        """Return the variables that share the scale of each, (n, k), and their values with its bit flipped, (n, k).

        Where a block is short, its last variable comes repeatedly.
        """
        ...

    def shared(self, element: Ints) -> Ints:
        """Return the word of the scale that each variable has, shape (n,)."""
        ...


@dataclass(frozen=True, eq=False)
class StoredBlocks:
    """The register of a parameter that is *stored* as codes with scales.

    >>> from torchfault.storages import keep, storage
    >>> one = StoredBlocks(keep(torch.tensor([[1.0, 0.5, 4.0, 3.0]]), storage("mxfp4:2")))
    >>> none = np.zeros(1, dtype=np.int64)
    >>> one.element(none, np.array([1]), np.array([3])), one.block(none, np.array([1]), np.array([0]))[1]
    (tensor([-0.5000]), tensor([[0.5000, 0.2500]]))
    """

    stored: Stored

    @cached_property
    def _scale(self) -> str:
        return next(part for part in ("scale", "exponent") if part in self.stored.words)

    def element(self, lane: Ints, element: Ints, bit: Ints) -> Tensor:
        """Return the value of each element with its flipped code."""
        del lane
        return self._spread("", element, bit)[1]

    def block(self, lane: Ints, element: Ints, bit: Ints) -> tuple[Ints, Tensor]:
        """Return the elements of the block of each, and their values with the flipped scale."""
        del lane
        place, values = self._spread(self._scale, self.shared(element), bit)
        return place.numpy(), values

    def shared(self, element: Ints) -> Ints:
        """Return the scale of each element."""
        kept = self.stored.storage
        assert isinstance(kept, BlockFloat | Microscaled)
        return kept.shared(torch.from_numpy(element), self.stored.shape).numpy()

    def _spread(self, part: str, at: Ints, bit: Ints) -> tuple[Tensor, Tensor]:
        stored, place = self.stored, torch.from_numpy(at)
        words, fmt = {name: one.cpu() for name, one in stored.words.items()}, stored.parts[part].fmt
        held = bits_of(words[part].reshape(-1))[place].view(words[part].dtype)
        found = stored.storage.spread(words, stored.shape, part, place, edit(held, None, flipping(bit, fmt), fmt))
        assert found is not None
        return found


@dataclass(frozen=True, eq=False)
class ActivationBlocks:
    """The register of an activation that is *kept* in blocks: *golden* has a row of rounded values for each lane.

    *row* says which rows of a lane are cut into blocks.
    """

    kept: InBlocks
    row: Row
    golden: Tensor

    @cached_property
    def scale(self) -> str:
        """The name of the part that blocks share."""
        return next(part for part in ("scale", "exponent") if part in self.kept.words)

    def element(self, lane: Ints, element: Ints, bit: Ints) -> Tensor:
        """Return the value of each element with its flipped code."""
        return self._alone("", lane, element, bit)[1][:, 0]

    def block(self, lane: Ints, element: Ints, bit: Ints) -> tuple[Ints, Tensor]:
        """Return the elements of the block of each, and their values with the flipped scale."""
        place, values = self._alone(self.scale, lane, self.shared(element), bit)
        return place.numpy(), values

    def shared(self, element: Ints) -> Ints:
        """Return the scale of each element."""
        return block_of(torch.from_numpy(element), self.row, self._size).numpy()

    def rewritten(self, owner: Ints, lane: Ints, element: Ints, change: Tensor) -> dict[str, tuple[Ints, Ints, Tensor]]:
        """Return owner, flat word and the word itself, by parts, of all blocks with an *element* that *change* reaches.

        *golden* is then what is rounded: a large change gives its block another scale, and all of it other words.
        """
        block, inverse = np.unique(np.stack((owner, self.shared(element))), axis=1, return_inverse=True)
        of = np.zeros(block.shape[1], dtype=np.int64)
        of[inverse.reshape(-1)] = lane
        place = members(torch.from_numpy(block[1]), self.row, self._size)
        values = self.golden[torch.from_numpy(of)[:, None], place.to(self.golden.device)].cpu().double()
        values[torch.from_numpy(inverse.reshape(-1)), self.row.column(torch.from_numpy(element)) % self._size] += change
        every = torch.arange(self._size)
        last = (self.row.length - 1 - self.row.column(place[:, :1])).clamp(max=self._size - 1)
        rounded = self.kept.kept.round(values.gather(1, every.minimum(last)).to(self.golden.dtype))
        words, there = self.kept.kept.encode(rounded), (every <= last).numpy()
        held = torch.from_numpy(there)
        return {
            "": (np.repeat(block[0], self._size)[there.reshape(-1)], place.numpy()[there], words[""][held]),
            self.scale: (block[0], block[1], words[self.scale].reshape(-1)),
        }

    @property
    def _size(self) -> int:
        return self.kept.size(self.row)

    def _alone(self, part: str, lane: Ints, at: Ints, bit: Ints) -> tuple[Tensor, Tensor]:
        fmt, device = word(self.kept.words[part]), self.golden.device
        edits = Edits("", fmt, torch.from_numpy(at), None, flipping(bit, fmt), torch.from_numpy(lane), part)
        found = self.kept.alone(self.golden, self.row, edits.to(device))
        assert found is not None
        return found[0].cpu(), found[1].cpu()


def flipping(bit: Ints, fmt: WordFormat) -> Tensor:
    """Return the words that flip each *bit*.

    >>> flipping(np.array([0, 3]), word("e2m1fn")).tolist()
    [1, 8]
    """
    return masks_to_words(np.uint64(1) << bit.astype(np.uint64), fmt)


def products_of(
    product: Product, holds: str, place: Ints, group: Ints, row: Ints, column: Ints
) -> tuple[Ints, Bools, Ints]:
    """Return the steps of the sums at *group*, *row* and *column*, shape (n,), that take the operands *place*, (n, k).

    The steps have shape (n, m), as has whether each is one, once for each operand; the third, (m,), tells which of the
    k it takes.

    >>> products_of(Product(1, 2, 3, 1), "input", np.array([[3, 4, 4]]), *np.array([[0], [1], [0]]))[:2]
    (array([[0, 1, 1]]), array([[ True,  True, False]]))
    """
    fresh = np.diff(place, axis=1, prepend=-1) != 0
    if holds == "weight":
        of, step, at = use_of_weight(product, place)
        return step, fresh & (of == group[:, None]) & (at == column[:, None]), np.arange(place.shape[1])
    element, offset = np.broadcast_arrays(place[:, :, None], np.arange(input_offsets(product)))
    of, at, step = use_of_input(product, element, offset)
    used = fresh[:, :, None] & (of == group[:, None, None]) & (at == row[:, None, None])
    shape = (len(place), element.shape[1] * element.shape[2])
    return step.reshape(shape), used.reshape(shape), np.repeat(np.arange(element.shape[1]), element.shape[2])
