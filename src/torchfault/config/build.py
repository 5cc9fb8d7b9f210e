"""From settings to the objects they describe: model, data, engine, space, campaign."""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

from torchfault.config import economy
from torchfault.config.schema import DataSource, Selection, Settings
from torchfault.errors import (
    ConfigError,
    DataError,
    FaultError,
    ModelError,
    TorchfaultError,
    first_line,
)
from torchfault.expressions import parse_fault

if TYPE_CHECKING:
    from torchfault.campaign import Campaign
    from torchfault.criteria import Criterion, Fitting
    from torchfault.data import Data
    from torchfault.engine import Engine
    from torchfault.faults import FaultModel
    from torchfault.sampling import Importance, Sampler
    from torchfault.space import FaultSpace
    from torchfault.statistics import StoppingRule

__all__ = [
    "DEFAULT_MARGIN",
    "build_campaign",
    "build_criterion",
    "build_engine",
    "build_space",
    "choose_criterion",
    "describe_stop",
    "weights_of",
]

DEFAULT_TRIALS = 10_000
DEFAULT_MARGIN = 0.01
DEFAULT_FLOOR, DEFAULT_IMAGES = 0.5, 8
_RANDOM_INPUTS = 16


def build_engine(settings: Settings) -> "Engine":
    """Return an engine for the model and the data of *settings*.

    Raises an error of :mod:`torchfault.errors` for what cannot be loaded, or a model that cannot run on the data.
    """
    import torch

    from torchfault.adapters.load import load_model
    from torchfault.engine import Engine

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    _check_device(settings.device)
    model, checkpoint = settings.model, settings.checkpoint
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
    data = _data(settings.data, settings.seed)
    if settings.storage is not None or settings.activations is not None:
        from torchfault.adapters.represent import represent

        network = represent(network, settings.storage, activations=settings.activations, data=data)
    if not settings.training:  # there, a trial run would move running means
        _try(network, data)
    return Engine(
        network,
        data,
        executor=settings.executor,
        memory=settings.memory,
        device=settings.device,
        training=settings.training,
        buffers=settings.buffers,
    )


def build_space(settings: Settings, everything: "FaultSpace") -> "FaultSpace":
    """Return the part of *everything* that any choice of sites in *settings* admits, or raise SpaceError."""
    return reduce(or_, (_selected(choice, everything) for choice in settings.sites))


def build_campaign(settings: Settings, engine: "Engine") -> "Campaign":
    """Return the campaign that *settings* describe, on an *engine* made from them.

    The criterion and the metric are tried on the golden outputs, so that what does not fit shows before anything runs.
    """
    from torchfault.campaign import Campaign
    from torchfault.criteria import as_criterion, as_metric, golden_metric

    fault, metric = _fault(settings), None if settings.metric is None else as_metric(settings.metric)
    if metric is not None:
        golden_metric(metric, engine.golden(), engine.data.labels)
    criterion = as_criterion(settings.criterion or "top1") if metric else build_criterion(settings, engine)
    space = build_space(settings, engine.space)
    return Campaign(
        engine,
        space,
        sampler=_sampler(settings, engine, space),
        shortcuts=economy.shortcuts(settings, engine, space),
        fault=fault,
        criterion=criterion,
        metric=metric,
        seed=settings.seed,
        stop=_stop(settings),
    )


def build_criterion(settings: Settings, engine: "Engine") -> "Criterion":
    """Return the criterion of *settings*, tried on the golden outputs of an *engine* made from them."""
    return choose_criterion(settings, engine).criterion


def choose_criterion(settings: Settings, engine: "Engine") -> "Fitting":
    """Return the criterion of *settings*, or the one that fits the golden outputs of *engine*, and what it judges."""
    from torchfault.criteria import Fitting, as_criterion, check_fit, fitting, judged

    golden, data = engine.golden(), engine.data
    if settings.criterion is None:
        return fitting(golden, data.labels, data.inputs)
    criterion = as_criterion(settings.criterion)
    check_fit(criterion, golden, data.labels, data.inputs)
    return Fitting(settings.criterion, judged(criterion, golden))


def describe_stop(settings: Settings) -> str:
    """Return when a campaign ends, in words.

    >>> from torchfault.config import Override, read_settings
    >>> flags = [Override(("model",), "a:b", "--model"), Override(("data",), "a.npz", "--data")]
    >>> describe_stop(read_settings(None, [*flags, Override(("stop", "half_width"), 0.01, "--half-width")]))
    'until the interval is ±1 %'
    """
    stop, parts = settings.stop, []
    if stop.trials is not None:
        parts.append(f"{stop.trials:,} trials")
    if stop.half_width is not None:
        parts.append(f"until the interval is ±{100 * stop.half_width:g} %")
    if stop.time is not None:
        parts.append(f"for {stop.time:g} s")
    if not parts:
        if settings.sampler.is_statistical:
            return f"samples for a margin of ±{100 * (settings.sampler.margin or DEFAULT_MARGIN):g} %"
        if settings.sampler.is_adaptive:
            given = {name: getattr(settings.sampler, name) for name in ("whole", "site", "bit")}
            return "until ±" + ", ".join(f"{100 * h:g} % by {name}" for name, h in given.items() if h is not None)
        return "every fault on every input" if settings.sampler.kind == "exhaustive" else f"{DEFAULT_TRIALS:,} trials"
    return " or ".join(parts)


def _check_device(name: str) -> None:
    import torch

    try:
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("it keeps no values")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = first_line(error)
        raise ConfigError(f"device '{name}' cannot be used here ({reason}); use cpu, or one that torch sees") from None


def _data(source: DataSource, seed: int) -> "Data":
    from torchfault.adapters.load import import_object, load_data
    from torchfault.adapters.sources import random_data

    if source.shape is not None:
        return random_data(source.shape, inputs=source.limit or _RANDOM_INPUTS, seed=seed)
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


def _try(network: Any, data: "Data") -> None:
    """Run the model on one input, so that data which do not fit it are told in one line."""
    import torch

    from torchfault.data import call, leaves, rows

    try:
        with torch.no_grad():
            call(network, rows(data.inputs, slice(0, 1)))
    except Exception as error:
        shapes = ", ".join(f"{tuple(leaf.shape[1:])} {str(leaf.dtype)[6:]}" for leaf in leaves(data.inputs))
        reason = first_line(error)
        raise ModelError(
            f"the model cannot run on the data, inputs of {shapes}: {type(error).__name__}: {reason}"
        ) from error


def _selected(choice: Selection, space: "FaultSpace") -> "FaultSpace":
    """Return what one choice admits; named fields are looked up in the word format of each site."""
    chosen = space.select(
        choice.include, exclude=choice.exclude, kinds=choice.kinds, types=choice.types, steps=choice.steps
    )
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


def _fault(settings: Settings) -> "FaultModel":
    from torchfault.faults import DEAD, SATURATED, BitFlip, Burst, Lasting, RandomWord, StuckAt, Value

    atom = parse_fault(settings.fault)
    if atom.name == "import":
        return _imported(atom.text, "masks", FaultError)  # type: ignore[no-any-return]
    argument: Any = next((value for _, value in atom.arguments), None)
    makers: dict[str, Callable[[], FaultModel]] = {
        "flip": BitFlip,
        "stuck-at-0": lambda: StuckAt(0),
        "stuck-at-1": lambda: StuckAt(1),
        "random-word": RandomWord,
        "burst": lambda: Burst(argument),
        "value": lambda: Value(argument),
        "dead": lambda: DEAD,
        "saturated": lambda: SATURATED,
    }
    made = makers[atom.name]()
    if settings.lasting is None or isinstance(made, Lasting):
        return made
    return Lasting(made, None if settings.lasting == "end" else settings.lasting)


def _imported(spec: str, method: str, error: type[TorchfaultError]) -> Any:
    """Return the imported value *spec*, made by calling it where it is a class, with the *method* that it needs."""
    from torchfault.adapters.load import import_object

    found = import_object(spec, error)
    value = found() if isinstance(found, type) else found
    if not callable(getattr(value, method, None)):
        raise error(f"'{spec}' has no method '{method}'; name a value or a class that has one")
    return value


def weights_of(engine: "Engine") -> dict[str, Any]:
    """Return the parameters, buffers and other stored words of an engine's model by the names of their sites."""
    from torchfault.model.constants import constant_home, is_constant
    from torchfault.model.memory import homes

    words = {name: tensor for home in homes(engine.model) for name, tensor in home.words.items()}
    words |= {name: constant_home(engine.model, name).words[name] for name in engine.space.names if is_constant(name)}
    return dict(engine.model.named_buffers()) | dict(engine.model.named_parameters()) | words


def _sampler(settings: Settings, engine: "Engine", space: "FaultSpace") -> "Sampler":
    from torchfault.sampling import Adaptive, BitErrorRate, Exhaustive, Learned, Statistical, Uniform, bits_from

    sampler = settings.sampler
    if sampler.kind == "deviation":
        return economy.deviation(settings, engine, space)
    if sampler.kind == "search":
        return economy.search(engine, space, seed=settings.seed)
    if sampler.kind == "adaptive":
        return Adaptive(sampler.whole, sampler.site, sampler.bit, level=settings.level)
    if sampler.kind in ("importance", "learned"):
        drawn = _importance(settings, engine, space)
        return drawn if sampler.kind == "importance" else Learned(drawn.score, floor=drawn.floor)
    if sampler.is_statistical:
        bits = bits_from(space, weights_of(engine)) if sampler.kind == "data-aware" else None
        return Statistical(sampler.kind, margin=sampler.margin or DEFAULT_MARGIN, bits=bits)
    if sampler.kind == "bit-error-rate":
        assert sampler.rate is not None
        return BitErrorRate(sampler.rate)
    return Exhaustive() if sampler.kind == "exhaustive" else Uniform(sampler.faults or 1)


def _importance(settings: Settings, engine: "Engine", space: "FaultSpace") -> "Importance":
    from torchfault.sampling import Importance
    from torchfault.sensitivity import corrected, effect, isimdl, rising

    sampler = settings.sampler
    floor = DEFAULT_FLOOR if sampler.floor is None else sampler.floor
    images = sampler.images or DEFAULT_IMAGES
    model, data, name = engine.model, engine.data, sampler.score or "effect"
    if name == "effect":
        return Importance(effect(model, data, space, images=images), floor=floor)
    makers = {"joint": corrected, "rising": rising}
    if name in makers:
        return makers[name](model, data, space, floor=floor, images=images)
    return isimdl(model, data, space, name, floor=floor, images=images)


def _stop(settings: Settings) -> "StoppingRule | None":
    from torchfault.statistics import HalfWidth, MaxTrials, TimeBudget

    stop = settings.stop
    rules: list[StoppingRule] = []
    if stop.trials is not None:
        rules.append(MaxTrials(stop.trials))
    if stop.half_width is not None:
        rules.append(HalfWidth(stop.half_width, method=settings.interval, level=settings.level))
    if stop.time is not None:
        rules.append(TimeBudget(stop.time))
    ends = settings.sampler.kind == "exhaustive" or settings.sampler.is_adaptive or settings.sampler.is_statistical
    if not rules and not ends:
        rules.append(MaxTrials(DEFAULT_TRIALS))
    return reduce(or_, rules) if rules else None
