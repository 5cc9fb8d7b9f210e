"""Every campaign is run here, whatever its recipe: built, checked against the store, watched, and shown."""

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torchfault
from torchfault.cli import header
from torchfault.cli.architectures import run_architectures
from torchfault.cli.dropping import show_searches
from torchfault.cli.progress import Watch
from torchfault.cli.screen import complain, count, next_steps, say, strays_aside, working
from torchfault.cli.showing import check_wanted, find, short, show_results, store_flag
from torchfault.cli.trust import check_trusted, remember
from torchfault.cli.views import Wanted
from torchfault.config import Override, Settings, keep, restore
from torchfault.config.build import build_campaign, build_data, build_engine, build_model, build_workers, most_lanes
from torchfault.errors import CampaignError

if TYPE_CHECKING:
    from torchfault.engine import Engine
    from torchfault.results import Results
    from torchfault.store import Record, Store

INTERRUPTED = 130

__all__ = ["INTERRUPTED", "engine_of", "resume_campaign", "run_campaign", "run_demo"]


def run_campaign(settings: Settings, wanted: Wanted) -> None:
    """Run a campaign, or go on with it where the store holds some of it, and show its results."""
    from torchfault.store import Store

    check_wanted(wanted)
    if settings.recipe == "search" and settings.search.architecture is not None:
        run_architectures(settings, wanted)
        return
    parts = settings.searches() if settings.looks_for_drops else {"": settings}
    with Store(settings.store) as store:
        found = [(part, _results(one, store, _held(store, one))) for part, one in parts.items()]
    if len(found) > 1:
        show_searches(found, wanted)
        next_steps([f"torchfault show {one.name}{store_flag(settings.store)}" for _, one in found])
    else:
        show_results(found[0][1], wanted, where=settings.store)


def _held(store: "Store", settings: Settings) -> "Record | None":
    """Return what the store holds of a campaign already."""
    assert settings.name is not None
    return store.campaign(settings.name) if settings.name in store else None


def resume_campaign(
    name: str | None, where: str, overrides: Sequence[Override], wanted: Wanted, *, trust: bool
) -> None:
    """Go on with a stored campaign of any recipe, under its own settings but for *overrides*, and show its results."""
    from torchfault.store import Store

    check_wanted(wanted)
    with Store(where, access="write") as store:
        record = find(store, name)
        stored: Mapping[str, Any] | None = record.configuration.get("settings")
        if stored is None:
            raise CampaignError(
                f"campaign '{record.name}' was not begun by 'torchfault run'; resume it from Python, or by the command "
                "that began it"
            )
        settings = restore(stored, [*overrides, Override(("store",), where, "--store")])
        if not trust:
            check_trusted(stored, settings, name=record.name)
        results = _results(settings, store, record)
    show_results(results, wanted, where=where)


def run_demo(plot: Path | None, *, trials: int, seed: int, force: bool, as_json: bool) -> None:
    """Train, strike and plot the embedded example, and report on it."""
    from torchfault.demo import demo_settings, is_trained
    from torchfault.report.page import write_report

    wanted = Wanted(plot=plot or _free("torchfault-demo", ".png"), force=force, as_json=as_json)
    check_wanted(wanted)
    if not is_trained():
        say(("  a small CNN learns scikit-learn's handwritten digits: a few seconds, once", "dim"))
    results = _results(demo_settings(trials=trials, seed=seed), None, None)
    show_results(results, wanted, tables=("site", "bit"))
    page = _free("torchfault-demo", ".html")
    write_report(results, page)
    say(f"  report written to {page}: open it in a browser")
    example = "--model torchfault.demo:model --data torchfault.demo:data"
    next_steps([f"torchfault sites {example}", f"torchfault run {example} --fault stuck-at-1 --bits exponent"])


def _free(stem: str, suffix: str) -> Path:
    """Return the first file name of its kind that is not taken."""
    number, path = 2, Path(f"{stem}{suffix}")
    while path.exists():
        number, path = number + 1, Path(f"{stem}-{number}{suffix}")
    return path


def engine_of(settings: Settings, opening: header.Opening, *, lanes: int | None = None) -> "Engine":
    """Load model and data and capture the model for about so many *lanes*, telling what becomes known."""
    with working("loading the model"):
        model = build_model(settings)
    header.tell_model(opening, settings, model)
    with working("loading the data"):
        data = build_data(settings.data, seed=settings.seed)
    header.tell_data(opening, data)
    with working("capturing the model"):
        lanes = most_lanes(settings, len(data)) if lanes is None else lanes
        engine = build_engine(settings, model, data, lanes=lanes)
    header.tell_engine(opening, engine)
    return engine


@contextlib.contextmanager
def guarded(opening: header.Opening) -> Iterator[None]:
    """Keep what models print out of the results, and tell warnings each in one line."""

    def tell(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
        if issubclass(category, UserWarning):
            own = Path(filename).is_relative_to(Path(torchfault.__file__).parent)
            opening.note(str(message), label="note" if own else "warning")

    with strays_aside(), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = tell  # type: ignore[assignment]
        yield


def _results(settings: Settings, store: "Store | None", held: "Record | None") -> "Results":
    """Build and run the campaign, with everything checked before the store is touched."""
    from torchfault.campaign import check_resumable, run

    kept, workers = keep(settings), build_workers(settings)
    if held is not None:
        _check_trials(settings, held)
        if settings.executor == "auto":  # outcomes may differ in ties
            settings = settings.model_copy(update={"executor": held.versions.get("executor", "auto")})
    assert settings.name is not None
    with header.Opening() as opening, guarded(opening):
        engine = engine_of(settings, opening)
        campaign = build_campaign(settings, engine)
        if held is not None:
            check_resumable(campaign, held)
        header.tell_campaign(
            opening,
            settings,
            campaign,
            failure=_failure(settings, engine),
            store="" if store is None else short(settings.store),
            done=0 if held is None else held.trials,
        )
        header.tell_memory(opening, engine, campaign)
        if store is not None:
            remember(kept)
        try:
            with Watch(method=settings.method, before=opening.flush) as watch:
                return run(campaign, store=store, name=settings.name, progress=watch, settings=kept, workers=workers)
        except KeyboardInterrupt:
            _stopped(settings.name, store, settings.store)
            sys.exit(INTERRUPTED)


def _check_trials(settings: Settings, held: "Record") -> None:
    """Refuse to stop before where a campaign is already."""
    wanted = settings.stop.trials
    if wanted is not None and wanted < held.trials:
        raise CampaignError(
            f"campaign '{held.name}' has {count(held.trials)} trials already, more than --trials {count(wanted)}; "
            f"'torchfault show {held.name}' shows them, a larger number goes on"
        )


def _failure(settings: Settings, engine: "Engine") -> str:
    """Return what counts as a failure, and what of the outputs that is about."""
    from torchfault.criteria import Fitting, as_criterion, fitting, judged

    if settings.looks_for_drops:
        return f"accuracy lower by {100 * (settings.search.drop or 0):g} % of itself"
    if settings.metric is not None:
        return f"drop of {settings.metric}"
    golden, data = engine.golden(), engine.data
    if settings.criterion is None:
        chosen = fitting(golden, data.labels, data.inputs)
    else:
        chosen = Fitting(settings.criterion, judged(as_criterion(settings.criterion), golden))
    return f"{chosen.text} ({chosen.why})" if chosen.why else chosen.text


def _stopped(name: str, store: "Store | None", where: str) -> None:
    """Say what a Ctrl-C left behind, and how to go on."""
    if store is None or name not in store:
        complain("stopped", "interrupted before anything was kept", style="bold yellow")
        return
    trials = count(store.campaign(name).trials)
    complain("stopped", f"interrupted; {trials} trials are kept in {short(where)}", style="bold yellow")
    next_steps([f"torchfault resume {name}{store_flag(where)}"])
