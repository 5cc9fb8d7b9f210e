"""YAML with line marks: a file's plain values, and the line on which each of them stands."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torchfault.errors import ConfigError, first_line
from torchfault.files import read_start, unreadable

__all__ = ["Key", "Marked", "parse", "read", "scalar"]

Key = tuple[str | int, ...]
"""The way to a value: names in mappings and positions in lists."""

_MOST_BYTES = 1 << 20
_DEEPEST = 50  # levels of lists and mappings

_INTEGER = re.compile(r"^[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)$")
_FLOAT = re.compile(
    r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$"
)


class _Loader(yaml.SafeLoader):
    """Plain values as in YAML 1.2: ``1e-6`` is a number, while ``on``, ``1:30`` and ``2026-11-21`` are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 as PyYAML declares it


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0 if text.lstrip("+-")[:2] in ("0x", "0o") else 10)


_TAGS = "YAML tags such as !!python/... are not supported; write a plain value"
_STARTS = list("+-.0123456789")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:[Tt]rue|TRUE|[Ff]alse|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, _STARTS)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, _STARTS)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


@dataclass(frozen=True)
class Marked:
    """The values of a YAML mapping, the line of each, and the *source* they came from.

    >>> parse("stop:\\n  trials: 500\\n", "run.yaml").where(("stop", "trials"))
    'run.yaml:2'
    """

    value: dict[str, Any]
    lines: Mapping[Key, int]
    source: str

    def where(self, key: Key) -> str:
        """Return ``source:line`` of *key*, or of the nearest key above it that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.source}:{self.lines[key]}" if key else self.source


def read(path: Path) -> Marked:
    """Return the marked values of the YAML file at *path*, or raise :class:`ConfigError`."""
    shown = str(path)
    if (why := unreadable(path)) == "does not exist":
        raise ConfigError(f"there is no configuration file '{shown}'; docs/configuration.md shows one")
    if why is not None:
        raise ConfigError(f"the configuration '{shown}' {why}; name a YAML file")
    held = read_start(path, _MOST_BYTES + 1)
    if len(held) > _MOST_BYTES:
        raise ConfigError(f"the configuration '{shown}' is larger than {_MOST_BYTES >> 20} MiB; name a YAML file")
    try:
        return parse(held.decode("utf-8"), shown)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ConfigError(
            f"{shown}: a configuration is UTF-8 text, got a byte 0x{byte:02x}; save it as UTF-8"
        ) from None


def parse(text: str, source: str) -> Marked:
    """Return the marked values of the YAML mapping *text*; *source* names it in messages.

    Raises :class:`ConfigError`, with the line, for text that is no YAML mapping, repeated keys, and aliases.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{source}: the configuration is empty; it needs at least 'model' and 'data'")
        if not isinstance(node, yaml.MappingNode):
            got = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            raise ConfigError(f"{source}:{node.start_mark.line + 1}: expected 'key: value' lines, got {got}")
        lines = dict(_marks(node, (), source, set()))
        return Marked(loader.construct_document(node), lines, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        if isinstance(error, yaml.constructor.ConstructorError):
            raise ConfigError(f"{source}{line}: {_TAGS}") from None
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {first_line(error)}") from None
    except ValueError as error:
        raise ConfigError(f"{source}: not valid YAML: {first_line(error)}") from None
    except RecursionError:
        raise ConfigError(f"{source}: lists and mappings nest too deeply; {_DEEPEST} levels will do") from None
    finally:
        if loader:
            loader.dispose()


def scalar(text: str) -> Any:
    """Return the value that *text* has in YAML, or *text* itself where it is no YAML.

    >>> scalar("1e-6"), scalar("[1, 2]"), scalar("burst:3")
    (1e-06, [1, 2], 'burst:3')
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _marks(node: yaml.Node, at: Key, source: str, seen: set[int]) -> Iterator[tuple[Key, int]]:
    """Yield the line of every value below *node*; the line of a mapping's value is that of its key."""
    line = node.start_mark.line + 1
    if len(at) > _DEEPEST:
        raise ConfigError(f"{source}:{line}: lists and mappings nest too deeply; {_DEEPEST} levels will do")
    if id(node) in seen:
        raise ConfigError(f"{source}:{line}: YAML aliases are not supported; write the value out")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            here = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                got = f"'{key.value}'" if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                raise ConfigError(f"{source}:{here}: a key is a word, got {got}")
            if key.value in first:
                raise ConfigError(
                    f"{source}:{here}: key '{key.value}' is already given on line {first[key.value]}; keep one of them"
                )
            first[key.value] = here
            yield (*at, key.value), here
            yield from _marks(value, (*at, key.value), source, seen)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield (*at, position), value.start_mark.line + 1
            yield from _marks(value, (*at, position), source, seen)
