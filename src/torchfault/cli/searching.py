"""How a search is shown: what was found after so many trials, and how much that is of all there is."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torchfault.cli.screen import Column, Table, count, facts, say, share
from torchfault.cli.views import Look, Tab, View, plain_view

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from torchfault.results import Recall, Results

__all__ = ["search_view"]

_LATEST = 10  # faults listed on the screen, unless told


def search_view(results: "Results", look: Look) -> View:
    """Return the view of a search: its recall, and the faults that it found."""
    from torchfault.results import recall

    plain, found = plain_view(results, look), recall(results, level=look.level)

    def figure(by: str | None) -> "Figure":
        from torchfault.report import plot_recall

        return plain.figure(by) if by in plain.tabs else plot_recall(found, title=results.name)

    own = {"recall": Tab(found.table, _recall), "found": Tab(lambda: _faults(results), partial(_found, look))}
    following = ("export {name} --flag failed", "show {name} --by layer", "resume {name} --trials N")
    return replace(
        plain,
        head=partial(_head, results, found),
        tabs=own | dict(plain.tabs),
        screen=("recall", "found"),
        ranked="found",
        figure=figure,
        following=following,
    )


def _head(results: "Results", found: "Recall") -> None:
    total = found.total
    say((results.name, "bold"), f"  {count(len(found.faults))} faults found that fail", out=True)
    bounds = f"[{count(round(total.low))}, {count(round(total.high))}]"
    facts(
        [
            ("in all", f"about {count(round(total.value))} {bounds}, at {100 * total.level:g} % confidence"),
            ("space", f"{count(len(results.space))} faults, of which {count(len(results))} were struck"),
            ("side", f"{count(found.side)} of them at random, by which the others are counted"),
        ],
        out=True,
    )


def _recall(frame: "pd.DataFrame") -> Table:
    columns = [Column(name, True) for name in ("trials", "found", "precision %", "recall %", "low", "high")]
    rows = [
        [count(int(trials)), count(int(hits)), *(share(part) for part in parts)]
        for trials, hits, *parts in frame.itertuples(index=False)
    ]
    told = "precision: failing faults among those struck; recall: among all that fail, as the random sample counts them"
    return Table(columns, rows, notes=(told,))


def _faults(results: "Results") -> "pd.DataFrame":
    """Return the faults that fail, in the order in which they were found."""
    return results.faults().query("failed").drop(columns=["weight", "failed"])


def _found(look: Look, frame: "pd.DataFrame") -> Table:
    latest = frame.tail(look.top or _LATEST)
    heads = {"trial": True, "site": False, "element": True, "bit": True, "input": True}
    columns = [Column(name, right) for name, right in heads.items()]
    told = f"the latest {len(latest)} of {count(len(frame))}; torchfault export --flag failed writes all"
    return Table(columns, latest[list(heads)].astype(str).to_numpy().tolist(), notes=(told,))
