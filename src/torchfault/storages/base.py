"""What every storage offers, and a parameter that is kept by one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from torchfault.errors import StorageError
from torchfault.words import WordFormat, word

__all__ = ["Part", "Storage", "Stored", "Words", "as_matrix", "check_indices", "keep"]

Words = Mapping[str, Tensor]
"""The tensors of a stored parameter by name; the empty name is that of the parameter itself."""


@dataclass(frozen=True)
class Part:
    """One tensor of a stored parameter: its word format, the *kind* of its site, and the axis of its channels.

    The words of an index run from 0 to *highest*, which has one number for all or one for each row: a machine that
    follows another one leaves the array, and detects it. An empty kind is that of the parameter.
    """

    word: str
    kind: str = ""
    channel: int | None = None
    highest: tuple[int, ...] = ()

    @property
    def fmt(self) -> WordFormat:
        """The word format."""
        return word(self.word)

    def astray(self, element: Tensor, new: Tensor, shape: Sequence[int]) -> Tensor:
        """Return which of the words *new*, at flat *element* of the part of *shape*, point to nowhere."""
        if not self.highest:
            return torch.zeros_like(element, dtype=torch.bool)
        highest = torch.tensor(self.highest, device=new.device)
        row = element // max(math.prod(shape[1:]), 1) if len(self.highest) > 1 else torch.zeros_like(element)
        return (new < 0) | (new.to(torch.int64) > highest[row])


@runtime_checkable
class Storage(Protocol):
    """How a parameter is kept: a frozen value, hashable and comparable.

    ``fc.weight`` under a storage with the parts ``""`` and ``scale`` has the sites ``fc.weight`` and
    ``fc.weight:scale``.
    """

    @property
    def name(self) -> str:
        """The storage in the notation of :func:`torchfault.storages.storage`."""
        ...

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return the parts of a float32 *tensor*, each of the type that its word format asks for."""
        ...

    def parts(self, words: Words, shape: Sequence[int]) -> dict[str, Part]:
        """Return what each part of a tensor of *shape* is, in the order of their sites."""
        ...

    def decode(self, words: Words, shape: Sequence[int]) -> Tensor:
        """Return the float32 values of *shape* that any *words* (with indices that exist) stand for."""
        ...

    def spread(
        self, words: Words, shape: Sequence[int], part: str, element: Tensor, new: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return what *new* at flat *element* of *part*, each alone, changes: flat positions, and the values there.

        Both have shape (n,), or (n, k) where a word decides k values; among them a position may stand repeatedly, with
        the same value. ``None`` where that cannot be told without decoding all words.
        """
        ...


@dataclass(frozen=True, eq=False)
class Stored:
    """A parameter of *shape* and *dtype* as kept by a *storage*.

    >>> from torchfault.storages import Affine
    >>> stored = keep(torch.tensor([[1.0, -0.5], [0.0, 4.0]]), Affine())
    >>> stored.words[""].tolist(), stored.value().tolist()
    ([[127, -64], [0, 127]], [[1.0, -0.5039370059967041], [0.0, 4.0]])
    """

    storage: Storage
    shape: tuple[int, ...]
    dtype: torch.dtype
    words: Words

    @cached_property
    def parts(self) -> dict[str, Part]:
        """What each part is."""
        return self.storage.parts(self.words, self.shape)

    def value(self, words: Words | None = None) -> Tensor:
        """Return the values that the words stand for, or those that other *words* (of any of the parts) would.

        Raises :class:`StorageError` where an index points to nowhere.
        """
        held = {**self.words, **(words or {})}
        for name in words or ():
            check_indices(name, held[name], self.parts[name])
        return self.storage.decode(held, self.shape).to(self.dtype)

    def to(self, device: torch.device) -> "Stored":
        """Return the same on *device*."""
        words = {name: tensor.to(device) for name, tensor in self.words.items()}
        return Stored(self.storage, self.shape, self.dtype, words)


def check_indices(name: str, words: Tensor, part: Part) -> None:
    """Raise :class:`StorageError` where a word of a part points to nowhere."""
    if part.highest:
        flat = words.reshape(-1)
        astray = part.astray(torch.arange(len(flat), device=flat.device), flat, words.shape)
        if bool(astray.any()):
            wrong, bound = int(flat[astray][0]), " or ".join(map(str, sorted(set(part.highest))))
            raise StorageError(
                f"an index of '{name}' became {wrong}, where 0 to {bound} exist: an error that its reader detects"
            )


def keep(tensor: Tensor, storage: Storage) -> Stored:
    """Return *tensor* as kept by *storage*: what :meth:`Stored.value` gives may differ from it by the rounding.

    Raises :class:`StorageError` for a tensor that the storage cannot keep.

    >>> from torchfault.storages import Csr
    >>> {name: words.tolist() for name, words in keep(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), Csr()).words.items()}
    {'values': [2.0], 'crow_indices': [0, 1, 1], 'col_indices': [1]}
    """
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise StorageError(f"{storage.name} keeps dense floating-point tensors, got {tensor.dtype} ({tensor.layout})")
    plain = tensor.detach().float()
    if not bool(plain.isfinite().all()):
        raise StorageError(f"{storage.name} keeps finite values, got NaN or infinity; look for them in the checkpoint")
    stored = Stored(storage, tuple(tensor.shape), tensor.dtype, storage.encode(plain))
    if not bool((kept := stored.value()).isfinite().all()):
        lost = float(plain[~kept.isfinite()].abs().max())
        raise StorageError(f"{storage.name} turns {lost:.4g} into infinity or NaN; choose a format of a wider range")
    return stored


def as_matrix(tensor: Tensor) -> Tensor:
    """Return *tensor* with one row per output channel: a filter is a row, a vector is a single row."""
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.reshape(tensor.shape[0], -1)
