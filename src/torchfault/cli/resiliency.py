"""How Resiliency Accuracy is shown: what upsets cost, by what and where, and what changes of the chip would do."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from torchfault.cli.screen import Column, Table, count, facts, say, share
from torchfault.cli.tables import interval
from torchfault.cli.views import Look, Tab, View, ending, plain_view

if TYPE_CHECKING:
    import pandas as pd

    from torchfault.hardware.accelerator import Accelerator
    from torchfault.results import Fit, Resiliency, Results

__all__ = ["resiliency_view"]

_NOTHING = 1e-12  # less is rounding
_MEANING = {
    "SA": "accuracy without faults",
    "RA": "accuracy, given that an upset struck the chip",
    "drop": "SA - RA",
    "SDC": "another answer, given an upset",
    "DUE": "no answer, given an upset: a crash, NaN or infinity",
}


def resiliency_view(results: "Results", look: Look) -> View:
    """Return the view of upsets of an accelerator: the accuracy that is left, and what takes it away."""
    plain, found = plain_view(results, look), _Found(results, look)
    own = {"summary": Tab(found.summary, partial(_summary, look)), "what-if": Tab(found.changes, _what_if)}
    own |= {by: Tab(partial(found.parts, by), partial(_parts, by)) for by in ("type", "layer", "bit")}
    return replace(
        plain,
        head=partial(_head, results, found),
        tabs=own | {"diagnostics": plain.tabs["diagnostics"]},
        screen=("summary", "type", "layer", "bit", "what-if"),
        following=("show {name} --by what-if --format csv", "export {name}"),
    )


class _Found:
    """What the results say, worked out once."""

    def __init__(self, results: "Results", look: Look) -> None:
        self.results, self.look = results, look

    @cached_property
    def resiliency(self) -> "Resiliency":
        """The estimates."""
        from torchfault.results import resiliency

        return resiliency(self.results, level=self.look.level)

    @property
    def accelerator(self) -> "Accelerator":
        """What was struck."""
        return self.resiliency.sample.space.accelerator

    @cached_property
    def fit(self) -> "Fit | None":
        """Failures in time, where flip-flops are counted."""
        from torchfault.results import fit

        return None if self.accelerator.flip_flops is None else fit(self.results, level=self.look.level)

    def summary(self) -> "pd.DataFrame":
        """Return a data frame of quantities: what, value, low, high; accuracies and probabilities as fractions."""
        import pandas as pd

        found, fit = self.resiliency, self.fit
        rows = [("SA", found.sa, found.sa, found.sa)]
        named = [("RA", found.ra), ("drop", found.drop), ("SDC", found.sdc), ("DUE", found.due)]
        rows += [(name, one.value, one.low, one.high) for name, one in named]
        if fit is not None:
            rows.append(("chip FIT", fit.chip, fit.chip, fit.chip))
            named = [("SDC FIT", fit.sdc), ("DUE FIT", fit.due)]
            rows += [(name, one.value, one.low, one.high) for name, one in named]
        return pd.DataFrame(rows, columns=["quantity", "value", "low", "high"])

    def parts(self, by: str) -> "pd.DataFrame":
        """Return what each group takes from the accuracy."""
        return self.resiliency.table(by)

    def changes(self) -> "pd.DataFrame":
        """Return what changes of the chip would do, from the same upsets weighed anew."""
        from torchfault.results import what_if_table
        from torchfault.results.what_if import usual_changes

        settings = self.results.record.configuration.get("settings") or {}
        layers = (settings.get("ra") or {}).get("protect") or ()
        changes = usual_changes(self.results, layers=layers)
        return what_if_table(self.results, changes, level=self.look.level)


def _head(results: "Results", found: _Found) -> None:
    ra, fit = found.resiliency.ra, found.fit
    accuracy = f"  {share(ra.value)} % {interval(ra.low, ra.high)} accuracy, given an upset"
    say((results.name, "bold"), accuracy, (f"  ({100 * ra.level:g} % interval)", "dim"), out=True)
    told = ["flip-flops are not counted; give --flip-flops"] if fit is None else str(fit).splitlines()
    facts(
        [
            ("chip", found.accelerator.name),
            ("lanes", count(results.lanes)),
            *(("" if at else "FIT", line) for at, line in enumerate(told)),
            ("ended", ending(results.record)),
        ],
        out=True,
    )


def _summary(look: Look, frame: "pd.DataFrame") -> Table:
    columns = [Column(""), Column("%", True), Column(f"{100 * look.level:g} % interval"), Column("meaning", rank=1)]
    rows = [
        [name, share(value), interval(low, high) if high > low else "", _MEANING[name]]
        for name, value, low, high in frame.itertuples(index=False)
        if name in _MEANING
    ]
    return Table(columns, rows)


def _parts(by: str, frame: "pd.DataFrame") -> Table:
    """Show what groups take from the accuracy; bits that take nothing are left out."""
    if by == "bit":
        frame = frame[(frame["data"] != 0) | (frame["control"] > 0)].iloc[::-1]
    columns = [Column(by), Column("data", True), Column("interval"), Column("control", True, 1), Column("both", True)]
    rows = [
        [
            "none" if by == "bit" and name == -1 else str(name),
            *((share(data), interval(low, high)) if high > low else ("", "")),
            share(control) if control else "",
            share(both),
        ]
        for name, data, low, high, control, both in frame.itertuples(index=False)
    ]
    told = "in points of accuracy: faults in data, as sampled, and crashes by faults of control, as summed"
    return Table(columns, rows, f"What takes accuracy away, by {by}", (told,))


def _what_if(frame: "pd.DataFrame") -> Table:
    counted = bool(frame["chip_fit"].max() > 1)
    show: Callable[[float], str] = (lambda value: f"{value:.3g}") if counted else share
    names = ("change", "RA", "RA changes by", "chip", "SDC", "SDC changes by", "DUE", "DUE changes by")
    ranks = (0, 0, 0, 3, 1, 1, 2, 2)
    columns = [
        Column(name, name in ("RA", "chip", "SDC", "DUE"), rank) for name, rank in zip(names, ranks, strict=True)
    ]
    rows = []
    for held in frame.to_dict("records"):
        row = {str(name): value for name, value in held.items()}
        cells = [str(row["change"]), share(row["ra"]), _change(row, "ra_change", share), show(row["chip_fit"])]
        for name in ("sdc_fit", "due_fit"):
            cells += [show(row[name]), _change(row, f"{name}_change", show)]
        rows.append(cells)
    unit = "FIT" if counted else "% of upsets"
    notes = (
        f"from the same upsets weighed anew: RA in %, failures in {unit}",
        "RA is given an upset: without upsets that did no harm it falls, and so do failures; judge by these",
    )
    return Table(columns, rows, "What if", notes)


def _change(row: dict[str, Any], name: str, show: Callable[[float], str]) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if max(abs(value), abs(low), abs(high)) < _NOTHING:
        return ""
    return f"{'+' if value > 0 else ''}{show(value)} [{show(low)}, {show(high)}]"
