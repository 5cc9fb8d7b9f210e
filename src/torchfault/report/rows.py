"""Rows of data frames as values: what a report reads of the tables of results."""

from typing import TYPE_CHECKING, Any

from torchfault.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["bounds_of", "estimate_of", "rows_of"]


def rows_of(frame: "pd.DataFrame") -> list[Any]:
    """Return the rows of *frame*, each with its columns as attributes."""
    return list(frame.itertuples(index=False))


def bounds_of(row: Any) -> tuple[float, float, float]:
    """Return value, low and high of a row."""
    return float(row.value), float(row.low), float(row.high)


def estimate_of(row: Any) -> Estimate:
    """Return the estimate that a row holds."""
    return Estimate(*bounds_of(row), int(getattr(row, "trials", 0)), "")
