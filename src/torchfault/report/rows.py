"""Rows of data frames as values: what a report reads of the tables of results."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchfault.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["bounds_in", "bounds_of", "estimate_of", "rows_of", "worst_first"]

Bounds = tuple[float, float, float]


def rows_of(frame: "pd.DataFrame") -> list[Any]:
    """Return the rows of *frame*, each with its columns as attributes."""
    return list(frame.itertuples(index=False))


def bounds_of(row: Any) -> Bounds:
    """Return value, low and high of a row."""
    return float(row.value), float(row.low), float(row.high)


def bounds_in(frame: "pd.DataFrame", names: Sequence[str] = ("value", "low", "high")) -> list[Bounds]:
    """Return value, low and high of every row of *frame*, from the columns *names*."""
    return [(value, low, high) for value, low, high in frame[list(names)].to_numpy(float).tolist()]


def worst_first(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return *frame* by lower bounds, the highest first, since one failure in two trials says little."""
    return frame.sort_values(["low", "value"], ascending=False, kind="stable")


def estimate_of(row: Any) -> Estimate:
    """Return the estimate that a row holds."""
    return Estimate(*bounds_of(row), int(getattr(row, "trials", 0)), "")
