"""Fault-aware training: every step, or some of them, with faults in weights and activations."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from torchfault.data import Data, Tree, call, leaves
from torchfault.engine import inject
from torchfault.errors import DataError, FaultError
from torchfault.faults import BitFlip, FaultModel
from torchfault.model.discover import Discovery, find
from torchfault.space import FaultSpace
from torchfault.trials import Trials, strike

__all__ = ["FaultDraws", "Training", "train_with_faults"]


@dataclass(frozen=True, eq=False)
class FaultDraws:
    """Which faults strike at which step of a training: those of step n depend on *seed* and n alone.

    A *share* of the steps has faults, *faults* of them together, drawn from *space* uniformly, or from *pool*, numbers
    of faults in it, such as critical ones that a search has found. *model* says what a fault does to a word.

    >>> from torchfault.model.discover import parameter_sites
    >>> draws = FaultDraws(FaultSpace(tuple(parameter_sites(nn.Linear(3, 2)))), faults=2, seed=1)
    >>> len(draws.trial(5).element), bool((draws.trial(5).element == draws.trial(5).element).all())
    (2, True)
    """

    space: FaultSpace
    faults: int = 1
    share: float = 1.0
    pool: NDArray[np.int64] | None = None
    model: FaultModel = field(default_factory=BitFlip)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.faults < 1 or not 0 < self.share <= 1 or (self.pool is not None and not len(self.pool)):
            raise FaultError(
                f"training takes 1 fault or more in a share of the steps above 0, from a pool that is not empty, got "
                f"{self.faults} in {self.share:g}{'' if self.pool is None else f' from {len(self.pool)}'}"
            )

    def trial(self, step: int) -> Trials | None:
        """Return the faults of a step, ``None`` where it has none."""
        rng = np.random.default_rng([self.seed, step])
        if rng.random() >= self.share:
            return None
        if self.pool is None:
            drawn = rng.integers(0, len(self.space), self.faults)
        else:
            drawn = self.pool[rng.integers(0, len(self.pool), self.faults)]
        where, counts = self.space.locate(drawn), np.array([self.faults])
        return strike(self.space, where, model=self.model, rng=rng, counts=counts, inputs=np.zeros(1, dtype=np.int64))


@dataclass(frozen=True)
class Training:
    """What a training came to: its last *step*, the mean *loss* of each epoch, and the steps that were *skipped*.

    A step is skipped where a fault made the loss or a gradient no finite number.
    """

    step: int
    loss: tuple[float, ...]
    skipped: int


def train_with_faults(
    model: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    draws: FaultDraws | None,
    *,
    epochs: int = 1,
    batch: int = 64,
    first: int = 0,
    clip: float = 1.0,
    loss: Callable[[Tree, Tree], Tensor] | None = None,
    seed: int = 0,
    after: Sequence[Callable[[int], None]] = (),
) -> Training:
    """Train *model* on *data* with the faults of *draws* (``None``: with none), in place.

    Forward and backward pass run under the faults, so that gradients are those of the faulty network; the optimiser
    then steps on the words as they were, which never keep a fault. The struck words themselves get no gradient in that
    step: it would be the slope at a value that they do not have. The norm of all gradients is bounded by *clip*, so
    that no fault outweighs all that was learnt, and gradients begin at zero in every step.

    The batches of an epoch depend on *seed* and the epoch alone: a training that begins at epoch *first* with the state
    of model and optimiser at its end goes on as one in one piece. *loss* is the cross entropy unless told; *after* are
    called with the number of every finished step. Raises :class:`DataError` for data without labels.

    >>> _ = torch.manual_seed(0)
    >>> model, images = nn.Sequential(nn.Linear(4, 3)), torch.randn(60, 4)
    >>> data = Data(images, images[:, :3].argmax(1))
    >>> draws = FaultDraws(find(model, data).space.select("*.weight"))
    >>> found = train_with_faults(model, data, torch.optim.Adam(model.parameters(), lr=0.05), draws, epochs=20)
    >>> found.loss[-1] < found.loss[0], found.step
    (True, 20)
    """
    if data.labels is None:
        raise DataError("training needs labels, got inputs alone; give Data(inputs, labels)")
    model.eval()
    found = find(model, data)
    model.train()
    measured, skipped, means = loss or _cross_entropy, 0, []
    each = -(-len(data) // batch)
    for epoch in range(first, first + epochs):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(data)))
        total = 0.0
        for part, chosen in enumerate(order.split(batch)):
            step = epoch * each + part
            trial = None if draws is None else draws.trial(step)
            value = _step(model, data.take(chosen), optimizer, trial, found, measured, clip)
            skipped += value is None
            total += (value or 0.0) * len(chosen)
            for told in after:
                told(step)
        means.append(total / len(data))
    model.eval()
    return Training((first + epochs) * each, tuple(means), skipped)


def _step(
    model: nn.Module,
    part: Data,
    optimizer: torch.optim.Optimizer,
    trial: Trials | None,
    found: Discovery,
    loss: Callable[[Tree, Tree], Tensor],
    clip: float,
) -> float | None:
    """Take a step; return its loss, ``None`` where a fault made nonsense of it."""
    optimizer.zero_grad(set_to_none=True)
    with nullcontext() if trial is None else inject(model, trial, space=found):
        value = loss(call(model, part.inputs), part.labels)
        torch.autograd.backward(value)
    if trial is not None:
        _forget_struck(model, trial)
    parameters = [one for one in model.parameters() if one.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    if not (value.isfinite() and norm.isfinite()):
        optimizer.zero_grad(set_to_none=True)
        return None
    optimizer.step()
    return float(value.detach())


def _forget_struck(model: nn.Module, trial: Trials) -> None:
    parameters = dict(model.named_parameters())
    for site, element in zip(trial.site.tolist(), trial.element.tolist(), strict=True):
        held = parameters.get(trial.sites[site].name)
        if held is not None and held.grad is not None:
            held.grad.view(-1)[element] = 0


def _cross_entropy(outputs: Tree, labels: Tree) -> Tensor:
    return F.cross_entropy(leaves(outputs)[0], labels)
