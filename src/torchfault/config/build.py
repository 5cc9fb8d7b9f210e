"""From settings to the objects they describe: model, data, engine, space, campaign."""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, Any

from torchfault.config.made import Made
from torchfault.config.schema import DataSource, Selection, Settings
from torchfault.config.section import imported
from torchfault.errors import ConfigError, DataError, FaultError, ModelError, SpaceError, brief, first_line
from torchfault.expressions import parse_fault

if TYPE_CHECKING:
    from torch import nn

    from torchfault.campaign import Campaign
    from torchfault.campaign.workers import Workers
    from torchfault.criteria import Criterion, Metric
    from torchfault.data import Data
    from torchfault.engine import Engine
    from torchfault.faults import FaultModel
    from torchfault.measures import Measure
    from torchfault.space import FaultSpace
    from torchfault.statistics import StoppingRule

__all__ = [
    "build_campaign",
    "build_data",
    "build_engine",
    "build_fault",
    "build_judges",
    "build_model",
    "build_representation",
    "build_space",
    "build_workers",
    "check_runs",
]

DEFAULT_TRIALS = 10_000
ENDING = ("exhaustive", "network-wise", "layer-wise", "data-unaware", "data-aware", "import")
"""The samplers that have an end of their own; what a user imports says so itself."""
_RANDOM_INPUTS = 16
_MOST_VALUES = 2**34  # of random inputs


def build_model(settings: Settings) -> "nn.Module":
    """Return the model of *settings* with its weights, or raise :class:`torchfault.errors.ModelError`.

    A language model for which they ask so is one that generates.
    """
    import torch

    from torchfault.adapters.generation import greedy
    from torchfault.adapters.load import load_model

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    _check_device(settings.device)
    model, checkpoint, generation = settings.model, settings.checkpoint, settings.generation
    network = load_model(
        model.factory,
        kwargs=model.kwargs,
        checkpoint=checkpoint.path if checkpoint else None,
        key=checkpoint.key if checkpoint else None,
        prefix=checkpoint.prefix if checkpoint else None,
        pretrained=model.pretrained,
        training=settings.training,
        seed=settings.seed,
    )
    if generation is None:
        return network
    return greedy(network, tokens=generation.tokens, end=generation.end, pad=generation.pad)


def build_data(source: DataSource, *, seed: int) -> "Data":
    """Return the inputs and labels that *source* names, or raise :class:`torchfault.errors.DataError`."""
    from torchfault.adapters.load import import_object, load_data
    from torchfault.adapters.sources import random_data

    if source.shape is not None:
        inputs = source.limit or _RANDOM_INPUTS
        if reduce(lambda size, n: size * n, source.shape, inputs) > _MOST_VALUES:
            raise DataError(f"{inputs} random inputs of shape {source.shape} do not fit into memory; give fewer")
        return random_data(source.shape, inputs=inputs, seed=seed)
    where: Any = source.path
    if source.factory is not None:
        where = import_object(source.factory, DataError)
        if not callable(where):
            raise DataError(f"'{source.factory}' is of type {type(where).__name__}; name a function that returns data")
    return load_data(
        where,
        kwargs=source.kwargs,
        inputs=source.inputs,
        labels=source.labels,
        mean=source.mean,
        std=source.std,
        size=source.size,
        grey=source.grey,
        limit=source.limit,
    )


def build_representation(settings: Settings, model: "nn.Module", data: "Data") -> "nn.Module":
    """Return *model* with weights and activations kept as *settings* say, ranges of which are told by *data*."""
    if settings.storage is None and settings.activations is None:
        return model
    from torchfault.adapters.represent import represent

    return represent(model, settings.storage, activations=settings.activations, data=data)


def build_engine(settings: Settings, model: "nn.Module", data: "Data", *, lanes: int | None = None) -> "Engine":
    """Return an engine for *model* on *data*, as *settings* say, for about so many *lanes* (``None``: not known).

    *executor* takes the place of an ``auto`` in *settings*, as for a campaign that one has begun.
    Raises an error of :mod:`torchfault.errors` for a representation that does not fit, or a model that cannot run.
    """
    from torchfault.engine import Engine

    model = build_representation(settings, model, data)
    if not settings.training:  # there, a trial run would move running means
        check_runs(model, data)
    return Engine(
        model,
        data,
        executor=settings.executor,
        memory=settings.memory,
        device=settings.device,
        training=settings.training,
        buffers=settings.buffers,
        trials=lanes,
    )


def most_lanes(settings: Settings, inputs: int) -> int | None:
    """Return how many lanes the campaign of *settings* takes at most, ``None`` where it does not say."""
    trials, each = settings.stop.trials, settings.inputs_per_fault
    return None if trials is None else trials * (inputs if each is None else each)


def build_workers(settings: Settings) -> "Workers | None":
    """Return who runs the lanes of *settings*: ``None`` for this process alone.

    Raises :class:`ConfigError` for a cluster, or GPUs of it, without workers.
    """
    from torchfault.cluster import Processes, Ray, Slurm

    count, cluster, gpus = settings.workers, settings.cluster, settings.gpus_per_worker
    if not count:
        if cluster is not None or gpus:
            raise ConfigError("a cluster runs workers, got none; give --workers 8")
        return None
    if cluster is None:
        if gpus:
            raise ConfigError("gpus_per_worker is what a cluster gives, got no cluster; give --cluster local, or none")
        return Processes(count, threads=settings.threads)
    if cluster == "slurm":
        return Slurm(count, threads=settings.threads or 1, gpus=gpus)
    return Ray(count, address=None if cluster == "local" else cluster, threads=settings.threads or 1, gpus=gpus)


def build_space(settings: Settings, everything: "FaultSpace") -> "FaultSpace":
    """Return the part of *everything* that any choice of sites in *settings* admits, or raise SpaceError."""
    generates = settings.generation is not None
    return reduce(or_, (_selected(choice, everything, generates=generates) for choice in settings.sites))


def build_campaign(settings: Settings, engine: "Engine") -> "Campaign":
    """Return the campaign that *settings* describe, on an *engine* made from them."""
    from torchfault.campaign import Campaign

    judged, verdicts, metric = build_judges(engine, settings.criterion, settings.verdicts, settings.metric)
    space = build_space(settings, engine.space)
    made = Made(
        engine,
        space,
        build_fault(settings.fault, lasting=settings.lasting),
        judged,
        verdicts,
        _stop(settings),
        settings.resolver,
        settings.inputs_per_fault,
        settings.level,
        settings.seed,
    )
    if settings.recipe != "run":
        return getattr(settings, settings.recipe).build(made)  # type: ignore[no-any-return]
    return Campaign(
        engine,
        space,
        sampler=settings.sampler.build(made),
        measure=_measure(settings),
        fault=made.fault,
        criterion=judged,
        verdicts=verdicts,
        metric=metric,
        resolver=made.resolver,
        monitor=settings.monitor,
        inputs_per_fault=settings.inputs_per_fault,
        seed=settings.seed,
        stop=made.stop,
        level=settings.level,
    )


def build_judges(
    engine: "Engine",
    criterion: "str | Criterion | None",
    verdicts: "Mapping[str, str | Criterion]",
    metric: "str | Metric | None",
) -> "tuple[Criterion, dict[str, Criterion], Metric | None]":
    """Return what judges outcomes: the criterion, or the one that fits, the verdicts, and the metric, if any.

    They are tried on the golden outputs of *engine*, so that what does not fit shows before anything runs. A campaign
    refuses what is given beside a metric.
    """
    from torchfault.campaign.campaign import DEFAULT_CRITERION
    from torchfault.criteria import as_criterion, as_metric, check_fit, fitting, golden_metric

    golden, data = engine.golden(), engine.data
    named = {name: as_criterion(one) for name, one in verdicts.items()}
    if metric is not None:
        metric = as_metric(metric)
        golden_metric(metric, golden, data.labels)
        chosen = DEFAULT_CRITERION if criterion is None else as_criterion(criterion)
    elif criterion is None:
        chosen = fitting(golden, data.labels, data.inputs).criterion
    else:
        chosen = as_criterion(criterion)
        check_fit(chosen, golden, data.labels, data.inputs)
    for one in named.values():
        check_fit(one, golden, data.labels, data.inputs)
    return chosen, named, metric


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(1, device=name).sum().item()
    except Exception as error:
        raise ConfigError(
            f"device '{name}' cannot be used here ({first_line(error)}); use cpu, or one that torch sees"
        ) from None


def check_runs(network: Any, data: "Data") -> None:
    """Run the model on one input, so that data which do not fit it are told in one line: by :class:`ModelError`."""
    import torch

    from torchfault.data import call, leaves, rows

    try:
        with torch.no_grad():
            call(network, rows(data.inputs, slice(0, 1)))
    except Exception as error:
        shapes = ", ".join(f"{tuple(leaf.shape[1:])} {str(leaf.dtype)[6:]}" for leaf in leaves(data.inputs))
        raise ModelError(f"the model cannot run on the data, inputs of {shapes}: {brief(error)}") from error


def _selected(choice: Selection, space: "FaultSpace", *, generates: bool) -> "FaultSpace":
    """Return what one choice admits; named fields are looked up in the word format of each site."""
    from torchfault.adapters.generation import at_step

    steps = None if generates else choice.steps
    chosen = space.select(choice.include, exclude=choice.exclude, kinds=choice.kinds, types=choice.types, steps=steps)
    if generates and choice.steps is not None:
        struck = {name for step in range(*choice.steps) for name in at_step(chosen, step).names}
        chosen = chosen.select([site.name for site in chosen.sites if not site.is_activation or site.name in struck])
    fields = [bit for bit in choice.bits if isinstance(bit, str)]
    numbers = {bit for bit in choice.bits if not isinstance(bit, str)}
    if not fields:
        return chosen.select(bits=numbers) if numbers else chosen
    from torchfault.space import FaultSpace
    from torchfault.words import word

    sites, known = [], set[str]()
    for site in chosen.sites:
        of_word = word(site.word).fields
        known |= of_word.keys()
        wanted = numbers | {bit for name in fields for bit in of_word.get(name, ())}
        if bits := wanted & set(site.bits):
            sites.append(replace(site, bits=tuple(bits)))
    if missing := [name for name in fields if name not in known]:
        raise ConfigError(f"no chosen site has a bit field '{missing[0]}'; theirs are {', '.join(sorted(known))}")
    return FaultSpace(tuple(sites))


def build_fault(text: str, *, lasting: int | str | None = None) -> "FaultModel":
    """Return the fault model that *text* names; it stays for so many time steps, or to the ``end``, where *lasting*.

    >>> build_fault("burst:3")
    Burst(length=3)
    """
    from torchfault.faults import DEAD, SATURATED, BitFlip, Burst, Lasting, RandomWord, StuckAt, Value

    try:
        atom = parse_fault(text)
    except ValueError as error:
        raise FaultError(str(error)) from None
    argument: Any = next((value for _, value in atom.arguments), None)
    makers: dict[str, Any] = {
        "flip": BitFlip,
        "stuck-at-0": lambda: StuckAt(0),
        "stuck-at-1": lambda: StuckAt(1),
        "random-word": RandomWord,
        "burst": lambda: Burst(argument),
        "value": lambda: Value(argument),
        "dead": lambda: DEAD,
        "saturated": lambda: SATURATED,
        "import": lambda: imported(atom.text, "masks", FaultError),
    }
    made: FaultModel = makers[atom.name]()
    if lasting is None or isinstance(made, Lasting):
        return made
    return Lasting(made, None if lasting == "end" else int(lasting))


def _measure(settings: Settings) -> "Measure":
    from torchfault.measures import UNIFORM

    return UNIFORM if settings.measure == "uniform" else imported(settings.measure, "mass", SpaceError)


def _stop(settings: Settings) -> "StoppingRule | None":
    """Return when to stop: all half-widths reached, so many trials, or so much time; ``None`` where it ends itself."""
    from torchfault.statistics import HalfWidth, MaxTrials, TimeBudget

    stop, rules = settings.stop, list["StoppingRule"]()
    widths: list[StoppingRule] = [
        HalfWidth(h, by=by, method=settings.method, level=settings.level) for by, h in stop.half_width.items()
    ]
    if widths:
        rules.append(reduce(and_, widths))
    rules += [] if stop.trials is None else [MaxTrials(stop.trials)]
    rules += [] if stop.time is None else [TimeBudget(stop.time)]
    if not rules and not ends(settings):
        rules.append(MaxTrials(DEFAULT_TRIALS))
    return reduce(or_, rules) if rules else None


def ends(settings: Settings) -> bool:
    """Return whether the campaign of *settings* ends by itself."""
    return settings.recipe in ("vulnerability", "ra") or (settings.recipe == "run" and settings.sampler.kind in ENDING)
