"""`show` and `export`, and the end of every campaign: results on the screen, from the store alone, without torch."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torchfault.cli.dropping import drop_view
from torchfault.cli.factors import factor_view
from torchfault.cli.machine import campaign_told, estimate_told, print_object, rows_of
from torchfault.cli.resiliency import resiliency_view
from torchfault.cli.screen import (
    Column,
    Table,
    check_format,
    count,
    duration,
    next_steps,
    print_frame,
    say,
    show_table,
)
from torchfault.cli.searching import search_view
from torchfault.cli.views import Look, Tab, View, Wanted, followed, plain_view
from torchfault.errors import ConfigError, StoreError, did_you_mean
from torchfault.text import file_name, masked

if TYPE_CHECKING:
    import pandas as pd

    from torchfault.results import Results
    from torchfault.store import Record, Store

__all__ = ["check_wanted", "export_campaign", "find", "short", "show_campaign", "show_results", "store_flag"]


def check_wanted(wanted: Wanted) -> None:
    """Raise an error for options that cannot be, before any work is done."""
    check_format(wanted.form, as_json=wanted.as_json)
    if wanted.plot is not None:
        from torchfault.report.plots import check_plot

        check_plot(wanted.plot, force=wanted.force)


def show_campaign(name: str | None, where: str, wanted: Wanted) -> None:
    """Show one campaign, or the list of all where there are several and none is named."""
    from torchfault.results import load
    from torchfault.store import Store

    check_wanted(wanted)
    with Store(where, access="read") as store:
        records = store.campaigns() if name is None else ()
        if name is None and len(records) != 1:
            _list(records, where, wanted)
            return
        results = load(store, name or records[0].name)
    show_results(results, wanted, where=where)


def show_results(
    results: "Results", wanted: Wanted, *, where: str | None = None, tables: Sequence[str] | None = None
) -> None:
    """Print what was asked for of *results*, save a plot, and, where they are kept in *where*, say what may follow.

    Unless a table is asked for, *tables* are shown, or those of the recipe.
    """
    settings = results.record.configuration.get("settings") or {}
    level = results.level if wanted.level is None else wanted.level
    look = Look(wanted.flag, level, wanted.method or str(settings.get("method", "wilson")), wanted.top)
    view = _view(results, look)
    if wanted.by is not None and wanted.by not in view.tabs:
        known = ", ".join(view.tabs)
        raise ConfigError(
            f"--by: '{results.name}' has the tables {known}, got '{wanted.by}'{did_you_mean(wanted.by, view.tabs)}"
        )
    names = (tables or view.screen) if wanted.by is None else (wanted.by,)
    if wanted.as_json:
        print_object("campaign", _told(results, view, look, names, wanted))
    elif wanted.form == "table" and not len(results):
        say((results.name, "bold"), " has no trials yet", out=True)
    elif wanted.form == "table":
        view.head()
        for name in names:
            say(out=True)
            tab = view.tabs[name]
            top = wanted.top if wanted.by or name == view.ranked else None
            show_table(tab.people(_most(tab, top)))
    else:
        print_frame(_most(view.tabs[names[0]], wanted.top), wanted.form, level=level)
    if wanted.plot is not None:
        from torchfault.report.plots import save

        save(view.figure(wanted.by), wanted.plot, force=wanted.force)
        say()
        say(f"  plot saved to {wanted.plot}")
    if where is not None and wanted.form == "table" and not wanted.as_json:
        next_steps(followed(view, results.name, store_flag(where)))


def _told(results: "Results", view: View, look: Look, names: Sequence[str], wanted: Wanted) -> dict[str, object]:
    """Return what `--json` tells of a campaign: its facts, its estimate, and the tables by *names*."""
    tables = {name: rows_of(_most(view.tabs[name], wanted.top)) for name in names} if len(results) else {}
    return {
        "campaign": campaign_told(results.record),
        "estimate": estimate_told(results, look.flag, level=look.level, method=look.method),
        "tables": tables,
        "plot": None if wanted.plot is None else str(wanted.plot),
    }


def _most(tab: Tab, top: int | None) -> "pd.DataFrame":
    """Return the rows of a table, or those with the highest lower bounds: one failure in two trials says little."""
    frame = tab.frame()
    if top is None:
        return frame
    if "low" not in frame:
        return frame.tail(top)
    from torchfault.report.rows import worst_first

    held = frame[frame["trials"] > 0] if "trials" in frame else frame
    return worst_first(held).head(top)


def _view(results: "Results", look: Look) -> View:
    """Return the view that fits what was drawn: of a search, of upsets, of words that were analysed, of faults."""
    from torchfault.results.dropping import sought
    from torchfault.results.upset_sample import lacking
    from torchfault.results.vulnerability import of_factors

    if not lacking(results.record):
        return resiliency_view(results, look)
    if sought(results) is not None:
        return drop_view(results, look)
    if results.design.sample is not None:
        return search_view(results, look)
    if of_factors(results):
        return factor_view(results, look)
    return plain_view(results, look)


def export_campaign(
    name: str | None, where: str, *, output: Path | None, flag: str | None, force: bool, as_json: bool
) -> None:
    """Write all trials of a campaign to a file, or those with a flag."""
    from torchfault.results import export_trials
    from torchfault.store import Store

    with Store(where, access="read") as store:
        record = find(store, name)
        target = output or Path(f"{file_name(record.name)}.csv")
        rows = export_trials(store, record.name, target, only=flag, force=force)
    if as_json:
        print_object("export", {"campaign": campaign_told(record), "flag": flag, "file": str(target), "rows": rows})
        return
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


def _list(records: Sequence["Record"], where: str, wanted: Wanted) -> None:
    """Print which campaigns a store holds."""
    import pandas as pd

    if wanted.as_json:
        print_object("campaigns", {"store": short(where), "campaigns": [campaign_told(record) for record in records]})
        return
    if not records and wanted.form == "table":
        say(f"{short(where)} holds no campaign yet; start one with: torchfault run --help", out=True)
        return
    recipes = [str((r.configuration.get("settings") or {}).get("recipe", "")) for r in records]
    rows = [
        (r.name, recipe, r.status, r.trials, r.inputs, r.faults, round(r.seconds, 3), r.created)
        for r, recipe in zip(records, recipes, strict=True)
    ]
    names = ["name", "recipe", "status", "trials", "inputs", "faults", "seconds", "created"]
    if wanted.form != "table":
        print_frame(pd.DataFrame(rows, columns=names), wanted.form)
        return
    columns = [Column("campaign"), Column("recipe", rank=2), Column("status"), Column("trials", True)]
    columns += [Column("faults", True, 1), Column("time", True, 3), Column("begun", rank=4)]
    shown = [
        (r.name, recipe, r.status, count(r.trials), count(r.faults), duration(r.seconds), r.created)
        for r, recipe in zip(records, recipes, strict=True)
    ]
    show_table(Table(columns, shown))
    next_steps([f"torchfault show {records[-1].name}{store_flag(where)}"])


def store_flag(where: str) -> str:
    """Return the flag that names the store, unless it is the usual one; passwords are masked."""
    return "" if short(where) == "torchfault.db" else f" --store {short(where)}"


def short(where: str) -> str:
    """Return a path as the user would type it from here; a URL stays, without its password."""
    with suppress(OSError, ValueError):
        path = Path(where).absolute()
        if "://" not in where and path.is_relative_to(Path.cwd()):
            return str(path.relative_to(Path.cwd()))
    return masked(where)
