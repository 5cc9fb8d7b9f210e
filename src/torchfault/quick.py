"""The one call that does it: a model and data, or a campaign, run; words of the configuration stand for values."""

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torchfault.errors import CampaignError

if TYPE_CHECKING:
    from torch import nn

    from torchfault.campaign import Campaign, Standing
    from torchfault.campaign.workers import Workers
    from torchfault.criteria import Criterion, Metric
    from torchfault.engine import Engine
    from torchfault.faults import FaultModel
    from torchfault.resolve import Resolver
    from torchfault.results import Results
    from torchfault.sampling import Sampler
    from torchfault.space import FaultSpace
    from torchfault.statistics import Rule
    from torchfault.store import Store

__all__ = ["run"]


def run(
    what: "Campaign | Engine | nn.Module",
    data: Any = None,
    *,
    sites: "str | Iterable[str] | FaultSpace" = "*",
    kinds: str | Iterable[str] = (),
    fault: "str | FaultModel" = "flip",
    sampler: "str | Sampler" = "uniform",
    resolver: "str | Iterable[str] | Resolver" = (),
    criterion: "str | Criterion | None" = None,
    verdicts: "Mapping[str, str | Criterion] | None" = None,
    metric: "str | Metric | None" = None,
    monitor: bool = False,
    inputs_per_fault: int | None = 1,
    trials: int | None = None,
    stop: "int | Rule | None" = None,
    seed: int = 0,
    level: float = 0.95,
    executor: Literal["auto", "graph", "hooks"] = "auto",
    memory: int | str = "1GiB",
    store: "Store | str | Path | None" = None,
    name: str = "campaign",
    progress: "Callable[[Standing], None] | bool | None" = None,
    workers: "Workers | int | None" = None,
) -> "Results":
    """Run a campaign, or the one that a model and data make with these options, and return its results.

    *data* are whatever :func:`torchfault.adapters.sources.as_data` takes: a tensor, (inputs, labels), a data set, a
    loader; an :class:`torchfault.Engine` has its own. *sites* are patterns of names, or a space; *kinds* narrow them.
    *fault*, *sampler*, *resolver*, *criterion*, *verdicts* and *metric* are values, or text as configurations write it
    (``"burst:3"``, ``"adaptive"``, ``"pooled:64"``, ``"topk:5"``); without a criterion the one that fits the outputs
    is taken. It ends after *trials*, or by *stop*: a rule, or a number of trials; after 10,000 unless told.
    *monitor*, *inputs_per_fault*, *seed* and *level* are those of :class:`torchfault.Campaign`, *executor* and *memory*
    of the engine, *store* and *name* of :func:`torchfault.campaign.run`. *progress* is called with a
    :class:`torchfault.campaign.Standing` now and then; ``True`` prints it, and
    shows a bar in a notebook. Lanes run in this process, in so many
    *workers*, which are processes, or in others of :mod:`torchfault.cluster`.

    Raises :class:`torchfault.errors.TorchfaultError` for what does not fit together.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> results = run(model, torch.randn(20, 4), kinds="weight", criterion="topk:2", trials=200)
    >>> len(results), 0 < results.estimate().value < 0.5
    (200, True)
    """
    given = dict(locals())
    from torchfault import campaign as campaigns

    watch = _watch() if progress is True else progress or None
    if not isinstance(what, campaigns.Campaign):
        what = _campaign(what, given)
    elif extra := [key for key in _OPTIONS if given[key] is not signature(run).parameters[key].default]:
        raise CampaignError(
            f"a campaign says all but where it is kept, got {extra[0]} beside it; take dataclasses.replace for that"
        )
    if isinstance(workers, int):
        from torchfault.cluster import Processes

        workers = Processes(workers)
    return campaigns.run(what, store=store, name=name, progress=watch, workers=workers)


def _watch() -> "Callable[[Standing], None]":
    """Return what shows the progress here: a bar in a notebook, lines elsewhere."""
    from torchfault.campaign.notebook import NotebookBar, in_notebook

    return NotebookBar() if in_notebook() else print


_OPTIONS = tuple(
    key for key in signature(run).parameters if key not in ("what", "store", "name", "progress", "workers")
)


def _campaign(what: Any, given: Mapping[str, Any]) -> "Campaign":
    """Return the campaign that a model, or an engine, makes with the options of :func:`run`."""
    from torchfault.campaign import Campaign
    from torchfault.config.build import build_fault, build_judges
    from torchfault.config.made import Made
    from torchfault.config.resolvers import AnyResolver
    from torchfault.config.samplers import AnySampler
    from torchfault.config.section import as_kind
    from torchfault.space import FaultSpace

    engine, sites, stop = _engine(what, given), given["sites"], _stop(given)
    criterion, verdicts, metric = build_judges(engine, given["criterion"], given["verdicts"] or {}, given["metric"])
    resolver, sampler, fault = given["resolver"], given["sampler"], given["fault"]
    resolvers = [resolver] if isinstance(resolver, str) else resolver if isinstance(resolver, list | tuple) else []
    made = Made(
        engine,
        sites if isinstance(sites, FaultSpace) else engine.space.select(sites, kinds=given["kinds"]),
        build_fault(fault) if isinstance(fault, str) else fault,
        criterion,
        verdicts,
        stop,
        [as_kind(one, AnyResolver) for one in resolvers],
    )
    return Campaign(
        engine,
        made.space,
        sampler=as_kind(sampler, AnySampler).build(made) if isinstance(sampler, str) else sampler,
        fault=made.fault,
        criterion=criterion,
        verdicts=verdicts,
        metric=metric,
        resolver=made.resolver if resolvers or resolver == () else resolver,
        monitor=given["monitor"],
        inputs_per_fault=given["inputs_per_fault"],
        seed=given["seed"],
        stop=stop,
        level=given["level"],
    )


def _engine(what: Any, given: Mapping[str, Any]) -> "Engine":
    from torch import nn

    from torchfault.adapters.sources import as_data
    from torchfault.engine import Engine

    if isinstance(what, Engine):
        if given["data"] is not None:
            raise CampaignError("an engine has its own data, got others beside it; pass the model, or leave them out")
        return what
    if not isinstance(what, nn.Module):
        raise CampaignError(
            f"run takes a campaign, or a model and data, got {str(what)[:60]!r}; pass a torch.nn.Module"
        )
    if given["data"] is None:
        raise CampaignError("a model runs on data, got none; pass run(model, data): a tensor, (inputs, labels), ...")
    # What a store keeps may be gone on with for longer, and is then to be run by the same executor.
    lanes = given["trials"] if given["inputs_per_fault"] == 1 and given["store"] is None else None
    return Engine(what, as_data(given["data"]), executor=given["executor"], memory=given["memory"], trials=lanes)


def _stop(given: Mapping[str, Any]) -> "Rule | None":
    """Return when to stop: by whatever was given, after 10,000 trials where nothing was and the sampler has no end."""
    from torchfault.config.build import DEFAULT_TRIALS, ENDING
    from torchfault.config.samplers import AnySampler
    from torchfault.config.section import as_kind
    from torchfault.statistics import AnyOf, MaxTrials

    stop, trials, sampler = given["stop"], given["trials"], given["sampler"]
    if stop is not None and not isinstance(stop, int) and not callable(stop):
        raise CampaignError(f"stop is a number of trials or a rule such as HalfWidth(0.01), got {str(stop)[:60]!r}")
    rules = [MaxTrials(rule) if isinstance(rule, int) else rule for rule in (trials, stop) if rule is not None]
    # An adaptive sampler ends by the half-widths that it is to reach.
    if not rules and isinstance(sampler, str) and as_kind(sampler, AnySampler).kind not in (*ENDING, "adaptive"):
        rules = [MaxTrials(DEFAULT_TRIALS)]
    return None if not rules else rules[0] if len(rules) == 1 else AnyOf(tuple(rules))
