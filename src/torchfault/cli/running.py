"""`sites`, `run`, `resume` and `demo`: build what the settings say, run it, and show what came out."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from torchfault.cli import showing
from torchfault.cli.progress import Watch
from torchfault.cli.screen import (
    check_format,
    complain,
    count,
    facts,
    print_frame,
    print_table,
    say,
    simple_table,
    width,
    working,
)
from torchfault.cli.tables import results_table
from torchfault.config import Override, Settings, apply, restore_settings
from torchfault.config.build import build_campaign, build_engine, build_space, choose_criterion, describe_stop
from torchfault.errors import CampaignError

if TYPE_CHECKING:
    from torchfault.campaign import Campaign, Results
    from torchfault.engine import Engine
    from torchfault.space import Site
    from torchfault.store import Store

INTERRUPTED = 130

__all__ = ["INTERRUPTED", "campaign_of", "list_sites", "resume_campaign", "run_campaign", "run_demo"]


def list_sites(settings: Settings, form: str) -> None:
    """Print every chosen site with its size, and the sums."""
    check_format(form)
    with working("capturing the model"):
        engine = build_engine(settings)
    space = build_space(settings, engine.space)
    table = space.table()
    if form != "table":
        print_frame(table, form)
        return
    numbers = {"bits", "elements", "faults"}
    columns = {name: "right" if name in numbers else "left" for name in table.columns}
    rows = [[count(cell) if isinstance(cell, int) else str(cell) for cell in row] for row in table.to_numpy().tolist()]
    print_table(simple_table(columns, rows))
    say(out=True)
    heads = {"kind": "left", "sites": "right", "elements": "right", "faults": "right"}
    kinds = dict.fromkeys(site.kind for site in space.sites)
    sums = [_sum(kind, [site for site in space.sites if site.kind == kind]) for kind in kinds]
    print_table(simple_table(heads, [*sums, _sum("all", space.sites)]))


def _sum(name: str, sites: "Sequence[Site]") -> list[str]:
    return [name, count(len(sites)), count(sum(s.elements for s in sites)), count(sum(s.size for s in sites))]


def run_campaign(settings: Settings) -> None:
    """Run a new campaign, and show its results by layer and by bit."""
    from torchfault.store import Store

    assert settings.name is not None
    with Store(settings.store) as store:
        if settings.name in store:
            held, where = store.campaign(settings.name), showing.short(settings.store)
            raise CampaignError(
                f"campaign '{held.name}' is already in {where} ({held.status}, {count(held.trials)} trials); "
                f"go on with 'torchfault resume {held.name}', or choose another --name"
            )
        results = campaign_of(settings, store)
    _finish(results, settings, settings.store)


def resume_campaign(name: str | None, where: str, given: Mapping[str, Any]) -> None:
    """Go on with a stored campaign, under its own settings but for those *given*."""
    from torchfault.store import Store

    with Store(where, access="write") as store:
        record = showing.find(store, name)
        stored = record.configuration.get("settings")
        if stored is None:
            raise CampaignError(f"campaign '{record.name}' was not begun by 'torchfault run'; resume it from Python")
        overrides = [Override(tuple(key.split(".")), value, _flag(key)) for key, value in given.items()]
        settings = apply(restore_settings(stored), overrides)
        results = campaign_of(settings, store)
    _finish(results, settings, where)


def _flag(key: str) -> str:
    section, _, name = key.partition(".")
    return f"--{(section if name == 'path' else name or section).replace('_', '-')}"


def run_demo(output: Path, *, trials: int, seed: int) -> None:
    """Train, strike and plot the embedded example."""
    from torchfault.demo import demo_settings, is_trained
    from torchfault.report.plots import check_plot

    check_plot(output)
    settings = demo_settings(trials=trials, seed=seed)
    if not is_trained():
        say(("  a small CNN learns scikit-learn's handwritten digits: a few seconds, once", "dim"))
    results = campaign_of(settings, None)
    level, method = settings.level, settings.interval
    _tables(results, ("site", "bit"), level=level, method=method)
    showing.save_plot(results, output, level=level, method=method)
    say()
    say(f"  plot saved to {output}")
    example = "--model torchfault.demo:model --data torchfault.demo:data"
    _next([f"torchfault sites {example}", f"torchfault run {example} --fault stuck-at-1 --bits exponent"])


def campaign_of(settings: Settings, store: "Store | None") -> "Results":
    """Build and run a campaign, with everything checked before the store is touched."""
    from torchfault.campaign import CampaignInterrupted, check, check_resumable, run

    assert settings.name is not None
    with working("loading and capturing the model"):
        engine = build_engine(settings)
        campaign = build_campaign(settings, engine)
        check(campaign)
        if store is not None and settings.name in store:
            check_resumable(campaign, store.campaign(settings.name))
    _describe(settings, engine, campaign, store)
    kept = settings.model_dump(mode="json")
    try:
        with Watch(level=settings.level, method=settings.interval) as watch, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # faults out of reach: told above
            return run(campaign, store=store, name=settings.name, progress=watch, settings=kept)
    except CampaignInterrupted as interrupted:
        _stopped(interrupted.results, store)
        raise typer.Exit(INTERRUPTED) from None


def _stopped(results: "Results", store: "Store | None") -> None:
    """Say what a Ctrl-C left behind, and how to go on."""
    name = results.name
    if store is None or name not in store:
        complain("stopped", "interrupted before anything was kept", style="bold yellow")
        return
    complain("stopped", f"interrupted; {count(len(results))} trials are kept in {store}", style="bold yellow")
    _next([f"torchfault resume {name}{showing.store_flag(str(store))}"])


def _describe(settings: Settings, engine: "Engine", campaign: "Campaign", store: "Store | None") -> None:
    """Say what is about to be struck, how, and how good the model is without faults."""
    from torchfault.adapters.understood import near_chance, summarise
    from torchfault.campaign import reach

    space, summary = campaign.space, summarise(engine.data)
    say((settings.name or "", "bold"))
    facts(
        [
            ("model", _model(settings, engine)),
            ("data", str(summary)),
            ("golden", _golden(engine)),
            ("faults", f"{settings.fault}; {count(len(space))} in {count(len(space.sites))} sites"),
            ("failure", f"drop of {settings.metric}" if settings.metric else _failure(settings, engine)),
            ("trials", f"{settings.sampler.kind}, {describe_stop(settings)}, seed {settings.seed}"),
            ("executor", _executor(engine)),
            ("store", "" if store is None else showing.short(settings.store)),
        ],
    )
    for note in (*summary.notes, near_chance(engine.golden(), engine.data.labels)):
        if note is not None:
            say((f"  note: {note}", "yellow"))
    if (reached := reach(campaign)) < 1:
        part = f"{100 * reached:.3g} % of the faults can be drawn, the others count as unknown; use --floor 0.5"
        say((f"  note: {part}", "yellow"))
    if settings.checkpoint is None and not settings.model.pretrained and settings.model.factory not in _READY:
        say(("  note: no checkpoint is given; the weights are the factory's own", "yellow"))


def _failure(settings: Settings, engine: "Engine") -> str:
    """Return what counts as a failure, and what of the outputs that is about."""
    chosen = choose_criterion(settings, engine)
    return f"{chosen.text} ({chosen.why})" if chosen.why else chosen.text


_READY = ("torchfault.demo:model",)


def _model(settings: Settings, engine: "Engine") -> str:
    parameters = sum(parameter.numel() for parameter in engine.model.parameters())
    weights = f", weights of {settings.checkpoint.path.name}" if settings.checkpoint else ""
    return f"{settings.model.factory}, {count(parameters)} parameters{weights}"


def _executor(engine: "Engine") -> str:
    return engine.executor if engine.fallback is None else f"{engine.executor}; no graph: {engine.fallback}"


def _golden(engine: "Engine") -> str:
    """Return the accuracy without faults where outputs and labels are of that kind, else the number of inputs."""
    from torchfault.criteria import accuracy
    from torchfault.errors import TorchfaultError

    inputs = f"{count(len(engine.data))} inputs"
    if engine.data.labels is None:
        return f"{inputs}, without labels"
    try:
        return f"{100 * accuracy(engine.golden(), engine.data.labels):.1f} % accuracy on {inputs}"
    except TorchfaultError:
        return inputs


def _finish(results: "Results", settings: Settings, where: str) -> None:
    if settings.sampler.kind == "search":
        from torchfault.cli.searching import show_discovery

        show_discovery(results, top=10, form="table")
        return
    _tables(results, ("layer", "bit"), level=settings.level, method=settings.interval)
    flag = showing.store_flag(where)
    _next([f"torchfault show {results.name} --by channel --top 10{flag}", f"torchfault export {results.name}{flag}"])


def _tables(results: "Results", groupings: tuple[str, ...], *, level: float, method: str) -> None:
    say()
    showing.summary(results, level=level, method=method)
    for by in groupings:
        frame = results.table(by, level=level, method=method)
        say(out=True)
        print_table(results_table(results, frame, by=by, level=level, method=method, width=width()))


def _next(commands: list[str]) -> None:
    """Say what to try next."""
    say()
    for label, command in zip(["next", *[""] * len(commands)], commands, strict=False):
        say((f"  {label:<4}  ", "dim"), (command, "bold"))
