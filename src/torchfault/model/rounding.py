"""Activations in another representation: hooks that round what a module reads or gives, seen by graph capture."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchfault.errors import ModelError, StorageError
from torchfault.model.lane_axis import LaneAxis
from torchfault.space import Site
from torchfault.storages import ActivationStorage, InBlocks, activation_storage
from torchfault.words import word

__all__ = [
    "ROUND_BLOCKS",
    "ROUND_WORDS",
    "Rounded",
    "activations_in",
    "exactly",
    "is_rounding",
    "names_kept",
    "round_operator",
    "round_output",
    "rounded_as",
    "rounding",
    "set_rounding",
    "sites_kept",
    "without_blocks",
]

ROUND_WORDS, ROUND_BLOCKS = "round_words", "round_blocks"
"""What captured operations are called that round every value by itself, or in blocks."""


_EXACT: ContextVar[bool] = ContextVar("exact", default=False)


@dataclass(frozen=True)
class Rounded:
    """That a value is what words of *storage* hold: tensor number *place* of what a call reads or gives (*role*)."""

    storage: ActivationStorage
    role: str
    place: int


@torch.library.custom_op("torchfault::rounded", mutates_args=())
def round_operator(x: Tensor, how: str, role: str, place: int) -> Tensor:
    """Return *x* as the activation storage *how* holds it: an operation that graph capture keeps, with its place."""
    del role, place
    if _EXACT.get():
        return x.clone()
    if x.dtype != torch.float32:
        raise StorageError(f"activations are emulated on float32, got {x.dtype}; call model.float() first")
    return activation_storage(how).round(x)


@round_operator.register_fake
def _(x: Tensor, how: str, role: str, place: int) -> Tensor:
    del how, role, place
    return torch.empty_like(x)


round_operator.register_autograd(lambda _, gradient: (gradient, None, None, None))  # straight through, as in training


@contextmanager
def exactly() -> Iterator[None]:
    """Let nothing be rounded in this scope.

    Who compares what several inputs together give with what one gives alone needs it: their sums differ in the last
    bit, and rounding makes a whole step of that where it falls on the border between two words.
    """
    token = _EXACT.set(True)
    try:
        yield
    finally:
        _EXACT.reset(token)


@dataclass(frozen=True)
class _Input:
    storage: ActivationStorage

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _rounded((args, kwargs), module, self.storage, "input")


@dataclass(frozen=True)
class _Output:
    storage: ActivationStorage

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        del args
        return _rounded(output, module, self.storage, "output")


def _rounded(tree: Any, module: nn.Module, storage: ActivationStorage, role: str) -> Any:
    flat, spec, places = activations_in(tree, module)
    for i, place in places.items():
        flat[i] = round_operator(flat[i], storage.name, role, place)
    return pytree.tree_unflatten(flat, spec)


def activations_in(tree: Any, module: nn.Module) -> tuple[list[Any], Any, dict[int, int]]:
    """Return the leaves of *tree*, its structure, and where its activations are: the number of each by its position.

    These are floating-point tensors, counted as sites count: among all tensors but those that *module* keeps.
    """
    flat, spec = pytree.tree_flatten(tree)
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    tensors = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and id(leaf) not in own]
    return flat, spec, {i: place for place, i in enumerate(tensors) if flat[i].dtype.is_floating_point}


def is_rounding(hook: object) -> bool:
    """Whether a hook of a module is one of those that :func:`set_rounding` adds."""
    return isinstance(hook, _Input | _Output)


def set_rounding(module: nn.Module, role: str, storage: ActivationStorage) -> None:
    """Let *module* round what it reads (*role* ``input``) or gives (``output``), instead of as it may have until now.

    >>> layer = nn.Identity()
    >>> set_rounding(layer, "output", activation_storage("q3.4"))
    >>> layer(torch.tensor([1.03])), rounding(layer, "output").name
    (tensor([1.]), 'q3.4')
    """
    hooks: Any = module._forward_pre_hooks if role == "input" else module._forward_hooks
    for key in [key for key, hook in hooks.items() if is_rounding(hook)]:
        del hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    # Before the hooks of others, which see what the words hold.
    if role == "input":
        module.register_forward_pre_hook(_Input(storage), with_kwargs=True, prepend=True)
    else:
        module.register_forward_hook(_Output(storage), prepend=True)


def rounding(module: nn.Module, role: str) -> ActivationStorage | None:
    """Return how *module* keeps what it reads or gives, if that is emulated."""
    hooks: Mapping[str, Mapping[int, Any]] = {"input": module._forward_pre_hooks, "output": module._forward_hooks}
    return next((hook.storage for hook in hooks.get(role, {}).values() if is_rounding(hook)), None)


def round_output(module: nn.Module, output: Any) -> Any:
    """Return *output*, which ``module.forward`` gave, as a call of *module* gives it."""
    storage = rounding(module, "output")
    return output if storage is None else _rounded(output, module, storage, "output")


def rounded_as(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the inputs and outputs of modules that are emulated, such as ``conv1:output``, and the storage's name."""
    for path, module in model.named_modules():
        for role in ("input", "output"):
            if (storage := rounding(module, role)) is not None:
                yield f"{path}:{role}", storage.name


def sites_kept(
    site: Site, storage: ActivationStorage | None, shape: Sequence[int], layout: LaneAxis | None
) -> Iterator[Site]:
    """Yield the sites of the words in which *storage* keeps the activation *site*, computed in *shape* for a batch.

    Raises :class:`ModelError` for a block that would hold values of several inputs.
    """
    if storage is None:
        yield site
        return
    if isinstance(storage, InBlocks) and layout is not None and layout.axis >= storage.first_axis(shape):
        raise ModelError(f"blocks of '{site.name}' would hold several inputs ({storage.name}); choose a number format")
    for part, name in storage.words.items():
        fmt = word(name)
        words = replace(site, word=fmt.name, width=fmt.width, bits=())
        if part and isinstance(storage, InBlocks):
            own = storage.shape(part, site.shape, storage.row(shape))
            channel = 0 if own and site.channel == 0 and len(site.shape) > 1 and storage.axis is None else None
            words = replace(words, name=f"{site.name}.{part}", shape=own, channel=channel)
        yield words


def without_blocks(path: str, storage: ActivationStorage | None) -> ActivationStorage | None:
    """Return *storage*; raise :class:`ModelError` where the module at *path*, which has states, would give blocks."""
    if isinstance(storage, InBlocks):
        raise ModelError(f"'{path}' has states, and cannot keep blocks ({storage.name}); choose a number format for it")
    return storage


def names_kept(name: str, storage: ActivationStorage | None) -> list[str]:
    """Return the names of the sites in which *storage* keeps the activation called *name*."""
    return [f"{name}.{part}" if part else name for part in (storage.words if storage else ("",))]
