"""Show what goes in and out of cells, and the states that they leave, at every time step of a running model."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchfault.model.states import Cell
from torchfault.model.timesteps import taken_apart
from torchfault.model.undo import Undo

__all__ = ["Mark", "inside", "mark_operator", "marked"]

Mark = Callable[[str, Tensor], Tensor]
"""Sees the tensor of one site at one time step, such as ``lif1:state.mem#3``; returns what to go on with."""


def inside(model: nn.Module, cells: Sequence[Cell]) -> frozenset[str]:
    """Return the paths of *cells* and of all modules in them: none of their operations is a site by itself."""
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    return frozenset(p for p in paths if any(p == cell.path or p.startswith(f"{cell.path}.") for cell in cells))


@contextmanager
def marked(model: nn.Module, cells: Sequence[Cell], mark: Mark) -> Iterator[None]:
    """Show *mark* the sites of *cells* at every step of *model* in this scope; each run counts its steps from 0."""
    if not cells:
        yield
        return
    modules = dict(model.named_modules())
    stored = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    counts: Counter[str] = Counter()

    def numbered(site: str, tensor: Tensor) -> Tensor:
        counts[site] += 1
        return mark(f"{site}#{counts[site] - 1}", tensor)

    with ExitStack() as scope:
        undo = scope.enter_context(Undo())
        undo.add(model.register_forward_pre_hook(lambda *_: counts.clear(), prepend=True).remove)
        for cell in cells:
            module = modules[cell.path]
            shown: dict[int, Tensor] = {}
            before, after = _hooks(cell, stored, numbered, shown)
            undo.add(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.add(module.register_forward_hook(after, with_kwargs=True).remove)
            if cell.inside:
                scope.enter_context(taken_apart(module, _marks_inside(cell.path, numbered, shown)))
        yield


def _marks_inside(path: str, numbered: Mark, shown: dict[int, Tensor]) -> Mark:
    def state(name: str, tensor: Tensor) -> Tensor:
        fresh = numbered(f"{path}:state.{name}", tensor)
        shown[id(fresh)] = fresh
        return fresh

    return state


def _hooks(
    cell: Cell, stored: set[int], numbered: Mark, shown: dict[int, Tensor]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what runs before and behind every call of *cell*; *shown* are states that it has marked itself."""
    passed = dict(cell.passed)

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        places, spec = pytree.tree_flatten_with_path((args, kwargs))
        flat, place = [leaf for _, leaf in places], 0
        for i, (keys, leaf) in enumerate(places):
            plain = isinstance(leaf, Tensor) and leaf.is_floating_point() and id(leaf) not in stored
            if plain and pytree.keystr(keys) not in cell.taken:
                flat[i] = numbered(f"{cell.path}:input{place or ''}", leaf)
                place += 1
        return pytree.tree_unflatten(flat, spec)

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        del args, kwargs
        states = dict(shown)  # by the tensor that each stands for, which may be given more than once
        for slot in cell.held:
            value = slot.read(module)
            if isinstance(value, Tensor):
                states[id(value)] = numbered(f"{cell.path}:state.{slot.name}", value)
                slot.write(module, states[id(value)])
        flat, spec = pytree.tree_flatten(output)
        tensors = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor)]
        others = 0
        for place, i in enumerate(tensors):
            if id(flat[i]) in states:
                flat[i] = states[id(flat[i])]
            elif place in passed:
                given = flat[i]
                flat[i] = states[id(given)] = numbered(f"{cell.path}:state.{passed[place]}", given)
            elif flat[i].is_floating_point():
                flat[i] = numbered(f"{cell.path}:output{others or ''}", flat[i])
                others += 1
        shown.clear()
        return pytree.tree_unflatten(flat, spec)

    return before, after


@torch.library.custom_op("torchfault::mark", mutates_args=())
def mark_operator(x: Tensor, name: str) -> Tensor:
    """Return a copy of *x*: an operation that graph capture keeps, and by which the site *name* is found again."""
    del name
    return x.clone()


@mark_operator.register_fake
def _(x: Tensor, name: str) -> Tensor:
    del name
    return torch.empty_like(x)


torch.fx.node.has_side_effect(torch.ops.torchfault.mark.default)  # or a state that nobody reads would be dropped
