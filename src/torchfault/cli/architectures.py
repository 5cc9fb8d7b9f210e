"""`search --architecture`: networks that are accurate, cheap and robust, searched by a study in the store."""

from functools import partial
from typing import TYPE_CHECKING

from torchfault.cli import interruption
from torchfault.cli.machine import print_object, rows_of
from torchfault.cli.progress import Ticker
from torchfault.cli.screen import (
    Column,
    Table,
    count,
    facts,
    next_steps,
    print_frame,
    say,
    share,
    show_table,
    working,
)
from torchfault.cli.views import Wanted
from torchfault.config import Settings
from torchfault.config.build import build_data
from torchfault.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from torchfault.nas import Candidate, Plan

__all__ = ["run_architectures"]

_TRAINED = 0.75  # of the inputs; the others judge
_EXACT = ("number", "accuracy", "macs")
_BOUNDED = ("robust", "low", "high")
_HEADS = {"ra": "RA %", "ra_sw": "RA_SW %", "mvf": "1 - MVF %", "none": ""}
_TOLD = {"ra": "under faults", "ra_sw": "under faults", "mvf": "of flips leave the answer"}


def run_architectures(settings: Settings, wanted: Wanted) -> None:
    """Evaluate as many architectures as *settings* say, or those that the store lacks of them, and show the front."""
    from torchfault.nas import candidates, front, search_architectures

    assert settings.name is not None
    assert settings.search.architecture is not None
    with working("loading the data"):
        plan = _plan(settings)
    say((settings.name, "bold"), (f"  ({settings.search.architecture} architectures)", "dim"))
    facts([("space", settings.model.factory), ("data", f"{len(plan.train)} inputs learnt, {len(plan.test)} judge")])
    trials, kind = settings.search.architecture, settings.search.robustness
    with Ticker() as ticker:
        study = search_architectures(
            plan, store=settings.store, name=settings.name, trials=trials, progress=partial(_tell, ticker, trials, kind)
        )
    found = candidates(study)
    frame = front(found)
    if wanted.as_json:
        told = {"robustness": settings.search.robustness, "store": settings.store}
        print_object("architectures", {"name": settings.name, "evaluated": len(found), **told, "front": rows_of(frame)})
    elif wanted.form != "table":
        print_frame(frame, wanted.form)
    else:
        _show(settings, found, frame)


def _plan(settings: Settings) -> "Plan":
    import torch

    from torchfault.adapters.load import import_object
    from torchfault.nas import Plan, Robustness

    build = import_object(settings.model.factory, ConfigError)
    if not callable(build):
        raise ConfigError(f"'{settings.model.factory}' builds no networks; name a function of a trial and the data")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    data = build_data(settings.data, seed=settings.seed)
    learnt = round(_TRAINED * len(data))
    if not 0 < learnt < len(data):
        raise DataError(f"networks are trained and judged on inputs of their own, got {len(data)}; give more data")
    kind = settings.search.robustness
    return Plan(
        data.take(slice(0, learnt)),
        data.take(slice(learnt, len(data))),
        build=build,
        robustness=None if kind == "none" else Robustness(kind, accelerator=settings.ra.chip()),
        epochs=settings.search.epochs,
        seed=settings.seed,
    )


def _tell(ticker: Ticker, trials: int, kind: str, found: "Candidate", done: int) -> None:
    interruption.check()
    robust = "" if found.robust is None else f", {share(found.robust.value)} % {_TOLD[kind]}"
    dropped = ", dominated" if found.dominated else ""
    line = f"{done} of {trials} architectures  {share(found.accuracy)} % accuracy{robust}, {count(found.macs)} MACs"
    ticker.show(line + dropped, done / trials)


def _show(settings: Settings, found: "list[Candidate]", frame: "pd.DataFrame") -> None:
    ended = sum(one.dominated for one in found)
    told = f", {count(ended)} of them on fewer faults, since others dominated them" if ended else ""
    say(f"{count(len(found))} architectures{told}; none beats these {len(frame)} in everything:", out=True)
    say(out=True)
    known = [name for name in (*_EXACT, *_BOUNDED) if name in frame]
    heads = {"accuracy": "accuracy %", "robust": _HEADS[settings.search.robustness], "macs": "MACs"}
    columns = [Column(heads.get(name, name), True) for name in known]
    choices = [str(name) for name in frame.columns if name not in known]
    rows = []
    for row in frame.to_dict("records"):
        told_of = [share(row[name]) if name in ("accuracy", *_BOUNDED) else count(int(row[name])) for name in known]
        chosen = " ".join(f"{name}={_plain(row[name])}" for name in choices if row[name] == row[name])
        rows.append([*told_of, chosen])
    show_table(Table([*columns, Column("choices")], rows))
    next_steps([f"torchfault show {settings.name}-{int(frame['number'].iloc[0]):03d}"] if "robust" in frame else [])


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
