"""Operations on plain tensors, some of which are the codes of another library's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from torchfault.model.disturb import plain_kernels
from torchfault.model.foreign import coded, of_tensor

__all__ = ["Step", "alike_scales", "like_of", "plain"]


@dataclass(frozen=True, eq=False)
class Step:
    """An operation on plain tensors that runs *function* on what they stand for.

    *likes* gives, for every leaf of the arguments, the tensor of codes whose scale it shares, ``None`` for others;
    *copied* are the leaves that *function* overwrites. With *held*, the first argument is not for *function*.
    """

    function: Callable[..., Any]
    held: bool
    likes: tuple[Any, ...]
    copied: frozenset[int] = frozenset()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return plain(self.raw(args, kwargs))

    def raw(self, args: Any, kwargs: Any) -> Any:
        """Return the result as *function* gives it."""
        return self.run(*self.prepared(args, kwargs))

    def prepared(self, args: Any, kwargs: Any) -> tuple[list[Any], pytree.TreeSpec]:
        """Return the leaves of the arguments as *function* reads them, and how they hang together."""
        flat, spec = pytree.tree_flatten((args[1:] if self.held else args, kwargs))
        for i, like in enumerate(self.likes):
            if i in self.copied:
                flat[i] = flat[i].clone()
            if like is not None:
                flat[i] = coded(flat[i], like)
        return flat, spec

    def run(self, flat: list[Any], spec: pytree.TreeSpec) -> Any:
        """Return what *function* makes of such leaves."""
        less, more = pytree.tree_unflatten(flat, spec)
        with plain_kernels():
            return self.function(*less, **more)


def plain(value: Any) -> Any:
    """Return the tensors of other libraries in *value* as their codes, in the same memory."""
    if isinstance(value, tuple | list):
        return tuple(plain(part) for part in value)
    room = of_tensor(value) if isinstance(value, Tensor) else None
    return value if room is None else room.codes(value)


def like_of(value: Any) -> Any:
    """Return empty tensors with the scales of those in *value* that hold codes, ``None`` for others."""
    if isinstance(value, tuple | list):
        return tuple(like_of(part) for part in value)
    room = of_tensor(value) if isinstance(value, Tensor) else None
    return None if room is None else room.like(value)


def alike_scales(a: Any, b: Any) -> bool:
    """Whether two results of :func:`like_of` have the same scales."""
    if isinstance(a, tuple):
        return all(alike_scales(x, y) for x, y in zip(a, b, strict=True))
    room = None if a is None else of_tensor(a)
    return a is b is None or (room is not None and room.alike(a, b))
