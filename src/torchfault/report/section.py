"""A part of a report: a heading, what it says in sentences, and its charts."""

from collections.abc import Sequence
from dataclasses import dataclass

from torchfault.report.charts import Columns, Curve, Facts, Grid, Intervals, Stacks

__all__ = ["Chart", "Figure", "Section"]

Chart = Intervals | Columns | Grid | Stacks | Curve | Facts


@dataclass(frozen=True)
class Figure:
    """A number to be seen first: its *value* and *bounds* as text, and what it *means*."""

    value: str
    bounds: str
    means: str


@dataclass(frozen=True)
class Section:
    """A part of a report: its *title*, *said* in sentences, *figures* to be seen first, *charts*, *files* of text.

    *files* are pairs of a name and a text that is shown as it is, and can be downloaded.
    """

    title: str
    said: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    charts: Sequence[Chart] = ()
    files: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
