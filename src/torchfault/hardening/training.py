"""Fault-aware training: every step, or some of them, with faults in weights and activations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchfault.data import Data, Tree, call, leaves
from torchfault.errors import DataError, FaultError
from torchfault.hardening.draws import FaultDraws
from torchfault.hardening.faulty_steps import FaultySteps, Gradient

__all__ = ["Training", "train_with_faults"]


@dataclass(frozen=True)
class Training:
    """What a training came to: its last *step*, the mean *loss* of each epoch, and the steps that were *skipped*.

    A step is skipped where a fault made the loss or a gradient no finite number; all skipped steps count, those before
    it was resumed too. *state*, plain JSON, is what it takes beside the model and the optimiser to go on.
    """

    step: int
    loss: tuple[float, ...]
    skipped: int
    state: Mapping[str, Any] = field(default_factory=dict)


def train_with_faults(
    model: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    draws: FaultDraws | None,
    *,
    epochs: int = 1,
    batch: int = 64,
    first: int = 0,
    state: Mapping[str, Any] | None = None,
    gradient: Gradient = "faulty",
    clip: float = 1.0,
    loss: Callable[[Tree, Tree], Tensor] | None = None,
    seed: int = 0,
    after: Sequence[Callable[[int], None]] = (),
) -> Training:
    """Train *model* on *data* with the faults of *draws* (``None``: with none), in place.

    Forward and backward pass run under the faults, and the optimiser steps on the words as they were, which never keep
    a fault. *gradient* says through which words gradients go (``faulty`` or ``clean``), and *clip* bounds their norm,
    so that no fault outweighs all that was learnt: :class:`FaultySteps`. Gradients begin at zero in every step.

    The batches of an epoch depend on *seed* and the epoch alone: a training that begins at epoch *first* with model and
    optimiser as they were, and the *state* of the former :class:`Training`, goes on as one in one piece. *loss* is the
    cross entropy unless told; *after* are called with the number of every finished step. Raises :class:`DataError` for
    data without labels, and :class:`FaultError` where nothing would be learnt.

    >>> _ = torch.manual_seed(0)
    >>> model, images = nn.Sequential(nn.Linear(4, 3)), torch.randn(60, 4)
    >>> data = Data(images, images[:, :3].argmax(1))
    >>> from torchfault.model.discover import find
    >>> draws = FaultDraws(find(model, data).space.select("*.weight"))
    >>> found = train_with_faults(model, data, torch.optim.Adam(model.parameters(), lr=0.05), draws, epochs=20)
    >>> found.loss[-1] < found.loss[0], found.step
    (True, 20)
    """
    _check(model, data, optimizer, epochs, batch)
    steps = FaultySteps(model, data, draws, gradient=gradient, clip=clip)
    if state is not None:
        steps.resume(state)
    model.train()
    measured, means = loss or _cross_entropy, []
    each = -(-len(data) // batch)
    for epoch in range(first, first + epochs):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(data)))
        total = 0.0
        for part, chosen in enumerate(order.split(batch)):
            step = epoch * each + part
            total += _step(steps, step, data.take(chosen), optimizer, measured) * len(chosen)
            for told in after:
                told(step)
        means.append(total / len(data))
    model.eval()
    return Training((first + epochs) * each, tuple(means), steps.skipped, steps.state())


def _check(model: nn.Module, data: Data, optimizer: torch.optim.Optimizer, epochs: int, batch: int) -> None:
    if data.labels is None:
        raise DataError("training needs labels, got inputs alone; give Data(inputs, labels)")
    if epochs < 1 or batch < 1:
        raise FaultError(f"training takes 1 epoch or more in batches of 1 input or more, got {epochs} and {batch}")
    mine = {parameter for parameter in model.parameters() if parameter.requires_grad}
    if not any(one in mine for group in optimizer.param_groups for one in group["params"]):
        raise FaultError("the optimiser has no parameter of the model that gets gradients; give it model.parameters()")


def _step(
    steps: FaultySteps,
    step: int,
    part: Data,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tree, Tree], Tensor],
) -> float:
    """Take a step; return its loss, 0 where a fault made nonsense of it."""
    optimizer.zero_grad(set_to_none=True)
    try:
        steps.begin(step)
        value = loss(call(steps.model, part.inputs), part.labels)
        if not value.requires_grad:
            raise FaultError("no gradient reaches a parameter, as behind guards of their words; train before hardening")
        steps.computed(value)
        torch.autograd.backward(value)
    finally:
        steps.end()
    if not steps.bound(steps.model.parameters()):
        return 0.0
    optimizer.step()
    return float(value.detach())


def _cross_entropy(outputs: Tree, labels: Tree) -> Tensor:
    return F.cross_entropy(leaves(outputs)[0], labels)
