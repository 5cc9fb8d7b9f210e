"""What upsets of an accelerator do, for a report: the accuracy that is left, failures in time, what would help."""

from typing import TYPE_CHECKING, Any

from torchfault.report.charts import Facts, Intervals, download
from torchfault.report.numbers import PERCENT, POINTS, Unit
from torchfault.report.section import Chart, Figure, Section
from torchfault.results import Fit, Resiliency, Results, fit, resiliency, what_if_table
from torchfault.results.what_if import usual_changes
from torchfault.statistics import Estimate

if TYPE_CHECKING:
    from torchfault.hardware.accelerator import Accelerator
from torchfault.text import count

__all__ = ["accelerated"]

_FIT = Unit(1.0, "FIT")
_NOTHING = 1e-12  # less is rounding


def accelerated(results: Results) -> Section:
    """Return Resiliency Accuracy, what takes it away, failures in time, and what changes of the chip would do."""
    found = resiliency(results)
    chip = found.sample.space.accelerator
    rate = None if chip.flip_flops is None else fit(results)
    said = [*_said(found, chip, results), *([] if rate is None else _rates(rate))]
    charts: list[Chart] = [chart for by in ("type", "layer") for chart in _parts(results, found, by)]
    charts.append(_changes(results))
    return Section("The accelerator", said, _figures(found, rate), charts)


def _figures(found: Resiliency, rate: Fit | None) -> list[Figure]:
    named = [("accuracy, given an upset (RA)", found.ra), ("of upsets corrupt silently (SDC)", found.sdc)]
    named.append(("of upsets leave no answer (DUE)", found.due))
    figures = [Figure(f"{100 * found.sa:.2f} %", "", "accuracy without faults (SA)")]
    figures += [_figure(one, means, PERCENT) for means, one in named]
    if rate is not None:
        figures += [
            _figure(rate.sdc, "silent failures in 10⁹ hours", _FIT),
            _figure(rate.due, "without an answer", _FIT),
        ]
    return figures


def _figure(one: Estimate, means: str, unit: Unit) -> Figure:
    digits = unit.digits([(one.value, one.low, one.high)])
    return Figure(f"{unit.text(one.value, digits)} {unit.sign}", unit.interval(one.low, one.high, digits), means)


def _said(found: Resiliency, chip: "Accelerator", results: Results) -> list[str]:
    return [
        f"Given that one upset strikes the accelerator '{chip.name}' while it runs the network, accuracy falls from "
        f"{100 * found.sa:.2f} % to {PERCENT.full(found.ra)}: by {POINTS.full(found.drop)}. Control, whose upsets are "
        f"taken for crashes and summed exactly, makes up {100 * found.control:.2f} % of all upsets "
        f"({100 * results.level:g} % intervals)."
    ]


def _rates(rate: Fit) -> list[str]:
    whole = sum(one.flip_flops for one in rate.types)
    raw = "; ".join(f"{one.name}: {one.flip_flops:,.0f} at {one.fit_per_mb:g} FIT/MB" for one in rate.types)
    return [
        f"With {count(round(whole))} flip-flops ({raw}) the chip has {rate.chip:.4g} upsets in 10⁹ hours of running: "
        f"{_FIT.full(rate.sdc)} of silent corruption and {_FIT.full(rate.due)} without an answer. The raw rates are "
        "what the accelerator's description says; nothing here has measured them."
    ]


def _parts(results: Results, found: Resiliency, by: str) -> list[Chart]:
    import pandas as pd

    table = found.table(by)
    data = table.rename(columns={"data": "value", "data_low": "low", "data_high": "high"})
    control = table.assign(value=table["control"], low=table["control"], high=table["control"])
    both = pd.concat([data.assign(part="data"), control[control["control"] > 0].assign(part="control")])
    frame = both[[by, "part", "value", "low", "high"]]
    told = {"head": by, "name": f"{results.name}-ra-{by}", "unit": POINTS, "by": "part"}
    note = "in points of accuracy, by probability of upset times harm; parts add up to the drop"
    title = f"What takes accuracy away, by {by}"
    series = {name: name for name in dict.fromkeys(frame["part"].tolist())}
    return [Intervals.of(frame, title=title, series=series, notes=[note], **told)]  # type: ignore[arg-type]


def _changes(results: Results) -> Facts:
    settings = results.record.configuration.get("settings") or {}
    layers = (settings.get("ra") or {}).get("protect") or ()
    frame = what_if_table(results, usual_changes(results, layers=layers))
    counted = bool(frame["chip_fit"].max() > 1)
    unit = _FIT if counted else PERCENT
    units = (("ra", PERCENT), ("sdc_fit", unit), ("due_fit", unit))
    rows = []
    for held in frame.to_dict("records"):
        row = {str(name): value for name, value in held.items()}
        rows.append((str(row["change"]), *(text for name, one in units for text in _pair(row, name, one))))
    what = "FIT" if counted else "% of upsets"
    head = ("change", "RA %", "changes by", f"SDC {what}", "changes by", f"DUE {what}", "changes by")
    notes = (
        "from the same upsets, weighed anew; differences have intervals of their own",
        "RA is given an upset: where harmless upsets become fewer it falls, and so do failures; judge by failures",
    )
    right, file = (False, *[True] * 6), download(frame, f"{results.name}-what-if")
    return Facts("What changes of the chip would do", head, tuple(rows), right, file, notes)


def _pair(row: dict[str, Any], name: str, unit: Unit) -> tuple[str, str]:
    """Return a quantity, and by how much it changes, as text."""
    value, change, low, high = (row[f"{name}{end}"] for end in ("", "_change", "_change_low", "_change_high"))
    if max(abs(change), abs(low), abs(high)) < _NOTHING:
        return _significant(value, unit), ""
    digits = unit.digits([(change, low, high)])
    sign = "+" if change > 0 else ""
    return _significant(value, unit), f"{sign}{unit.text(change, digits)} {unit.interval(low, high, digits)}"


def _significant(value: float, unit: Unit) -> str:
    return f"{unit.factor * value:.2f}" if unit.factor == 100 else f"{value:.3g}"
