"""Parameters that are decoded, or held in bounds, whenever their module runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.hardening.harden import check_free
from torchfault.names import matching, site_name

__all__ = ["Decoder", "StoredGuard", "chosen", "watch_parameter", "words_of"]


_LIST = "_stored_weights"


class Decoder(Protocol):
    """What the words of a parameter stand for: a frozen value."""

    def decode(self, value: Tensor, held: Mapping[str, Tensor], /) -> Tensor:
        """Return the values to compute with, for the stored ones; *held* are the buffers of the guard."""
        ...

    def wrong(self, value: Tensor, held: Mapping[str, Tensor], /) -> Tensor:
        """Return whether any stored word is seen to be wrong, a boolean of shape ()."""
        ...


@dataclass(frozen=True)
class StoredGuard:
    """The hook that decodes a parameter before its module runs.

    While the module runs, an attribute of the instance hides the parameter, which keeps its name, its words and its
    place in the state; afterwards it is gone. *buffers* are what the decoder needs, kept by the module.
    """

    place: str
    decoder: Decoder
    buffers: tuple[str, ...] = ()

    def __call__(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        module.__dict__[self.place] = self.decoder.decode(getattr(module, self.place), self._held(module))
        if isinstance(module, nn.RNNBase):  # it reads a list that it made of its parameters
            module.__dict__.setdefault(_LIST, module._flat_weights)
            module.__dict__["_flat_weights"] = [getattr(module, name) for name in module._flat_weights_names]

    def alarms(self, module: nn.Module, _args: tuple[Any, ...], _output: Any) -> Tensor:
        """Return whether any stored word is wrong."""
        return self.decoder.wrong(getattr(module, self.place), self._held(module))

    def _held(self, module: nn.Module) -> dict[str, Tensor]:
        return {name: getattr(module, f"{self.place}_{name}") for name in self.buffers}


@dataclass(frozen=True)
class _Uncover:
    """The hook that lets the parameter be seen again, also after an exception."""

    place: str

    def __call__(self, module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        module.__dict__.pop(self.place, None)
        if _LIST in module.__dict__:
            module.__dict__["_flat_weights"] = module.__dict__.pop(_LIST)


def watch_parameter(
    model: nn.Module,
    name: str,
    decoder: Decoder,
    *,
    encoded: Tensor | None = None,
    held: Mapping[str, Tensor] | None = None,
) -> None:
    """Have *decoder* stand before the parameter called *name*, which takes the words of *encoded* if given.

    *held* become buffers beside the parameter. Raises :class:`ModelError` where such a guard stands there already.
    """
    path, last = site_name(name).owner, site_name(name).last
    module = model.get_submodule(path)
    guard = StoredGuard(last, decoder, tuple(held or {}))
    check_free(module, path, guard)
    for part, tensor in (held or {}).items():
        module.register_buffer(f"{last}_{part}", tensor)
    if encoded is not None:
        with torch.no_grad():
            module.get_parameter(last).copy_(encoded)
    module.register_forward_pre_hook(guard)
    module.register_forward_hook(_Uncover(last), always_call=True)


def chosen(model: nn.Module, sites: str | tuple[str, ...], *, types: tuple[torch.dtype, ...]) -> dict[str, Tensor]:
    """Return the parameters of *model* that *sites* choose: globs of their names, each of which must fit one.

    Raises :class:`ModelError` where none of them has one of *types*.
    """
    known = dict(model.named_parameters())
    names = list(known)
    found = {names[i]: known[names[i]].detach() for i in sorted(matching(names, sites, what="parameter"))}
    fit = {name: tensor for name, tensor in found.items() if tensor.dtype in types and tensor.numel()}
    if not fit:
        listed, got = ", ".join(str(one) for one in types), {str(tensor.dtype) for tensor in found.values()}
        raise ModelError(f"the method needs parameters of {listed}, got {', '.join(sorted(got))} alone")
    return fit


def words_of(tensor: Tensor) -> Tensor:
    """Return the words of floating-point numbers as integers of the same size, in the same memory.

    >>> hex(words_of(torch.tensor(1.0)))
    '0x3f800000'
    """
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
