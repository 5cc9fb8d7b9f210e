"""`evidence`: rows for an FMEDA from stored trials, and the check that they are what the store says; without torch."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchfault.cli.doctor import CHECK_FAILED
from torchfault.cli.machine import print_object
from torchfault.cli.screen import Column, Table, count, next_steps, note, say, share, show_table
from torchfault.cli.showing import find, short, store_flag
from torchfault.errors import ConfigError

if TYPE_CHECKING:
    from torchfault.report.evidence import Asked

__all__ = ["check_evidence", "rates_of", "write_evidence"]


def write_evidence(
    names: Sequence[str], where: str, output: Path, asked: "Asked", *, force: bool, as_json: bool
) -> None:
    """Write the pack of campaigns *names* (the only one, where none is named) into the folder *output*."""
    from torchfault.report.evidence import check_place, pack, write_folder
    from torchfault.store import Store

    check_place(output, force=force)
    with Store(where, access="read") as store:
        held = pack(store, list(dict.fromkeys(names)) or [find(store, None).name], asked)
    files = write_folder(held, output, force=force)
    if as_json:
        print_object("evidence", {"folder": str(output), "files": [path.name for path in files], "evidence": held})
        return
    for campaign in held["campaigns"]:
        _show(campaign, asked)
    if not any(path.suffix == ".xlsx" for path in files):
        note("no spreadsheet without openpyxl: pip install -c constraints.txt openpyxl")
    say()
    say(f"  evidence written to {output}: {', '.join(path.name for path in files)}")
    next_steps([f"torchfault evidence --check {output}{store_flag(where)}"])


def check_evidence(folder: Path, where: str, *, as_json: bool) -> None:
    """Recompute the pack in *folder* from the store; exit status 3, and what differs, where it is another one."""
    from torchfault.report.evidence import check_folder
    from torchfault.store import Store

    with Store(where, access="read") as store:
        wrong = check_folder(folder, store)
    if as_json:
        print_object("check", {"folder": str(folder), "right": not wrong, "wrong": wrong})
    elif wrong:
        for one in wrong:
            say(one, out=True)
        told = f": {folder} is not what {short(where)} says, in {count(len(wrong))} places"
        say(("FAILED", "bold red"), told, out=True)
    else:
        say(("ok", "bold green"), f": every number of {folder} follows from the trials in {short(where)}", out=True)
    if wrong:
        sys.exit(CHECK_FAILED)


def rates_of(given: Sequence[str]) -> dict[str, float]:
    """Return raw rates by kind or glob of a site, from ``700`` (of everything) or ``weight=700``.

    >>> rates_of(["weight=700", "50"])
    {'weight': 700.0, '*': 50.0}
    """
    rates = {}
    for text in given:
        of, equals, value = text.rpartition("=")
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf or (equals and not of):
            raise ConfigError(f"--fit-per-mbit: expected FIT or KIND=FIT, such as weight=700, got '{text}'")
        rates[of or "*"] = rate
    return rates


def _show(campaign: dict[str, Any], asked: "Asked") -> None:
    """Print the elements of a campaign, those with the most dangerous faults first."""
    elements = sorted(campaign["elements"], key=lambda one: -one["residual_fraction"]["upper"])
    columns = [Column("element"), Column("trials", True, 2), Column("safe %", True), Column("at least", True)]
    columns += [Column("coverage %", True, 3)] if asked.detector else []
    columns += [Column("raw FIT", True, 1), Column("residual FIT", True), Column("at most", True)]
    rows = [_row(one, with_coverage=asked.detector is not None) for one in elements]
    title = f"{campaign['name']}: safe fractions, bounds at {100 * asked.confidence:g} % confidence"
    totals, notes = campaign["totals"], [*campaign["assumptions"][-1:]]
    if totals is None:
        notes.insert(0, "no raw rate is known: give --fit-per-mbit, or --flip-flops for an accelerator")
    else:
        residual = totals["single_point_or_residual_fit"]
        of = f"{_fit(residual['value'])} FIT (at most {_fit(residual['upper'])}) of {_fit(totals['raw_fit'])} raw FIT"
        notes.insert(0, f"all elements: {of} are single-point or residual")
    show_table(Table(columns, rows, title, notes))


def _row(one: dict[str, Any], *, with_coverage: bool) -> list[str]:
    safe, residual, coverage = one["safe_fraction"], one["residual_fit"] or {}, one["diagnostic_coverage"] or {}
    value = math.nan if safe["value"] is None else safe["value"]
    told = math.nan if coverage.get("value") is None else coverage["value"]
    cells = [one["element"], count(one["trials"]), share(value), share(safe["lower"])]
    cells += [share(told)] if with_coverage else []
    return [*cells, _fit(one["raw_fit"]), _fit(residual.get("value")), _fit(residual.get("upper"))]


def _fit(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.4g}"
