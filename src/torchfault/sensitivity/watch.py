"""Watching a model run: the activations at its sites, as autograd sees them, and the scores of its classes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.criteria.outputs import score
from torchfault.data import Data, Tree, call, leaves
from torchfault.errors import ModelError
from torchfault.names import site_name
from torchfault.space import Site

__all__ = ["activations", "logits", "module_of", "top_margins"]


def logits(model: nn.Module | Callable[..., Tree], inputs: Tree) -> Tensor:
    """Return the scores of *model* for *inputs*, shape (rows, positions, classes).

    >>> logits(nn.Linear(3, 2), torch.zeros(4, 3)).shape
    torch.Size([4, 1, 2])
    """
    return score(call(model, inputs), output=None, axis=None).values


def top_margins(scores: Tensor) -> Tensor:
    """Return the lead of the highest class over the next, shape (rows, positions).

    >>> top_margins(torch.tensor([[[3.0, 1.0, 2.5]]]))
    tensor([[0.5000]])
    """
    best = scores.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def module_of(model: nn.Module, site: Site) -> tuple[nn.Module, str]:
    """Return the module whose ``input`` or ``output`` *site* is, and which of them.

    Raises :class:`ModelError` for a site that is not of a module's first call.
    """
    name = site_name(site.name)
    found = dict(model.named_modules()).get(name.base)
    if found is None or str(name) != f"{name.base}:{name.role}" or name.role not in ("input", "output"):
        raise ModelError(
            f"sensitivity is known at a module's first call, got '{site.name}'; choose modules, such as --types Conv2d"
        )
    return found, name.role


@contextmanager
def activations(model: nn.Module, sites: Sequence[Site], rows: int) -> Iterator[dict[str, Tensor]]:
    """Keep what stands at each of *sites* when *model* runs within the scope, as tensors with a gradient.

    The name of each site, of words in blocks that of the whole activation, maps to a tensor (*rows*, *shape), one row
    per input, by which what the model returns can be differentiated. Raises :class:`ModelError`, when the model runs,
    where a tensor has no row for each input.
    """
    kept: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in sites:
            name = str(site_name(site.name).whole)
            module, end = module_of(model, replace(site, name=name))
            if end == "input":
                stack.callback(module.register_forward_pre_hook(_keep_input(kept, name, site, rows)).remove)
            else:
                stack.callback(module.register_forward_hook(_keep_output(kept, name, site, rows)).remove)
        yield kept


def _keep_input(kept: dict[str, Tensor], name: str, site: Site, rows: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        del module
        if name in kept:
            return None
        own, onward = _split(next(iter(args), None), site, rows)
        kept[name] = own
        return (onward, *args[1:])

    return hook


def _keep_output(kept: dict[str, Tensor], name: str, site: Site, rows: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tree) -> Tree:
        del module, args
        if name in kept:
            return output
        kept[name], onward = _split(output, site, rows)
        return onward

    return hook


def _split(tensor: Any, site: Site, rows: int) -> tuple[Tensor, Tensor]:
    """Return a tensor to differentiate by, and a copy for the model, which may write into it."""
    shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else ()
    if shape[:1] != (rows,) or (shape[1:] != site.shape and not site_name(site.name).block):
        got = getattr(tensor, "shape", type(tensor).__name__)
        raise ModelError(f"sensitivity needs '{site.name}' as {(rows, *site.shape)}, got {got}; leave this site out")
    own = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_()
    return own, own.clone()


def first(data: Data, images: int) -> Data:
    """Return the first *images* of *data*, or all there are."""
    return data.take(slice(0, min(images, len(data))))


def rows_of(inputs: Tree) -> int:
    """Return the number of inputs."""
    return int(leaves(inputs)[0].shape[0])


def gradient(outputs: Tensor, by: Sequence[Tensor]) -> list[Tensor]:
    """Return the derivatives of the sum of *outputs*, 0 by what they do not depend on."""
    found = torch.autograd.grad(outputs.sum(), list(by), allow_unused=True, materialize_grads=True)
    return [slope.detach() for slope in found]
