"""What other libraries keep in forms of their own, by one table: tensors that are codes, modules that pack their words.

A library's room answers the questions of :class:`Foreign`, and nothing outside of it knows the library. A room that is
not there, because it was deleted, is asked nothing.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from torch import Tensor, nn

from torchfault.model.home import Home
from torchfault.model.program import Program

__all__ = ["Foreign", "Rows", "activation_word", "coded", "coded_word", "foreign", "of_tensor"]

_ROOMS = ("torchfault.model.torch_ao",)


class Rows(Protocol):
    """A layer that packs its weight and can run one of its output channels alone."""

    @property
    def axis(self) -> int:
        """The axis of channels in what the layer gives."""
        ...

    def channel(self, part: str, element: Tensor) -> Tensor | None:
        """Return the output channel that each word of *part* alone has to do with, ``None`` where there is none."""
        ...

    def words(self, part: str) -> Tensor:
        """Return the stored words of *part*."""
        ...

    def changed(self, x: Tensor, part: str, element: Tensor, fresh: Tensor) -> Tensor:
        """Return the codes of one output channel for each lane of *x*, which has its own word of *part* changed."""
        ...


class Foreign(Protocol):
    """What a library's room tells of its tensors and modules."""

    # Of tensors.

    def word(self, tensor: Tensor) -> str:
        """Return the word format of the codes of a tensor of the library, empty for any other tensor."""
        ...

    def codes(self, tensor: Tensor) -> Tensor:
        """Return the codes as integers in the same memory: to change them changes *tensor*."""
        ...

    def coded(self, codes: Tensor, like: Tensor) -> Tensor:
        """Return integer *codes* as a tensor of the library, with the scale of *like*; in the same memory if it can."""
        ...

    def values(self, tensor: Tensor) -> Tensor:
        """Return what the codes of *tensor* stand for."""
        ...

    def like(self, tensor: Tensor) -> Tensor:
        """Return an empty tensor of the scale of *tensor*; raise :class:`ModelError` where lanes cannot share it."""
        ...

    def alike(self, one: Tensor, two: Tensor) -> bool:
        """Whether two tensors have the same scale."""
        ...

    # Of modules.

    def owns(self, module: nn.Module) -> bool:
        """Whether *module* is one of the library's own layers."""
        ...

    def is_part(self, module: nn.Module) -> bool:
        """Whether *module* is one in which a layer of the library holds its packed words."""
        ...

    def is_whole(self, module: nn.Module) -> bool:
        """Whether *module* is one operation although it has children."""
        ...

    def always_alike(self, module: nn.Module) -> bool:
        """Whether *module* computes the same in training mode as in evaluation."""
        ...

    def shares_ranges(self, module: nn.Module) -> bool:
        """Whether *module* quantises what it reads by the range of the whole batch."""
        ...

    def activation_word(self, module: nn.Module) -> str:
        """Return the word format of what *module* gives where it rounds it to codes, else an empty name."""
        ...

    def homes(self, module: nn.Module, path: str, prefix: str, parts: frozenset[int]) -> list[Home]:
        """Return the homes of the words that *module* packs; *parts* are the identities of others' parts."""
        ...

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """Return the modules in which *module* holds words that :meth:`homes` gives for it."""
        ...

    def home(self, module: nn.Module, path: str, full: str, parameter: Tensor) -> Home | None:
        """Return the home of the weight called *full* where *module* rounds it to codes before each use."""
        ...

    # Of operations.

    def has_operation(self, name: str) -> bool:
        """Whether a functional operation of the library is called *name*."""
        ...

    def mixes(self, operation: str) -> bool:
        """Whether *operation* quantises what it reads by the range of the whole batch."""
        ...

    def rows_of(self, program: Program, likes: Mapping[int, Any], values: Mapping[int, Any]) -> Mapping[int, Rows]:
        """Return, for nodes of *program* that run a packed layer, that layer by its output channels."""
        ...


@cache
def foreign() -> tuple[Foreign, ...]:
    """Return what every room tells."""
    return tuple(import_module(room) for room in _ROOMS if find_spec(room) is not None)


def of_tensor(tensor: Tensor) -> Foreign | None:
    """Return the room of the library whose codes *tensor* holds, ``None`` for a plain one.

    >>> import torch
    >>> of_tensor(torch.zeros(2)) is None
    True
    """
    return next((room for room in foreign() if room.word(tensor)), None)


def coded_word(tensor: Tensor) -> str:
    """Return the word format of the codes that *tensor* holds, empty for a plain one."""
    return next((word for room in foreign() if (word := room.word(tensor))), "")


def coded(codes: Tensor, like: Tensor) -> Tensor:
    """Return integer *codes* as a tensor such as *like*, which holds codes of its own, in the same memory if it can."""
    room = of_tensor(like)
    assert room is not None
    return room.coded(codes, like)


def activation_word(module: nn.Module) -> str:
    """Return the word format of what *module* gives where it rounds it to codes, else an empty name."""
    return next((word for room in foreign() if (word := room.activation_word(module))), "")
