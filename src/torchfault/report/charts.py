"""The charts of a report as plain data, made of the frames that results give; a template draws them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from torchfault.report.numbers import PERCENT, Scale, Unit, scale_of
from torchfault.report.rows import Bounds, bounds_in, bounds_of, rows_of, worst_first
from torchfault.text import count, visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cell", "Columns", "Curve", "Download", "Facts", "Grid", "Intervals", "Row", "Stacks", "cell_of", "download"]

_FEW = 12  # labels that a phone has room for
_MOST_ROWS = 600  # of a file that a page carries; the store has the others


@dataclass(frozen=True)
class Download:
    """A CSV file within the page: its *name* and its contents as a URI."""

    name: str
    uri: str


def download(frame: "pd.DataFrame", name: str) -> Download:
    """Return *frame* as a CSV file in a data URI: its first 600 rows.

    >>> import pandas as pd
    >>> download(pd.DataFrame({"layer": ["a,b"], "value": [0.5]}), "layers").uri
    'data:text/csv;charset=utf-8,layer,value%0A%22a,b%22,0.5%0A'
    """
    plain = frame.head(_MOST_ROWS).map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
    text = plain.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    return Download(f"{name}.csv", f"data:text/csv;charset=utf-8,{quote(text, safe=',:;[]()+-.')}")


@dataclass(frozen=True)
class Cell:
    """One estimate in a chart: its place on the axis, in per cent, and how it reads; *over*: beyond the axis."""

    value: float
    low: float
    high: float
    text: str
    bounds: str
    over: bool = False


@dataclass(frozen=True)
class Row:
    """One group: its *name*, a *detail* such as its number of trials, and a cell for each series, if there is one."""

    name: str
    detail: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Intervals:
    """Estimates as dots with their intervals as lines, one row a group: a table and a plot in one."""

    title: str
    head: str
    series: tuple[str, ...]
    unit: str
    scale: Scale
    rows: tuple[Row, ...]
    file: Download
    notes: tuple[str, ...] = ()
    detail: str = "trials"
    kind: str = field(default="intervals", init=False)

    @property
    def bounded(self) -> tuple[bool, ...]:
        """Whether any row has an interval, for each series."""
        by_series = zip(*(row.cells for row in self.rows), strict=True)
        return tuple(any(cell and cell.bounds for cell in mine) for mine in by_series)

    @classmethod
    def of(
        cls,
        frame: "pd.DataFrame",
        *,
        title: str,
        head: str,
        name: str,
        unit: Unit = PERCENT,
        series: Mapping[str, str] | None = None,
        by: str = "",
        notes: Sequence[str] = (),
        rows: int | None = None,
        detail: str = "trials",
    ) -> "Intervals":
        """Return the chart of *frame*, with the columns *head* (or ``key``), value, low, high, and trials if there are.

        With *series*, keys of the column *by* to what they are called, a row has a cell for each. Of more than *rows*
        groups those with the highest lower bounds are kept, in their order. *detail* is what the trials are called.
        """
        column = head if head in frame else "key"
        shown = frame if rows is None else _worst(frame, column, rows)
        wanted = {"": ""} if series is None else dict(series)
        digits, scale = unit.digits(bounds_in(shown)), scale_of(axis_ends(shown), unit)
        keys = list(dict.fromkeys(shown[column].tolist()))
        held: dict[tuple[Any, str], Any] = {
            (getattr(row, column), getattr(row, by) if series is not None else ""): row for row in rows_of(shown)
        }
        made = []
        for key in keys:
            mine = [held.get((key, one)) for one in wanted]
            trials = [int(row.trials) for row in mine if row is not None and hasattr(row, "trials")]
            cells = tuple(None if row is None else cell_of(bounds_of(row), scale, unit, digits) for row in mine)
            made.append(Row(visible(key), count(sum(trials)) if trials else "", cells))
        left = len(dict.fromkeys(frame[column].tolist())) - len(keys)
        told = [*notes, *([f"not shown, but in the file: {count(left)} more"] if left > 0 else [])]
        file = download(frame, name)
        return cls(title, head, tuple(wanted.values()), unit.sign, scale, tuple(made), file, tuple(told), detail)


def _worst(frame: "pd.DataFrame", column: str, rows: int) -> "pd.DataFrame":
    """Return the rows of the groups with the highest lower bounds, in their order."""
    held = frame[frame["trials"] > 0] if "trials" in frame else frame
    ranked = worst_first(held)[column].drop_duplicates().head(rows)
    return held[held[column].isin(set(ranked))]


def axis_ends(frame: "pd.DataFrame") -> list[float]:
    """Return what an axis must hold: the interval of a handful of trials would press others flat, and may run off."""
    firm = frame
    if "trials" in frame and len(frame):
        firm = frame[frame["trials"] > 0.1 * frame.loc[frame["trials"] > 0, "trials"].median()]
    return [end for bounds in bounds_in(firm) for end in bounds]


def cell_of(bounds: Bounds, scale: Scale, unit: Unit, digits: int) -> Cell | None:
    """Return an estimate as a cell, ``None`` for one that is not known."""
    value, low, high = bounds
    if math.isnan(value):
        return None
    told = "" if low == high else unit.interval(low, high, digits)
    return Cell(scale.at(value), scale.at(low), scale.at(high), unit.text(value, digits), told, high > scale.high)


@dataclass(frozen=True)
class Columns:
    """Estimates along a numbered axis, such as bits: dots with their intervals as lines, from left to right.

    *points* are (label, whether it is shown where there is little room, place in per cent, cell); *bands* name parts of
    the axis: (name, from, to, shaded).
    """

    title: str
    head: str
    unit: str
    scale: Scale
    points: tuple[tuple[str, bool, float, Cell], ...]
    bands: tuple[tuple[str, float, float, bool], ...]
    file: Download
    notes: tuple[str, ...] = ()
    kind: str = field(default="columns", init=False)

    @classmethod
    def of(
        cls,
        frame: "pd.DataFrame",
        *,
        title: str,
        head: str,
        name: str,
        unit: Unit = PERCENT,
        fields: Sequence[tuple[str, int, int]] = (),
        falling: bool = False,
        notes: Sequence[str] = (),
    ) -> "Columns":
        """Return the chart of *frame*, with the columns key (numbers), value, low, high; *falling*: the last one first.

        *fields* are names of parts, each with its first and last number.
        """
        shown = frame[frame["value"].notna()].sort_values("key", ascending=not falling)
        keys = shown["key"].tolist()
        digits = unit.digits(bounds_in(shown))
        scale, step = scale_of(axis_ends(shown), unit, ticks=4), 100 / max(len(keys), 1)
        place = {key: round((number + 0.5) * step, 3) for number, key in enumerate(keys)}
        points = []
        for number, row in enumerate(rows_of(shown)):
            cell = cell_of(bounds_of(row), scale, unit, digits)
            assert cell is not None
            points.append((str(row.key), number % 4 == 0 or len(keys) <= _FEW, place[row.key], cell))
        bands = []
        for order, (label, first, last) in enumerate(fields):
            inside = [place[key] for key in keys if first <= key <= last]
            if inside:
                bands.append((label, min(inside) - step / 2, max(inside) + step / 2, order % 2 == 1))
        return cls(title, head, unit.sign, scale, tuple(points), tuple(bands), download(frame, name), tuple(notes))


@dataclass(frozen=True)
class Grid:
    """A heat map: *rows* of names and classes of colour (0 to 7, -1 for nothing known), with what each cell says.

    *legend* names the classes from 1 up.
    """

    title: str
    head: str
    across: str
    keys: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, str, str], ...]], ...]
    legend: tuple[str, ...]
    file: Download
    notes: tuple[str, ...] = ()
    unit: str = "%"
    kind: str = field(default="grid", init=False)

    @property
    def holes(self) -> bool:
        """Whether there are cells of which nothing is known."""
        return any(number < 0 for _, cells in self.rows for number, _, _ in cells)


@dataclass(frozen=True)
class Stacks:
    """Shares that add up within each row, as bars of parts; *parts* name the series."""

    title: str
    head: str
    parts: tuple[str, ...]
    unit: str
    scale: Scale
    rows: tuple[tuple[str, tuple[tuple[float, float], ...], tuple[str, ...]], ...]
    file: Download
    notes: tuple[str, ...] = ()
    kind: str = field(default="stacks", init=False)

    @classmethod
    def of(
        cls,
        frame: "pd.DataFrame",
        parts: Sequence[str],
        *,
        title: str,
        head: str,
        name: str,
        rows: int,
        notes: Sequence[str] = (),
    ) -> "Stacks":
        """Return the chart of *frame*: the column *head*, and the share of each of *parts*; of *rows* at most."""
        shown = frame.assign(_sum=frame[list(parts)].sum(axis=1))
        shown = shown if len(shown) <= rows else shown.loc[shown["_sum"].nlargest(rows).index.sort_values()]
        told = [*notes, *([f"the {rows} of {count(len(frame))} with the largest shares"] if len(frame) > rows else [])]
        shares = shown[list(parts)].to_numpy(float)
        scale = scale_of(shares.sum(axis=1).tolist(), PERCENT)
        made = []
        for key, mine in zip(shown[head].tolist(), shares.tolist(), strict=True):
            ends = [scale.at(sum(mine[: place + 1])) for place in range(len(mine))]
            begins = [scale.at(0.0), *ends[:-1]]
            bars = tuple((begin, round(end - begin, 3)) for begin, end in zip(begins, ends, strict=True))
            made.append((visible(key), bars, tuple(PERCENT.text(value, 2) for value in mine)))
        return cls(title, head, tuple(parts), "%", scale, tuple(made), download(frame, name), tuple(told))


@dataclass(frozen=True)
class Curve:
    """A value against trials on a logarithmic axis, with its interval as a band; places are in per cent.

    *line* and *band* are points for polygons; *rows* the table.
    """

    title: str
    head: str
    unit: str
    across: Scale
    scale: Scale
    line: str
    band: str
    rows: tuple[tuple[str, str, str], ...]
    file: Download
    notes: tuple[str, ...] = ()
    kind: str = field(default="curve", init=False)

    @classmethod
    def of(
        cls, frame: "pd.DataFrame", *, title: str, head: str, name: str, unit: Unit = PERCENT, notes: Sequence[str] = ()
    ) -> "Curve":
        """Return the curve of *frame*, with the columns trials, value, low, high."""
        held = frame[frame["value"].notna()]
        late = held.iloc[len(held) // 4 :]
        scale = scale_of([*late["high"].tolist(), *held["value"].tolist(), *late["low"].tolist()], unit, ticks=4)
        low, high = math.log10(held["trials"].iloc[0]), math.log10(held["trials"].iloc[-1])
        across = Scale(low, high)
        decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        across = Scale(low, high, tuple((count(10**n), across.at(n)) for n in decades))
        points = [
            (across.at(math.log10(row.trials)), *(round(100 - scale.at(end), 3) for end in bounds_of(row)))
            for row in rows_of(held)
        ]
        line = _points((x, value) for x, value, _, _ in points)
        band = _points([(x, up) for x, _, _, up in points] + [(x, down) for x, _, down, _ in reversed(points)])
        digits = unit.digits(bounds_in(held))
        rows = tuple(
            (count(row.trials), unit.text(row.value, digits), unit.interval(row.low, row.high, digits))
            for row in rows_of(held)
        )
        return cls(title, head, unit.sign, across, scale, line, band, rows, download(frame, name), tuple(notes))


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


@dataclass(frozen=True)
class Facts:
    """A table of texts: *head* names its columns, those of *right* hold numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[bool, ...]
    file: Download | None = None
    notes: tuple[str, ...] = ()
    unit: str = ""
    kind: str = field(default="facts", init=False)
