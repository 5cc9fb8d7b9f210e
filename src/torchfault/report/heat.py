"""Heat maps of two groupings, such as layer by bit: colours by classes of a logarithmic scale, and the numbers."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torchfault.report.charts import Grid, download
from torchfault.report.numbers import PERCENT, Unit
from torchfault.report.rows import rows_of
from torchfault.text import count, visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CLASSES", "class_of", "heat_map"]

CLASSES = 7
"""Colours of a heat map; each stands for values of a factor of three or so."""
_MOST_ROWS, _MOST_CELLS = 80, 2000


def class_of(value: float, top: float) -> int:
    """Return the class of colour of a share: 0 for none, then 1 to 7 by half powers of ten, the last up to *top*.

    >>> [class_of(value, 1.0) for value in (0.0, 1e-6, 0.002, 0.02, 0.2, 0.5)]
    [0, 1, 2, 4, 6, 7]
    """
    if not value > 0:
        return 0
    return max(1, min(CLASSES, CLASSES + math.ceil(2 * math.log10(value / top) - 1e-9)))


def heat_map(
    frame: "pd.DataFrame", by: tuple[str, str], *, title: str, name: str, unit: Unit = PERCENT, falling: bool = True
) -> Grid:
    """Return the heat map of *frame*, with the columns of *by*, value, low, high and perhaps trials.

    The first of *by* goes down, the second across, from the highest key on where *falling*. Of many rows
    those with the largest values are kept.
    """
    down, across = by
    held = frame[frame["value"].notna()]
    best = held.groupby(down, sort=False)["value"].max()
    keys = sorted(dict.fromkeys(frame[across].tolist()), reverse=falling)
    kept = set(best.nlargest(min(_MOST_ROWS, _MOST_CELLS // len(keys))).index)
    names = [key for key in dict.fromkeys(frame[down].tolist()) if key in kept]
    top = 10.0 ** math.ceil(math.log10(held["value"].max()) - 1e-9) if len(held) and held["value"].max() > 0 else 1.0
    cells = {(getattr(row, down), getattr(row, across)): row for row in rows_of(held)}
    rows = [(visible(key), tuple(_cell(cells.get((key, other)), top, unit) for other in keys)) for key in names]
    ends = [top * 10 ** ((n - CLASSES) / 2) for n in range(CLASSES + 1)]
    digits = [max(0, 1 - math.floor(math.log10(unit.factor * end) + 1e-9)) for end in ends]
    said = [unit.text(end, min(places, 5)) for end, places in zip(ends, digits, strict=True)]
    legend = [f"≤ {said[1]}", *(f"{low}\N{EN DASH}{high}" for low, high in pairwise(said[1:]))]
    notes = [] if len(names) == len(best) else [f"the {len(names)} of {count(len(best))} with the largest values"]
    file = download(frame, name)
    return Grid(title, down, across, tuple(map(str, keys)), tuple(rows), tuple(legend), file, tuple(notes))


def _cell(row: Any, top: float, unit: Unit) -> tuple[int, str, str]:
    """Return the class of colour of a cell, its value, and what it says in full; class -1 where nothing is known."""
    if row is None:
        return -1, "", "not struck"
    value, low, high = float(row.value), float(row.low), float(row.high)
    digits = unit.digits([(value, low, high)])
    trials = f", {count(row.trials)} trials" if hasattr(row, "trials") else ""
    told = f"{unit.text(value, digits)} {unit.sign} {unit.interval(low, high, digits)}{trials}"
    return class_of(value, top), unit.text(value, 0 if unit.factor * value >= 99.95 else 1), told
