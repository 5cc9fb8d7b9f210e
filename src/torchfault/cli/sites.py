"""`sites` and `plan`: where faults can land, and what each method of statistical injection would cost."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torchfault.cli.header import Opening
from torchfault.cli.machine import print_object, rows_of
from torchfault.cli.running import engine_of, guarded
from torchfault.cli.screen import (
    Column,
    Table,
    check_format,
    count,
    duration,
    next_steps,
    print_frame,
    say,
    share,
    show_table,
)
from torchfault.config import Settings
from torchfault.config.build import build_campaign, build_space
from torchfault.config.made import stored_words
from torchfault.config.samplers import Uniform
from torchfault.errors import ConfigError

if TYPE_CHECKING:
    from torchfault.campaign import Campaign
    from torchfault.space import FaultSpace

__all__ = ["list_sites", "measured_speed", "plan_campaigns", "sums_by_kind", "uniformly"]

_SUMS = ("sites", "elements", "faults")
_WARM, _MEASURED = 32, 512  # lanes: the first ones fill the golden cache


def list_sites(settings: Settings, form: str, *, as_json: bool) -> None:
    """Print every chosen site with its size, and the sums."""
    check_format(form, as_json=as_json)
    with Opening() as opening, guarded(opening):
        engine = engine_of(settings, opening, lanes=0)
        space = build_space(settings, engine.space)
    table = space.table()
    if as_json:
        print_object("sites", {"faults": len(space), "kinds": sums_by_kind(space), "sites": rows_of(table)})
        return
    if form != "table":
        print_frame(table, form)
        return
    ranks = {"type": 3, "shape": 2, "word": 1, "bits": 4}
    numbers = ("bits", "elements", "faults")
    columns = [Column(name, name in numbers, ranks.get(name, 0)) for name in table.columns]
    rows = [[count(cell) if isinstance(cell, int) else str(cell) for cell in row] for row in table.to_numpy().tolist()]
    show_table(Table(columns, rows))
    say(out=True)
    lines = [[str(one["kind"]), *(count(int(one[name])) for name in _SUMS)] for one in sums_by_kind(space)]
    heads = [Column("kind"), *(Column(name, right=True) for name in _SUMS)]
    show_table(Table(heads, lines, notes=("a fault is one bit of one element of a site",)))
    next_steps(["torchfault plan ... --kinds weight", "torchfault run ... --kinds weight"])


def sums_by_kind(space: "FaultSpace") -> list[dict[str, str | int]]:
    """Return how many sites, elements and faults of each kind there are, and of all."""
    kinds = dict.fromkeys(site.kind for site in space.sites)
    groups = [(kind, [site for site in space.sites if site.kind == kind]) for kind in kinds]
    groups.append(("all", list(space.sites)))
    numbers = [(len(held), sum(s.elements for s in held), sum(s.size for s in held)) for _, held in groups]
    return [
        {"kind": kind, **dict(zip(_SUMS, sums, strict=True))} for (kind, _), sums in zip(groups, numbers, strict=True)
    ]


def plan_campaigns(settings: Settings, *, margin: float, speed: float | None, form: str, as_json: bool) -> None:
    """Print the number of faults and lanes of each method, and the time that they would take."""
    from torchfault.sampling import bits_from, plan

    check_format(form, as_json=as_json)
    for flag, value, most in (("--margin", margin, 1.0), ("--speed", 1.0 if speed is None else speed, 1e12)):
        if not 1e-6 <= value < most:
            raise ConfigError(f"{flag}: expected a number from 1e-06 to {most:g}, got {value:g}")
    with Opening() as opening, guarded(opening):
        uniform = uniformly(settings)
        engine = engine_of(uniform, opening)
        campaign = build_campaign(uniform, engine)
        space = build_space(uniform, engine.space)
        held = stored_words(engine)
        bits = bits_from(space, held) if all(site.name in held for site in space.sites) else None
        inputs = 1 if campaign.metric is None else campaign.inputs
        asked: dict[str, Any] = {"margin": margin, "bits": bits, "inputs": inputs, "all_inputs": campaign.inputs}
        table = plan(space, **asked, rate=speed or inputs * measured_speed(campaign))
    rate = float(table["lanes"].iloc[0] / table["seconds"].iloc[0])
    if as_json:
        told = {"margin": margin, "level": 0.95, "lanes_per_second": rate, "measured": speed is None}
        print_object("plan", {**told, "methods": rows_of(table)})
        return
    if form != "table":
        print_frame(table, form)
        return
    columns = [Column("method"), *(Column(name, True) for name in ("strata", "trials", "share %", "lanes", "time"))]
    shown: list[list[Any]] = table.to_numpy().tolist()
    rows = [
        [method, count(strata), count(trials), share(part), count(lanes), duration(seconds)]
        for method, strata, trials, part, lanes, seconds in shown
    ]
    meaning = "a lane is one fault on one input; exhaustive injection takes each fault on every input"
    show_table(Table(columns, rows, notes=(meaning,)))
    how = "as given" if speed else f"as measured on {count(_MEASURED)} trials"
    say()
    say((f"  margin ±{100 * margin:g} % at 95 %; {count(round(rate))} lanes per second, {how}", "dim"))
    next_steps([f"torchfault run ... --sampler layer-wise:{margin:g}"])


def uniformly(settings: Settings) -> Settings:
    """Return *settings* with faults at random, each on a lane of its own: what the speed of lanes is measured by."""
    return settings.model_copy(update={"recipe": "run", "sampler": Uniform(), "resolver": ()})


def measured_speed(campaign: "Campaign") -> float:
    """Return the trials per second of a short campaign, once the golden cache is full."""
    from torchfault.campaign import run
    from torchfault.statistics import MaxTrials, TimeBudget

    run(replace(campaign, stop=MaxTrials(_WARM)), batch=_WARM)
    results = run(replace(campaign, stop=MaxTrials(_MEASURED) | TimeBudget(20.0)))
    return len(results) / max(results.record.seconds, 1e-9)
