"""Criteria for the outputs of spiking networks over time: decisions by spike counts and by first spikes."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from torchfault.criteria.compose import Composable
from torchfault.criteria.outputs import newly_bad, pick
from torchfault.data import Tree
from torchfault.errors import CriterionError

__all__ = ["FirstSpikeChange", "SpikeCountChange"]


@dataclass(frozen=True)
class SpikeCountChange(Composable):
    """The neuron that spikes most often is another one than in the golden output; ties go to the first neuron.

    Outputs are spikes (lanes, steps, neurons), or have their steps along the axis *time*. With *by*, a lane fails where
    any neuron's number of spikes changed by more than that, whichever neuron leads. New NaNs and infinities fail.

    >>> golden = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    >>> faulty = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    >>> SpikeCountChange()(golden, faulty, None), SpikeCountChange(by=1)(golden, faulty, None)
    (tensor([True]), tensor([False]))
    """

    by: float | None = None
    _: KW_ONLY
    time: int = 1
    output: str | int | None = None

    def __post_init__(self) -> None:
        if self.by is not None and not self.by >= 0:
            raise CriterionError(
                f"spike counts change by a number of 0 or more, got {self.by}; leave it out for decisions"
            )

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where the decision, or a count, changed, shape (lanes,)."""
        del labels
        before, after = (_spikes(tree, self.output, self.time) for tree in (golden, faulty))
        bad = newly_bad(before, after).flatten(1).any(1)
        counts = before.double().sum(1), after.double().sum(1)
        if self.by is not None:
            return bad | ((counts[0] - counts[1]).abs() > self.by).any(1)
        return bad | (counts[0].argmax(1) != counts[1].argmax(1))


@dataclass(frozen=True, kw_only=True)
class FirstSpikeChange(Composable):
    """The neuron that spikes first is another one than in the golden output; ties go to the first neuron.

    Outputs are spikes (lanes, steps, neurons), or have their steps along the axis *time*; any value above 0 is a spike.
    That no neuron spikes is a decision of its own. With *steps*, a lane also fails where the first spike comes more
    than so many time steps earlier or later. New NaNs and infinities fail.

    >>> golden = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    >>> faulty = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
    >>> FirstSpikeChange()(golden, faulty, None), FirstSpikeChange(steps=0)(golden, faulty, None)
    (tensor([ True, False]), tensor([True, True]))
    """

    steps: int | None = None
    time: int = 1
    output: str | int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise CriterionError(f"a first spike moves by 0 time steps or more, got {self.steps}; leave steps out")

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where the first spike changed, shape (lanes,)."""
        del labels
        before, after = (_spikes(tree, self.output, self.time) for tree in (golden, faulty))
        bad = newly_bad(before, after).flatten(1).any(1)
        (who, when), (other, then) = _first(before), _first(after)
        moved = torch.zeros_like(bad) if self.steps is None else (when - then).abs() > self.steps
        return bad | (who != other) | moved


def _spikes(tree: Tree, output: str | int | None, time: int) -> Tensor:
    """Return the spikes as (lanes, steps, neurons)."""
    tensor = pick(tree, output, usual="spikes")
    axis = time + tensor.ndim if time < 0 else time
    if tensor.ndim < 3 or not 0 < axis < tensor.ndim or tensor.is_complex():
        raise CriterionError(
            f"expected spikes (lanes, steps, neurons) with steps along axis {time}, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}; let the model give all its steps, or use Top1Change for counts"
        )
    return tensor.movedim(axis, 1).flatten(2)


def _first(spikes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first neuron to spike, -1 where none does, and its step, which is then the number of steps."""
    fired = spikes > 0
    steps = torch.where(fired.any(1), fired.to(torch.uint8).argmax(1), spikes.shape[1])
    when, who = steps.amin(1), steps.argmin(1)
    return torch.where(when == spikes.shape[1], -1, who), when
