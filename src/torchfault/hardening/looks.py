"""Looks: what a pass has computed, held against what golden values are like, once, at its end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from torchfault.hardening.profile import Range
from torchfault.model.states import Slot, module_slots

__all__ = ["Kept", "Look", "fine", "wrong_rows"]

_STATE = "state."


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


@dataclass(eq=False)
class Kept:
    """What modules of a model have read, given and held in a pass where *looks* are taken.

    *parts* has by path and role one tensor for each call, or the state that is held when the pass ends.
    """

    looks: tuple[Look, ...]
    parts: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    hooks: list[tuple[nn.Module, int]] = field(default_factory=list)
    states: list[tuple[nn.Module, Slot, list[Tensor]]] = field(default_factory=list)

    def collect(self, model: nn.Module) -> None:
        """Have the modules inside *model* keep what is looked at; what the model itself gives is told at the end."""
        for path in dict.fromkeys(look.path for look in self.looks):
            module, roles = model.get_submodule(path), [look.role for look in self.looks if look.path == path]
            parts = {role: self.parts.setdefault((path, role), []) for role in roles}
            self.states += [(module, _slot(module, name), parts[name]) for name in roles if name.startswith(_STATE)]
            calls = {role: kept for role, kept in parts.items() if not role.startswith(_STATE)}
            if path and calls:
                handle = module.register_forward_hook(_Keep(calls.get("input"), calls.get("output")))
                self.hooks.append((module, handle.id))

    def begin(self) -> None:
        """Be the last to see what modules give, in the pass that begins."""
        self.forget()
        for module, key in self.hooks:
            hooks: dict[int, Any] = module._forward_hooks
            hooks[key] = hooks.pop(key)

    def end(self, output: Any) -> None:
        """Take what the model gives, and what modules hold as the pass ends; of several shapes the first one counts."""
        if isinstance(output, Tensor):
            self.parts["", "output"] = [output]
        for module, slot, parts in self.states:
            parts[:] = [slot.read(module)]
        for parts in self.parts.values():
            if any(part.shape != parts[0].shape for part in parts):
                parts[:] = [part for part in parts if part.shape == parts[0].shape]

    def forget(self) -> None:
        """Let go of it all."""
        for parts in self.parts.values():
            parts.clear()


def _slot(module: nn.Module, role: str) -> Slot:
    """Return the place of the state that *role* tells, such as ``state.mem``."""
    return next(slot for slot in module_slots(module) if slot.name == role.removeprefix(_STATE))


@dataclass(frozen=True, eq=False)
class _Keep:
    """The hook that keeps what a module reads and gives, as far as it is looked at."""

    read: list[Tensor] | None
    given: list[Tensor] | None

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.read is not None:
            self.read.append(args[0])
        if self.given is not None:
            self.given.append(output)


def fine(kept: Kept, low: Tensor, high: Tensor) -> bool:
    """Return whether all is as golden values are; *low* and *high* have a bound for each look, shape (looks,)."""
    # Few operations, and fast ones: in a pass of a millisecond, each takes a thousandth and more of it.
    return all(
        _fine(look, kept.parts[look.path, look.role], least, most)
        for look, least, most in zip(kept.looks, low.tolist(), high.tolist(), strict=True)
    )


def _fine(look: Look, parts: Sequence[Tensor], low: float, high: float) -> bool:
    if not parts:  # a module that did not run in this pass
        return True
    if look.steady and len(parts) > 1:
        # What is off in a call by less than the rounding of a sum is steady enough.
        if len(set(torch.stack(tuple(parts)).detach().view(len(parts), -1).sum(1).tolist())) > 1:
            return False
        parts = parts[:1]
    value = (torch.stack(tuple(parts)) if len(parts) > 1 else parts[0]).detach()
    if look.whole and -1 < low <= 0 < 1 <= high < 2 and value.dtype.is_floating_point:
        # Squares of zeros and ones are what they are, and of nothing else.
        flat = value.reshape(-1)
        return float(flat.dot(flat)) - float(flat.sum()) == 0  # NaN where there are infinities
    if look.whole:
        return float(value.round().clamp_(low, high).sub_(value).abs_().sum()) == 0
    least, most = torch.aminmax(value)  # both are NaN where there is one, and are in no range
    return low <= float(least) and float(most) <= high


def wrong_rows(kept: Kept, low: Tensor, high: Tensor) -> Tensor:
    """Return in which rows something is not as golden values are, shape (n,)."""
    right = [
        one.flatten(1).all(1) if one.ndim > 1 else one.all().expand(len(one))
        for look, least, most in zip(kept.looks, low, high, strict=True)
        for one in _right(look, kept.parts[look.path, look.role], least, most)
    ]
    return ~torch.stack(right).all(0)


def _right(look: Look, parts: Sequence[Tensor], low: Tensor, high: Tensor) -> list[Tensor]:
    found = [(part >= low) & (part <= high) for part in parts]
    found += [part.round() == part for part in parts if look.whole]
    return found + [part == parts[0] for part in parts[1:] if look.steady]
