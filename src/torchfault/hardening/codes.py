"""Quantised weights whose codes and scales are parameters, so that methods can protect the words that are stored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.hardening.reads import inside, readers
from torchfault.model.memory import STORED
from torchfault.model.wrappers import copied, unwrapped
from torchfault.storages import Affine, Stored

__all__ = [
    "FREE",
    "Dequantised",
    "Signs",
    "Uncover",
    "cover",
    "dequantiser",
    "signed",
    "unpacked",
]

_LIST = "_stored_weights"


def unpacked(model: nn.Module) -> nn.Module:
    """Return a copy of *model* in which codes of 8 bits and their scales are parameters, as when it is deployed.

    What ``represent(model, "int8")`` keeps beside ``conv1.weight`` becomes the parameters ``conv1.weight``, integers,
    ``conv1.weight_scale`` and, if there is one, ``conv1.weight_zero_point``; the module computes with the same values
    as before, which a hook makes of them whenever it runs. :func:`harden` does so first; to strike the same words in
    the model that it hardens, unpack that too. Other storages, and models without any, stay as they are.

    >>> from torchfault import represent
    >>> model = represent(nn.Sequential(nn.Linear(3, 2)), "int8")
    >>> [(name, str(held.dtype)) for name, held in unpacked(model).named_parameters()][::2]
    [('0.weight', 'torch.int8'), ('0.weight_scale', 'torch.float32')]
    >>> torch.equal(unpacked(model)(torch.ones(1, 3)), model(torch.ones(1, 3)))
    True
    """
    twin = copied(unwrapped(model))
    for path, module in list(twin.named_modules()):
        kept: dict[str, Stored] = module.__dict__.get(STORED, {})
        for name in [name for name, stored in kept.items() if _fits(stored)]:
            _unpack(twin, f"{path}.{name}".lstrip("."), kept.pop(name))
        if not kept:
            module.__dict__.pop(STORED, None)
    return twin


def _fits(stored: Stored) -> bool:
    return isinstance(stored.storage, Affine) and stored.storage.width == 8


def _unpack(model: nn.Module, name: str, stored: Stored) -> None:
    if not torch.equal(stored.value(), model.get_parameter(name)):
        raise ModelError(f"'{name}' is not what its stored words stand for; represent the model anew after changes")
    assert isinstance(stored.storage, Affine)
    held = {part: nn.Parameter(words.clone(), requires_grad=False) for part, words in stored.words.items()}
    for path, place in readers(model, name, {}):
        module = model.get_submodule(path)
        owner, last = inside(module, place)
        for part, words in held.items():
            owner.register_parameter(f"{last}_{part}" if part else last, words)
        module.register_forward_pre_hook(Dequantised(place, stored.storage, tuple(held), stored.dtype))
        module.register_forward_hook(Uncover(place), always_call=True)


@dataclass(frozen=True)
class Dequantised:
    """The hook that makes values of codes before their module runs: behind all guards of the codes and scales."""

    name: str
    storage: Affine
    parts: tuple[str, ...]
    dtype: torch.dtype

    def __call__(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        cover(module, self.name, self.values(module))

    def values(self, module: nn.Module) -> Tensor:
        """Return the values that the words of *module* stand for now."""
        owner, last = inside(module, self.name)
        words = {part: getattr(owner, f"{last}_{part}" if part else last) for part in self.parts}
        return self.storage.decode(words, words[""].shape).to(self.dtype)


@dataclass(frozen=True)
class Signs:
    """The hook that gives codes from -64 to 63 their bit 6 back, which repeats the sign, where check bits stand."""

    name: str

    def __call__(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        owner, last = inside(module, self.name)
        cover(module, self.name, signed(getattr(owner, last)))


def signed(codes: Tensor) -> Tensor:
    """Return codes in whose blocks of eight the first seven have their sign in bit 6 too."""
    flat, whole = codes.reshape(-1), codes.numel() // 8 * 8
    blocks, free = flat[:whole].view(-1, 8), FREE.to(codes.device)
    return torch.cat((((blocks & ~free) | (blocks >> 1 & free)).flatten(), flat[whole:])).view(codes.shape)


FREE = torch.tensor([1 << 6] * 7 + [0], dtype=torch.int8)  # the bit that repeats the sign of codes -64 to 63


def dequantiser(module: nn.Module, name: str) -> Dequantised | None:
    """Return the hook that makes values of the codes called *name*, if they are codes."""
    every: list[object] = list(module._forward_pre_hooks.values())
    return next((hook for hook in every if isinstance(hook, Dequantised) and hook.name == name), None)


def cover(module: nn.Module, name: str, value: Tensor) -> None:
    """Have *value* be read where *module* or one in it asks for *name*, until :class:`Uncover` runs."""
    owner, last = inside(module, name)
    owner.__dict__[last] = value
    if isinstance(owner, nn.RNNBase):  # it reads a list that it made of its parameters
        owner.__dict__.setdefault(_LIST, owner._flat_weights)
        owner.__dict__["_flat_weights"] = [getattr(owner, one) for one in owner._flat_weights_names]


@dataclass(frozen=True)
class Uncover:
    """The hook that lets a parameter be seen again, also after an exception."""

    place: str

    def __call__(self, module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        owner, last = inside(module, self.place)
        owner.__dict__.pop(last, None)
        if _LIST in owner.__dict__:
            owner.__dict__["_flat_weights"] = owner.__dict__.pop(_LIST)
