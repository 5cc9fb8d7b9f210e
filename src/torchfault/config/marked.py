"""YAML with line marks: a file's plain values, and the line on which each of them stands."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torchfault.errors import ConfigError, first_line
from torchfault.files import unreadable
from torchfault.plain_yaml import NO_TAGS, PlainLoader, Refused, read_text

__all__ = ["Key", "Marked", "parse", "read"]

Key = tuple[str | int, ...]
"""The way to a value: names in mappings and positions in lists."""


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
    if unreadable(path) == "does not exist":
        raise ConfigError(f"there is no configuration file '{path}'; docs/configuration.md shows one")
    try:
        return parse(read_text(path), str(path))
    except ValueError as error:
        raise ConfigError(f"the configuration '{path}' {error}") from None


def parse(text: str, source: str) -> Marked:
    """Return the marked values of the YAML mapping *text*; *source* names it in messages.

    Raises :class:`ConfigError`, with the line, for text that is no YAML mapping, repeated keys, and aliases.
    """
    loader = None
    try:
        loader = PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{source}: the configuration is empty; it needs at least 'model' and 'data'")
        if not isinstance(node, yaml.MappingNode):
            got = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            raise ConfigError(f"{source}:{node.start_mark.line + 1}: expected 'key: value' lines, got {got}")
        lines = dict(_marks(node, (), source))
        return Marked(loader.construct_document(node), lines, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        if isinstance(error, Refused):
            raise ConfigError(f"{source}{line}: {error.problem}") from None
        if isinstance(error, yaml.constructor.ConstructorError):
            raise ConfigError(f"{source}{line}: {NO_TAGS}") from None
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {first_line(error)}") from None
    except ValueError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    finally:
        if loader:
            loader.dispose()


def _marks(node: yaml.Node, at: Key, source: str) -> Iterator[tuple[Key, int]]:
    """Yield the line of every value below *node*; the line of a mapping's value is that of its key."""
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
            yield from _marks(value, (*at, key.value), source)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield (*at, position), value.start_mark.line + 1
            yield from _marks(value, (*at, position), source)
