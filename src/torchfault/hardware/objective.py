"""Resiliency Accuracy as an objective: one number with its interval for a model, at a cost that is given beforehand."""

from torch import nn

from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import OUTPUT_STATIONARY, Accelerator
from torchfault.hardware.layers import layers_of
from torchfault.hardware.resiliency import resiliency_of
from torchfault.hardware.striking import target_of
from torchfault.statistics import Estimate

__all__ = ["resiliency_objective"]

_PILOT = 0.25  # of the budget, for the profile


def resiliency_objective(
    model: nn.Module,
    data: Data,
    accelerator: Accelerator = OUTPUT_STATIONARY,
    *,
    budget: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return the Resiliency Accuracy of *model* on labelled *data*, for search and hardening to maximise.

    *budget* is the most lanes that run, each one upset on one input: a quarter of them finds out which types and bits
    matter, the others are drawn from strata (see :func:`torchfault.resiliency_accuracy`). The result depends on the
    arguments alone, and the *seed* gives models of one shape the same upsets and inputs, which sharpens comparisons.
    Raises :class:`HardwareError` for a budget too small to try every type and bit once.

    >>> import torch
    >>> from torchfault import FLAT, Data
    >>> from torchfault.zoo import digits_cnn
    >>> with torch.random.fork_rng():
    ...     _ = torch.manual_seed(0)
    ...     models = [digits_cnn() for _ in range(3)]
    >>> data = Data(torch.rand(20, 1, 8, 8), torch.zeros(20, dtype=torch.long))
    >>> best = max(models, key=lambda model: resiliency_objective(model, data, FLAT, budget=600).value)
    >>> best in models
    True
    """
    layers = layers_of(model, data)
    target = target_of(Engine(model, data), accelerator, layers)
    pairs = target.cells.pairs
    if budget < 2 * pairs:
        raise HardwareError(f"{pairs} pairs of type and bit need {2 * pairs} lanes, got a budget of {budget}; raise it")
    trials = max(1, int(budget * _PILOT) // pairs)
    found = resiliency_of(target, faults=budget - trials * pairs, profile=trials, seed=seed, level=level)
    return found.ra
