"""Two results side by side, group by group, and how far they are apart: a method against random injection."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from torchfault.errors import CampaignError
from torchfault.results.results import Results
from torchfault.statistics.intervals import quantile

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Agreement", "agreement", "compare"]

_MEAN_ABSOLUTE = np.sqrt(2 / np.pi)  # of a normal error, in standard deviations


def compare(found: Results, truth: Results, by: str = "site", *, level: float | None = None) -> "pd.DataFrame":
    """Return one row for each group of *by* that both results know: how the estimate of *found* compares with *truth*.

    The columns are *key*, *value* with its bounds *low* and *high*, *injected* with *injected_low* and *injected_high*
    (those of *truth*), and *error*, the one value less the other. Raises :class:`CampaignError` for results of other
    inputs or of another space.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> one, two = (run(example_campaign(trials=500, seed=seed)) for seed in (1, 2))
    >>> compare(one, two, by="model")[["key", "error"]].round(2).to_numpy().tolist()
    [['model', 0.0]]
    """
    if found.space.digest() != truth.space.digest() or found.record.data != truth.record.data:
        raise CampaignError(
            f"'{found.name}' and '{truth.name}' are of other faults or inputs, so that they cannot be compared; "
            "run both on one space and one data set"
        )
    one, two = (results.table(by, level=level) for results in (found, truth))
    columns = one[["key", "value", "low", "high"]].copy()
    for name in ("value", "low", "high"):
        columns["injected" if name == "value" else f"injected_{name}"] = two[name]
    columns["error"] = columns["value"] - columns["injected"]
    known: pd.DataFrame = columns[columns["error"].notna()].reset_index(drop=True)
    return known


@dataclass(frozen=True)
class Agreement:
    """How far estimates of *groups* are from the truth: *mae* and *max_error*, the mean and largest absolute error.

    *noise* is the mean absolute error that the truth's own intervals let expect of a perfect method, *constant_mae*
    that of the best constant, the median, and *rank_correlation* Spearman's, NaN for fewer than three groups or without
    differences.
    """

    groups: int
    mae: float
    max_error: float
    noise: float
    constant_mae: float
    rank_correlation: float


def agreement(table: "pd.DataFrame", *, level: float = 0.95) -> Agreement:
    """Return how far the estimates in *table*, one of :func:`compare` at *level*, are from the truth.

    >>> import pandas as pd
    >>> rows = {"value": [0.1, 0.3], "injected": [0.1, 0.2], "injected_low": [0.0, 0.1], "injected_high": [0.2, 0.3]}
    >>> agreement(pd.DataFrame(rows).assign(error=[0.0, 0.1])).mae
    0.05
    """
    error, truth = table["error"].abs(), table["injected"]
    half = (table["injected_high"] - table["injected_low"]) / 2
    known = len(table) > 2 and truth.nunique() > 1 and table["value"].nunique() > 1
    return Agreement(
        len(table),
        float(error.mean()),
        float(error.max()),
        float(half.mean() / quantile(level) * _MEAN_ABSOLUTE),
        float((truth - truth.median()).abs().mean()),
        float(table["value"].rank().corr(truth.rank())) if known else float("nan"),
    )
