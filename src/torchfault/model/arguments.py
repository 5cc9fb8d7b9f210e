"""The tensors that a model is called with: what each is called, and the sites that they are."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchfault.data import Data, Tree
from torchfault.model.lane_axis import LaneAxis
from torchfault.model.traits import channel_axis, word_name
from torchfault.space import Site
from torchfault.words import word

__all__ = ["argument_names", "as_arguments", "data_sites"]


def as_arguments(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return *inputs* as the positional and keyword arguments that :func:`torchfault.data.call` makes of them.

    >>> as_arguments({"x": 1}), as_arguments((1, 2)), as_arguments(3)
    (((), {'x': 1}), ((1, 2), {}), ((3,), {}))
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def argument_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Return a name for every leaf of ``(args, kwargs)``: the argument's, and the keys inside it, joined by dots.

    >>> argument_names(nn.Bilinear(2, 2, 1), (0.0,), {"input2": [0.0, 0.0]})
    ['input1', 'input2.0', 'input2.1']
    """
    parameters = inspect.signature(model.forward).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_place = [positional[i] if i < len(positional) else f"args.{i}" for i in range(len(args))]
    given = [*zip(by_place, args, strict=True), *kwargs.items()]
    paths = [(name, path) for name, value in given for path, _ in pytree.tree_flatten_with_path(value)[0]]
    return [".".join([name, *(_plain(key) for key in path)]) for name, path in paths]


def _plain(key: Any) -> str:
    return str(next(getattr(key, part) for part in ("key", "idx", "name") if hasattr(key, part)))


def data_sites(model: nn.Module, data: Data) -> list[Site | None]:
    """Return a site for every tensor of the inputs, in the order of the tree's leaves; ``None`` for whole numbers.

    >>> import torch
    >>> [site.name for site in data_sites(nn.Linear(3, 2), Data(torch.zeros(5, 3)))]
    ['input:data']
    """
    args, kwargs = as_arguments(data.inputs)
    flat = pytree.tree_leaves((args, kwargs))
    named = zip(argument_names(model, args, kwargs), flat, strict=True)
    return [_site(name, leaf) for name, leaf in named if isinstance(leaf, Tensor)]


def _site(name: str, tensor: Tensor) -> Site | None:
    if not tensor.dtype.is_floating_point or not word_name(tensor):
        return None
    fmt, shape = word(word_name(tensor)), tuple(tensor.shape[1:])
    channel = channel_axis("", shape, LaneAxis(0))
    return Site(f"{name}:data", shape, word=fmt.name, width=fmt.width, kind="data", channel=channel)
