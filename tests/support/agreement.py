"""Draw trials over all sites, collect an executor's outcomes, and hold them against the reference's."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tests.support.reference import reference
from torchfault.data import Data, leaves
from torchfault.engine.executor import Executor
from torchfault.faults import BitFlip
from torchfault.space import FaultSpace
from torchfault.trials import Trials, strike


def random_trials(space: FaultSpace, inputs: int, n: int, *, faults: int = 1, seed: int = 0, model=None) -> Trials:
    """Draw trials that strike every site about as often, so that small ones are tested too."""
    rng = np.random.default_rng(seed)
    site = rng.integers(0, len(space.sites), n * faults)
    element = [rng.integers(0, space.sites[s].elements) for s in site]
    bit = [rng.choice(space.sites[s].bits) for s in site]
    where = space.locate(space.number(site, element, bit))
    counts = np.full(n, faults)
    return strike(space, where, model=model or BitFlip(), rng=rng, counts=counts, inputs=rng.integers(0, inputs, n))


def collect(executor: Executor, trials: Trials) -> list[Tensor]:
    """Return the faulty outputs in the order of the trials, every trial exactly once; NaN where the model crashed."""
    rows: dict[int, list[Tensor]] = {}
    for lanes in executor.run(trials):
        assert (trials.inputs[lanes.trial] == lanes.inputs).all()
        for i, trial in enumerate(lanes.trial.tolist()):
            assert trial not in rows
            rows[trial] = [leaf[i] for leaf in leaves(lanes.outputs)]
    assert sorted(rows) == list(range(len(trials)))
    return [torch.stack(column) for column in zip(*(rows[i] for i in range(len(trials))), strict=True)]


def assert_agree(mine: list[Tensor], theirs: list[Tensor]) -> None:
    assert agreeing(mine, theirs).all()


def agreeing(mine: list[Tensor], theirs: list[Tensor], *, tolerance: float = 2e-4) -> Tensor:
    """Return which rows agree in all tensors, in proportion to the largest value of a row: shape (rows,)."""
    rows = torch.ones(len(mine[0]), dtype=torch.bool)
    for a, b in zip(mine, theirs, strict=True):
        a, b = a.double().flatten(1), b.double().flatten(1)
        finite, found = torch.isfinite(b), torch.isfinite(a)
        scale = torch.where(finite, b.abs(), 0).amax(1, keepdim=True)
        # Above a quarter of the largest float, sums overflow in one order of additions and not in another.
        tame = (scale < 1e30).expand_as(a)
        near = ((a - b).abs() <= tolerance * scale + 1e-6) | ~(finite & found)
        rows &= (near & ((finite == found) | ~tame)).all(1)
    return rows


def assert_reference(
    executor: Executor, model: nn.Module, data: Data, trials: Trials, *, tolerance: float = 2e-4, reached: bool = True
) -> None:
    """Check each trial against the reference; where they differ, by no more than the order of additions decides.

    What a sum loses by its order is what it gains by weights that differ in their last bits. So a trial that does not
    agree runs again by the reference, on models with such weights, and the executor must lie among what they give.
    """
    mine, theirs = collect(executor, trials), leaves(reference(model, data, trials, reached=reached))

    def again(seed: int, row: int) -> list[Tensor]:
        return leaves(reference(shaken(model, seed), data, trials.take(np.array([row])), reached=reached))

    assert_within_rounding(mine, theirs, again, tolerance=tolerance)


def assert_within_rounding(
    mine: list[Tensor], theirs: list[Tensor], again: Callable[[int, int], list[Tensor]], *, tolerance: float = 2e-4
) -> None:
    """Check that the rows of two lists agree, or differ by what *again* (seed, row) gives by :func:`shaken` models."""
    for row in torch.nonzero(~agreeing(mine, theirs, tolerance=tolerance)).flatten().tolist():
        others = [again(seed, row) for seed in range(8)]
        for a, b, *near in zip(mine, theirs, *others, strict=True):
            a, b, cloud = a[row].double(), b[row].double(), torch.cat(near).double()
            room = 8 * _apart(cloud, b).amax(0) + tolerance * b.nan_to_num(0, 0, 0).abs().amax() + 1e-6
            if b.isnan().any():  # a flip makes a number of a NaN by its payload, which is that of the kernel
                room = room + b.abs().nan_to_num(0)
            assert (_apart(a, b) <= room).all(), row


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances of numbers: 0 between what is not finite, infinite between that and what is."""
    between = torch.where(a.isfinite() == b.isfinite(), 0.0, torch.inf)
    return torch.where(a.isfinite() & b.isfinite(), (a - b).abs(), between)


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy of *model* whose weights differ in their last bits."""
    twin, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in filter(Tensor.is_floating_point, twin.parameters()):
            noise = torch.rand(weight.shape, generator=generator) * 2 - 1
            weight.mul_((1 + 2 * torch.finfo(weight.dtype).eps * noise).to(weight.dtype))
    return twin
