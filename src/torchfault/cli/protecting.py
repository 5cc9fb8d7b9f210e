"""`protect`: what to protect for a budget, from a stored campaign, and what is left."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from torchfault.cli.machine import print_object, rows_of
from torchfault.cli.screen import Column, Table, check_format, count, facts, print_frame, say, share, show_table
from torchfault.cli.showing import find
from torchfault.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from torchfault.hardening import Protection
    from torchfault.statistics import Estimate

__all__ = ["choose"]

_SHOWN = 20  # groups on the screen


def choose(
    name: str | None,
    where: str,
    by: tuple[str, ...],
    budget: str,
    *,
    exact: bool,
    level: float,
    form: str,
    as_json: bool,
) -> None:
    """Print the choice for *budget*, a share of all bits, and the front for all budgets."""
    from torchfault.hardening import front, protect
    from torchfault.results import load
    from torchfault.store import Store

    check_format(form, as_json=as_json)
    most = _share_of(budget)
    with Store(where, access="read") as store:
        results = load(store, find(store, name).name)
    found = protect(results, by, budget=most, exact=exact, level=level)
    table = front(results, by, level=level)
    if as_json:
        told = {"removed": asdict(found.removed), "residual": asdict(found.residual), "bits": found.bits}
        print_object("protection", {**told, "groups": rows_of(found.chosen), "front": rows_of(table)})
    elif form != "table":
        print_frame(found.chosen, form)
    else:
        _show(results.name, found, table)


def _share_of(text: str) -> float:
    """Return a share given as ``1%`` or 0.01."""
    plain = text.strip()
    try:
        found = float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise ConfigError(f"--budget: expected a share of the bits above 0, such as 1% or 0.01, got '{text[:60]}'")
    return found


def _show(name: str, found: "Protection", table: "pd.DataFrame") -> None:
    groups = found.chosen
    say((name, "bold"), f"  {count(len(groups))} groups to protect, {share(found.bits, 3)} % of the bits", out=True)
    facts([("removed", _bounded(found.removed, "low")), ("left", _bounded(found.residual, "high"))], out=True)
    say(out=True)
    columns = [Column(str(head), head not in ("layer", "site")) for head in groups.columns]
    rows = groups.head(_SHOWN).astype(str).to_numpy().tolist()
    rest = (f"the first {_SHOWN} of {count(len(groups))}; --format csv writes all",) if len(groups) > _SHOWN else ()
    show_table(Table(columns, rows, notes=rest))
    say(out=True)
    heads = [Column(head, True) for head in ("groups", "bits %", "removed %", "at least", "left %", "at most")]
    lines = [
        [count(int(groups)), share(bits, 3), *map(share, bounds)]
        for groups, _, bits, *bounds in table.itertuples(index=False)
    ]
    told = "removed: of the failures; left: of all faults; told from trials that had no part in the choice"
    show_table(Table(heads, lines, notes=(told,)))


def _bounded(estimate: "Estimate", end: str) -> str:
    bound = f"at least {share(estimate.low)}" if end == "low" else f"at most {share(estimate.high)}"
    what = "of the failures" if end == "low" else "of the faults fail"
    return f"{share(estimate.value)} % {what}, {bound} % at {100 * estimate.level:g} % confidence"
