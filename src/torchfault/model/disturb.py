"""Run a model without leaving a trace in it, and along its ordinary path."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.model.undo import Undo
from torchfault.names.word_names import width_of

__all__ = ["contents", "plain_kernels", "put_back", "reset_states", "undisturbed", "unfused"]

Homes = list[tuple[dict[str, Any], dict[str, Any]]]
"""Dictionaries of a module, each with a copy of what it held."""

_KEPT = frozenset({"_parameters", "_modules"})


def contents(module: nn.Module) -> Homes:
    """Return the attributes of *module*, and the dictionaries among them, with what they hold now."""
    # Hooks too: transformers adds some on a model's first call, and remembers in an attribute that it has.
    nested = [value for name, value in module.__dict__.items() if isinstance(value, dict) and name not in _KEPT]
    return [(home, dict(home)) for home in (module.__dict__, *nested)]


def put_back(homes: Homes) -> None:
    """Let the dictionaries hold again what they held.

    >>> module = nn.Identity()
    >>> before = contents(module)
    >>> module.level = 3
    >>> put_back(before)
    >>> hasattr(module, "level")
    False
    """
    for home, before in homes:
        if _differ(home, before):
            home.clear()
            home.update(before)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Run *model* in this scope without gradients and without a trace: buffers, attributes and random state come back.

    So do the weights that an embedding with ``max_norm`` renormalises when it is called.

    Yields a function that tells whether the model has changed its own state since the scope was entered.

    >>> norm = nn.BatchNorm1d(2).train()
    >>> with undisturbed(norm) as changed:
    ...     _ = norm(torch.randn(4, 2))
    ...     changed()
    True
    >>> int(norm.num_batches_tracked)
    0
    """
    modules = _with_relatives(model)
    homes = [home for module in modules for home in contents(module)]
    buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
    weights = [module.weight for module in modules if getattr(module, "max_norm", None) is not None]
    attributes = (value for _, before in homes for value in before.values())
    held = [tensor for tensor in (*buffers, *weights, *attributes) if isinstance(tensor, Tensor)]
    stored = [(bits, bits.clone()) for bits in map(_copied, {id(tensor): tensor for tensor in held}.values())]

    def changed() -> bool:
        return any(_differ(*home) for home in homes) or not all(_same_bits(*pair) for pair in stored)

    cuda = sorted({tensor.device.index or 0 for tensor in model.parameters() if tensor.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            yield changed
    finally:
        put_back(homes)
        for tensor, content in stored:
            if not _same_bits(tensor, content):
                tensor.copy_(content)


def _with_relatives(model: nn.Module) -> list[nn.Module]:
    """Return the modules of *model* and those that their classes list: some libraries reset all of a class at once."""
    found = {id(module): module for module in model.modules()}
    classes = {one for module in found.values() for one in type(module).__mro__}
    for listed in (value for one in classes for value in vars(one).values() if isinstance(value, list)):
        found |= {id(module): module for module in listed if isinstance(module, nn.Module)}
    return list(found.values())


def _differ(now: Mapping[str, object], before: Mapping[str, object]) -> bool:
    return now.keys() != before.keys() or any(now[name] is not value for name, value in before.items())


def _copied(tensor: Tensor) -> Tensor:
    """Return what there is to copy of *tensor*: the bytes of a type of 8 bits or less, which few kernels know."""
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided
    known = width_of(str(tensor.dtype).removeprefix("torch.")) is not None
    return tensor.data.view(torch.uint8) if plain and known and tensor.itemsize == 1 else tensor.data


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree; a NaN does not agree with itself here, which only costs a copy."""
    return bool(torch.equal(a, b))


@contextmanager
def unfused() -> Iterator[None]:
    """Let attention layers take their ordinary path in this scope: the fused one calls no module inside them."""
    with Undo() as undo:
        undo.add(_FUSED.leave)
        _FUSED.enter()
        yield


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Let layers compute as written in this scope, whatever the size of the batch: :func:`unfused`, without transforms.

    NNPACK, which runs convolutions of sixteen inputs and more where oneDNN is off or absent, goes by Fourier and
    Winograd transforms, which spread one huge value over its whole tile, as rounding or as NaN.
    """
    with Undo() as undo, unfused():
        undo.add(_TRANSFORMS.leave)
        _TRANSFORMS.enter()
        yield


class _Switch:
    """One of torch's switches, which is off for as long as one of the scopes that need that lasts."""

    def __init__(self, put: Callable[[bool], bool]) -> None:
        self.put, self.scopes, self.before = put, 0, True  # *put* returns what was

    def enter(self) -> None:
        self.scopes += 1
        if self.scopes == 1:
            self.before = self.put(False)

    def leave(self) -> None:
        self.scopes -= 1
        if not self.scopes:
            self.put(self.before)


def _put_fused(on: bool) -> bool:
    before: bool = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(on)
    return before


def _put_transforms(on: bool) -> bool:
    return bool(torch.backends.nnpack.set_flags(on)[0])


_FUSED, _TRANSFORMS = _Switch(_put_fused), _Switch(_put_transforms)


def reset_states(model: nn.Module) -> None:
    """Reset what SpikingJelly's and snnTorch's modules keep from the last run; other modules are left alone.

    >>> reset_states(nn.Linear(1, 1))
    """
    for module in model.modules():
        library = {one.__module__.partition(".")[0] for one in type(module).__mro__}
        if "spikingjelly" in library and callable(getattr(module, "reset", None)):
            module.reset()  # type: ignore[operator]
        elif "snntorch" in library:
            # As before the first run: with the shape of the last one, another batch of that size would go on from it.
            for name in module._non_persistent_buffers_set & module._buffers.keys():
                held = module._buffers[name]
                module._buffers[name] = None if held is None else held.new_zeros(0)
