"""Results made without a model: trials whose outcomes are drawn, on a space and by a design as the store holds them."""

import numpy as np

from torchfault.results import Results
from torchfault.sampling import Design, Strata
from torchfault.space import FaultSpace, Site
from torchfault.store import Columns, Record

__all__ = ["NET", "drawn", "recorded"]

NET = FaultSpace(
    (
        Site("conv1.weight", (4, 1, 3, 3), module="conv1", channel=0),
        Site("conv1:input", (1, 8, 8), kind="input", module="conv1", channel=0),
        Site("fc.weight", (3, 16), module="fc", channel=0),
        Site("fc:input", (16,), kind="input", module="fc"),
    )
)


def recorded(name: str = "stored", space: FaultSpace = NET, *, inputs: int = 10, seed: int = 0) -> Record:
    """Return the record of a finished campaign of uniform draws."""
    return Record(
        name,
        space=space.plain(),
        faults=len(space),
        inputs=inputs,
        design=Design(Strata.one(len(space))).plain(),
        golden={"failed": [], "unusable": 0},
        configuration={
            "sampler": {"class": "Uniform", "fields": {"faults": 1, "distinct": True}},
            "fault": {"class": "BitFlip", "fields": {}},
            "criterion": {"class": "Top1Change", "fields": {}},
            "measure": {"class": "ProductMeasure", "fields": {}},
        },
        seed=seed,
        versions={"torchfault": "0.1.0", "executor": "graph"},
        model="m" * 64,
        data="d" * 64,
        created="2026-11-29T10:00:00+00:00",
        status="finished",
        reason="all trials run",
        seconds=2.0,
    )


def drawn(
    name: str = "stored", space: FaultSpace = NET, *, trials: int = 4000, seed: int = 0, failing: float = 0.3
) -> Results:
    """Return results of uniform draws: flips of bit 30 fail with the probability *failing*, others rarely."""
    rng = np.random.default_rng(seed)
    faults, inputs = rng.integers(0, len(space), trials), rng.integers(0, 10, trials)
    chance = np.where(space.locate(faults).bit == 30, failing, 0.002)
    failed = np.random.default_rng(99).random(trials) < chance
    due = failed & (rng.random(trials) < 0.2)
    changes = np.where(failed, 1.0, rng.integers(0, 2, trials)).astype(np.float32)
    columns = Columns(faults, inputs, {"failed": failed, "due": due}, changes=changes)
    return Results(recorded(name, space, seed=seed), columns)
