"""Search for faults that lower the accuracy by a given share: how many draws, and how long, until one is found."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchfault.campaign import Campaign, run
from torchfault.criteria import Metric, accuracy, golden_metric
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import CampaignError, DataError
from torchfault.faults import BitFlip, FaultModel
from torchfault.results.dropping import dropped
from torchfault.sampling import Sampler, Uniform
from torchfault.sensitivity import rising
from torchfault.space import FaultSpace
from torchfault.statistics import Dropped, MaxTrials, Rule

__all__ = ["CriticalPool", "drops"]


def drops(
    engine: Engine,
    space: FaultSpace,
    *,
    drop: float,
    found: int = 1,
    sampler: Sampler | None = None,
    metric: Metric = accuracy,
    stop: Rule | None = None,
    fault: FaultModel | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Campaign:
    """Return the campaign that looks for *found* faults that lower *metric* by a share *drop* of itself.

    Faults are drawn by *sampler*, uniformly unless told, and each runs on all inputs; it ends with the batch in which
    the last of them was found, or where *stop* says so, 10,000 trials unless told.
    :func:`torchfault.results.dropped` tells the draws and seconds until then. Raises :class:`CampaignError` for a share
    outside 0 to 1, and :class:`DataError` for inputs without labels or a metric that is not above 0.

    Source: Colucci, Steininger & Shafique, "ISimDL", arXiv 2303.08035, 2023.

    >>> from torchfault import demo
    >>> engine = Engine(demo.model(), demo.data().take(slice(0, 20)), executor="hooks")
    >>> drops(engine, engine.space.select("fc*.weight"), drop=0.25).stop.rules[0].n
    1
    """
    if not 0 < drop <= 1:
        raise CampaignError(f"a drop is a share of the accuracy above 0 and up to 1, got {drop:g}; a quarter is 0.25")
    if engine.data.labels is None:
        raise DataError("the accuracy needs labels, got inputs alone; give data with labels")
    golden = golden_metric(metric, engine.golden(), engine.data.labels)
    if not golden > 0:
        raise DataError(f"the metric is {golden:g} without faults, of which nothing can be lost; check the labels")
    return Campaign(
        engine,
        space,
        sampler=sampler or Uniform(),
        fault=fault or BitFlip(),
        metric=metric,
        level=level,
        seed=seed,
        stop=Dropped(drop * golden, found) | (stop or MaxTrials(10_000)),
    )


@dataclass(frozen=True, eq=False)
class CriticalPool:
    """Finds faults of *space* that lower the accuracy on *data* by a share *drop*, for training under them.

    Called with a model it returns the numbers of up to *faults* of them, different ones, from at most *draws* draws by
    the score ``rising`` on its current weights: a search for :class:`torchfault.hardening.Refreshed`.

    >>> import torch
    >>> from torchfault import demo
    >>> data = demo.data().take(slice(0, 20))
    >>> space = Engine(demo.model(), data, executor="hooks").space.select("fc*.weight")
    >>> len(CriticalPool(space, data, drop=0.25, faults=4, draws=40)(demo.model())) > 0
    True
    """

    space: FaultSpace
    data: Data
    drop: float = 0.25
    faults: int = 32
    draws: int = 128
    seed: int = 0

    def __call__(self, model: nn.Module) -> NDArray[np.int64]:
        """Return the numbers of critical faults of *model* as it is."""
        engine = Engine(model, self.data, executor="hooks")
        sampler = rising(model, self.data, self.space, floor=0.05)
        stop = MaxTrials(self.draws)
        campaign = drops(
            engine, self.space, drop=self.drop, found=self.faults, sampler=sampler, stop=stop, seed=self.seed
        )
        return np.unique(dropped(run(campaign)).faults)[: self.faults]
