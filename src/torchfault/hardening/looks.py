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
    """The hook that keeps what a module reads or gives."""

    role: str
    parts: list[Tensor]

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.parts.append(args[0] if self.role == "input" else output)


def collect(model: nn.Module, looks: Sequence[Look], kept: Kept) -> None:
    """Have the modules of *model* that *looks* are about put into *kept* what they read and give."""
    for look in looks:
        parts = kept.setdefault((look.path, look.role), [])
        if look.path:  # what the model itself gives is at hand where looks are taken
            model.get_submodule(look.path).register_forward_hook(_Keep(look.role, parts))


def fine(looks: Sequence[Look], kept: Kept, low: Tensor, high: Tensor) -> bool:
    """Return whether all is as golden values are; *low* and *high* have a bound for each look, shape (looks,)."""
    # Few operations, and fast ones: in a pass of a millisecond, each takes a thousandth and more of it.
    return all(
        _fine(look, kept[look.path, look.role], least, most)
        for look, least, most in zip(looks, low.tolist(), high.tolist(), strict=True)
    )


def _fine(look: Look, parts: Sequence[Tensor], low: float, high: float) -> bool:
    value = (torch.stack(tuple(parts)) if len(parts) > 1 else parts[0]).detach()
    if look.steady and len(parts) > 1:
        if not _nothing(value[1:] - value[:-1]):
            return False
        value = value[0]
    if look.whole:
        return _nothing(value.round().clamp_(low, high).sub_(value))
    # Both are NaN where there is one, and are in no range.
    return low <= float(value.amin()) and float(value.amax()) <= high


def _nothing(off: Tensor) -> bool:
    """Return whether all of *off*, which it may alter, is 0: in a fifth of the time that ``torch.equal`` takes."""
    return float(off.abs_().sum()) == 0


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
