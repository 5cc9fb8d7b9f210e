"""Weight guards: bits that no golden weight has, and values that no golden weight takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.hardening.profile import Profile
from torchfault.hardening.stored import chosen, watch_parameter, words_of

__all__ = ["InvariantBits", "WeightRanges"]

_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8)


@dataclass(frozen=True)
class InvariantBits:
    """Put bits right that are the same in every weight of a tensor: a flip of one is undone, and nothing else changes.

    All weights below 2 have a zero in the top bit of the exponent, the bit whose flip does most harm. Two words for
    each tensor tell which bits are ever set and which are always. *sites* are globs of parameters, and with *buffers*
    of the buffers in the model's state as well, such as thresholds of neurons and statistics of batch norm.

    >>> from torchfault.hardening import harden
    >>> safe = harden(nn.Linear(2, 2), InvariantBits("weight"))
    >>> hex(safe.weight_ever.item() & 0x40000000)
    '0x0'
    """

    sites: str | tuple[str, ...] = "*"
    buffers: bool = False

    def __call__(self, model: nn.Module, profile: Profile | None) -> nn.Module:
        """Return *model* with guards before its parameters."""
        for name, tensor in chosen(model, self.sites, profile, types=_TYPES, buffers=self.buffers).items():
            words = words_of(tensor.contiguous()).reshape(-1)
            held = {"ever": _fold(words, torch.bitwise_or), "always": _fold(words, torch.bitwise_and)}
            watch_parameter(model, name, _Bits(), profile, held=held)
        return model


def _fold(words: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return *operation* of all words, by halves."""
    while len(words) > 1:
        half = len(words) // 2
        words = torch.cat((operation(words[:half], words[half : 2 * half]), words[2 * half :]))
    return words[0].clone()


@dataclass(frozen=True)
class _Bits:
    def decode(self, value: Tensor, held: Mapping[str, Tensor]) -> Tensor:
        return self._right(value, held).view(value.dtype)

    def wrong(self, value: Tensor, held: Mapping[str, Tensor]) -> Tensor:
        return (self._right(value, held) != words_of(value)).any()

    def _right(self, value: Tensor, held: Mapping[str, Tensor]) -> Tensor:
        return (words_of(value) & held["ever"]) | held["always"]


@dataclass(frozen=True)
class WeightRanges:
    """Bring weights back that leave the range of their tensor: to the bound (``clamp``), or to 0 (``zero``).

    *per* is ``layer``, one range for a tensor, or ``channel``, one for each of its first axis. A NaN becomes a bound,
    or 0. *sites* are globs of parameters, and with *buffers* of buffers as well. The bounds are buffers. Clean outputs
    do not change.

    >>> from torchfault.hardening import harden
    >>> model = nn.Linear(2, 1)
    >>> safe = harden(model, WeightRanges(action="zero"))
    >>> with torch.no_grad():
    ...     safe.weight[0, 0] = 1e30
    >>> bool(safe(torch.tensor([[1.0, 0.0]])) == model.bias)
    True
    """

    sites: str | tuple[str, ...] = "*"
    action: Literal["clamp", "zero"] = "clamp"
    per: Literal["layer", "channel"] = "channel"
    buffers: bool = False

    def __post_init__(self) -> None:
        if self.action not in ("clamp", "zero") or self.per not in ("layer", "channel"):
            raise ModelError(
                f"weight ranges take action 'clamp' or 'zero' and per 'layer' or 'channel', got '{self.action}' and "
                f"'{self.per}'"
            )

    def __call__(self, model: nn.Module, profile: Profile | None) -> nn.Module:
        """Return *model* with guards before its parameters."""
        for name, tensor in chosen(model, self.sites, profile, types=_TYPES, buffers=self.buffers).items():
            axes = tuple(range(1, tensor.ndim)) if self.per == "channel" and tensor.ndim > 1 else None
            low, high = (
                (tensor.amin(), tensor.amax())
                if axes is None
                else (tensor.amin(axes, keepdim=True), tensor.amax(axes, keepdim=True))
            )
            if low.isnan().any():
                raise ModelError(f"'{name}' holds NaN, so it has no range; mend the model, or choose other parameters")
            bounds = {"low": low.clone(), "high": high.clone()}
            watch_parameter(model, name, _Bounds(self.action), profile, held=bounds)
        return model


@dataclass(frozen=True)
class _Bounds:
    action: str

    def decode(self, value: Tensor, held: Mapping[str, Tensor]) -> Tensor:
        if self.action == "zero":
            return torch.where((value >= held["low"]) & (value <= held["high"]), value, value.new_zeros(()))
        number = torch.nan_to_num(value, nan=math.inf, posinf=math.inf, neginf=-math.inf)
        return torch.maximum(torch.minimum(number, held["high"]), held["low"])

    def wrong(self, value: Tensor, held: Mapping[str, Tensor]) -> Tensor:
        return ~((value >= held["low"]) & (value <= held["high"])).all()
