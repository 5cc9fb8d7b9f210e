"""`show` and `export`: what a store holds, without torch and without the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchfault.cli.screen import (
    check_format,
    count,
    duration,
    facts,
    print_frame,
    print_table,
    say,
    share,
    simple_table,
    width,
)
from torchfault.cli.tables import results_table
from torchfault.errors import StoreError

if TYPE_CHECKING:
    from torchfault.campaign import Results
    from torchfault.store import Record, Store

__all__ = [
    "export_campaign",
    "find",
    "level_and_method",
    "show_campaign",
    "show_diagnostics",
    "summary",
]


def show_campaign(
    name: str | None,
    where: str,
    *,
    by: str,
    form: str,
    top: int | None,
    plot: Path | None,
    level: float | None,
    interval: str | None,
) -> None:
    """Print the table of one campaign, or the list of all where there are several and none is named."""
    from torchfault.campaign import load
    from torchfault.store import Store

    check_format(form)
    with Store(where, access="read") as store:
        records = store.campaigns()
        if name is None and len(records) != 1:
            _list(records, where, form)
            return
        results = load(store, name or records[0].name)
    chosen, method = level_and_method(results.record, level, interval)
    frame = results.table(by, level=chosen, method=method)
    if top is not None:
        # By the lower bound: one failure in two trials is a large share, but says little.
        frame = frame[frame["trials"] > 0].sort_values(["low", "value"], ascending=False, kind="stable").head(top)
    if plot is not None:
        save_plot(results, plot, level=chosen, method=method)
    if form == "table":
        summary(results, level=chosen, method=method)
        say(out=True)
        print_table(results_table(results, frame, by=by, level=chosen, method=method, width=width()))
    else:
        print_frame(frame, form)
    if plot is not None:
        say()
        say(f"  plot saved to {plot}")


def show_diagnostics(name: str | None, where: str, *, form: str, level: float | None) -> None:
    """Print how the trials of a campaign were spent, and what its sampler starved."""
    from torchfault.campaign import load
    from torchfault.store import Store

    check_format(form)
    with Store(where, access="read") as store:
        results = load(store, find(store, name).name)
    chosen, _ = level_and_method(results.record, level, None)
    found = results.diagnostics(level=chosen)
    if form != "table":
        print_frame(found.allocation, form)
        return
    facts(
        [
            ("trials", f"{count(found.trials)}, by {count(results.lanes)} lanes"),
            ("weights", f"{found.lightest:.3g} to {found.heaviest:.3g}"),
            (
                "effective",
                f"{found.effective:,.0f} trials (Kish); design effect {found.design_effect:.3g}",
            ),
            ("worth", "" if found.worth != found.worth else f"{found.worth:,.0f} uniform trials for the same interval"),
        ],
        out=True,
    )
    say(out=True)
    heads = dict.fromkeys(("stratum", "faults", "trials", "failures", "weight", "variance"), "right")
    rows = [
        [str(stratum), share(part), count(trials), count(failures), f"{weight:.3g}", share(variance)]
        for stratum, part, trials, failures, weight, variance in found.allocation.itertuples(index=False)
    ]
    print_table(simple_table(heads, rows))
    for warning in found.warnings:
        say((f"  warning: {warning}", "yellow"))


def export_campaign(name: str | None, where: str, *, output: Path | None, force: bool) -> None:
    """Write all trials of a campaign to a file."""
    from torchfault.store import Store

    with Store(where, access="read") as store:
        record = find(store, name)
        target = output or Path(f"{record.name}.csv")
        if target.exists() and not force:
            raise StoreError(f"the file '{target}' exists; choose another --output, or write over it with --force")
        rows = store.export(record.name, target)
    say(f"{count(rows)} rows of campaign '{record.name}' written to {target}")


def find(store: "Store", name: str | None) -> "Record":
    """Return the campaign called *name*, or the only one where no name is given."""
    if name is not None:
        return store.campaign(name)
    records = store.campaigns()
    if len(records) != 1:
        held = f"it holds {', '.join(record.name for record in records[:8])}" if records else "it holds none"
        raise StoreError(f"say which campaign of {store}: {held}")
    return records[0]


def level_and_method(record: "Record", level: float | None, interval: str | None) -> tuple[float, str]:
    """Return the level and the method asked for, or those of the campaign."""
    settings: Mapping[str, Any] = record.configuration.get("settings", {})
    chosen = settings.get("level", 0.95) if level is None else level
    return float(chosen), str(interval or settings.get("interval", "wilson"))


def summary(results: "Results", *, level: float, method: str) -> None:
    """Print what a campaign found on the whole, and by which trials."""
    record = results.record
    estimate = results.estimate(level=level, method=method)
    metric = results.columns.values is not None
    if not len(results):
        say((record.name, "bold"), " has no trials yet", out=True)
        return
    what = (
        f"{results.measured} {estimate}"
        if metric
        else f"{estimate.format_percent()} of {count(len(results))} trials fail"
    )
    say((record.name, "bold"), f"  {what}", (f"  ({100 * level:g} % interval, {estimate.method})", "dim"), out=True)
    due, sites = int(results.columns.due.sum()), count(len(results.space.sites))
    struck = f"{count(results.failures)} {'changed the metric' if metric else 'failures'}"
    facts(
        [
            ("outcome", f"{struck}, {count(due)} of them with NaN or infinity (DUE)" if due else struck),
            (
                "faults",
                f"{count(len(results.space))} in {sites} sites, on {count(record.inputs)} inputs",
            ),
            ("lanes", _lanes(results, level)),
            ("ended", f"{_ending(record)}, after {duration(record.seconds)}"),
        ],
        out=True,
    )


def _lanes(results: "Results", level: float) -> str:
    """Return by how many lanes the outcomes were found, and on what they rest, where shortcuts were taken."""
    known = results.audit(level=level)
    return "" if known is None else str(known)


def _ending(record: "Record") -> str:
    """Return why a campaign stopped, or that it has not."""
    if record.status in ("finished", "interrupted") and record.reason:
        return record.reason
    return f"{record.status}: {record.reason}" if record.reason else record.status


def _list(records: Sequence["Record"], where: str, form: str) -> None:
    """Print which campaigns a store holds."""
    import pandas as pd

    if not records and form == "table":
        say(f"{short(where)} holds no campaign yet; start one with: torchfault run --help", out=True)
        return
    rows = [(r.name, r.status, r.trials, r.inputs, len(r.space), round(r.seconds, 3), r.created) for r in records]
    frame = pd.DataFrame(rows, columns=["name", "status", "trials", "inputs", "faults", "seconds", "created"])
    if form != "table":
        print_frame(frame, form)
        return
    columns = {
        "campaign": "left",
        "status": "left",
        "trials": "right",
        "faults": "right",
        "time": "right",
        "begun": "left",
    }
    shown = [(r.name, r.status, count(r.trials), count(len(r.space)), duration(r.seconds), r.created) for r in records]
    print_table(simple_table(columns, shown))
    say()
    say(f"  next  torchfault show {records[-1].name}{store_flag(where)}")


def store_flag(where: str) -> str:
    """Return the flag that names the store, unless it is the usual one."""
    return "" if short(where) == "torchfault.db" else f" --store {short(where)}"


def short(where: str) -> str:
    """Return a path as the user would type it from here; a URL stays."""
    path = Path(where).absolute()
    return where if "://" in where or not path.is_relative_to(Path.cwd()) else str(path.relative_to(Path.cwd()))


def save_plot(results: "Results", path: Path, *, level: float, method: str) -> None:
    """Save the plot of a campaign: its sites or layers, and its bits."""
    from torchfault.report.plots import plot_vulnerability, save

    groups = "site" if len(results.space.sites) <= 24 else "layer"
    figure = plot_vulnerability(
        results.table(groups, level=level, method=method),
        results.table("bit", level=level, method=method),
        title=results.name,
        level=level,
        metric=results.columns.values is not None,
        word=next(iter(words)) if len(words := {site.word for site in results.space.sites}) == 1 else None,
    )
    save(figure, path)
