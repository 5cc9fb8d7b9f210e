"""Run a model that knows one time step over many, without a change to it."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchfault.adapters.stand_in import stand_in
from torchfault.data import Tree, call, leaves, map_tensors
from torchfault.errors import ModelError
from torchfault.model.disturb import reset_states
from torchfault.model.wrappers import unwrapped

__all__ = ["over_time"]

Read = Literal["all", "count", "mean", "last"]

_READ: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda steps: steps.transpose(0, 1),
    "count": lambda steps: steps.sum(0),
    "mean": lambda steps: steps.mean(0),
    "last": lambda steps: steps[-1],
}


def over_time(
    model: nn.Module,
    *,
    steps: int | None = None,
    whole: bool = False,
    carry: bool = False,
    read: Read = "all",
) -> nn.Module:
    """Return *model* as one that runs over time: from inputs to what it gives at all time steps, from a fresh state.

    With *steps* every input is the same at so many steps, as for static images, (N, ...); without, the second axis of
    the inputs counts the steps, as in spike trains, (N, T, ...). A *whole* model takes all steps at once, time first;
    others are called once for each. A model that *carries* its state takes it as its second argument, ``None`` at
    first, and returns it behind its output. Before each run the states that SpikingJelly and snnTorch keep in their
    modules are reset.

    *read* tells what is made of the outputs: ``all`` of them (N, T, ...), their ``count`` (sum), ``mean`` or ``last``.
    The returned module shares all modules, parameters and names with *model*, which stays as it is. Raises
    :class:`ModelError` for a number of steps below 1, and, when it runs, for inputs without an axis of time.

    >>> model = over_time(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), steps=5)
    >>> model(torch.ones(4, 3)).shape, [name for name, _ in model.named_parameters()]
    (torch.Size([4, 5, 2]), ['0.weight', '0.bias'])
    """
    if steps is not None and steps < 1:
        raise ModelError(
            f"a model runs for 1 time step or more, got {steps}; leave steps out where the inputs have them"
        )
    if read not in _READ:
        raise ModelError(f"read is one of {', '.join(_READ)}, got '{read}'")
    model = unwrapped(model)
    plain = type(model)

    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tree:
        once = lambda inputs, *state: _call(plain, self, inputs, state)  # noqa: E731
        reset_states(self)
        sequence = map_tensors(lambda leaf: _in_time(leaf, steps), kwargs or args)
        outputs = _whole(once, sequence, carry=carry) if whole else _by_step(once, sequence, carry=carry)
        return map_tensors(_READ[read], outputs)

    return stand_in(model, forward)


def _in_time(leaf: Tensor, steps: int | None) -> Tensor:
    """Return the inputs with time as the first axis."""
    if steps is not None:
        return leaf.unsqueeze(0).expand(steps, *leaf.shape)
    if leaf.ndim < 2:
        raise ModelError(f"spike trains are (N, T, ...), got shape {tuple(leaf.shape)}; give steps= for static inputs")
    return leaf.transpose(0, 1)


def _call(plain: type, model: nn.Module, inputs: Tree, state: tuple[Any, ...]) -> Any:
    """Call the forward pass of *plain* with the inputs of one step, and the state behind them."""
    once = lambda *args, **kwargs: plain.forward(model, *args, *state, **kwargs)  # type: ignore[attr-defined]  # noqa: E731
    return call(once, inputs)


def _whole(once: Callable[..., Any], sequence: Tree, *, carry: bool) -> Tree:
    outputs = once(sequence, None) if carry else once(sequence)
    return outputs[0] if carry else outputs


def _by_step(once: Callable[..., Any], sequence: Tree, *, carry: bool) -> Tree:
    outputs, state = [], None
    for t in range(len(leaves(sequence)[0])):
        now = map_tensors(lambda leaf, t=t: leaf[t], sequence)  # type: ignore[misc]
        if carry:
            output, state = once(now, state)
        else:
            output = once(now)
        outputs.append(output)
    columns = iter([torch.stack(parts) for parts in zip(*(leaves(output) for output in outputs), strict=True)])
    return map_tensors(lambda _: next(columns), outputs[0])
