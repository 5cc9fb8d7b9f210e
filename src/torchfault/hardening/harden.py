"""Harden a model: methods, one after the other, on a copy of it."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.hardening.codes import unpacked
from torchfault.hardening.profile import Profile

__all__ = ["Guard", "Method", "check_free", "guards", "harden", "overhead"]


class Method(Protocol):
    """Protects a model: a frozen value that is called with a copy of the model, which it may alter and returns.

    What it adds is visible: buffers, and hooks that are :class:`Guard`; between two forward passes it keeps nothing
    else. *profile* holds golden ranges, or is ``None``; a method that needs one raises :class:`ModelError` without it.
    :func:`torchfault.testing.check_hardening` holds it to that.
    """

    def __call__(self, model: nn.Module, profile: Profile | None, /) -> nn.Module:
        """Return *model*, protected."""
        ...


@runtime_checkable
class Guard(Protocol):
    """A hook that a method puts on a module, which can also tell whether it found anything wrong."""

    @property
    def place(self) -> str:
        """What of the module it guards: ``input``, ``output`` or the name of a parameter."""
        ...

    def alarms(self, module: nn.Module, args: tuple[Any, ...], output: Any, /) -> Tensor:
        """Return whether something is wrong: a boolean for each row, shape (n,), or one for all, shape ()."""
        ...


def harden(model: nn.Module, *methods: Method, profile: Profile | None = None) -> nn.Module:
    """Return a copy of *model* that *methods* protect, in turn; *model* stays as it is.

    The copy is an ordinary module with the parameters of the model under their names and buffers more: it exports,
    saves its state and runs under :class:`torchfault.Engine` as any other, and what protects it can be struck too (with
    ``buffers=True``). Codes of 8 bits of a represented model become parameters first (:func:`unpacked`). *profile*, of
    :func:`torchfault.hardening.profile`, tells methods the golden ranges. Raises :class:`ModelError` without a method,
    for one that does not fit or that protects the model already, and for a profile of another model.

    >>> import torch
    >>> from torchfault.hardening import InvariantBits
    >>> model = nn.Linear(2, 1).eval()
    >>> safe = harden(model, InvariantBits())
    >>> with torch.no_grad():
    ...     safe.weight.view(torch.int32)[0, 0] ^= 1 << 30
    ...     torch.equal(safe(torch.ones(1, 2)), model(torch.ones(1, 2)))
    True
    """
    if not methods:
        raise ModelError("hardening needs a method, got none; give one, such as Ranges() or InvariantBits()")
    twin = unpacked(model)
    _check(twin, methods, profile)
    for method in methods:
        twin = method(twin, profile)
    return twin


def _check(model: nn.Module, methods: tuple[object, ...], profile: object) -> None:
    for method in methods:
        if isinstance(method, type) or not callable(method):
            raise ModelError(
                f"a method of hardening is a value such as Ranges(), got {repr(method)[:60]}; text is read by "
                "torchfault.hardening.method"
            )
    if profile is None:
        return
    if not isinstance(profile, Profile):
        raise ModelError(f"golden ranges are a Profile, got {type(profile).__name__}; give profile(model, data)")
    known = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    if others := sorted(profile.reads.keys() - known):
        raise ModelError(f"the profile is of another model, which has '{others[0]}'; give profile(model, data)")


def guards(model: nn.Module) -> Iterator[tuple[str, nn.Module, Guard]]:
    """Yield every guard in *model* with the path and the module that it stands on, in the order of the modules.

    >>> from torchfault.hardening import InvariantBits
    >>> [(path, guard.place) for path, _, guard in guards(harden(nn.Sequential(nn.Linear(2, 1)), InvariantBits()))]
    [('0', 'weight'), ('0', 'bias')]
    """
    for path, module in model.named_modules():
        for guard in _hooks(module):
            yield path, module, guard


def check_free(module: nn.Module, path: str, guard: Guard) -> None:
    """Raise :class:`ModelError` where a guard of the same kind stands in the same place already."""
    for other in _hooks(module):
        if _kind(other) == _kind(guard) and other.place == guard.place:
            where = f"{path}:{guard.place}" if guard.place in ("input", "output") else f"{path}.{guard.place}"
            raise ModelError(f"'{where.lstrip('.')}' is guarded in this way already; harden the model as it was before")


def _kind(guard: Guard) -> tuple[type, type]:
    """Return what makes two guards the same: their class, and that of what decodes."""
    return type(guard), type(getattr(guard, "decoder", None))


def _hooks(module: nn.Module) -> list[Guard]:
    every: list[object] = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [hook for hook in every if isinstance(hook, Guard)]


def overhead(model: nn.Module, hardened: nn.Module) -> float:
    """Return by how much the bytes of parameters and buffers of the state grow: 0.01 is one per cent.

    >>> from torchfault.hardening import InvariantBits
    >>> model = nn.Linear(99, 1, bias=False)
    >>> overhead(model, harden(model, InvariantBits()))
    0.02020202020202011
    """
    if not (before := _bytes(model)):
        raise ModelError("the model has no parameters or buffers, so nothing can grow by a share")
    return _bytes(hardened) / before - 1


def _bytes(model: nn.Module) -> int:
    """Return the bytes of the state; what neurons hold between time steps is of the last batch, and no part of it."""
    state = model.state_dict().keys()
    held = (*model.parameters(), *(tensor for name, tensor in model.named_buffers() if name in state))
    return sum(tensor.numel() * tensor.element_size() for tensor in held)
