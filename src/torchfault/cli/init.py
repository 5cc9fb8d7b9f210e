"""`init`: a configuration for a model, written after a look at it, with what was found beside each key."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchfault.cli.header import Opening, kind_text
from torchfault.cli.machine import print_object
from torchfault.cli.running import engine_of, guarded
from torchfault.cli.screen import count, duration, next_steps, say
from torchfault.cli.sites import measured_speed, sums_by_kind, uniformly
from torchfault.config import Settings, read_settings
from torchfault.config.build import DEFAULT_TRIALS, build_campaign, build_space
from torchfault.errors import ConfigError
from torchfault.files import check_target, written
from torchfault.text import masked

if TYPE_CHECKING:
    from torchfault.engine import Engine

__all__ = ["write_configuration"]

_PLAIN = re.compile(r"[A-Za-z_./][\w./:*+-]*")
_RESERVED = {"true", "false", "null", "yes", "no", "on", "off"}


@dataclass(frozen=True)
class Found:
    """What a look at a model and its data told."""

    parameters: int
    data: str
    inputs: int
    executor: str
    fallback: str | None
    kinds: Sequence[dict[str, str | int]]
    types: Sequence[str]
    criterion: str
    why: str
    speed: float


def write_configuration(settings: Settings, output: Path, *, force: bool, as_json: bool) -> None:
    """Look at the model and data of *settings*, and write a commented configuration file to *output*.

    What flags have set stands in the file; for the rest it proposes values. Raises :class:`ConfigError` for a file that
    exists, unless *force*.
    """
    if why := check_target(output, force=force):
        raise ConfigError(f"the configuration '{output}' {why}")
    with Opening() as opening, guarded(opening):
        engine = engine_of(settings, opening)
        found = _look(settings, engine)
        with written(output, force=force) as part:
            part.write_text("\n".join(_lines(settings, found, output)) + "\n", encoding="utf-8")
            build_space(read_settings(part), engine.space)  # what is written can be read and chooses something
    if as_json:
        looked = {"parameters": found.parameters, "data": found.data, "inputs": found.inputs}
        run = {"executor": found.executor, "fallback": found.fallback, "lanes_per_second": found.speed}
        chosen = {"criterion": found.criterion, "kinds": found.kinds}
        print_object("configuration", {"file": str(output), **looked, **run, **chosen})
        return
    say(f"configuration written to {output}", out=True)
    next_steps([f"torchfault sites {output}", f"torchfault run {output}"])


def _look(settings: Settings, engine: "Engine") -> Found:
    from torchfault.adapters.data_summary import summarise
    from torchfault.criteria import fitting

    chosen = settings.criterion, "as given"
    if settings.criterion is None:
        fits = fitting(engine.golden(), engine.data.labels, engine.data.inputs)
        chosen = fits.text, fits.why
    weighted = [site for site in engine.space.sites if site.kind == "weight"]
    return Found(
        sum(parameter.numel() for parameter in engine.model.parameters()),
        str(summarise(engine.data)),
        len(engine.data),
        engine.executor,
        engine.fallback,
        sums_by_kind(engine.space),
        sorted({site.module_type for site in weighted if site.module_type}),
        chosen[0] or "",
        chosen[1],
        measured_speed(build_campaign(uniformly(settings), engine)),
    )


def _lines(settings: Settings, found: Found, output: Path) -> Iterator[str]:
    """Yield the lines of the file: keys with their values, and what was found as comments."""
    given = settings.model_dump(mode="json", exclude_defaults=True)
    given |= {"sampler": kind_text(settings.sampler)} if "sampler" in given else {}
    given |= {"resolver": [kind_text(one) for one in settings.resolver]} if "resolver" in given else {}
    yield f"# What faults do to {settings.model.factory}: written by torchfault init after a look at the model."
    yield "#"
    yield f"#   torchfault run {output.name}"
    yield "#"
    yield "# Paths are relative to this file; docs/configuration.md explains every key."
    yield ""
    yield from _section("model", given.pop("model"), f"{count(found.parameters)} parameters", output)
    for key in ("checkpoint", "storage", "activations"):
        if key in given:
            yield from _section(key, given.pop(key), "", output)
    yield ""
    yield from _section("data", given.pop("data"), found.data, output)
    if settings.data.limit is None:
        yield f"  # limit: 100 # fewer inputs start sooner; {count(found.inputs)} now"
    yield ""
    yield from _sites(given.pop("sites", None), found)
    yield ""
    yield f"fault: {_text(given.pop('fault', 'flip'))} # or stuck-at-0, stuck-at-1, random-word, burst:3"
    given.pop("criterion", None)
    yield f"criterion: {_text(found.criterion)} # {_comment(found.why)}"
    yield from _stop(given.pop("stop", None), found)
    yield f"seed: {given.pop('seed', 0)}"
    yield ""
    why = "" if found.fallback is None else f": {found.fallback}"
    yield from _section("executor", given.pop("executor", "auto"), f"here {found.executor}{why}", output)
    if given.get("name") == settings.model.factory.rpartition(":")[2]:
        del given["name"]  # as without the key, but that the file's name is the better one
    if masked(settings.store) != settings.store:
        del given["store"]
        yield f"# store: {masked(settings.store)} # passwords are kept nowhere: give --store"
    for key, value in given.items():
        yield from _section(key, value, "", output)


def _section(key: str, value: Any, comment: str, output: Path) -> Iterator[str]:
    """Yield a key with what stands below it; a section with one plain value in its short form."""
    behind = f" # {_comment(comment)}" if comment else ""
    if isinstance(value, dict):
        value = {name: _relative(name, held, output) for name, held in value.items()}
        if len(value) == 1 and next(iter(value)) in ("factory", "path") and key != "data":
            yield f"{key}: {_text(next(iter(value.values())))}{behind}"
            return
        yield f"{key}:{behind}"
        for name, held in value.items():
            yield f"  {name}: {_text(held)}"
        return
    yield f"{key}: {_text(value)}{behind}"


def _relative(name: str, value: Any, output: Path) -> Any:
    """Return a path as it is written in a file of the folder of *output*."""
    return os.path.relpath(value, output.absolute().parent) if name == "path" else value


def _sites(given: Any, found: Found) -> Iterator[str]:
    """Yield the choice of sites, below a table of all there are."""
    yield "# All sites:"
    for one in found.kinds:
        numbers = (f"{count(int(one[name]))} {name}" for name in ("sites", "elements", "faults"))
        yield f"#   {one['kind']:<8} {', '.join(numbers)}"
    yield "sites:"
    if given is not None:
        for choice in given:
            yield f"  - {_text(choice)}"
        return
    kinds = {str(one["kind"]) for one in found.kinds}
    if "weight" in kinds:
        yield "  - kinds: weight # stored in memory for long"
    if "input" in kinds and found.types:
        yield "  - kinds: input # activations that layers with weights read"
        yield f"    types: {_text(list(found.types))}"
    if not kinds & {"weight", "input"}:
        yield '  - include: "*"'


def _stop(given: Any, found: Found) -> Iterator[str]:
    if given is None:
        took = duration(DEFAULT_TRIALS / found.speed) if found.speed else "-"
        yield f"stop: # about {took} here, at {count(round(found.speed))} trials per second"
        yield f"  trials: {DEFAULT_TRIALS} # the rate of failures within a point"
        yield "  # half_width: {layer: 0.01} # or: until each layer is known within a point (see sampler: adaptive)"
        return
    yield "stop:"
    for name, held in given.items():
        yield f"  {name}: {_text(held)}"


def _text(value: Any) -> str:
    """Return a value in YAML: JSON is, and plain words need no quotes."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _RESERVED and value[-1] != ":":
        return value
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(one) for one in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(name)}: {_text(held)}" for name, held in value.items()) + "}"
    return json.dumps(value)


def _comment(text: str) -> str:
    """Return text for the end of one line."""
    return " ".join(text.split())
