"""Which faults strike at which step of a training: fresh ones, or those of a pool of critical ones."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchfault.errors import FaultError
from torchfault.faults import BitFlip, FaultModel
from torchfault.sampling import Population, Sampler, Uniform
from torchfault.space import FaultSpace
from torchfault.trials import Trials, strike

__all__ = ["FaultDraws", "Refreshed"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Refreshed:
    """A pool of faults that *search* finds anew on the weights before every *every*-th step.

    *search* gets the model, in evaluation mode, and returns numbers of faults of the space that draws are from, such as
    :class:`torchfault.recipes.CriticalPool`. It leaves the model as it is; where it finds none, faults are fresh ones
    until the next search.

    >>> Refreshed(lambda model: np.arange(4), every=50).every
    50
    """

    search: Callable[[nn.Module], Ints]
    every: int = 100

    def __post_init__(self) -> None:
        if self.every < 1:
            raise FaultError(
                f"a pool is searched anew every so many steps from 1 up, got {self.every}; the usual is 100"
            )


@dataclass(frozen=True, eq=False)
class FaultDraws:
    """Which faults strike at which step of a training: those of step n depend on *seed* and n alone.

    A *share* of the steps has faults. They come from *space* by *sampler*, *faults* of its trials together (uniform
    unless told; weights p/q play no part, since nothing is estimated), or, *faults* of them together, from *pool*:
    numbers of faults that stay, such as critical ones that a search has found, or :class:`Refreshed`. *model* says what
    a fault does to a word. Raises :class:`FaultError` for numbers that cannot be, and for samplers that
    have an end or go by outcomes, of which a training has none.

    >>> from torchfault.model.discover import parameter_sites
    >>> draws = FaultDraws(FaultSpace(tuple(parameter_sites(nn.Linear(3, 2)))), faults=2, seed=1)
    >>> len(draws.trial(5).element), bool((draws.trial(5).element == draws.trial(5).element).all())
    (2, True)
    """

    space: FaultSpace
    faults: int = 1
    share: float = 1.0
    sampler: Sampler = field(default_factory=Uniform)
    pool: Ints | Refreshed | None = None
    model: FaultModel = field(default_factory=BitFlip)
    seed: int = 0

    def __post_init__(self) -> None:
        fixed = None if isinstance(self.pool, Refreshed) else self.pool
        if self.faults < 1 or not 0 < self.share <= 1 or (fixed is not None and not len(fixed)):
            raise FaultError(
                f"training takes 1 fault or more in a share of the steps above 0, from a pool that is not empty, got "
                f"{self.faults} in {self.share:g}{'' if fixed is None else f' from {len(fixed)}'}"
            )
        design = self.sampler.design(Population(self.space))
        if design.adapts or design.total is not None or design.unit != "fault":
            raise FaultError(
                "training draws faults without end and without outcomes, got "
                f"{type(self.sampler).__name__}; take Uniform(), BitErrorRate(rate) or Importance(score)"
            )

    def trial(self, step: int, pool: Ints | None = None) -> Trials | None:
        """Return the faults of a step, ``None`` where it has none; *pool* is what a refreshed one holds by then."""
        rng = np.random.default_rng([self.seed, step])
        if rng.random() >= self.share:
            return None
        held = pool if isinstance(self.pool, Refreshed) else self.pool
        if held is not None and len(held):
            drawn = held[rng.integers(0, len(held), self.faults)]
        else:
            drawn = self.sampler.draw(Population(self.space), self.faults, rng=rng, start=step * self.faults).index
        drawn = np.unique(drawn)  # two flips of one bit would cancel
        where, counts = self.space.locate(drawn), np.array([len(drawn)])
        return strike(self.space, where, model=self.model, rng=rng, counts=counts, inputs=np.zeros(1, dtype=np.int64))
