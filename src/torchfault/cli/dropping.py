"""How a search for faults that lower the accuracy by a share is shown: draws and seconds until one was found."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torchfault.cli.machine import campaign_told, print_object, rows_of
from torchfault.cli.screen import Column, Table, count, duration, facts, print_frame, say, share, show_table
from torchfault.cli.views import Look, Tab, View, Wanted, ending, plain_view

if TYPE_CHECKING:
    import pandas as pd

    from torchfault.results import Drops, Results

__all__ = ["drop_view", "show_searches"]

_LATEST = 10  # faults on the screen, unless told


def drop_view(results: "Results", look: Look) -> View:
    """Return the view of one such search: when it found what it looked for, and the faults themselves."""
    from torchfault.results import dropped

    plain, found = plain_view(results, look), dropped(results)
    own = {"found": Tab(partial(_frame, results, found), partial(_faults, look))}
    following = ("export {name}", "show {name} --by bit", "resume {name} --trials N")
    return replace(
        plain,
        head=partial(_head, results, found),
        tabs=own | dict(plain.tabs),
        screen=("found",),
        ranked="found",
        following=following,
    )


def show_searches(searches: "Sequence[tuple[str, Results]]", wanted: Wanted) -> None:
    """Print several searches for one drop side by side, each under the name of what it drew by."""
    from torchfault.results import dropped

    frame = _compared(searches)
    if wanted.as_json:
        told = [campaign_told(results.record) for _, results in searches]
        one = dropped(searches[0][1])
        asked = {"drop": one.drop, "golden": one.golden}
        print_object("searches", {**asked, "campaigns": told, "searches": rows_of(frame)})
        return
    if wanted.form != "table":
        print_frame(frame, wanted.form)
        return
    known = frame.astype(object).where(frame.notna(), None)
    rows = [
        [score, _number(draws), _seconds(seconds), _share(drop), count(found), count(trials)]
        for score, draws, seconds, drop, found, trials in known.itertuples(index=False)
    ]
    heads = ("draws", "seconds", "drop %", "found", "trials")
    note = "draws, seconds, drop: until and of the first that lowers the accuracy so far; trials: all that ran"
    show_table(Table([Column("drawn by"), *(Column(head, True) for head in heads)], rows, notes=(note,)))


def _compared(searches: "Sequence[tuple[str, Results]]") -> "pd.DataFrame":
    import pandas as pd

    from torchfault.results import dropped

    rows = []
    for score, results in searches:
        found = dropped(results)
        first = float(found.values[0]) if len(found.values) else float("nan")
        rows.append((score, found.draws, found.seconds, first, len(found.trials), len(results)))
    names = ["score", "draws", "seconds", "drop", "found", "trials"]
    return pd.DataFrame(rows, columns=names).astype({"draws": "Int64"})


def _head(results: "Results", found: "Drops") -> None:
    asked = f"the accuracy of {share(found.golden)} % by {share(found.drop)} % of itself"
    say((results.name, "bold"), f"  {count(len(found.trials))} draws lower {asked}", out=True)
    first = f"draw {count(found.draws)}, after {_seconds(found.seconds)} s" if found.draws else "not found"
    facts([("first", first), ("ended", f"{ending(results.record)}, {_spent(results)}")], out=True)


def _spent(results: "Results") -> str:
    return f"{count(len(results))} draws in {duration(results.record.seconds)}"


def _frame(results: "Results", found: "Drops") -> "pd.DataFrame":
    frame = results.faults().iloc[found.trials]
    return frame[["trial", "site", "element", "bit"]].assign(drop=found.values)


def _faults(look: Look, frame: "pd.DataFrame") -> Table:
    latest = frame.head(look.top or _LATEST)
    columns = [Column(head, head != "site") for head in ("trial", "site", "element", "bit", "drop %")]
    rows = [[str(cell) for cell in cells[:-1]] + [share(cells[-1])] for cells in latest.itertuples(index=False)]
    told = f"the first {len(latest)} of {count(len(frame))}; drop: of the accuracy without faults"
    return Table(columns, rows, notes=(told,))


def _number(draws: "int | None") -> str:
    return "-" if draws is None else count(draws)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2g}"


def _share(drop: float | None) -> str:
    return "-" if drop is None else share(drop)
