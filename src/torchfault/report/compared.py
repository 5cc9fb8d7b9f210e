"""Campaigns side by side: the difference of each to the first, by pairs where both struck the same faults."""

from collections.abc import Sequence

from torchfault.report.charts import Intervals
from torchfault.report.findings import unit_of
from torchfault.report.numbers import POINTS, Unit
from torchfault.report.section import Section
from torchfault.results import Results
from torchfault.results.differences import Difference, differ, differences
from torchfault.text import count, visible

__all__ = ["compared"]

_LAYERS = 80


def compared(all_results: Sequence[Results]) -> Section:
    """Return how the campaigns after the first differ from it, on the whole and by layer."""
    first, said, rows, charts = all_results[0], list[str](), list[tuple[object, ...]](), list[Intervals]()
    alike = [one for one in all_results if (one.columns.values is None) == (first.columns.values is None)]
    for other in alike[1:]:
        found = differ(first, other)
        said.append(_told(first, other, found))
        one = found.estimate
        rows.append((other.name, one.value, one.low, one.high, found.pairs))
        charts += _by_layer(first, other, found)
    import pandas as pd

    whole = pd.DataFrame([(one.name, *_bounds(one)) for one in alike], columns=["campaign", "value", "low", "high"])
    told = {"head": "campaign", "unit": unit_of(first)}
    charts.insert(0, Intervals.of(whole, title="On the whole", name="campaigns", **told))  # type: ignore[arg-type]
    if rows:
        frame = pd.DataFrame(rows, columns=["campaign", "value", "low", "high", "pairs"])
        title = f"Difference to {visible(first.name)}"
        charts.insert(1, Intervals.of(frame, title=title, name="differences", head="campaign", unit=_points(first)))
    left = [visible(one.name) for one in all_results if one not in alike]
    warnings = [f"{', '.join(left)} measured something else, and stand below alone"] if left else []
    return Section("Compared", said, charts=charts, warnings=warnings)


def _bounds(results: Results) -> tuple[float, float, float]:
    one = results.estimate()
    return one.value, one.low, one.high


def _told(first: Results, other: Results, found: Difference) -> str:
    unit, one = _points(first), found.estimate
    digits = unit.digits([(one.value, one.low, one.high)])
    size, more = unit.text(abs(one.value), digits), "more" if one.value > 0 else "less"
    points = f" {unit.sign}" if unit.sign else ""
    clear = one.low > 0 or one.high < 0
    sure = "" if clear else " That may be chance: the interval holds 0."
    named = f"{visible(other.name)} fails {size}{points} {more} than {visible(first.name)}"
    apart = f"{named}, {unit.interval(one.low, one.high, digits)} at {100 * one.level:g} %"
    if found.pairs:
        return (
            f"{apart}, by pairs: of {count(found.pairs)} trials that struck the same faults on the same inputs in "
            f"both, {count(found.first_alone)} failed in {visible(first.name)} alone and {count(found.second_alone)} "
            f"in {visible(other.name)} alone.{sure}"
        )
    why = "they did not strike the same faults, so that this is a difference of two samples, which is less sharp"
    return f"{apart}; {why}.{sure}"


def _by_layer(first: Results, other: Results, found: Difference) -> list[Intervals]:
    if "layer" not in other.space.groupings:
        return []
    frame = differences(first, other, "layer")
    if len(frame) < 2:
        return []
    paired = bool(found.pairs) and bool((frame["pairs"] > 0).all())
    shown = frame.rename(columns={"key": "layer", "pairs": "trials"} if paired else {"key": "layer"})
    return [
        Intervals.of(
            shown,
            title=f"{visible(other.name)} less {visible(first.name)}, by layer",
            head="layer",
            name=f"{other.name}-differences",
            unit=_points(first),
            rows=_LAYERS,
            detail="pairs",
            notes=["by pairs of trials" if paired else "of two samples"],
        )
    ]


def _points(results: Results) -> Unit:
    """Return what differences are shown in."""
    return POINTS if unit_of(results).sign else unit_of(results)
