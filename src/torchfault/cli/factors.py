"""How an analysis is shown: vulnerability factors of sites, of the worst channels and of the model."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torchfault.cli.screen import Column, Table, count, duration, facts, say, share
from torchfault.cli.tables import interval
from torchfault.cli.views import Look, Tab, View, ending, plain_view

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from torchfault.results import Results

__all__ = ["factor_view"]

_WORST = 10  # channels on the screen, unless told


def factor_view(results: "Results", look: Look) -> View:
    """Return the view of a campaign for vulnerability factors: tables of these instead of those of trials."""
    from torchfault.results import factors

    plain = plain_view(results, look)

    def of(by: Any, people: Callable[["pd.DataFrame"], Table]) -> Tab:
        return Tab(lambda: factors(results, by, flag=look.flag, level=look.level), people)

    own = {
        "site": of("site", partial(_sites, results, look)),
        "layer": of("layer", partial(_simple, look, ("layer",), "Factors of layers")),
        "channel": Tab(partial(_with_ranges, results, look), partial(_channels, look)),
        "bit": of("bit", partial(_simple, look, ("site", "bit"), "Factors of bits")),
        "model": of("model", partial(_model, look)),
        "word": of("word", _words),
        "plan": Tab(partial(_plan, results), _planned),
    }
    return replace(
        plain,
        head=partial(_head, results, look),
        tabs=own | {"diagnostics": plain.tabs["diagnostics"]},
        screen=("site", "channel", "model"),
        ranked="channel",
        figure=partial(_figure, results, look),
        following=("show {name} --by channel --format csv", "show {name} --by plan", "export {name}"),
    )


def _head(results: "Results", look: Look) -> None:
    from torchfault.results import factors

    record = results.record
    row = factors(results, "model", flag=look.flag, level=look.level).iloc[-1]
    found = f"  {share(row.value)} % {interval(row.low, row.high)} of single bit flips there fail"
    say((record.name, "bold"), found, (f"  ({100 * look.level:g} % interval, total MVF)", "dim"), out=True)
    known = results.audit(level=look.level)
    runs = count(round(results.lanes / max(record.inputs, 1)))
    facts(
        [
            ("analysed", f"{count(record.inputs)} inputs, {count(results.lanes)} lanes in {duration(record.seconds)}"),
            ("runs", f"as many lanes as {runs} runs of all inputs"),
            ("rests on", "" if known is None else str(known)),
            ("ended", ending(record)),
        ],
        out=True,
    )


def _bounds(look: Look) -> list[Column]:
    return [Column("VF %", True), Column(f"{100 * look.level:g} % interval")]


def _cells(row: Any) -> list[str]:
    return [share(row.value), interval(row.low, row.high)]


def _rows(frame: "pd.DataFrame") -> list[Any]:
    return list(frame.itertuples(index=False))


def _sites(results: "Results", look: Look, frame: "pd.DataFrame") -> Table:
    notes = ["VF: the probability that one random single bit flip there fails"]
    if "channels" in frame:
        drawn = [Column("channels", True, 2), Column("words", True, 4)]
        cells = [[f"{r.channels_drawn} of {r.channels}", f"{r.words_drawn} of {r.words}"] for r in _rows(frame)]
        notes[0] += "; channels, words in each: those drawn"
    else:
        drawn, cells = [Column("trials", True, 2)], [[count(r.trials)] for r in _rows(frame)]
    rows = [[r.site, r.kind, *mine, *_cells(r)] for r, mine in zip(_rows(frame), cells, strict=True)]
    if (frame["low"] == frame["high"]).any():
        inputs = count(results.record.inputs)
        notes.append(
            f"an interval without a width: nothing was left out, and it speaks for these {inputs} inputs alone"
        )
    columns = [Column("site"), Column("kind", rank=3), *drawn, *_bounds(look)]
    return Table(columns, rows, "Vulnerability factors of sites (LVF)", notes)


def _simple(look: Look, keys: tuple[str, ...], title: str, frame: "pd.DataFrame") -> Table:
    rows = [[*(str(getattr(r, key)) for key in keys), *_cells(r)] for r in _rows(frame)]
    return Table([*(Column(key, key == "bit") for key in keys), *_bounds(look)], rows, title)


def _with_ranges(results: "Results", look: Look) -> "pd.DataFrame":
    """Return the factors of channels, and of whole words the changes that did no harm in each."""
    from torchfault.results import factors, ranges
    from torchfault.results.vulnerability import in_two_stages

    found = factors(results, "channel", flag=look.flag, level=look.level)
    if not in_two_stages(results):
        return found
    return found.merge(ranges(results, "channel", flag=look.flag), on=["site", "channel"], how="left")


def _channels(look: Look, frame: "pd.DataFrame") -> Table:
    from torchfault.report.rows import worst_first

    worst = worst_first(frame).head(look.top or _WORST)
    if "detected" in frame:
        told = "harmless: changes of a value in between never failed; detected: harmful flips beyond the golden range"
        more = [Column("harmless changes", rank=1), Column("detected %", True, 2)]
        cells = [[f"({r.delta_low:.3g}, {r.delta_high:.3g})", share(r.detected)] for r in _rows(worst)]
    else:
        told = "few trials each; --share all, under another --name, decides about whole words of every channel"
        more, cells = [Column("trials", True, 2)], [[count(r.trials)] for r in _rows(worst)]
    rows = [[f"{r.site}[{r.channel}]", *_cells(r), *mine] for r, mine in zip(_rows(worst), cells, strict=True)]
    return Table([Column("channel"), *_bounds(look), *more], rows, "Most vulnerable channels", (told,))


def _model(look: Look, frame: "pd.DataFrame") -> Table:
    rows = [[f"{r.factor} of {r.kind}", *_cells(r)] for r in _rows(frame)]
    told = "MVF: the mean over sites; total MVF: sites weighed by their words, so that every bit counts alike"
    return Table([Column("factor"), *_bounds(look)], rows, "The model", (told,))


def _words(frame: "pd.DataFrame") -> Table:
    rows = [[f"{r.site}[{r.element}]", str(r.channel), share(r.value)] for r in _rows(frame)]
    return Table([Column("word"), Column("channel", True), Column("VF %", True)], rows, "Factors of single words")


def _plan(results: "Results") -> "pd.DataFrame":
    """Return what injection would take for the same sites, in runs of all inputs, beside what this analysis took."""
    import pandas as pd

    from torchfault.sampling import plan
    from torchfault.space import FaultSpace

    assert isinstance(results.space, FaultSpace)
    table = plan(results.space)[["method", "trials"]].rename(columns={"trials": "runs"})
    own = results.lanes / max(results.record.inputs, 1)
    rows = pd.concat([pd.DataFrame([("this analysis", own)], columns=["method", "runs"]), table], ignore_index=True)
    rows["ratio"] = rows["runs"] / max(own, 1e-9)
    return rows


def _planned(frame: "pd.DataFrame") -> Table:
    rows = [[r.method, count(round(r.runs)), f"{r.ratio:,.1f}"] for r in _rows(frame)]
    columns = [Column("method"), Column("runs", True), Column("times as many", True)]
    told = "a run: all inputs once; injection for a margin of ±1 % at 95 %, each fault on all inputs, as published"
    return Table(columns, rows, "What injection takes", (told,))


def _figure(results: "Results", look: Look, by: str | None) -> "Figure":
    """Return the plot of one table, or of sites and bits."""
    from torchfault.report import plot_tables
    from torchfault.results import factors

    tables = {}
    for name in (by,) if by in ("site", "layer", "channel", "bit") else ("site", "bit"):
        frame = factors(results, name, flag=look.flag, level=look.level).assign(trials=1)  # type: ignore[arg-type]
        if name == "bit":
            bounds = ["value", "low", "high"]
            tables[name] = (
                frame.groupby("bit", as_index=False)[[*bounds, "trials"]].mean().rename(columns={"bit": "key"})
            )
        else:
            key = frame["site"] + "[" + frame["channel"].astype(str) + "]" if name == "channel" else frame[name]
            tables[name] = frame.assign(key=key)
    return plot_tables(
        tables, title=f"{results.name}: vulnerability factors", level=look.level, unit="failing flips (%)"
    )
