"""The answers of a campaign in sentences, each number with its interval, and the figures to be seen first."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torchfault.report.findings import unit_of
from torchfault.report.numbers import PERCENT, POINTS
from torchfault.report.rows import estimate_of, rows_of, worst_first
from torchfault.report.section import Figure, Section
from torchfault.report.words import failing, fault_of, field_of, kinds_of, listed, metric_of, unit_word
from torchfault.results import Results
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate
from torchfault.statistics.differences import difference
from torchfault.text import count, duration, visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["answers", "cost", "figure_of"]


def figure_of(one: Estimate, means: str, results: Results) -> Figure:
    """Return an estimate as a figure."""
    unit = unit_of(results)
    digits = unit.digits([(one.value, one.low, one.high)])
    value = unit.text(one.value, digits) + (f" {unit.sign}" if unit.sign else "")
    return Figure(value, unit.interval(one.low, one.high, digits), means)


def answers(results: Results, classes: "pd.DataFrame | None") -> Section:
    """Return what a campaign says of its network: how often faults do harm, where, and how by *classes*."""
    whole = results.estimate()
    metric = results.columns.values is not None
    what = f"{results.measured} of {metric_of(results)}" if metric else f"of {unit_word(results)} fail"
    figures = [figure_of(whole, what, results)]
    said = [_headline(results, whole)]
    if classes is not None:
        found = {str(row.outcome): estimate_of(row) for row in rows_of(classes)}
        figures += [
            figure_of(found["SDC"], "are silent (SDC)", results),
            figure_of(found["DUE"], "are NaN or infinity (DUE)", results),
        ]
        said.append(_split(found))
    elif (known := results.audit()) is not None:
        said.append(f"Not every outcome was seen: {known}.")
    figures.append(Figure(count(len(results)), f"in {duration(results.record.seconds)}", "trials"))
    said += [*_worst_layer(results), *_kinds(results), *_bits(results)]
    return Section("Answers", said, figures)


def _headline(results: Results, whole: Estimate) -> str:
    record, level = results.record, f"{100 * results.level:g} % interval from {count(len(results))} trials"
    where = f" in {count(len(results.space.sites))} sites" if isinstance(results.space, FaultSpace) else ""
    inputs = f", on any of {count(record.inputs)} inputs" if record.inputs > 1 else ""
    one = f"A random one of {count(len(results.space))} {unit_word(results)}{where} ({fault_of(results)}{inputs})"
    if results.columns.values is not None:
        return f"{one} costs {unit_of(results).full(whole)} of {metric_of(results)} ({results.measured}, {level})."
    return (
        f"{one} fails with a probability of {PERCENT.full(whole)} ({level}). It fails where {failing(results)}, or "
        "where there is no answer."
    )


def _split(found: dict[str, Estimate]) -> str:
    parts = [f"{PERCENT.full(found['SDC'])} fail silently", f"{PERCENT.full(found['DUE'])} end in NaN or infinity"]
    if found["crash"].value > 0:
        parts.append(f"{PERCENT.full(found['crash'])} raise an exception")
    else:
        parts.append(f"none raised an exception (at most {PERCENT.text(found['crash'].high, 3)} %)")
    erased = found.get("erased")
    died = "" if erased is None else f" {PERCENT.full(erased)} die on the way: all outputs are as without the fault."
    return f"{listed(parts)}.{died}"


def _worst_layer(results: Results) -> Iterator[str]:
    """Say which layer fails most, and how sure that is."""
    frame = results.table("layer")
    held = rows_of(worst_first(frame[frame["trials"] > 0]))
    if len(held) < 2 or not held[0].low > 0:
        return
    first, rivals = held[0], sum(row.high > held[0].low for row in held[1:])
    sure = (
        f"the intervals of {count(rivals)} of the other {count(len(held) - 1)} layers reach into its own, so that more "
        "trials are needed to rank them"
        if rivals
        else "no other layer's interval reaches into its own"
    )
    named = unit_of(results).full(estimate_of(first))
    yield f"The most vulnerable layer, by its lower bound, is {visible(first.key)} with {named}; {sure}."


def _kinds(results: Results) -> Iterator[str]:
    """Compare the kinds of sites with the most and the fewest failures."""
    named, unit = kinds_of(results), unit_of(results)
    held = [row for row in rows_of(results.table("kind")) if row.trials and row.key in named]
    if len(held) < 2:
        return
    held.sort(key=lambda row: -row.value)
    most, least = held[0], held[-1]
    apart = difference(estimate_of(most), estimate_of(least))
    sure = "they differ" if apart.low > 0 or apart.high < 0 else "the trials do not tell which is worse"
    yield (
        f"Faults in {named[most.key]} fail in {unit.full(estimate_of(most))}, in {named[least.key]} in "
        f"{unit.full(estimate_of(least))}: a difference of {(POINTS if unit.sign else unit).full(apart)}; {sure}."
    )


def _bits(results: Results) -> Iterator[str]:
    """Say which bit is behind most failures."""
    held = [row for row in rows_of(results.table("bit")) if row.trials and row.key >= 0]
    failures = sum(row.failures for row in held)
    if len(held) < 2 or not failures or results.columns.values is not None or results.columns.weights is not None:
        return
    worst = max(held, key=lambda row: row.failures)
    name, clean = field_of(results, worst.key), sum(row.failures == 0 for row in held)
    harmless = f"; {count(clean)} of {count(len(held))} bits never failed" if clean else ""
    yield (
        f"Bit {worst.key}{f' ({name})' if name else ''} is behind {100 * worst.failures / failures:.0f} % of the "
        f"{count(failures)} failures: {PERCENT.full(estimate_of(worst))} of its flips fail{harmless}."
    )


def cost(results: Results) -> str:
    """Return what a campaign took, in a sentence."""
    record, lanes = results.record, results.lanes
    rate = f", {count(lanes / record.seconds)} lanes a second" if record.seconds > 0 else ""
    executor = record.versions.get("executor", "unknown")
    return (
        f"{count(len(results))} trials took {count(lanes)} lanes (one input through the model each) and "
        f"{duration(record.seconds)} on the {executor} executor{rate}."
    )
