"""`harden`: a model protected, measured before and after on the same faults, and saved."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchfault.cli import header
from torchfault.cli.machine import print_object, rows_of
from torchfault.cli.progress import Watch
from torchfault.cli.running import INTERRUPTED, guarded
from torchfault.cli.screen import (
    Column,
    Table,
    check_format,
    complain,
    count,
    facts,
    print_frame,
    say,
    share,
    show_table,
    working,
)
from torchfault.cli.showing import short
from torchfault.config import Settings
from torchfault.config.build import (
    build_data,
    build_engine,
    build_model,
    build_representation,
    build_space,
    check_runs,
)
from torchfault.errors import ConfigError, DataError
from torchfault.files import check_target, written

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from torchfault.data import Data
    from torchfault.engine import Engine
    from torchfault.hardening import Method, Profile

__all__ = ["harden_model"]

_TOLD = 5  # sites named in a line


def harden_model(
    settings: Settings,
    methods: list[str],
    *,
    trials: int,
    known: float,
    output: Path,
    form: str,
    force: bool,
    as_json: bool,
) -> None:
    """Harden the model by *methods*, tell what that costs and what it gains, and save it to *output*.

    Golden ranges come from the first share *known* of the inputs, all that is measured from the others.
    """
    from torchfault.hardening import harden, method, overhead, profile, unpacked
    from torchfault.recipes import survival
    from torchfault.recipes.survival import counterparts
    from torchfault.store import Store

    check_format(form, as_json=as_json)
    if wrong := check_target(output, force=force):
        raise ConfigError(f"--output {output}: {wrong}")
    chosen = [method(text) for text in methods]
    try:
        with header.Opening() as opening, guarded(opening):
            model = build_model(settings)
            header.tell_model(opening, settings, model)
            data = build_data(settings.data, seed=settings.seed)
            first, rest = _parted(data, known)
            header.tell_data(opening, data)
            check_runs(model, data)
            model = unpacked(build_representation(settings, model, first))  # so that both have the same words
            with working("looking at the model without faults"):
                golden = profile(model, first)
            safe = harden(model, *chosen, profile=golden)
            with working("capturing the models"):
                as_run = _as_run(settings, chosen)
                before, after = (build_engine(as_run, one, rest, lanes=2 * trials) for one in (model, safe))
            space = build_space(settings, before.space)
            if apart := [name for name, other in counterparts(space, after.space).items() if not other]:
                few = f"{', '.join(apart[:_TOLD])}{', ...' if len(apart) > _TOLD else ''}"
                opening.note(
                    f"{count(len(apart))} sites are not struck, where the hardened model computes otherwise: {few}"
                )
            name = "-".join((settings.name or "harden", *methods))
            with Store(settings.store) as store, Watch(method=settings.method, before=opening.flush) as watch:
                table = survival(
                    before,
                    after,
                    space=space,
                    trials=trials,
                    seed=settings.seed,
                    level=settings.level,
                    store=store,
                    name=name,
                    progress=watch,
                )
            clean = _clean(before, after, safe, rest, overhead(model, safe))
            _save(safe, golden, output, force=force)
    except KeyboardInterrupt:
        kept = f"what both were struck with is kept in {short(settings.store)}; the same command goes on"
        complain("stopped", f"interrupted; {kept}", style="bold yellow")
        sys.exit(INTERRUPTED)
    call = _call(settings, chosen, output)
    if as_json:
        print_object("hardened", {"survival": rows_of(table), **clean, "file": str(output), "call": call})
    elif form != "table":
        print_frame(table, form)
    else:
        _show(table, clean)
        for line in ("", *call):
            say(f"  {line}" if line else "", out=True)


def _as_run(settings: Settings, chosen: "list[Method]") -> Settings:
    """Return *settings* for engines of models that are represented already.

    A captured graph has no branches, so that guards on standby would act in every pass.
    """
    from torchfault.hardening import Standby

    stands_by = settings.executor == "auto" and any(isinstance(one, Standby) for one in chosen)
    executor = "hooks" if stands_by else settings.executor
    return settings.model_copy(update={"storage": None, "activations": None, "executor": executor})


def _parted(data: "Data", known: float) -> "tuple[Data, Data]":
    """Return the inputs for golden ranges and those to measure on."""
    if data.labels is None:
        raise DataError("hardening tells the accuracy without faults, which needs labels; give data with labels")
    if not 0 < known < 1:
        raise ConfigError(f"--known: expected a share of the inputs between 0 and 1, got {known:g}")
    first = round(known * len(data))
    if not 0 < first < len(data):
        raise DataError(f"golden ranges and measurements need inputs of their own, got {len(data)}; give more data")
    return data.take(slice(0, first)), data.take(slice(first, len(data)))


def _clean(before: "Engine", after: "Engine", safe: "nn.Module", rest: "Data", memory: float) -> dict[str, Any]:
    """Return what hardening costs without faults: accuracies, memory, and inputs that a guard altered."""
    import torch

    from torchfault.criteria import accuracy
    from torchfault.data import call
    from torchfault.hardening import detecting

    with torch.no_grad():
        alarms = int(call(detecting(safe), rest.inputs)["detected"].sum())
    right = [accuracy(engine.golden(), rest.labels) for engine in (before, after)]
    return {"accuracy": right, "memory": memory, "alarms": alarms, "inputs": len(rest)}


def _save(safe: "nn.Module", golden: "Profile", output: Path, *, force: bool) -> None:
    from torchfault.hardening import save_hardened

    try:
        with written(output, force=force) as part:
            save_hardened(safe, part, profile=golden)
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror or error}; choose another place") from None


def _show(table: "pd.DataFrame", clean: dict[str, Any]) -> None:
    heads = ("trials", "before %", "after %", "fewer", "low", "high", "difference %", "low", "high")
    columns = [Column("faults in"), *(Column(name, right=True) for name in heads)]
    rows = [
        [faults, count(int(trials)), share(before), share(after), *map(_times, fewer), *map(share, differs)]
        for faults, trials, before, after, *both in table.itertuples(index=False)
        for fewer, differs in [(both[:3], both[3:])]
    ]
    told = "the same bit flips in both models, on the same inputs; fewer: how many times fewer fail"
    show_table(Table(columns, rows, notes=(told,)))
    say(out=True)
    inputs, (before, after) = f"{count(clean['inputs'])} inputs without faults", clean["accuracy"]
    clipped = f"{count(clean['alarms'])} of {inputs} have values out of bounds, which are altered"
    pairs = [
        ("accuracy", f"{share(before)} % before, {share(after)} % after, on {inputs}"),
        ("memory", f"{100 * clean['memory']:+.2f} %"),
        ("alarms", clipped if clean["alarms"] else f"none on {inputs}"),
    ]
    facts(pairs, out=True)


def _times(value: float) -> str:
    return "-" if value != value else "any" if value == float("inf") else f"{value:.3g}x"


def _call(settings: Settings, chosen: "list[Method]", output: Path) -> list[str]:
    """Return how Python gets the hardened model back, line by line."""
    given = f", kwargs={settings.model.kwargs!r}" if settings.model.kwargs else ""
    names, model = [type(one).__name__ for one in chosen], f"load_model({settings.model.factory!r}{given})"
    more = []
    if settings.storage is not None or settings.activations is not None:
        more.append("from torchfault import represent")
        kept = "" if settings.activations is None else f", activations={settings.activations!r}, data=known"
        model = f"represent({model}, {settings.storage!r}{kept})"
    return [
        *more,
        "from torchfault.adapters.load import load_model",
        f"from torchfault.hardening import {', '.join(dict.fromkeys(names))}, load_hardened",
        f"model = load_hardened({model}, {str(output)!r}, {', '.join(map(repr, chosen))})",
    ]
