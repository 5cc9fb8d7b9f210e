"""How results are shown, alike for every recipe: a headline, tables by name for people and for machines, a plot."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchfault.cli.screen import Column, Table, count, duration, facts, note, say, share
from torchfault.cli.tables import results_table, travel_table
from torchfault.space import FaultSpace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from torchfault.results import Results
    from torchfault.store import Record

__all__ = ["Look", "Tab", "View", "Wanted", "ending", "followed", "plain_view"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How results are to be shown, as the options of a command say."""

    by: str | None = None
    flag: str = "failed"
    top: int | None = None
    form: str = "table"
    plot: Path | None = None
    force: bool = False
    as_json: bool = False
    level: float | None = None
    method: str | None = None


@dataclass(frozen=True)
class Look:
    """With what eyes results are looked at: which outcome counts, and how intervals are made."""

    flag: str
    level: float
    method: str
    top: int | None


@dataclass(frozen=True)
class Tab:
    """One table: its *frame*, which machines read in full, and how that becomes a table for *people*."""

    frame: Callable[[], "pd.DataFrame"]
    people: Callable[["pd.DataFrame"], Table]


@dataclass(frozen=True)
class View:
    """Results as a recipe shows them: *tabs* by name, those of its *screen*, and *following* commands.

    On the screen only the *ranked* one is cut to its top rows.
    """

    head: Callable[[], None]
    tabs: Mapping[str, Tab]
    screen: Sequence[str]
    ranked: str
    figure: Callable[[str | None], "Figure"]
    following: Sequence[str] = ()


def plain_view(results: "Results", look: Look) -> View:
    """Return the view of any campaign: its estimate, and a table for each grouping of its space."""

    def grouped(by: str) -> Tab:
        shown = {"by": by, "flag": look.flag, "level": look.level, "method": look.method}
        return Tab(
            lambda: results.table(by, look.flag, level=look.level, method=look.method),
            lambda frame: results_table(results, frame, **shown),  # type: ignore[arg-type]
        )

    def figure(by: str | None) -> "Figure":
        from torchfault.report import plot

        return plot(results, by, flag=look.flag, level=look.level, method=look.method)

    groupings = results.space.groupings
    tabs = {by: grouped(by) for by in groupings}
    tabs["diagnostics"] = Tab(
        lambda: results.diagnostics(level=look.level).allocation, partial(_diagnostics, results, look)
    )
    if results.columns.reach is not None:
        from torchfault.results import travel

        tabs["travel"] = Tab(lambda: travel(results, level=look.level), partial(travel_table, level=look.level))
    screen = [by for by in ("layer", "bit") if by in groupings]
    watched = ("show {name} --by travel",) if "travel" in tabs else ()
    following = ("show {name} --by channel --top 10", *watched, "report {name}", "evidence {name}", "export {name}")
    return View(partial(summary, results, look), tabs, screen, "layer", figure, following)


def followed(view: View, name: str, store: str) -> list[str]:
    """Return the commands that may follow, on the campaign *name*; *store* is the flag that names its store."""
    return [f"torchfault {one.format(name=shlex.quote(name))}{store}" for one in view.following]


def summary(results: "Results", look: Look) -> None:
    """Print what a campaign found on the whole, and by which trials."""
    record = results.record
    estimate = results.estimate(look.flag, level=look.level, method=look.method)
    metric, verb = results.columns.values is not None, "fail" if look.flag == "failed" else f"are '{look.flag}'"
    trials = f"{count(len(results))} trials"
    found = f"{results.measured} {estimate}" if metric else f"{estimate.format_percent()} of {trials} {verb}"
    how = f"  ({100 * look.level:g} % interval, {estimate.method})"
    if not estimate.trials:
        found, how = f"no estimate yet: {trials} are too few for this way to draw", ""
    say((record.name, "bold"), f"  {found}", (how, "dim"), out=True)
    known, proven = results.audit(level=look.level), results.proofs()
    facts(
        [
            ("outcome", _outcome(results, metric=metric)),
            ("faults", faults_of(results)),
            ("lanes", "" if known is None else str(known)),
            ("proofs", "" if proven is None else str(proven)),
            ("ended", f"{ending(record)}, after {duration(record.seconds)}"),
        ],
        out=True,
    )


def _outcome(results: "Results", *, metric: bool) -> str:
    struck = f"{count(results.failures)} {'changed the metric' if metric else 'failures'}"
    ways = [("due", "without an answer (DUE: NaN, infinity)"), ("crash", "by an exception")]
    counts = [(int(results.columns.flag(flag).astype(bool).sum()), how) for flag, how in ways]
    told = [f"{count(number)} of them {how}" for number, how in counts if number]
    return ", ".join([struck, *told])


def faults_of(results: "Results") -> str:
    """Return what could be struck, and on how many inputs, in words."""
    space, record = results.space, results.record
    where = f" in {count(len(space.sites))} sites" if isinstance(space, FaultSpace) else ""
    unusable = record.golden.get("unusable", 0)
    bad = f", {count(unusable)} of them with NaN or infinity even without faults" if unusable else ""
    return f"{count(len(space))}{where}, on {count(record.inputs)} inputs{bad}"


def ending(record: "Record") -> str:
    """Return why a campaign stopped, or that it has not."""
    if record.status in ("finished", "interrupted") and record.reason:
        return record.reason
    return f"{record.status}: {record.reason}" if record.reason else record.status


def _diagnostics(results: "Results", look: Look, frame: "pd.DataFrame") -> Table:
    """Return how trials were spent by stratum; facts are printed before it, and warnings."""
    found = results.diagnostics(level=look.level)
    worth = "" if found.worth != found.worth else f"{found.worth:,.0f} uniform trials for the same interval"
    facts(
        [
            ("trials", f"{count(found.trials)}, by {count(results.lanes)} lanes"),
            ("weights", f"{found.lightest:.3g} to {found.heaviest:.3g}"),
            ("effective", f"{found.effective:,.0f} trials (Kish); design effect {found.design_effect:.3g}"),
            ("worth", worth),
        ],
        out=True,
    )
    for warning in found.warnings:
        note(warning, label="warning")
    heads = ("stratum", "faults", "trials", "failures", "weight", "variance")
    rows: list[list[str]] = []
    cells: Any
    for cells in frame.itertuples(index=False):
        counts = (str(cells.stratum), share(cells.share), count(cells.trials), count(cells.failures))
        rows.append([*counts, f"{cells.weight:.3g}", share(cells.variance)])
    told = "faults, variance: the stratum's part of all faults, and of the estimate's variance, in %"
    return Table([Column(head, right=True) for head in heads], rows, notes=(told,))
