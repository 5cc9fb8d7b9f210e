"""A model with another forward pass, under its own names."""

from collections.abc import Callable
from typing import Any

from torch import fx, nn

__all__ = ["stand_in"]


def stand_in(model: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """Return a module that shares all modules, parameters and names with *model*, and whose forward pass is *forward*.

    *forward* is called with the module itself before its arguments; *model* stays as it is.

    >>> import torch
    >>> twice = stand_in(layer := nn.ReLU(), lambda self, x: 2 * nn.ReLU.forward(self, x))
    >>> twice(torch.ones(1)), layer(torch.ones(1)), type(twice).__name__
    (tensor([2.]), tensor([1.]), 'ReLU')
    """
    # A subclass over the same contents: a wrapper around the model would rename everything in it. Not so of an FX
    # graph, as importers of NIR make them: torch.export would interpret it, for one step, and not call `forward`.
    plain = type(model)
    base = nn.Module if isinstance(model, fx.GraphModule) else plain
    again = type(
        plain.__name__, (base,), {"forward": forward, "__module__": plain.__module__, "__doc__": plain.__doc__}
    )
    found: nn.Module = object.__new__(again)
    found.__dict__.update(model.__dict__)
    return found
