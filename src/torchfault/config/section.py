"""What every part of a configuration is made of: sections with known keys, and kinds that texts name."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from torchfault.config.notation import parse_kind
from torchfault.errors import ConfigError, TorchfaultError, did_you_mean, first_line
from torchfault.expressions import IMPORTED

__all__ = [
    "Kind",
    "Names",
    "Section",
    "as_kind",
    "expanded_kind",
    "imported",
    "kinds_in",
    "listed",
    "said",
    "sections_in",
]


def listed(value: object) -> object:
    """Return a text as a list of one."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(listed), Field(strict=False)]


class Section(BaseModel):
    """A mapping with known keys, of the very types asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Kind(Section):
    """One of several sections for one place, told apart by its key ``kind``.

    Its first other key is the one that a bare value sets: ``pooled:64`` is ``{kind: pooled, size: 64}``.
    """

    kind: str

    @classmethod
    def name(cls) -> str:
        """The kind."""
        return str(get_args(cls.model_fields["kind"].annotation)[0])

    @classmethod
    def options(cls) -> list[str]:
        """The other keys."""
        return [name for name in cls.model_fields if name != "kind"]


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that an annotation holds: alone, optional, in a tuple, or one of several kinds."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def kinds_in(annotation: Any) -> dict[str, type[Kind]]:
    """Return the kinds that an annotation admits, by name."""
    return {one.name(): one for one in sections_in(annotation) if issubclass(one, Kind)}


_FORMER = {  # what kinds were called before
    "deviation": "it is adaptive:deviations now, with stop.half_width",
    "search": "it is a recipe now: torchfault search, or recipe: search",
}


def expanded_kind(value: object, kinds: Mapping[str, type[Kind]], what: str) -> object:
    """Return ``pooled:64,audit=0.1`` as a mapping of keys to values; mappings without a kind get the first of *kinds*.

    ``package.module:name`` is of the kind ``import``. Raises :class:`ValueError` for a kind that is not known.
    """
    if isinstance(value, dict):
        name = value.get("kind", next(iter(kinds)))
        return {"kind": _known(name, kinds, what), **value}
    if not isinstance(value, str):
        return value
    if value.partition(":")[0] not in kinds and IMPORTED.match(value):
        return {"kind": "import", "path": value}
    name, first, named = parse_kind(value)
    options = kinds[_known(name, kinds, what)].options()
    if first is None:
        return {"kind": name, **named}
    if not options:
        raise ValueError(f"'{name}' takes no argument, got '{value[:60]}'; write {name}")
    if options[0] in named:
        raise ValueError(f"'{name}' is given {options[0]} twice in '{value[:60]}'; keep one of them")
    return {"kind": name, options[0]: first, **named}


def _known(name: object, kinds: Mapping[str, type[Kind]], what: str) -> str:
    if isinstance(name, str) and name in kinds:
        return name
    shown, known = str(name)[:60], [one for one in kinds if one != "import"]
    if shown in _FORMER:
        raise ValueError(f"no {what} is called '{shown}'; {_FORMER[shown]}")
    hint = did_you_mean(shown, known) or f"; use {', '.join(known)} or package.module:name"
    raise ValueError(f"no {what} is called '{shown}'{hint}")


def as_kind(text: str, annotation: Any) -> Any:
    """Return the kind that *text* describes, one of those that *annotation* admits; raises :class:`ConfigError`."""
    try:
        return TypeAdapter(annotation).validate_python(text)
    except ValidationError as error:
        raise ConfigError(f"'{text[:60]}': {said(error.errors(include_url=False)[0])}") from None


def said(error: Any) -> str:
    """Return one of pydantic's errors in words: what was expected, and what came."""
    kind, got, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":
        return first_line(context["error"])
    hint = did_you_mean(str(got), re.findall("'([^']*)'", context["expected"])) if kind == "literal_error" else ""
    return f"expected {_wanted(kind, error['msg'], context)}, got {_shown(got)}{hint}"


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


def imported(path: str, method: str, error: type[TorchfaultError]) -> Any:
    """Return what the user named, made by calling it where it is a class, with the *method* that it needs."""
    from torchfault.imports import import_object

    found = import_object(path, error)
    value = found() if isinstance(found, type) else found
    if not callable(getattr(value, method, None)):
        raise error(f"'{path}' has no method '{method}'; name a value or a class that has one")
    return value
