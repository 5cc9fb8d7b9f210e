"""What a search for faults that lower a metric by a given share found: after how many draws, and seconds."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import CampaignError
from torchfault.results.results import Results

__all__ = ["Drops", "dropped", "sought"]


@dataclass(frozen=True, eq=False)
class Drops:
    """How a search for a share *drop* of the metric went, which is *golden* without faults.

    *trials* are those that lower it so far, in order, *faults* their numbers (draws are with replacement) and *values*
    their drops as shares of *golden*. The first was found after so many *draws* and *seconds*, ``None`` where none was.

    >>> Drops(0.25, 0.9, np.array([3]), np.array([17]), np.array([0.8]), 4, 0.1).draws
    4
    """

    drop: float
    golden: float
    trials: NDArray[np.int64]
    faults: NDArray[np.int64]
    values: NDArray[np.float64]
    draws: int | None
    seconds: float | None


def dropped(results: Results) -> Drops:
    """Return what a search found; raises :class:`CampaignError` for a campaign that looked for no drop.

    Seconds are the campaign's, in proportion to the draws.

    >>> from torchfault import demo
    >>> from torchfault.campaign import run
    >>> from torchfault.engine import Engine
    >>> from torchfault.recipes import drops
    >>> engine = Engine(demo.model(), demo.data().take(slice(0, 20)), executor="hooks")
    >>> found = dropped(run(drops(engine, engine.space.select("fc*.weight"), drop=0.25)))
    >>> bool(found.values[0] >= 0.25), bool(found.draws == found.trials[0] + 1)
    (True, True)
    """
    least, columns, record = sought(results), results.columns, results.record
    if least is None or columns.values is None:
        raise CampaignError(f"'{results.name}' looked for no drop of a metric; torchfault.recipes.drops does")
    trials, golden = np.flatnonzero(columns.values >= least), float(record.golden["metric"])
    draws = int(trials[0]) + 1 if len(trials) else None
    seconds = None if draws is None else record.seconds * draws / len(columns)
    faults, values = columns.faults[trials], columns.values[trials] / golden
    return Drops(least / golden, golden, trials, faults, values, draws, seconds)


def sought(results: Results) -> float | None:
    """Return the least drop that ends a campaign, ``None`` where none does."""
    return min(_least(results.record.configuration.get("stop")), default=None)


def _least(rule: Any) -> Iterator[float]:
    """Yield the drops that a stored rule, or any inside it, waits for."""
    if not isinstance(rule, Mapping):
        return
    fields = rule.get("fields", {})
    if rule.get("class") == "Dropped" and math.isfinite(fields["drop"]):
        yield float(fields["drop"])
    for inner in fields.get("rules", ()):
        yield from _least(inner)
