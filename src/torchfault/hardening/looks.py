"""Looks: what a pass has computed, held against what golden values are like, once, at its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from torchfault.hardening.profile import Range

__all__ = ["Look", "collect", "fine", "wrong_rows"]

Kept = dict[tuple[str, str], list[Tensor]]
"""What modules have read and given in a pass, by path and role, one tensor for each call."""


@dataclass(frozen=True)
class Look:
    """What to look at, and whether golden values are *whole* numbers, or *steady*: the same in all calls of a pass."""

    path: str
    role: str
    whole: bool
    steady: bool

    @classmethod
    def of(cls, name: str, golden: Range) -> Self:
        """Return the look at the tensor called *name*, such as ``conv1:output``."""
        path, _, role = name.partition(":")
        return cls(path, role, bool(golden.whole), bool(golden.steady))


@dataclass(frozen=True, eq=False)
class _Keep:
    """The hook that keeps what a module reads and gives, as far as it is looked at."""

    path: str
    roles: tuple[str, ...]
    kept: Kept

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for role in self.roles:
            self.kept.setdefault((self.path, role), []).append(args[0] if role == "input" else output)


def collect(model: nn.Module, looks: Sequence[Look], kept: Kept) -> None:
    """Have the modules inside *model* that *looks* are about put into *kept* what they read and give."""
    for path in dict.fromkeys(look.path for look in looks if look.path):
        roles = tuple(look.role for look in looks if look.path == path)
        model.get_submodule(path).register_forward_hook(_Keep(path, roles, kept))


def fine(looks: Sequence[Look], kept: Kept, low: Tensor, high: Tensor) -> bool:
    """Return whether all is as golden values are; *low* and *high* have a bound for each look, shape (looks,)."""
    # Few operations: in a pass of a millisecond, each takes a thousandth and more of it.
    for look, least, most in zip(looks, low.unbind(), high.unbind(), strict=True):
        first, *others = kept[look.path, look.role]
        if look.steady and not all(torch.equal(first, other) for other in others):
            return False
        value = torch.stack((first, *others)) if others and not look.steady else first
        near = value.round().clamp_(least, most) if look.whole else value.clamp(least, most)
        if not torch.equal(near, value):  # nor is it where there is a NaN
            return False
    return True


def wrong_rows(looks: Sequence[Look], kept: Kept, low: Tensor, high: Tensor) -> Tensor:
    """Return in which rows something is not as golden values are, shape (n,)."""
    right = [
        one.flatten(1).all(1) if one.ndim > 1 else one.all().expand(len(one))
        for look, least, most in zip(looks, low, high, strict=True)
        for one in _right(look, kept[look.path, look.role], least, most)
    ]
    return ~torch.stack(right).all(0)


def _right(look: Look, parts: Sequence[Tensor], low: Tensor, high: Tensor) -> list[Tensor]:
    found = [(part >= low) & (part <= high) for part in parts]
    found += [part.round() == part for part in parts if look.whole]
    return found + [part == parts[0] for part in parts[1:] if look.steady]
