"""Parameters that are decoded, or held in bounds, whenever their module runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.hardening.codes import Dequantised, Signs, Uncover, cover, signed
from torchfault.hardening.harden import check_free
from torchfault.hardening.profile import Profile
from torchfault.hardening.reads import inside, readers
from torchfault.model.memory import STORED
from torchfault.names import matching, site_name

__all__ = ["PLAIN", "Decoder", "StoredGuard", "chosen", "in_turn", "watch_parameter", "words_of"]

PLAIN = (Tensor, nn.Parameter, nn.Buffer)
"""The types of tensors whose words can be seen; those of torchao, for one, hold them in others."""


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
    """The hook that decodes a parameter before the module runs that reads it.

    While the module runs, an attribute of the instance that holds the parameter hides it, which keeps its name, its
    words and its place in the state; afterwards it is gone. *buffers* are what the decoder needs, beside the parameter;
    *kind* is the type of the words that it knows: :class:`ModelError` where they have another one by then.
    """

    place: str
    decoder: Decoder
    kind: torch.dtype
    buffers: tuple[str, ...] = ()

    def __call__(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        cover(module, self.place, self.decoded(module))

    def alarms(self, module: nn.Module, _args: tuple[Any, ...], _output: Any) -> Tensor:
        """Return whether any stored word is wrong."""
        return self.decoder.wrong(*self._held(module))

    def decoded(self, module: nn.Module, value: Tensor | None = None) -> Tensor:
        """Return what *module* is to read, for the stored words or for *value* in their place."""
        stored, held = self._held(module)
        return self.decoder.decode(stored if value is None else value, held)

    def _held(self, module: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the stored words, and the buffers of the guard by their short names."""
        owner, last = inside(module, self.place)
        stored: Tensor = getattr(owner, last)
        if stored.dtype != self.kind or last in owner.__dict__.get(STORED, ()):
            now = stored.dtype if stored.dtype != self.kind else owner.__dict__[STORED][last].storage.name
            raise ModelError(
                f"'{self.place}' was hardened as {self.kind} and is {now} now; convert a model first, then harden it"
            )
        return stored, {name: getattr(owner, f"{last}_{name}") for name in self.buffers}


def watch_parameter(
    model: nn.Module,
    name: str,
    decoder: Decoder,
    profile: Profile | None,
    *,
    encoded: Tensor | None = None,
    held: Mapping[str, Tensor] | None = None,
) -> None:
    """Have *decoder* stand before the parameter or buffer called *name*, which takes the words of *encoded* if given.

    It stands in the modules that read it, as *profile* has seen, and *held* become buffers beside it. Raises
    :class:`ModelError` where such a guard stands there already, or where words would be encoded behind the back of
    another one.
    """
    for path, place in readers(model, name, profile.reads if profile else {}):
        module = model.get_submodule(path)
        owner, last = inside(module, place)
        kind: torch.dtype = getattr(owner, last).dtype
        guard = StoredGuard(place, decoder, kind, tuple(held or {}))
        check_free(module, path, guard)
        every: list[object] = list(module._forward_pre_hooks.values())
        if encoded is not None and any(isinstance(other, StoredGuard) and other.place == place for other in every):
            raise ModelError(
                f"'{name}' has a guard that knows its words as they are; give the encoding before other methods"
            )
        for part, tensor in (held or {}).items():
            owner.register_buffer(f"{last}_{part}", tensor)
        module.register_forward_pre_hook(guard)
        in_turn(module)
        module.register_forward_hook(Uncover(place), always_call=True)
    if encoded is not None:
        with torch.no_grad():
            model.get_parameter(name).copy_(encoded)


def in_turn(module: nn.Module) -> None:
    """Put the hooks before *module* in the order in which each reads what those before it leave.

    First the guards of buffers, which may be bounds of other guards, then those of parameters, then what makes values
    of codes, then all others, such as those by which pruning and weight normalisation make a weight.
    """

    def rank(hook: object) -> int:
        if isinstance(hook, StoredGuard):
            owner, last = inside(module, hook.place)
            return 0 if last in owner._buffers else 1
        return 1 if isinstance(hook, Signs) else 2 if isinstance(hook, Dequantised) else 3

    every: list[tuple[int, Any]] = sorted(module._forward_pre_hooks.items(), key=lambda item: rank(item[1]))
    for key, _ in every:
        module._forward_pre_hooks[key] = module._forward_pre_hooks.pop(key)


def chosen(
    model: nn.Module,
    sites: str | tuple[str, ...],
    profile: Profile | None,
    *,
    types: tuple[torch.dtype, ...],
    buffers: bool = False,
) -> dict[str, Tensor]:
    """Return the parameters of *model* that *sites* choose: globs of their names, each of which must fit one.

    They have the words that guards so far leave. With *buffers* the globs choose among the buffers that are part of the
    model's state too. Raises :class:`ModelError` where none has one of *types*, and for a parameter that is kept in a
    storage whose words are not in the module.
    """
    known = dict(model.named_parameters()) | (_persistent(model) if buffers else {})
    names, reads = list(known), profile.reads if profile else {}
    picked = [names[i] for i in sorted(matching(names, sites, what="parameter"))]
    found = {name: _decoded(model, name, known, reads) for name in picked}
    for name in found:
        path, last = site_name(name).owner, site_name(name).last
        if stored := model.get_submodule(path).__dict__.get(STORED, {}).get(last):
            raise ModelError(
                f"'{name}' is kept as {stored.storage.name}, and methods for stored words know plain numbers and codes "
                "of 8 bits; choose other parameters, or another storage"
            )
    kinds = {name: type(tensor).__name__ for name, tensor in known.items() if type(tensor) not in PLAIN}
    if foreign := [name for name in found if name in kinds]:
        raise ModelError(
            f"'{foreign[0]}' is a {kinds[foreign[0]]}, and methods for stored words know plain tensors; choose other "
            "parameters, or quantise by represent(model, 'int8')"
        )
    fit = {name: tensor for name, tensor in found.items() if tensor.dtype in types and tensor.numel()}
    if not fit:
        listed, got = ", ".join(str(one) for one in types), {str(tensor.dtype) for tensor in found.values()}
        raise ModelError(f"the method needs parameters of {listed}, got {', '.join(sorted(got))} alone")
    return fit


def _decoded(model: nn.Module, name: str, known: Mapping[str, Tensor], reads: Mapping[str, tuple[str, ...]]) -> Tensor:
    """Return the words called *name* as the next guard of them will read them."""
    path, place = readers(model, name, reads)[0]
    module, value = model.get_submodule(path), known[name].detach()
    hooks: list[object] = list(module._forward_pre_hooks.values())
    for hook in hooks:
        if isinstance(hook, StoredGuard) and hook.place == place:
            value = hook.decoded(module, value)
        elif isinstance(hook, Signs) and hook.name == place:
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
