"""Parameters that are decoded, or held in bounds, whenever their module runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.hardening.codes import Signs, Uncover, cover, dequantise_last, signed
from torchfault.hardening.harden import check_free
from torchfault.model.memory import STORED
from torchfault.names import matching, site_name

__all__ = ["Decoder", "StoredGuard", "chosen", "watch_parameter", "words_of"]


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
        cover(module, self.place, self.decoder.decode(getattr(module, self.place), self.held(module)))

    def alarms(self, module: nn.Module, _args: tuple[Any, ...], _output: Any) -> Tensor:
        """Return whether any stored word is wrong."""
        return self.decoder.wrong(getattr(module, self.place), self.held(module))

    def held(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the buffers of the guard by their short names."""
        return {name: getattr(module, f"{self.place}_{name}") for name in self.buffers}


def watch_parameter(
    model: nn.Module,
    name: str,
    decoder: Decoder,
    *,
    encoded: Tensor | None = None,
    held: Mapping[str, Tensor] | None = None,
) -> None:
    """Have *decoder* stand before the parameter or buffer called *name*, which takes the words of *encoded* if given.

    *held* become buffers beside it. Raises :class:`ModelError` where such a guard stands there already, or where words
    would be encoded behind the back of another one.
    """
    path, last = site_name(name).owner, site_name(name).last
    module = model.get_submodule(path)
    guard = StoredGuard(last, decoder, tuple(held or {}))
    check_free(module, path, guard)
    every: list[object] = list(module._forward_pre_hooks.values())
    if encoded is not None and any(isinstance(other, StoredGuard) and other.place == last for other in every):
        raise ModelError(
            f"'{name}' has a guard that knows its words as they are; give the encoding before other methods"
        )
    for part, tensor in (held or {}).items():
        module.register_buffer(f"{last}_{part}", tensor)
    if encoded is not None:
        with torch.no_grad():
            module.get_parameter(last).copy_(encoded)
    # The bounds of other guards may be buffers that are guarded.
    module.register_forward_pre_hook(guard, prepend=last in module._buffers)
    dequantise_last(module)
    module.register_forward_hook(Uncover(last), always_call=True)


def chosen(
    model: nn.Module, sites: str | tuple[str, ...], *, types: tuple[torch.dtype, ...], buffers: bool = False
) -> dict[str, Tensor]:
    """Return the parameters of *model* that *sites* choose: globs of their names, each of which must fit one.

    They have the words that guards so far leave. With *buffers* the globs choose among the buffers that are part of the
    model's state too. Raises :class:`ModelError` where none has one of *types*, and for a parameter that is kept in a
    storage whose words are not in the module.
    """
    known = dict(model.named_parameters()) | (_persistent(model) if buffers else {})
    names = list(known)
    found = {names[i]: _decoded(model, names[i], known) for i in sorted(matching(names, sites, what="parameter"))}
    for name in found:
        path, last = site_name(name).owner, site_name(name).last
        if stored := model.get_submodule(path).__dict__.get(STORED, {}).get(last):
            raise ModelError(
                f"'{name}' is kept as {stored.storage.name}, and methods for stored words know plain numbers and codes "
                "of 8 bits; choose other parameters, or another storage"
            )
    fit = {name: tensor for name, tensor in found.items() if tensor.dtype in types and tensor.numel()}
    if not fit:
        listed, got = ", ".join(str(one) for one in types), {str(tensor.dtype) for tensor in found.values()}
        raise ModelError(f"the method needs parameters of {listed}, got {', '.join(sorted(got))} alone")
    return fit


def _decoded(model: nn.Module, name: str, known: Mapping[str, Tensor]) -> Tensor:
    """Return the words called *name* as the next guard of them will read them."""
    module, last, value = model.get_submodule(site_name(name).owner), site_name(name).last, known[name].detach()
    hooks: list[object] = list(module._forward_pre_hooks.values())
    for hook in hooks:
        if isinstance(hook, StoredGuard) and hook.place == last:
            value = hook.decoder.decode(value, hook.held(module))
        elif isinstance(hook, Signs) and hook.name == last:
            value = signed(value)
    return value


def _persistent(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are part of the model's state; what neurons keep between time steps is not."""
    state = model.state_dict().keys()
    return {name: tensor for name, tensor in model.named_buffers() if name in state}


def words_of(tensor: Tensor) -> Tensor:
    """Return the words of numbers as integers of the same size, in the same memory.

    >>> hex(words_of(torch.tensor(1.0)))
    '0x3f800000'
    """
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
