"""Weights of a lane's own: the one module that reads a struck weight runs again, on that lane alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchfault.engine.changes import Target
from torchfault.engine.stored import edited
from torchfault.model.foreign import of_tensor
from torchfault.model.lane_axis import LaneAxis, by_sample, take
from torchfault.model.rounding import round_output
from torchfault.model.watch import hands_out

__all__ = ["Part", "replaying"]


@dataclass(frozen=True, eq=False)
class Part:
    """Lanes, shape (n,), on which a module has the same struck words in its parameters and buffers."""

    lanes: Tensor
    stored: Sequence[Target]


@contextmanager
def replaying(model: nn.Module, parts: Mapping[str, Sequence[Part]], layouts: Mapping[str, LaneAxis]) -> Iterator[None]:
    """Repeat every call of the named modules on the lanes of each part, with its words, in this scope.

    *layouts* tells, by the names of activations, where the lanes are in what the modules read and give. A replayed lane
    is what the module alone would give for it: nothing behind the module runs twice.
    """
    stored = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with ExitStack() as hooks:
        for path, mine in parts.items():
            hook = _hook(path, mine, layouts, stored)
            hooks.callback(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _hook(path: str, parts: Sequence[Part], layouts: Mapping[str, LaneAxis], stored: set[int]) -> Callable[..., Any]:
    calls = 0

    def again(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        nonlocal calls
        call = f"{path}@{calls}" if calls else path
        calls += 1
        inputs, reads = pytree.tree_flatten((args, kwargs))
        given = _lanes(inputs, f"{call}:input", layouts, stored)
        results, gives = pytree.tree_flatten(output)
        wanted = _lanes(results, f"{call}:output", layouts, set())
        for position in wanted if not hands_out(module) else ():
            results[position] = results[position].clone()
        for part in parts:
            some = list(inputs)
            for position, layout in given.items():
                some[position] = take(inputs[position], layout, part.lanes)
            less, more = pytree.tree_unflatten(some, reads)
            with edited(part.stored):
                redone = pytree.tree_leaves(round_output(module, module.forward(*less, **more)))
            for position, layout in wanted.items():
                results[position] = _joined(results[position], redone[position], layout, part.lanes)
        return pytree.tree_unflatten(results, gives)

    return again


def _joined(whole: Tensor, some: Tensor, layout: LaneAxis, lanes: Tensor) -> Tensor:
    """Return *whole*, whose *lanes* have become *some*; those of codes share their scale, so that these will do."""
    if (room := of_tensor(whole)) is not None:
        _joined(room.codes(whole), room.codes(some), layout, lanes)
        return whole
    by_sample(whole, layout)[lanes] = by_sample(some, layout)
    return whole


def _lanes(flat: Sequence[Any], name: str, layouts: Mapping[str, LaneAxis], stored: set[int]) -> dict[int, LaneAxis]:
    """Return the layouts of the tensors of *flat* by their positions, counted as the names of activations count."""
    tensors = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and id(leaf) not in stored]
    return {position: layouts[f"{name}{i or ''}"] for i, position in enumerate(tensors)}
