"""The flags of the commands that take a configuration: one table, which ties each flag to its key."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from torchfault.config import Override, Settings, leaf_keys, read_settings
from torchfault.config.section import Section, kinds_in
from torchfault.errors import ConfigError
from torchfault.plain_yaml import scalar

__all__ = [
    "CAMPAIGN_FLAGS",
    "ENGINE_FLAGS",
    "MODEL_FLAGS",
    "RECIPE_FLAGS",
    "SITE_FLAGS",
    "Flag",
    "begun",
    "configured",
    "flags_of",
    "resumed",
]


@dataclass(frozen=True)
class Flag:
    """A flag: its name, the key it sets, how its value is shown, and whether it may be repeated."""

    name: str
    key: str
    shown: str
    many: bool = False

    @property
    def parameter(self) -> str:
        """The name of the Python parameter."""
        return self.name.lstrip("-").replace("-", "_")

    @property
    def declared(self) -> tuple[type[Section], str]:
        """The section and the name under which the key is declared."""
        return leaf_keys().get(self.key, (Settings, self.key))

    @property
    def help(self) -> str:
        """The description of the key, without the marks of Markdown and of rich; and the kinds there are."""
        section, name = self.declared
        field = section.model_fields[name]
        kinds = [kind for kind in kinds_in(field.annotation) if kind != "import"]
        told = f"{field.description} Kinds: {', '.join(kinds)}." if kinds else field.description or ""
        return " ".join(told.replace("`", "").replace("[", "\\[").split())


SITE_FLAGS = (
    Flag("--include", "sites.include", "GLOB", many=True),
    Flag("--exclude", "sites.exclude", "GLOB", many=True),
    Flag("--kinds", "sites.kinds", "KIND", many=True),
    Flag("--types", "sites.types", "TYPE", many=True),
    Flag("--bits", "sites.bits", "23-30,sign"),
    Flag("--steps", "sites.steps", "3:7"),
)
MODEL_FLAGS = (
    Flag("--model", "model.factory", "MODULE:FACTORY"),
    Flag("--checkpoint", "checkpoint.path", "FILE"),
    Flag("--checkpoint-key", "checkpoint.key", "KEY"),
    Flag("--generate", "generation.tokens", "N"),
    Flag("--storage", "storage", "int8|csr|q3.12|..."),
    Flag("--activations", "activations", "q7.8|e4m3|bfp8:16|..."),
    Flag("--data", "data.path", "FILE|MODULE:FACTORY"),
    Flag("--shape", "data.shape", "3,32,32"),
    Flag("--inputs", "data.inputs", "ARRAY"),
    Flag("--labels", "data.labels", "ARRAY"),
    Flag("--mean", "data.mean", "0.5,0.5,0.5"),
    Flag("--std", "data.std", "0.5,0.5,0.5"),
    Flag("--limit", "data.limit", "N"),
)
CAMPAIGN_FLAGS = (
    Flag("--fault", "fault", "flip"),
    Flag("--lasting", "lasting", "end"),
    Flag("--sampler", "sampler", "uniform|adaptive|..."),
    Flag("--resolver", "resolver", "pooled:64|monotone|certified", many=True),
    Flag("--criterion", "criterion", "top1"),
    Flag("--metric", "metric", "accuracy"),
    Flag("--inputs-per-fault", "inputs_per_fault", "N|all"),
    Flag("--trials", "stop.trials", "N"),
    Flag("--half-width", "stop.half_width", "[BY=]0.01", many=True),
    Flag("--time", "stop.time", "10m"),
    Flag("--level", "level", "0.95"),
    Flag("--method", "method", "wilson"),
    Flag("--seed", "seed", "N"),
    Flag("--store", "store", "FILE"),
    Flag("--name", "name", "NAME"),
)
ENGINE_FLAGS = (
    Flag("--executor", "executor", "auto|graph|hooks"),
    Flag("--memory", "memory", "1GiB"),
    Flag("--device", "device", "cpu|cuda"),
    Flag("--threads", "threads", "N"),
    Flag("--workers", "workers", "N"),
    Flag("--cluster", "cluster", "local|slurm|ADDRESS"),
    Flag("--gpus-per-worker", "gpus_per_worker", "N"),
)
RECIPE_FLAGS: Mapping[str, tuple[Flag, ...]] = {
    "run": (),
    "search": (
        Flag("--side", "search.side", "N"),
        Flag("--drop", "search.drop", "25%"),
        Flag("--scores", "search.scores", "uniform|rising|...", many=True),
        Flag("--found", "search.found", "N"),
        Flag("--architecture", "search.architecture", "N"),
        Flag("--robustness", "search.robustness", "ra|ra_sw|mvf|none"),
        Flag("--epochs", "search.epochs", "N"),
    ),
    "vulnerability": (
        Flag("--share", "vulnerability.share", "10%|all"),
        Flag("--weights", "vulnerability.weights", "N|log2|all"),
        Flag("--neurons", "vulnerability.neurons", "N|log2|all"),
    ),
    "ra": (
        Flag("--accelerator", "ra.accelerator", "NAME|FILE"),
        Flag("--proposal", "ra.proposal", "strata|IS|..."),
        Flag("--harden", "ra.harden", "TYPE", many=True),
        Flag("--buffer", "ra.buffer", "HOLDS=BITS", many=True),
        Flag("--flip-flops", "ra.flip_flops", "N"),
        Flag("--protect", "ra.protect", "LAYER", many=True),
    ),
}
_LACKS: Mapping[str, tuple[str, ...]] = {  # keys that say nothing to a recipe
    "run": (),
    "search": ("sampler", "resolver", "metric", "inputs_per_fault", "monitor"),
    "vulnerability": ("fault", "lasting", "sampler", "resolver", "metric", "inputs_per_fault", "monitor"),
    "ra": ("sites", "fault", "lasting", "sampler", "resolver", "metric", "criterion", "monitor"),
}


def flags_of(command: str) -> dict[str, tuple[Flag, ...]]:
    """Return the flags of a command by the panel of its help; every other key is set by ``--set``."""
    whole, kept = command in (*RECIPE_FLAGS, "init"), ("seed", "store", "name") if command == "harden" else ("seed",)
    campaign = CAMPAIGN_FLAGS if whole else tuple(flag for flag in CAMPAIGN_FLAGS if flag.key in kept)
    panels = {
        "Model and data": MODEL_FLAGS,
        "Sites": SITE_FLAGS,
        command: RECIPE_FLAGS.get(command, ()),
        "Campaign": campaign,
        "Engine": ENGINE_FLAGS,
    }
    lacks = _LACKS.get(command, ())
    return {
        panel: chosen
        for panel, flags in panels.items()
        if (chosen := tuple(flag for flag in flags if flag.key.partition(".")[0] not in lacks))
    }


_PLACES = ("device", "threads", "memory", "workers", "cluster", "gpus_per_worker")  # they change no result
_RESUMED = ("stop", "executor", *_PLACES, "checkpoint.path", "data.path")
RESUME_FLAGS = tuple(
    flag
    for flag in (*MODEL_FLAGS, *CAMPAIGN_FLAGS, *ENGINE_FLAGS)
    if flag.key in _RESUMED or flag.key.partition(".")[0] in _RESUMED
)


def configured(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function of (settings, *its own options*) the signature of a file and the command's flags."""
    panels = flags_of(command)
    file = typer.Argument(metavar="CONFIG", help="A configuration file (YAML); flags go before what it says.")
    config = inspect.Parameter("config", _KEYWORD, default=None, annotation=Annotated[Path | None, file])

    def settings(given: Mapping[str, Any]) -> Settings:
        chosen = []
        if command in RECIPE_FLAGS and command != "run":  # `run` does what the file says
            chosen.append(Override(("recipe",), command, f"torchfault {command}"))
        if given.get("architecture") and given["config"] is None:  # --model, where it is given, goes before it
            chosen.append(Override(("model",), "torchfault.nas:convolutional", "--architecture"))
        return read_settings(given["config"], [*chosen, *_overrides(panels, given)])

    return lambda function: _flagged(function, [config, *_parameters(panels)], settings)


def begun(function: Callable[..., None]) -> Callable[..., None]:
    """Give a function of (settings, *its own options*) the flags of a configuration that is yet to be written."""
    panels = flags_of("init")
    return _flagged(function, _parameters(panels), lambda given: read_settings(None, _overrides(panels, given)))


def resumed(function: Callable[..., None]) -> Callable[..., None]:
    """Give a function of (overrides, *its own options*) the flags that may differ where a campaign goes on."""
    panels = {"Campaign": RESUME_FLAGS}
    return _flagged(function, _parameters(panels), lambda given: _overrides(panels, given))


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _flagged(
    function: Callable[..., None], flags: Sequence[inspect.Parameter], made: Callable[[Mapping[str, Any]], Any]
) -> Callable[..., None]:
    """Return *function* with *flags* before its own options; its first argument is *made* of their values."""
    declared = list(inspect.signature(function).parameters.values())[1:]
    own = [parameter.replace(kind=_KEYWORD) for parameter in declared]

    def wrapper(**given: Any) -> None:
        rest = {parameter.name: given.pop(parameter.name) for parameter in own}
        function(made(given), **rest)

    wrapper.__name__, wrapper.__doc__ = function.__name__, function.__doc__
    wrapper.__signature__ = inspect.Signature([*flags, *own])  # type: ignore[attr-defined]
    return wrapper


def _parameters(panels: Mapping[str, Sequence[Flag]]) -> list[inspect.Parameter]:
    extra = typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any key of the configuration, such as model.kwargs.depth=20; may be repeated.",
    )
    parameters = []
    for panel, flags in panels.items():
        for flag in flags:
            option = typer.Option(flag.name, metavar=flag.shown, help=flag.help, rich_help_panel=panel)
            held: Any = Annotated[list[str] | None if flag.many else str | None, option]
            parameters.append(inspect.Parameter(flag.parameter, _KEYWORD, default=None, annotation=held))
    return [
        *parameters,
        inspect.Parameter("set_", _KEYWORD, default=None, annotation=Annotated[list[str] | None, extra]),
    ]


def _overrides(panels: Mapping[str, Sequence[Flag]], given: Mapping[str, Any]) -> list[Override]:
    """Return what the flags that were *given* set."""
    used = [flag for flags in panels.values() for flag in flags if given[flag.parameter] not in (None, [], ())]
    if len(sources := [flag.name for flag in used if flag.key in ("data.path", "data.shape")]) > 1:
        raise ConfigError(f"{' and '.join(sources)} both say where inputs come from; give one of them")
    overrides = [Override(_key(flag), _value(flag, given[flag.parameter]), flag.name) for flag in used]
    if chosen := [override for override in overrides if override.key[0] == "sites"]:
        # A choice made by flags takes the place of the file's: joining the two would surprise either way.
        overrides.insert(overrides.index(chosen[0]), Override(("sites",), [{}], chosen[0].flag))
    return [*overrides, *map(_set_key, given["set_"] or ())]


def _key(flag: Flag) -> tuple[str | int, ...]:
    """Return the key that a flag sets; `--data` may be a file or a factory, which is for the reader to tell."""
    if flag in SITE_FLAGS:
        return ("sites", 0, flag.key.removeprefix("sites."))
    return ("data",) if flag.key == "data.path" else tuple(flag.key.split("."))


def _value(flag: Flag, given: Any) -> Any:
    """Return the value of a flag in the type of its key: text stays text, lists of numbers are split at commas."""
    if flag.many or flag.key in ("sites.bits", "sites.steps", "lasting", "sampler"):
        return list(given) if flag.many else given
    section, name = flag.declared
    parts = list(_parts(section.model_fields[name].annotation))
    if tuple in parts:
        return [scalar(part) for part in given.split(",")]
    return given if str in parts or Path in parts else scalar(given)


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of."""
    yield get_origin(annotation) or annotation
    for inner in get_args(annotation):
        yield from _parts(inner)


def _set_key(text: str) -> Override:
    """Return the override that ``--set KEY=VALUE`` means, or raise :class:`ConfigError`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: expected KEY=VALUE, such as --set model.kwargs.depth=20")
    parts = tuple(int(part) if part.isdecimal() else part for part in key.strip().split("."))
    return Override(parts, scalar(value), f"--set {text}")
