"""`search`: find critical faults, and tell how many of them were found."""

from pathlib import Path
from typing import TYPE_CHECKING

from torchfault.cli.running import campaign_of
from torchfault.cli.screen import check_format, count, facts, print_frame, print_table, say, share, simple_table
from torchfault.config import Settings
from torchfault.config.schema import Sampler
from torchfault.errors import ConfigError

if TYPE_CHECKING:
    from torchfault.campaign import Results

__all__ = ["search_faults", "show_discovery"]


def search_faults(settings: Settings, *, top: int, plot: Path | None, output: Path | None, form: str) -> None:
    """Search, or go on with a search that the store holds; print what was found, and how much of it all."""
    from torchfault.report.plots import check_plot
    from torchfault.store import Store

    check_format(form)
    if plot is not None:
        check_plot(plot)
    if output is not None and output.suffix.lower() != ".csv":
        raise ConfigError(f"--output: expected a .csv file, got '{output.name}'")
    name = f"{settings.name}-search"
    searching = settings.model_copy(update={"sampler": Sampler(kind="search"), "name": name})
    with Store(searching.store) as store:
        results = campaign_of(searching, store)
    show_discovery(results, top=top, form=form)
    found = results.faults().query("failed")
    if output is not None:
        found.to_csv(output, index=False, lineterminator="\n")
        say()
        say(f"  {count(len(found))} faults written to {output}")
    if plot is not None:
        from torchfault.report.plots import plot_discovery, save

        save(plot_discovery(results.discovery(), title=results.name), plot)
        say()
        say(f"  plot saved to {plot}")


def show_discovery(results: "Results", *, top: int, form: str) -> None:
    """Print the precision and the recall of a search, and the first *top* faults that it found."""
    found = results.discovery()
    frame = found.table()
    if form != "table":
        print_frame(frame, form)
        return
    total = found.total
    say((results.name, "bold"), f"  {count(len(found.faults))} faults found that fail", out=True)
    facts(
        [
            ("in all", f"about {count(round(total.value))} [{count(round(total.low))}, {count(round(total.high))}]"),
            ("space", f"{count(len(results.space))} faults, of which {count(len(results))} were struck"),
            ("side", f"{count(found.side)} of them at random, by which the others are counted"),
        ],
        out=True,
    )
    say(out=True)
    heads = dict.fromkeys(("trials", "found", "precision", "recall", "low", "high"), "right")
    rows = [
        [count(int(trials)), count(int(hits)), *(share(part) for part in parts)]
        for trials, hits, *parts in frame.itertuples(index=False)
    ]
    print_table(simple_table(heads, rows))
    if top:
        say(out=True)
        places = results.faults().query("failed").tail(top)
        columns = {"trial": "right", "site": "left", "element": "right", "bit": "right", "input": "right"}
        print_table(simple_table(columns, places[list(columns)].astype(str).to_numpy().tolist()))
