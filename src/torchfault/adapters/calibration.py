"""The range of activations on real inputs, from which integer codes take their scale."""

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from torchfault.data import Data, Tree, call, map_tensors, rows
from torchfault.errors import StorageError
from torchfault.model.disturb import plain_kernels, reset_states, undisturbed
from torchfault.model.rounding import activations_in
from torchfault.names import site_name

__all__ = ["ranges_of"]

_BATCH = 64


def ranges_of(model: nn.Module, names: Collection[str], data: Data | Tree) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest value of each of *names*, such as ``conv1:output``, over all of *data*.

    Raises :class:`StorageError` for a module that is never called, or a value that is not finite.

    >>> ranges_of(nn.Sequential(nn.ReLU()), ["0:input", "0:output"], torch.tensor([[-3.0], [2.0]]))
    {'0:input': (-3.0, 2.0), '0:output': (0.0, 2.0)}
    """
    data = data if isinstance(data, Data) else Data(data)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    found: dict[str, tuple[float, float]] = {}

    def look(name: str, module: nn.Module, tree: Any) -> None:
        flat, _, places = activations_in(tree, module)
        for i in places:
            low, high = (float(end) for end in flat[i].aminmax())
            before = found.get(name, (low, high))
            found[name] = (min(low, before[0]), max(high, before[1]))

    with undisturbed(model), plain_kernels(), ExitStack() as hooks:
        for name in names:
            module = model.get_submodule(site_name(name).base)
            if site_name(name).role == "input":
                before = lambda m, args, kwargs, n=name: look(n, m, (args, kwargs))  # noqa: E731
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            else:
                after = lambda m, _, output, n=name: look(n, m, output)  # noqa: E731
                hooks.callback(module.register_forward_hook(after).remove)
        for begin in range(0, len(data), _BATCH):
            reset_states(model)
            few = rows(data.inputs, slice(begin, begin + _BATCH))
            call(model, map_tensors(lambda leaf: leaf.to(device), few))
    for name in names:
        low, high = found.get(name, (torch.nan, torch.nan))
        if not -torch.inf < low <= high < torch.inf:
            got = f"{low:g} to {high:g}" if name in found else "no call of the module"
            raise StorageError(f"'{name}' needs a finite range on the data, got {got}; choose a number format for it")
    return found
