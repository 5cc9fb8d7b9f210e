"""How an estimate became what it is: the same estimate from the first trials alone, and from ever more of them."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.results.results import Results

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["convergence"]

_POINTS, _FIRST = 24, 32


def convergence(results: Results, flag: str = "failed", *, level: float | None = None) -> "pd.DataFrame":
    """Return what the first trials alone would have told: *trials*, *value*, *low*, *high*, numbers of trials doubling.

    Each row is :meth:`Results.estimate` as if the campaign had been interrupted there; its interval is of that one look
    unless the design says that intervals hold at every look. No row but the last stands where a sampler made a plan
    of all trials beforehand (an enumeration, draws in two stages, a search, upsets in two phases): a part of them is no
    sample.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> convergence(run(example_campaign(trials=200)))["trials"].tolist()[-3:]
    [170, 184, 200]
    """
    import pandas as pd

    rows = []
    for trials in _looks(results).tolist():
        whole = trials == len(results)
        record = results.record if whole else replace(results.record, status="interrupted", trials=trials)
        part = results if whole else Results(record, results.columns.take(0, trials))
        found = part.estimate(flag, level=level)
        rows.append((trials, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["trials", "value", "low", "high"])


def _looks(results: Results) -> NDArray[np.int64]:
    """Return after how many trials to look: few of them, evenly apart on a logarithmic scale."""
    design, trials = results.design, len(results)
    planned = design.enumerates or design.clusters is not None or design.sample is not None or design.later > 0
    first = min(max(_FIRST, design.block if design.looks == "every" else 0), trials)
    if planned or trials <= first:
        return np.array([trials], dtype=np.int64)
    each = int(results.record.configuration.get("inputs_per_fault", 1))  # a draw on all its inputs counts as one
    steps = np.unique(np.geomspace(first, trials, _POINTS).astype(np.int64) // each * each)
    return np.append(steps[(steps > 0) & (steps < trials)], trials)
