"""From a YAML file and flags to settings; what is wrong is told with its key and its line or flag."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from torchfault.config.marked import Key, Marked, read
from torchfault.config.merge import Override, expanded, put, resolve
from torchfault.config.resolvers import RESOLVERS
from torchfault.config.samplers import SAMPLERS
from torchfault.config.schema import Settings
from torchfault.config.section import Section, said, sections_in
from torchfault.errors import ConfigError, did_you_mean

__all__ = ["leaf_keys", "read_settings", "validated"]

_FORMER = {  # keys of before, and what says the same now
    "shortcuts": "resolver, as in resolver: [pooled:64, monotone]",
    "interval": "method",
    "sampler.whole": "stop.half_width, as in half_width: 0.01",
    "sampler.site": "stop.half_width, as in half_width: {site: 0.01}",
    "sampler.bit": "stop.half_width, as in half_width: {bit: 0.01}",
    "sampler.images": "sampler.inputs",
}


def read_settings(path: Path | None, overrides: Sequence[Override] = ()) -> Settings:
    """Return the settings of the YAML file at *path* (if any) with *overrides* in place of what it says.

    Paths in the file are relative to its folder, those in overrides to the working directory. Raises
    :class:`ConfigError` with the key, and the line or the flag.

    >>> flags = [Override(("model",), "torchfault.zoo:resnet20", "--model"), Override(("data",), "a.npz", "--data")]
    >>> settings = read_settings(None, flags)
    >>> settings.name, settings.model.factory
    ('resnet20', 'torchfault.zoo:resnet20')
    """
    marked = read(path) if path else None
    raw = expanded(marked.value) if marked else {}
    if path:
        resolve(raw, path.absolute().parent)
    for override in overrides:
        put(raw, override)
    settings = validated(raw, overrides, marked=marked)
    return settings if settings.name else settings.model_copy(update={"name": _name(settings, path)})


def leaf_keys(section: type[Section] = Settings, above: tuple[str, ...] = ()) -> dict[str, tuple[type[Section], str]]:
    """Return every dotted key that holds a value, with the section and the name under which it is declared.

    >>> list(leaf_keys())[:3]
    ['name', 'recipe', 'model.factory']
    """
    keys: dict[str, tuple[type[Section], str]] = {}
    for name, field in section.model_fields.items():
        inner = list(sections_in(field.annotation))
        for one in inner:
            for key, place in leaf_keys(one, (*above, name)).items():
                keys.setdefault(key, place)  # of several kinds the first that has the key
        if not inner:
            keys[".".join((*above, name))] = (section, name)
    return keys


@dataclass(frozen=True)
class _Places:
    """Tells where a setting was given: a line of the file, or a flag."""

    marked: Marked | None
    overrides: Sequence[Override]
    source: str

    def of(self, key: Key) -> str:
        """Return ``file:line: key`` or the flag that set *key*, or the flag or file that lacks it."""
        here = [one.flag for one in self.overrides if key[: len(one.key)] == one.key]
        below = [one.flag for one in self.overrides if key and one.key[: len(key)] == key]
        if here or (below and not (self.marked and key in self.marked.lines)):
            return (here or below)[-1]
        # A single choice of sites may stand in the file without the list around it.
        bare = key if not self.marked or key in self.marked.lines else tuple(p for p in key if isinstance(p, str))
        named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in bare).lstrip(".")
        where = self.marked.where(bare) if self.marked else self.source
        return f"{where}: {named}" if where and named else where or named


def validated(
    raw: dict[str, Any], overrides: Sequence[Override], *, marked: Marked | None = None, source: str = ""
) -> Settings:
    """Return the settings that plain values describe, or raise :class:`ConfigError`.

    Messages name the flag among *overrides*, the line of the *marked* file, or the *source*.
    """
    places = _Places(marked, overrides, source)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        # A misspelt key explains the missing one, so it comes first.
        found = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    problems = [_problem(one, places) for one in found]
    first, others = problems[0], problems[1:]
    more = f" (and {len(others)} more: {'; '.join(others[:2])}{'; ...' if len(others) > 2 else ''})" if others else ""
    raise ConfigError(first + more)


def _problem(error: Any, places: _Places) -> str:
    """Return one line for one of pydantic's errors."""
    tagged: Key = tuple(error["loc"])
    key = _untagged(tagged)
    kind = error["type"]
    if kind == "missing":
        return f"{places.of(key)}: missing; add it to the configuration{_flag_for(key)}"
    if kind == "extra_forbidden":
        return f"{places.of(key)}: no such key{_nearest(tagged)}"
    place = places.of(key)  # none for what several keys together make wrong
    return f"{place}: {said(error)}" if place else said(error)


def _flag_for(key: Key) -> str:
    return f", or give --{key[0]}" if key in (("model",), ("data",)) else ""


def _untagged(key: Key) -> Key:
    """Return *key* as a user writes it: pydantic puts the kind of a sampler or resolver into it."""
    at = {"sampler": 1, "resolver": 2}.get(str(key[0])) if key else None
    return key if at is None or key[at : at + 1] == ("kind",) else (*key[:at], *key[at + 1 :])


def _nearest(key: Key) -> str:
    """Say what the unknown *key* is called now, or suggest a sibling, or the same name elsewhere."""
    plain = [part for part in _untagged(key) if isinstance(part, str)]
    if former := _FORMER.get(".".join(plain)):
        return f"; it is {former}"
    wrong = plain[-1].replace("-", "_")
    if key[0] in ("sampler", "resolver"):
        kinds = SAMPLERS if key[0] == "sampler" else RESOLVERS
        own = next(str(part) for part in key[1:] if part in kinds)
        if others := [name for name, kind in kinds.items() if wrong in kind.options()]:
            return f" of {own}; {wrong} goes with {' and '.join(others)}"
        options = kinds[own].options()
        return did_you_mean(wrong, options) or f"; {own} takes {', '.join(options) or 'no options'}"
    section: type[Section] | None = Settings
    for part in plain[:-1]:
        field = section.model_fields.get(part) if section else None
        section = next(sections_in(field.annotation), None) if field else None
    siblings: Iterable[str] = section.model_fields if section else ()
    if elsewhere := [dotted for dotted in leaf_keys() if dotted.split(".")[-1] == wrong]:
        return f"; did you mean '{elsewhere[0]}'?"
    return did_you_mean(wrong, siblings) or f"; known here: {', '.join(siblings) or 'none'}"


def _name(settings: Settings, path: Path | None) -> str:
    """Return a name for a campaign that has none: the file's, or the model's."""
    name = path.stem if path else settings.model.factory.rpartition(":")[2].rpartition("/")[2]
    plain = re.sub(r"[^\w.+-]", "-", name).lstrip(".+-")[:80] or "campaign"
    return plain if settings.recipe == "run" else f"{plain}-{settings.recipe}"
