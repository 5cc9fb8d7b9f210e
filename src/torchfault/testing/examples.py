"""A small campaign to try things on: a linear layer of twelve weights."""

import torch

from torchfault.campaign import Campaign
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.space import FaultSpace, Site
from torchfault.statistics import MaxTrials
from torchfault.store import Record

__all__ = ["example_campaign", "example_record"]


def example_campaign(*, trials: int = 200, seed: int = 0) -> Campaign:
    """Return a campaign of so many *trials* on the weights of a linear layer with four inputs and three classes.

    >>> len(example_campaign().space)
    384
    """
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.arange(12.0).reshape(3, 4) / 8)
        model.bias.zero_()
    engine = Engine(
        model.eval(), Data(torch.tensor([[1.0, 0.5, 0.25, 2.0], [0.5, 1.0, -1.0, 0.125]])), executor="hooks"
    )
    return Campaign(engine, engine.space.select("weight"), seed=seed, stop=MaxTrials(trials))


def example_record(name: str = "example") -> Record:
    """Return the record of a campaign on four weights that has not begun.

    >>> example_record().faults
    128
    """
    from torchfault.sampling import Design, Strata

    space = FaultSpace((Site("fc.weight", (4,)),))
    return Record(name, space=space.plain(), faults=len(space), inputs=1, design=Design(Strata.one(len(space))).plain())
