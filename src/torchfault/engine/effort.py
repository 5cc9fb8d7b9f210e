"""How much work a campaign is, counted and not timed, so that one campaign takes one executor on every machine.

The figures are of the order that ordinary processors have; a choice by them is wrong only where both ways take about
as long.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from torchfault.data import Tree, call
from torchfault.model.disturb import plain_kernels, reset_states, undisturbed

__all__ = ["Effort", "effort"]

_CAPTURE, _CAPTURE_CALL = 1.0, 0.04  # seconds: to load torch's compiler, and for each operation
_CALL = 20e-6  # seconds: a call within a pass that many lanes share
_FLOPS = 5e9  # in a second
_SWEPT = 0.25  # of a pass: what a lane costs in the graph


@dataclass(frozen=True)
class Effort:
    """The *calls* of kernels in a forward pass, and its floating-point operations for one input.

    >>> small, large = Effort(calls=10, flops=1000), Effort(calls=70, flops=80_000_000)
    >>> [small.sooner_without_capture(lanes) for lanes in (1_000, 10**5)]
    [True, False]
    >>> [large.sooner_without_capture(lanes) for lanes in (100, 10**4)]
    [True, False]
    """

    calls: int
    flops: int

    def sooner_without_capture(self, lanes: int) -> bool:
        """Whether *lanes* are sooner done by plain passes than by a graph, which must be captured first."""
        capture = _CAPTURE + _CAPTURE_CALL * self.calls
        computing = self.flops / _FLOPS
        return lanes * (computing + _CALL * self.calls) < capture + lanes * _SWEPT * computing


class _Calls(TorchDispatchMode):
    """Counts the calls of torch's kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.count += 1
        return func(*args, **(kwargs or {}))


def effort(model: nn.Module, inputs: Tree) -> Effort:
    """Return what a forward pass of *model* on *inputs*, of which there is one, takes; it is left as it was.

    >>> import torch
    >>> effort(nn.Sequential(nn.Linear(10, 10, bias=False), nn.ReLU()), torch.zeros(1, 10))
    Effort(calls=4, flops=200)
    """
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asked:  # torch's counter follows gradients, and fails where a module is given part of one
            parameter.requires_grad_(False)
        with undisturbed(model), plain_kernels(), _Calls() as calls, FlopCounterMode(display=False) as counter:
            reset_states(model)
            call(model, inputs)
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
    return Effort(calls.count, int(counter.get_total_flops()))
