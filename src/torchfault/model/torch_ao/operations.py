"""Operations on plain tensors, some of which are the codes of quantised ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchfault.errors import ModelError
from torchfault.model.disturb import unfused
from torchfault.model.torch_ao.quantised import as_quantised, code_memory

__all__ = ["Step", "alike_scales", "like_of", "plain"]


@dataclass(frozen=True, eq=False)
class Step:
    """An operation on plain tensors that runs *function* on what they stand for.

    *likes* gives, for every leaf of the arguments, the quantised tensor whose scale it shares, ``None`` for others;
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
                flat[i] = as_quantised(flat[i], like)
        return flat, spec

    def run(self, flat: list[Any], spec: pytree.TreeSpec) -> Any:
        """Return what *function* makes of such leaves."""
        less, more = pytree.tree_unflatten(flat, spec)
        with unfused():
            return self.function(*less, **more)


def plain(value: Any) -> Any:
    """Return quantised tensors in *value* as their codes, in the same memory."""
    if isinstance(value, tuple | list):
        return tuple(plain(part) for part in value)
    return code_memory(value) if isinstance(value, Tensor) and value.is_quantized else value


def like_of(value: Any) -> Any:
    """Return empty tensors with the scales and zero points of the quantised ones in *value*, ``None`` for others."""
    if isinstance(value, tuple | list):
        return tuple(like_of(part) for part in value)
    if not isinstance(value, Tensor) or not value.is_quantized:
        return None
    if value.qscheme() != torch.per_tensor_affine:
        raise ModelError("an activation has a scale for each channel")
    with torch.no_grad():
        return value.flatten()[:0].clone()


def alike_scales(a: Any, b: Any) -> bool:
    """Whether two results of :func:`like_of` have the same scales and zero points."""
    if isinstance(a, tuple):
        return all(alike_scales(x, y) for x, y in zip(a, b, strict=True))
    return a is b is None or (a.q_scale(), a.q_zero_point()) == (b.q_scale(), b.q_zero_point())
