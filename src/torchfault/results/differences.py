"""How much more one campaign fails than another: by pairs where both struck the same faults, else of two samples."""

from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis
from torchfault.errors import CampaignError
from torchfault.results.results import Results
from torchfault.statistics import Estimate, bounded_mean
from torchfault.statistics.differences import difference, paired_difference
from torchfault.store import Columns

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Difference", "differ", "differences", "shared_trials"]

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """How much more *second* fails than *first*, in *estimate*; and how many of *pairs* trials failed in one alone.

    *pairs* is 0 where the two did not strike the same faults: the estimate is of two samples then.
    """

    first: Estimate
    second: Estimate
    estimate: Estimate
    pairs: int
    first_alone: int
    second_alone: int


def shared_trials(one: Results, two: Results) -> int:
    """Return how many trials, from the first on, struck the same faults on the same inputs in both campaigns.

    It is 0 where any of them differs, where spaces or data do, and where draws went by what had failed before.
    """
    alike = one.space.digest() == two.space.digest() and one.record.data == two.record.data
    single = all(results.columns.unit == "fault" and results.columns.values is None for results in (one, two))
    free = not any(results.design.adapts or results.design.sample is not None for results in (one, two))
    seen = not any(results.record.configuration.get("assumption") for results in (one, two))
    trials = min(len(one), len(two))
    if not (alike and single and free and seen and trials):
        return 0
    held = [results.columns.take(0, trials) for results in (one, two)]
    same = all(_equal(*(getattr(columns, name) for columns in held)) for name in ("faults", "inputs", "counts"))
    return trials if same and np.array_equal(held[0].weight, held[1].weight) else 0


def _equal(one: NDArray[np.int64] | None, two: NDArray[np.int64] | None) -> bool:
    return (one is None) == (two is None) and (one is None or np.array_equal(one, two))  # type: ignore[arg-type]


def differ(first: Results, second: Results, flag: str = "failed", *, level: float | None = None) -> Difference:
    """Return how much more often *second* has the outcome *flag* than *first*, at the level of *first* unless told.

    Trials that struck the same faults on the same inputs, as two campaigns with one seed do, are compared in pairs,
    which is far sharper than two samples; *first_alone* and *second_alone* count those that failed in one only. Raises
    :class:`CampaignError` where one of the two measured a metric and the other did not.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> one = run(example_campaign(trials=200))
    >>> differ(one, one).pairs, differ(one, run(example_campaign(trials=200, seed=1))).pairs
    (200, 0)
    """
    chosen = first.level if level is None else level
    if (first.columns.values is None) != (second.columns.values is None):
        raise CampaignError(
            f"'{first.name}' and '{second.name}' measured a metric and failures, one each, and do not compare; name "
            "two alike"
        )
    before, after = first.estimate(flag, level=chosen), second.estimate(flag, level=chosen)
    pairs = shared_trials(first, second)
    if not pairs:
        return Difference(before, after, difference(after, before), 0, 0, 0)
    one, two = (results.columns.take(0, pairs) for results in (first, second))
    a, b = (columns.flag(flag).astype(np.bool_) for columns in (one, two))
    found = _paired(one, a, b, level=chosen)
    return Difference(before, after, found, pairs, int((a & ~b).sum()), int((b & ~a).sum()))


def _paired(columns: Columns, a: Bools, b: Bools, *, level: float) -> Estimate:
    """Return the mean of b - a over trials in pairs, (trials,) each, by their weights."""
    if columns.weights is None and columns.strata is None and columns.counts is None:
        return paired_difference(*_cells(a, b), level=level)
    change = b.astype(np.float64) - a
    stratum = None if columns.strata is None else columns.stratum
    return bounded_mean(change, low=-1.0, high=1.0, weights=columns.weight, stratum=stratum, level=level)


def _cells(a: Bools, b: Bools) -> tuple[int, int, int, int]:
    return int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum())


def differences(
    first: Results, second: Results, by: str = "layer", flag: str = "failed", *, level: float | None = None
) -> "pd.DataFrame":
    """Return how much more often *second* has the outcome *flag* than *first* in each group of *by* that both have.

    The columns are *key*, *first* and *second* (their shares), *pairs* (0: two samples), *value*, *low* and *high*: the
    difference with its interval, as :func:`differ` makes it. Raises as that does, and
    :class:`torchfault.errors.SpaceError` for another *by*.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> one, two = (run(example_campaign(trials=500, seed=seed)) for seed in (1, 2))
    >>> differences(one, two, "site")[["key", "pairs"]].to_numpy().tolist()
    [['weight', 0]]
    """
    import pandas as pd

    chosen = first.level if level is None else level
    tables = [results.table(by, flag, level=chosen) for results in (first, second)]
    both = tables[0].merge(tables[1], on="key", suffixes=("_first", "_second"))
    both = both[(both["trials_first"] > 0) & (both["trials_second"] > 0)]
    pairs = shared_trials(first, second)
    plain = pairs and all(getattr(first.columns, name) is None for name in ("weights", "strata", "counts"))
    found = _by_pairs(first, second, by, flag, pairs, chosen) if plain else {}
    rows = []
    for row in both.itertuples(index=False):
        one, two = (_estimate(row, which, chosen) for which in ("first", "second"))
        apart = found.get(row.key) or difference(two, one)
        count = apart.trials if row.key in found else 0
        rows.append((row.key, one.value, two.value, count, apart.value, apart.low, apart.high))
    return pd.DataFrame(rows, columns=["key", "first", "second", "pairs", "value", "low", "high"])


def _estimate(row: object, which: str, level: float) -> Estimate:
    value, low, high = (float(getattr(row, f"{name}_{which}", nan)) for name in ("value", "low", "high"))
    return Estimate(value, low, high, int(getattr(row, f"trials_{which}")), "", level)


def _by_pairs(first: Results, second: Results, by: str, flag: str, pairs: int, level: float) -> dict[object, Estimate]:
    """Return the paired difference of every group of *by* that was struck."""
    axis: Axis = first.space.axis(by)
    one, two = (results.columns.take(0, pairs) for results in (first, second))
    a, b = (columns.flag(flag).astype(np.int64) for columns in (one, two))
    counts = np.bincount(axis.code(one.faults) * 4 + 2 * a + b, minlength=4 * len(axis)).reshape(-1, 4)
    return {
        key: paired_difference(both, former, latter, neither, level=level)
        for key, (neither, latter, former, both) in zip(axis.keys, counts.tolist(), strict=True)
        if neither + latter + former + both
    }
