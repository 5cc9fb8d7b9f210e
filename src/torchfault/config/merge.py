"""What a file and flags say as one mapping: short forms written out, paths made absolute, flags before the file."""

import itertools
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchfault.config.marked import Key
from torchfault.config.resolvers import RESOLVERS
from torchfault.config.samplers import SAMPLERS
from torchfault.config.section import expanded_kind
from torchfault.errors import ConfigError
from torchfault.expressions import IMPORTED

__all__ = ["Override", "expanded", "put", "resolve"]

PATHS: tuple[tuple[str, ...], ...] = (("checkpoint", "path"), ("data", "path"), ("store",))
SHORT: Mapping[str, str] = {"model": "factory", "checkpoint": "path", "generation": "tokens", "stop": "trials"}
_MOST_PARTS, _SHOWN = 20, 60
SOURCES = ("path", "factory", "shape")


@dataclass(frozen=True)
class Override:
    """A setting given by a flag: *key* is where it belongs and *flag* what the user typed."""

    key: Key
    value: Any
    flag: str


def expanded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return *raw* with its short forms written out: a text for a model, a number for a stop, one choice of sites.

    >>> expanded({"stop": 500, "data": "my.data:test"})
    {'stop': {'trials': 500}, 'data': {'factory': 'my.data:test'}}
    """
    full = dict(raw)
    for name, value in raw.items():
        if name in SHORT or name == "data":
            full[name] = {_inner(name, value): value} if _plain(value) else value
    if isinstance(full.get("sites"), dict):
        full["sites"] = [full["sites"]]
    _expand_kinds(full)
    return full


def _expand_kinds(raw: dict[str, Any]) -> None:
    """Write out the texts of samplers and resolvers, so that single keys of them can be set; wrong ones stay."""
    with suppress(ValueError):
        if "sampler" in raw:
            raw["sampler"] = expanded_kind(raw["sampler"], SAMPLERS, "sampler")
    held = raw.get("resolver")
    held = [held] if isinstance(held, str | dict) else held
    if isinstance(held, list | tuple):
        raw["resolver"] = [_expanded_resolver(one) for one in held]


def _expanded_resolver(value: object) -> object:
    with suppress(ValueError):
        return expanded_kind(value, RESOLVERS, "resolver")
    return value


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _inner(name: str, value: object) -> str:
    """Return the key that a plain value stands for in the section *name*."""
    if name == "data":
        return "factory" if IMPORTED.match(str(value)) else "path"
    return SHORT[name]


def resolve(raw: dict[str, Any], base: Path) -> None:
    """Make the paths in *raw* absolute, from *base*; raises :class:`ConfigError` for one that cannot be."""
    for *above, name in PATHS:
        section = raw.get(above[0]) if above else raw
        if isinstance(section, dict) and isinstance(value := section.get(name), str) and value and "://" not in value:
            section[name] = _absolute(value, base, ".".join((*above, name)))


def _absolute(value: str, base: Path, key: str) -> str:
    try:
        os.fsencode(value)
        path = Path(value).expanduser()
    except RuntimeError:  # ~someone without a home
        raise ConfigError(f"{key}: nobody is called '{value.partition('/')[0][1:]}' here; write the path out") from None
    except UnicodeEncodeError:
        path = None
    if path is None or "\0" in value:
        raise ConfigError(f"{key}: no file can have the name '{value[:60]}'; give another path")
    return os.path.normpath(base / path)


def put(raw: dict[str, Any], override: Override) -> None:
    """Set one value in *raw*; a new source of data takes the place of another one.

    Raises :class:`ConfigError` for a key below something that has none.
    """
    key, value = override.key, override.value
    if len(key) > _MOST_PARTS:
        raise ConfigError(f"{override.flag[:_SHOWN]}...: a key has at most {_MOST_PARTS} parts, got {len(key)}")
    name = str(key[0])
    if len(key) == 1 and (name in SHORT or name == "data") and _plain(value):
        key = (name, _inner(name, value))
    if name == "data" and key[1:2] and key[1] in SOURCES and isinstance(raw.get("data"), dict):
        raw["data"] = {kept: held for kept, held in raw["data"].items() if kept not in (*SOURCES, "kwargs")}
    at: Any = raw
    for part, following in itertools.pairwise(key):
        at = _step(at, part, [] if isinstance(following, int) else {}, override.flag)
    _assign(at, key[-1], value, override.flag)
    _expand_kinds(raw)
    resolve(raw, Path.cwd())


def _step(at: Any, part: str | int, empty: Any, flag: str) -> Any:
    """Return what stands in *at* under *part*, made *empty* where there is nothing."""
    if isinstance(at, list) and isinstance(part, int) and part <= len(at):
        if part == len(at):
            at.append(empty)
        return at[part]
    if isinstance(at, dict) and isinstance(part, str):
        if at.get(part) is None:
            at[part] = empty
        return at[part]
    raise _nothing(flag, part)


def _assign(at: Any, part: str | int, value: Any, flag: str) -> None:
    if isinstance(at, dict) and isinstance(part, str):
        at[part] = value
    elif isinstance(at, list) and isinstance(part, int) and part <= len(at):
        at[part : part + 1] = [value]
    else:
        raise _nothing(flag, part)


def _nothing(flag: str, part: str | int) -> ConfigError:
    return ConfigError(f"{flag}: there is no '{part}' to set there; docs/configuration.md lists the keys")
