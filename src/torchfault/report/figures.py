"""Figures for papers, by Matplotlib: in the width of a column, colour-blind safe, from the tables of the report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchfault.report.charts import axis_ends
from torchfault.report.findings import unit_of
from torchfault.report.numbers import Unit
from torchfault.report.plots import quiet, text
from torchfault.report.rows import rows_of
from torchfault.report.words import fields_of, kinds_of, metric_of
from torchfault.results import Results
from torchfault.results.convergence import convergence
from torchfault.results.differences import differences

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DOUBLE", "SINGLE", "bit_figure", "convergence_figure", "difference_figure", "heat_figure", "layer_figure"]

SINGLE, DOUBLE = 3.5, 7.16
"""The widths of one and of two columns of IEEE journals, in inches."""

# Okabe & Ito's palette (Color Universal Design, 2008), whose colours the colour-blind tell apart, and shapes besides.
_SERIES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "^"))
_ROW, _MARGIN, _SIZE = 0.17, 0.75, 7.0  # inches a row, inches around all rows, points of text


def layer_figure(results: Results, *, width: float = SINGLE, level: float | None = None) -> "Figure":
    """Return estimates by layer in network order, kinds of sites apart, with intervals of *level*; *width* in inches.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> [tick.get_text() for tick in layer_figure(run(example_campaign(trials=200))).axes[0].get_yticklabels()]
    ['(model)']
    """
    kinds = kinds_of(results)
    by = ("layer", "kind") if len(kinds) > 1 else "layer"
    frame = results.table(by, level=level)
    held = frame[frame["trials"] > 0].rename(columns={"key": "layer"})
    series = [(name, held[held["kind"] == kind]) for kind, name in kinds.items()] if len(kinds) > 1 else [("", held)]
    return _rows(series, list(dict.fromkeys(held["layer"].tolist())), "layer", unit_of(results), _axis(results), width)


def difference_figure(
    first: Results, second: Results, *, width: float = SINGLE, level: float | None = None
) -> "Figure":
    """Return by layer how much more *second* fails than *first*, by pairs where they struck the same faults.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> one, two = (run(example_campaign(trials=500, seed=seed)) for seed in (1, 2))
    >>> difference_figure(one, two).axes[0].get_xlabel()
    'difference of failing faults (points)'
    """
    frame = differences(first, second, "layer", level=level)
    paired = bool((frame["pairs"] > 0).all())
    frame = frame.rename(columns={"key": "layer", **({"pairs": "trials"} if paired else {})})
    label = f"difference of {_axis(first).replace('(%)', '(points)')}"
    figure = _rows([("", frame)], frame["layer"].tolist(), "layer", unit_of(first), label, width)
    figure.axes[0].axvline(0, color="#000000", linewidth=0.6)
    return figure


def _rows(
    series: "Sequence[tuple[str, pd.DataFrame]]", keys: list[str], by: str, unit: Unit, label: str, width: float
) -> "Figure":
    """Return a figure with a row for each of *keys*, and in it a dot with its interval for each of *series*."""
    figure, axes = _figure(width, _MARGIN + _ROW * max(len(keys), 2))
    place = {key: row for row, key in enumerate(keys)}
    for number, ((name, frame), (colour, marker)) in enumerate(zip(series, _SERIES, strict=False)):
        shift = (number - (len(series) - 1) / 2) * 0.3
        rows = rows_of(frame)
        y = [place[getattr(row, by)] + shift for row in rows]
        low, high = ([unit.factor * getattr(row, end) for row in rows] for end in ("low", "high"))
        axes.hlines(y, low, high, color=colour, linewidth=0.9)
        axes.plot([unit.factor * row.value for row in rows], y, marker, color=colour, markersize=2.8, label=name)
    axes.set_yticks(range(len(keys)), [text(key) for key in keys])
    axes.set_ylim(len(keys) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#e5e7ea", linewidth=0.6)
    ends = [unit.factor * end for _, frame in series for end in axis_ends(frame)]
    if ends and min(ends) < max(ends):
        axes.set_xlim(1.03 * min(0.0, *ends), 1.03 * max(0.0, *ends))
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=len(series), frameon=False, fontsize=_SIZE, handletextpad=0.2)
    return figure


def bit_figure(results: Results, *, width: float = SINGLE, level: float | None = None) -> "Figure":
    """Return estimates by bit, the top one first, the exponent shaded where all sites have one floating-point format.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> bit_figure(run(example_campaign(trials=200)), width=DOUBLE).axes[0].get_xlabel()
    'bit'
    """
    figure, axes = _figure(width, 1.9)
    unit, frame = unit_of(results), results.table("bit", level=level)
    rows = [row for row in rows_of(frame) if row.trials and row.key >= 0]
    bits = [row.key for row in rows]
    low, high = ([unit.factor * getattr(row, end) for row in rows] for end in ("low", "high"))
    axes.vlines(bits, low, high, color=_SERIES[0][0], linewidth=0.9)
    axes.plot(bits, [unit.factor * row.value for row in rows], "o", color=_SERIES[0][0], markersize=2.8)
    if bits:
        axes.set_xlim(max(bits) + 0.7, min(bits) - 0.7)
    for name, first, last in fields_of(results):
        if name == "exponent":
            axes.axvspan(first - 0.5, last + 0.5, color="#eef0f2", zorder=0)
    axes.set_xlabel("bit")
    axes.set_ylabel(_axis(results))
    return figure


def heat_figure(results: Results, *, width: float = DOUBLE, level: float | None = None) -> "Figure":
    """Return layer by bit as a heat map on a logarithmic scale: grey where nothing failed, white where nothing struck.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> len(heat_figure(run(example_campaign(trials=200))).axes)
    2
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    frame = results.table(("layer", "bit"), level=level)
    held = frame[(frame["trials"] > 0) & (frame["bit"] >= 0)]
    grid = held.pivot(index="layer", columns="bit", values="value")
    grid = grid.loc[list(dict.fromkeys(held["layer"].tolist())), sorted(grid.columns, reverse=True)]
    unit, shares = unit_of(results), grid.to_numpy(float)
    figure, axes = _figure(width, _MARGIN + _ROW * max(len(grid), 3))
    some = shares[shares > 0]
    most = unit.factor * float(some.max()) if len(some) else 1.0
    least = min(unit.factor * float(some.min()) if len(some) else most, most / 10)
    colours = colormaps["Blues"].with_extremes(under="#f3f4f6", bad="#ffffff")
    image = axes.imshow(unit.factor * shares, cmap=colours, norm=LogNorm(least, most), aspect="auto")
    axes.set_yticks(range(len(grid)), [text(name) for name in grid.index])
    bits, step = [str(bit) for bit in grid.columns], 2 if width > DOUBLE / 2 else 4
    axes.set_xticks(range(0, len(bits), step), bits[::step])
    axes.set_xlabel("bit")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    bar.set_label(_axis(results), fontsize=_SIZE)
    bar.ax.tick_params(labelsize=_SIZE)
    return figure


def convergence_figure(results: Results, *, width: float = SINGLE, level: float | None = None) -> "Figure":
    """Return the estimate against the number of trials, with its interval as a band.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> convergence_figure(run(example_campaign(trials=200))).axes[0].get_xscale()
    'log'
    """
    figure, axes = _figure(width, 1.9)
    unit, frame = unit_of(results), convergence(results, level=level)
    low, value, high = (unit.factor * frame[name].to_numpy(float) for name in ("low", "value", "high"))
    axes.fill_between(frame["trials"], low, high, color=_SERIES[0][0], alpha=0.2, linewidth=0)
    axes.plot(frame["trials"], value, color=_SERIES[0][0], linewidth=1.1)
    axes.set_xscale("log")
    axes.set_ylim(bottom=min(0.0, float(low.min())), top=1.1 * float(high[len(high) // 4 :].max()) or None)
    axes.set_xlabel("trials")
    axes.set_ylabel(_axis(results))
    return figure


def _axis(results: Results) -> str:
    """Return what an axis of estimates is called."""
    return "failing faults (%)" if results.columns.values is None else f"{results.measured} of {metric_of(results)}"


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, min(height, 9.0)), layout="constrained")
    axes = figure.subplots()
    quiet(axes, size=_SIZE)
    return figure, axes
