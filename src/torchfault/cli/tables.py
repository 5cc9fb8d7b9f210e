"""Tables of estimates for people: each row with its interval, in figures and drawn to one scale."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torchfault.cli.screen import Column, Table, count, share
from torchfault.names.word_names import FIELDS
from torchfault.report.plots import one_word
from torchfault.results.travel import endings

if TYPE_CHECKING:
    import pandas as pd

    from torchfault.results import Results

__all__ = ["Row", "interval", "join_bits", "results_table", "travel_table"]

_STRIP = 28


@dataclass(frozen=True)
class Row:
    """One row of ``Results.table``."""

    key: Any
    trials: int
    failures: int
    due: float
    value: float
    low: float
    high: float


def results_table(results: "Results", frame: "pd.DataFrame", *, by: str, flag: str, level: float, method: str) -> Table:
    """Return the table of *frame*, one of ``results.table(by, flag)``.

    Bits stand from the top of the word, neighbours without a failure in one row; channels without a trial are left out.
    Each interval is drawn as a line too, with a dot for the estimate.
    """
    metric = results.columns.values is not None
    rows = [Row(*values) for values in zip(*(frame[name].tolist() for name in Row.__annotations__), strict=True)]
    notes = _notes(results, rows, flag=flag, metric=metric)
    if by == "channel":
        held = [row for row in rows if row.trials]
        notes += (
            [f"{count(len(rows) - len(held))} channels without a trial are left out"] if len(held) < len(rows) else []
        )
        rows = held
    if by == "bit":
        design = results.design
        plain = design.replacement and design.looks == "one" and results.columns.weights is None and not metric
        bound = _bound(level, method) if plain else None
        rows = join_bits(sorted(rows, key=lambda row: -int(row.key)), word=one_word(results) or "", bound=bound)
    what = "fail" if flag == "failed" else f"are '{flag}'"
    drop = results.measured if metric else ""
    title = (
        f"{drop.capitalize()} of the metric by {by}"
        if metric
        else f"Vulnerability factor (VF) by {by}: trials that {what}"
    )
    counted = "changed" if metric else "failures" if flag == "failed" else flag
    return replace(_interval_table(rows, by=by, counted=counted, level=level, drop=drop), title=title, notes=notes)


def travel_table(frame: "pd.DataFrame", *, level: float) -> Table:
    """Return the table of :func:`torchfault.results.travel`; sites at which no error ended are left out."""
    held = endings(frame)
    shown = zip(*(held[name].tolist() for name in ("site", "trials", "died", "value", "low", "high")), strict=True)
    rows = [Row(site, trials, died, 0.0, value, low, high) for site, trials, died, value, low, high in shown]
    table = _interval_table(rows, by="site", counted="last alive here", level=level, part="alive %")
    notes = (
        "alive: of all faults, so many whose error is still seen at this site or behind it; output: in the outputs",
        "sites at which no error was last alive are left out",
    )
    return replace(table, title="How far errors travel", notes=notes)


def _notes(results: "Results", rows: Sequence[Row], *, flag: str, metric: bool) -> list[str]:
    """Return what the table's terms mean, and what intervals without a width speak for."""
    if metric:
        notes = ["drop: by how much the metric is worse than without faults, over the whole data set"]
    else:
        told = "fail" if flag == "failed" else f"are '{flag}'"
        notes = [f"VF: of all faults there, each on any input, so many {told}"]
        if flag == "failed" and any(row.due > 0 for row in rows):
            notes[0] += "; DUE: without an answer (NaN, infinity, exception)"
    if any(row.trials and row.low == row.high for row in rows):
        inputs = count(results.record.inputs)
        notes.append(f"an interval without a width: every fault was tried, on these {inputs} inputs and no others")
    return notes


def interval(low: float, high: float, digits: int = 2) -> str:
    """Return bounds in percent.

    >>> interval(0.01, 0.2)
    '[1.00, 20.00]'
    """
    return f"[{share(low, digits)}, {share(high, digits)}]"


def _bound(level: float, method: str) -> Callable[[int], float]:
    from torchfault.statistics import proportion

    return lambda trials: proportion(0, trials, level=level, method=method).high


def join_bits(rows: Iterable[Row], *, word: str, bound: Callable[[int], float] | None) -> list[Row]:
    """Name the field of each bit in *word*, and join neighbours of one field without a failure where *bound* is given.

    *bound* gives the upper end of the interval for a number of trials without a failure.

    >>> rows = [Row(bit, 100, 0, 0.0, 0.0, 0.0, 0.04) for bit in (31, 30, 29, 28)]
    >>> [(row.key, row.trials) for row in join_bits(rows, word="float32", bound=lambda trials: 4 / trials)]
    [('31     sign', 100), ('30-28  exponent', 300)]
    """
    joined: list[tuple[int, int, Row]] = []
    for row in rows:
        first, last, above = joined[-1] if joined else (-1, -1, row)
        harmless = bound is not None and joined and not above.failures and not row.failures
        if harmless and last - 1 == row.key and _field(word, last) == _field(word, row.key):
            joined[-1] = (first, row.key, replace(above, trials=above.trials + row.trials))
        else:
            joined.append((row.key, row.key, row))
    return [_named(first, last, row, word, bound) for first, last, row in joined]


def _named(first: int, last: int, row: Row, word: str, bound: Callable[[int], float] | None) -> Row:
    span = f"{first}" if first == last else f"{first}-{last}"
    high = row.high if first == last or bound is None else bound(row.trials)
    return replace(row, key="none" if first < 0 else f"{span:<5}  {_field(word, first)}".strip(), high=high)


def _field(word: str, bit: int) -> str:
    if word not in FIELDS:
        return ""
    mantissa, exponent = FIELDS[word]
    return "mantissa" if bit < mantissa else "exponent" if bit < mantissa + exponent else "sign"


def _interval_table(
    rows: Sequence[Row], *, by: str, counted: str, level: float, drop: str = "", part: str = "VF %"
) -> Table:
    digits = _digits(rows)
    shown: Callable[[float], str] = (lambda x: f"{x:.4g}") if drop else (lambda x: share(x, digits))
    with_due = counted == "failures" and any(row.due > 0 for row in rows)
    strip = _Strip(rows, metric=bool(drop))
    columns = [Column(by), Column("trials", True, 3), Column(counted, True, 2)]
    columns += [Column("DUE %", True, 4)] if with_due else []
    columns += [Column(drop or part, True), Column(f"{100 * level:g} % interval")]
    columns += [Column(strip.axis(shown), rank=5)] if strip.useful else []
    left = max((len(shown(row.low)) for row in rows), default=0)
    right = max((len(shown(row.high)) for row in rows), default=0)
    cells = []
    for row in rows:
        counts = [str(row.key), count(row.trials), count(row.failures), *([share(row.due)] if with_due else [])]
        bounds = f"[{shown(row.low):>{left}}, {shown(row.high):>{right}}]" if row.trials else "-"
        value = shown(row.value) if row.trials else "-"
        cells.append([*counts, value, bounds, *([strip.draw(row)] if strip.useful else [])])
    return Table(columns, cells)


def _digits(rows: Iterable[Row]) -> int:
    """Return as many decimals as the narrowest interval with a failure in it needs to show two figures, from 2 to 5."""
    widths = [50 * (row.high - row.low) for row in rows if row.failures and row.high > row.low]
    return max(2, min(5, 1 - math.floor(math.log10(min(widths))))) if widths else 2


class _Strip:
    """A plot of one line: the interval as a line, the estimate as a dot, on one scale for the whole table."""

    def __init__(self, rows: Sequence[Row], *, metric: bool) -> None:
        seen = [row for row in rows if row.trials and all(map(math.isfinite, (row.value, row.low, row.high)))]
        # The interval of a handful of trials would press all the others flat: it may run off the scale.
        usual = sorted(row.trials for row in seen)[len(seen) // 2] if seen else 0
        firm = [row for row in seen if row.trials > 0.1 * usual]
        self.low = min(0.0, *(row.low for row in firm)) if metric and firm else 0.0
        self.high = max((row.high for row in firm), default=0.0)
        self.useful = len(seen) > 1 and self.high > self.low

    def axis(self, shown: Callable[[float], str]) -> str:
        """Return the ends of the scale, as far apart as the strip is long."""
        left, right = shown(self.low), shown(self.high)
        return f"{left}{right:>{_STRIP - len(left)}}"

    def draw(self, row: Row) -> str:
        """Return the strip of one row."""
        if not row.trials or not all(map(math.isfinite, (row.value, row.low, row.high))):
            return ""
        cells = [" "] * _STRIP
        for position in range(self._at(row.low), self._at(row.high) + 1):
            cells[position] = "─"
        if row.high > self.high:
            cells[-1] = "→"
        cells[self._at(row.value)] = "●"
        return "".join(cells)

    def _at(self, value: float) -> int:
        part = (value - self.low) / (self.high - self.low)
        return min(_STRIP - 1, max(0, round(part * (_STRIP - 1))))
