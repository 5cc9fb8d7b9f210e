"""From a YAML file and flags to settings; what is wrong is told with its key and its line or flag."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from torchfault.config.marked import Key, Marked, read
from torchfault.config.merge import Override, expanded, put, resolve
from torchfault.config.schema import Section, Settings
from torchfault.errors import ConfigError, did_you_mean, first_line

__all__ = ["apply", "leaf_keys", "read_settings", "restore_settings"]


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
    places = _Places(marked, overrides)
    settings = _validated(raw, places)
    return settings if settings.name else settings.model_copy(update={"name": _name(settings, path)})


def restore_settings(stored: Mapping[str, Any]) -> Settings:
    """Return the settings that ``settings.model_dump(mode="json")`` gave, or raise :class:`ConfigError`."""
    return _validated(dict(stored), _Places(None, (), "the stored configuration"))


def apply(settings: Settings, overrides: Sequence[Override]) -> Settings:
    """Return *settings* with *overrides* in place, or raise :class:`ConfigError` with the flag.

    >>> flags = [Override(("model",), "my.nets:small", "--model"), Override(("data",), "a.npz", "--data")]
    >>> apply(read_settings(None, flags), [Override(("stop",), 500, "--trials")]).stop.trials
    500
    """
    raw = settings.model_dump(mode="json", exclude_defaults=True)
    for override in overrides:
        put(raw, override)
    return _validated(raw, _Places(None, overrides))


def leaf_keys(section: type[Section] = Settings, above: tuple[str, ...] = ()) -> dict[str, tuple[type[Section], str]]:
    """Return every dotted key that holds a value, with the section and the name under which it is declared.

    >>> list(leaf_keys())[:3]
    ['name', 'model.factory', 'model.kwargs']
    """
    keys: dict[str, tuple[type[Section], str]] = {}
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner:
            keys |= leaf_keys(inner, (*above, name))
        else:
            keys[".".join((*above, name))] = (section, name)
    return keys


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section that an annotation holds, alone, optional or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


@dataclass(frozen=True)
class _Places:
    """Tells where a setting was given: a line of the file, or a flag."""

    marked: Marked | None
    overrides: Sequence[Override]
    source: str = ""

    def of(self, key: Key) -> str:
        """Return ``file:line: key`` or the flag that set *key*, or the flag or file that lacks it."""
        here = [one.flag for one in self.overrides if key[: len(one.key)] == one.key]
        below = [one.flag for one in self.overrides if one.key[: len(key)] == key]
        if here or (below and not (self.marked and key in self.marked.lines)):
            return (here or below)[-1]
        # A single choice of sites may stand in the file without the list around it.
        bare = key if not self.marked or key in self.marked.lines else tuple(p for p in key if isinstance(p, str))
        named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in bare).lstrip(".")
        where = self.marked.where(bare) if self.marked else self.source
        return f"{where}: {named}" if where and named else where or named


def _validated(raw: dict[str, Any], places: _Places) -> Settings:
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
    key: Key = tuple(error["loc"])
    kind, got, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return f"{places.of(key)}: missing; add it to the configuration{_flag_for(key)}"
    if kind == "extra_forbidden":
        return f"{places.of(key)}: no such key{_nearest(key)}"
    if kind == "value_error":
        return f"{places.of(key)}: {first_line(context['error'])}"
    hint = did_you_mean(str(got), context["expected"].replace("'", "").split()) if kind == "literal_error" else ""
    return f"{places.of(key)}: expected {_wanted(kind, error['msg'], context)}, got {_shown(got)}{hint}"


def _flag_for(key: Key) -> str:
    return f", or give --{key[0]}" if key in (("model",), ("data",)) else ""


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of keys to values",
    "path_type": "a path",
    "string_pattern_mismatch": "letters, digits and . _ + - only",
}


def _wanted(kind: str, message: str, context: Mapping[str, Any]) -> str:
    """Return what pydantic expected, in words."""
    if kind in _WANTED:
        return _WANTED[kind]
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    bounds = {"greater_than_equal": "at least {ge}", "greater_than": "more than {gt}"}
    bounds |= {"less_than_equal": "at most {le}", "less_than": "less than {lt}"}
    if kind in bounds:
        return "a number of " + bounds[kind].format(**context)
    if kind in ("too_short", "string_too_short"):
        return f"{context['min_length']} or more {'letters' if kind.startswith('string') else 'values'}"
    if kind in ("too_long", "string_too_long"):
        return f"{context['max_length']} or fewer {'letters' if kind.startswith('string') else 'values'}"
    return re.sub(r"^Input should be ", "", message)


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value) if isinstance(value, str) else str(value)
    text = {"True": "true", "False": "false"}.get(text, text)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(key: Key) -> str:
    """Suggest a sibling of the unknown *key*, or the same name elsewhere."""
    section: type[Section] | None = Settings
    for part in key[:-1]:
        if isinstance(part, str) and section is not None:
            field = section.model_fields.get(part)
            section = _section_in(field.annotation) if field else None
    siblings: Iterable[str] = section.model_fields if section else ()
    wrong = str(key[-1])
    elsewhere = [dotted for dotted in leaf_keys() if dotted.split(".")[-1] == wrong.replace("-", "_")]
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    return did_you_mean(wrong.replace("-", "_"), siblings) or f"; known here: {', '.join(siblings)}"


def _name(settings: Settings, path: Path | None) -> str:
    """Return a name for a campaign that has none: the file's, or the model's."""
    name = path.stem if path else settings.model.factory.rpartition(":")[2].rpartition("/")[2]
    return re.sub(r"[^\w.+-]", "-", name).lstrip(".+-")[:100] or "campaign"
