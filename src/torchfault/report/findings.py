"""What a campaign found, for a report: where faults do harm, and how; the same for every recipe."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from torchfault.report.charts import Columns, Curve, Intervals, Stacks
from torchfault.report.heat import heat_map
from torchfault.report.numbers import PERCENT, Unit
from torchfault.report.rows import worst_first
from torchfault.report.section import Chart, Section
from torchfault.report.words import fields_of, kinds_of, metric_of, unit_word
from torchfault.results import Results
from torchfault.results.convergence import convergence
from torchfault.results.outcomes import OUTCOMES, classified
from torchfault.results.travel import endings, travel
from torchfault.text import count

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["converging", "ending", "found", "has_classes", "travelling", "unit_of"]

_CHANNELS, _LAYERS = 20, 80


def unit_of(results: Results) -> Unit:
    """Return what estimates are shown in: shares in per cent, a metric as it is."""
    return PERCENT if results.columns.values is None else Unit(1.0, "")


def has_classes(results: Results) -> bool:
    """Return whether trials fall into classes of outcomes: not those of a metric, nor inferred ones."""
    return results.columns.values is None and not results.record.configuration.get("assumption")


def found(results: Results) -> Section:
    """Return where faults do harm: by layer and kind, bit, both, channel, time step."""
    charts = [chart for part in (_layers, _bits, _heat, _channels, _steps) for chart in part(results)]
    return Section("Where faults do harm", charts=charts)


def _what(results: Results) -> str:
    if results.columns.values is not None:
        return f"{results.measured} of {metric_of(results)}"
    return f"failing {unit_word(results)}"


def _layers(results: Results) -> Iterator[Chart]:
    told = {"head": "layer", "name": f"{results.name}-layers", "unit": unit_of(results), "rows": _LAYERS}
    kinds, title = kinds_of(results), f"Layers in network order: {_what(results)}"
    if len(kinds) > 1:
        frame = results.table(("layer", "kind"))
        yield Intervals.of(frame, title=title, series=kinds, by="kind", **told)  # type: ignore[arg-type]
    else:
        yield Intervals.of(results.table("layer"), title=title, **told)  # type: ignore[arg-type]


def _bits(results: Results) -> Iterator[Chart]:
    frame = results.table("bit")
    held = frame[(frame["trials"] > 0) & (frame["key"] >= 0)]
    if len(held) > 1:
        notes = ["upsets of control and random words have no bit, and are left out"] if len(held) < len(frame) else []
        yield Columns.of(
            held,
            title=f"Bits from the top of the word: {_what(results)}",
            head="bit",
            name=f"{results.name}-bits",
            unit=unit_of(results),
            fields=fields_of(results),
            falling=True,
            notes=notes,
        )


def _heat(results: Results) -> Iterator[Chart]:
    frame = results.table(("layer", "bit"))
    held = frame[(frame["trials"] > 0) & (frame["bit"] >= 0)]
    if results.columns.values is None and held["bit"].nunique() > 1 and held["layer"].nunique() > 1:
        title = f"Layer by bit: {_what(results)}"
        yield heat_map(held, ("layer", "bit"), title=title, name=f"{results.name}-layer-bit")


def _channels(results: Results) -> Iterator[Chart]:
    if "channel" not in results.space.groupings:
        return
    frame = results.table("channel")
    struck = frame[frame["trials"] > 0]
    ranked = worst_first(struck[struck["low"] > 0])
    if not len(ranked):
        return
    yield Intervals.of(
        ranked.head(_CHANNELS),
        title=f"The {min(_CHANNELS, len(ranked))} most vulnerable channels: {_what(results)}",
        head="channel",
        name=f"{results.name}-channels",
        unit=unit_of(results),
        notes=[
            f"of {count(len(struck))} channels that were struck, those with the highest lower bounds: picked for that, "
            "they look worse than they are"
        ],
    )


def _steps(results: Results) -> Iterator[Chart]:
    if "step" not in results.space.groupings or results.design.clusters is not None:
        return
    frame = results.table("step")
    held = frame[(frame["key"] >= 0) & (frame["trials"] > 0)]
    if len(held) > 1:
        notes = ["faults in what has time steps; weights serve every step and are left out"]
        told = {"head": "time step", "name": f"{results.name}-steps", "unit": unit_of(results), "notes": notes}
        yield Columns.of(held, title=f"Time steps: {_what(results)}", **told)  # type: ignore[arg-type]


def ending(results: Results, frame: "pd.DataFrame") -> Section:
    """Return how trials ended: in the classes of *frame*, and these by layer."""
    whole = Intervals.of(
        frame,
        title="Outcomes, each fault in one class",
        head="outcome",
        name=f"{results.name}-outcomes",
        notes=[f"{name}: {OUTCOMES[name]}" for name in frame["outcome"]],
    )
    seen, told = classified(results), []
    table = results.table("layer")[["key", "trials"]].rename(columns={"key": "layer"})
    harmful = [name for name in ("SDC", "DUE", "crash") if frame.set_index("outcome")["trials"][name] > 0]
    for name in [*harmful, *(["erased"] if "erased" in set(frame["outcome"]) else [])]:
        table[name] = seen.table("layer", name)["value"]
    held = table[table["trials"] > 0]
    draw = partial(Stacks.of, held, head="layer", rows=_LAYERS)
    if harmful:
        told.append(draw(harmful, title="How failures show, by layer", name=f"{results.name}-outcomes-by-layer"))
    if "erased" in held:
        note = "the share of faults after which all outputs are bit for bit as without; the others reach the outputs"
        title = "Where errors die on the way"
        told.append(draw(["erased"], title=title, name=f"{results.name}-erased", notes=[note]))
    return Section("How trials ended", charts=[whole, *told])


def travelling(results: Results) -> Section | None:
    """Return at which sites errors were last alive, ``None`` without a monitor."""
    if results.columns.reach is None:
        return None
    title = "Errors that are alive at a site or behind it, in execution order"
    notes = ["sites at which no error was last seen alive are left out: as many are alive there as at the next one"]
    told = {"head": "site", "name": f"{results.name}-travel", "notes": notes, "rows": _LAYERS}
    chart = Intervals.of(endings(travel(results)), title=title, **told)  # type: ignore[arg-type]
    return Section("How far errors travel", charts=[chart])


def converging(results: Results) -> Section | None:
    """Return how the estimate settled, ``None`` where trials are no growing sample."""
    frame = convergence(results)
    if len(frame) < 2:
        return None
    held = "hold together, at every look" if results.design.looks == "every" else "are each of one look"
    title = f"Estimate after so many trials: {_what(results)}"
    note = f"line: the estimate; band: its {100 * results.level:g} % intervals, which {held}"
    told = {"head": "trials", "name": f"{results.name}-convergence", "unit": unit_of(results), "notes": [note]}
    return Section("How the estimate settled", charts=[Curve.of(frame, title=title, **told)])  # type: ignore[arg-type]
