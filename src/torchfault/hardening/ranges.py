"""Range restriction: activations outside of what they are without faults are brought back."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.hardening.harden import check_free
from torchfault.hardening.profile import Profile
from torchfault.names import matching

__all__ = ["RangeGuard", "Ranges"]


_ROUNDING = 1e-5  # of the largest golden value


@dataclass(frozen=True)
class Ranges:
    """Bring activations back that leave their golden range, as Ranger and clipped activations do.

    *sites* are globs of names such as ``conv1:input`` and ``layer1:output``, of any modules. Without them every tensor
    is guarded that a module with parameters reads, batch norm apart, once for all that read it: at the outermost module
    that it is given to, so that a shortcut around a block reads what was guarded too.

    *action* is what becomes of a value outside: ``clamp`` makes it the bound, ``zero`` 0 and ``mean`` the golden mean;
    a NaN becomes 0, or the bound next to it, where others become bounds. *per* is ``layer`` or ``channel``. A *share*
    of the golden values below 1 takes percentiles for bounds, which alter clean outputs too. *margin* widens the range
    by so much of its width, on either side where golden values have both signs. The bounds are buffers.

    Source: Chen, Li and Pattabiraman, A Low-cost Fault Corrector for Deep Neural Networks through Range Restriction,
    DSN 2021 (Ranger); Hoang, Hanif and Shafique, FT-ClipAct, DATE 2020 (zeroing).

    >>> from torchfault.hardening import harden, profile
    >>> model, data = nn.Sequential(nn.Linear(2, 2)), torch.rand(50, 2)
    >>> safe = harden(model, Ranges(), profile=profile(model, data))
    >>> (safe(torch.tensor([[1e30, float("inf")]])) - model(data.max().expand(1, 2))).abs().max() < 1e-4
    tensor(True)
    """

    sites: str | tuple[str, ...] = ()
    action: Literal["clamp", "zero", "mean"] = "clamp"
    per: Literal["layer", "channel"] = "layer"
    share: float = 1.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.action not in ("clamp", "zero", "mean") or self.per not in ("layer", "channel"):
            raise ModelError(
                f"ranges take action 'clamp', 'zero' or 'mean' and per 'layer' or 'channel', got '{self.action}' and "
                f"'{self.per}'"
            )
        if not (0.5 <= self.share <= 1 and 0 <= self.margin < math.inf):
            raise ModelError(
                f"ranges take a share from 0.5 to 1 and a finite margin of 0 or more, got {self.share:g} and "
                f"{self.margin:g}"
            )

    def __call__(self, model: nn.Module, profile: Profile | None) -> nn.Module:
        """Return *model* with guards."""
        if profile is None:
            raise ModelError("range restriction needs golden ranges; give profile=profile(model, data)")
        for name in self._places(model, profile):
            path, _, role = name.partition(":")
            module, found = model.get_submodule(path), profile[name]
            low, high = found.bounds(share=self.share, per=self.per)
            wide, most = self.margin * (high - low), torch.maximum(found.low.abs().max(), found.high.abs().max())
            # Another size of batch adds in another order, and must not leave the range by that alone.
            near = torch.where(low == 0, 0, _ROUNDING * most)
            low, high = low - near - torch.where(low < 0, wide, 0), high + wide + _ROUNDING * most
            guard = RangeGuard(role, self.action)
            check_free(module, path, guard)
            held = {"low": low, "high": high}
            if self.action == "mean":
                held["mean"] = found.mean if self.per == "channel" else found.mean.mean()
            for part, value in held.items():
                shaped = value.reshape(-1, *[1] * (-found.axis - 1)) if value.ndim else value
                module.register_buffer(f"{role}_{part}", shaped.clone())
            if role == "input":
                module.register_forward_pre_hook(guard)
            else:
                module.register_forward_hook(guard)
        return model

    def _places(self, model: nn.Module, profile: Profile) -> list[str]:
        if self.sites:
            known = [name for name in profile.ranges if name.endswith((":input", ":output"))]
            return [known[i] for i in sorted(matching(known, self.sites, what="tensor of the profile"))]
        norms = nn.modules.batchnorm._BatchNorm
        readers = [
            name
            for name, module in model.named_modules()
            if not isinstance(module, norms) and next(module.parameters(recurse=False), None) is not None
        ]
        places = dict.fromkeys(f"{profile.outer[name]}:input" for name in readers if name in profile.outer)
        if not places:
            raise ModelError("no module with parameters reads activations, so no range can be guarded; name sites")
        return list(places)


@dataclass(frozen=True)
class RangeGuard:
    """The hook that brings what a module reads or gives back into its range."""

    place: str
    action: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> Any:
        if self.place == "output":
            return self._restrict(module, output)
        guarded = self._restrict(module, args[0])
        return tuple(guarded if arg is args[0] else arg for arg in args)

    def alarms(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        """Return which rows hold a value out of range."""
        value = args[0] if self.place == "input" else output
        return self._rows_outside(module, value)

    def _inside(self, module: nn.Module, value: Tensor) -> Tensor:
        low, high = self._buffer(module, "low"), self._buffer(module, "high")
        return (value >= low) & (value <= high)

    def _buffer(self, module: nn.Module, part: str) -> Tensor:
        found: Tensor = getattr(module, f"{self.place}_{part}")
        return found

    def _restrict(self, module: nn.Module, value: Tensor) -> Tensor:
        alone = value.ndim < 2 or value.ndim == self._buffer(module, "low").ndim  # one input without an axis for more
        if torch.compiler.is_compiling() or alone:  # a captured graph has no branches
            return self._altered(module, value)
        # Which operations run depends on what comes: those of the model keep their names only where these have none.
        with torch._C.DisableTorchFunction():
            if not value.numel() or not bool((outside := self._rows_outside(module, value)).any()):
                return value
            rows = outside.nonzero()[:, 0]
            return value.index_copy(0, rows, self._altered(module, value[rows]))

    def _rows_outside(self, module: nn.Module, value: Tensor) -> Tensor:
        """Return which rows hold a value out of range, by two passes that only read: a third of what altering costs."""
        low, high = self._buffer(module, "low"), self._buffer(module, "high")
        ahead = value.ndim - low.ndim
        axes = [axis for axis in range(1, value.ndim) if axis < ahead or low.shape[axis - ahead] == 1]
        least, most = (value.amin(axes, keepdim=True), value.amax(axes, keepdim=True)) if axes else (value, value)
        return ~((least >= low) & (most <= high)).flatten(1).all(1)  # a NaN makes both NaN

    def _altered(self, module: nn.Module, value: Tensor) -> Tensor:
        if self.action != "clamp":
            other = self._buffer(module, "mean") if self.action == "mean" else value.new_zeros(())
            return torch.where(self._inside(module, value), value, other)
        low, high = self._buffer(module, "low"), self._buffer(module, "high")
        number = torch.nan_to_num(value, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        if number.requires_grad:
            return torch.maximum(torch.minimum(number, high), low)
        # In place: a fresh tensor for each step costs more time than the steps.
        return number.clamp_max_(high).clamp_min_(low)
