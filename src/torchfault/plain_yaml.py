"""YAML of plain values: a file is read up to a size, values nest up to a depth, and none stands for another one."""

import re
from pathlib import Path
from typing import Any

import yaml

from torchfault.files import read_start, unreadable

__all__ = ["NO_TAGS", "PlainLoader", "Refused", "load_file", "read_text", "scalar"]

_MOST_BYTES = 1 << 20
_MOST_LEVELS = 50
_MOST_DIGITS = 400
_INTEGER = re.compile(r"^[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)$")
_FLOAT = re.compile(
    r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$"
)


class Refused(yaml.MarkedYAMLError):
    """YAML that is valid, and not supported."""


class PlainLoader(yaml.SafeLoader):
    """Plain values as in YAML 1.2: ``1e-6`` is a number, while ``on``, ``1:30`` and ``2026-11-21`` are text.

    Values nest only so deep, and none stands for another one, so that no text grows when it is read.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 as PyYAML declares it
    levels = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node, as PyYAML does."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise Refused(problem="YAML aliases are not supported; write the value out", problem_mark=mark)
        if self.levels >= _MOST_LEVELS:
            raise Refused(problem=f"values nest more than {_MOST_LEVELS} deep", problem_mark=mark)
        self.levels += 1
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text, 0 if text.lstrip("+-")[:2] in ("0x", "0o") else 10)


NO_TAGS = "YAML tags such as !!python/... are not supported; write a plain value"
_STARTS = list("+-.0123456789")
_RESOLVED = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"^(?:[Tt]rue|TRUE|[Ff]alse|FALSE)$"), list("tTfF")),
    "int": (_INTEGER, _STARTS),
    "float": (_FLOAT, _STARTS),
}
for _tag, (_form, _first) in _RESOLVED.items():
    PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _form, _first)
PlainLoader.add_constructor("tag:yaml.org,2002:int", _whole)


def read_text(path: str | Path) -> str:
    """Return the text of a YAML file, or raise :class:`ValueError` that says what is wrong with it."""
    if (why := unreadable(path)) is not None:
        raise ValueError(f"{why}; give a YAML file")
    held = read_start(path, _MOST_BYTES + 1)
    if len(held) > _MOST_BYTES:
        raise ValueError(f"has more than {_MOST_BYTES >> 20} MiB; give a YAML file of settings")
    try:
        return held.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"is no UTF-8 text, with a byte 0x{byte:02x}; save it as UTF-8") from None


def load_file(path: str | Path) -> Any:
    """Return the values in the YAML file at *path*, or raise :class:`ValueError` that says what is wrong with it."""
    try:
        return yaml.load(read_text(path), Loader=PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" on line {mark.line + 1}" if mark else ""
        if isinstance(error, yaml.constructor.ConstructorError):
            raise ValueError(f"{NO_TAGS}{line}") from None
        raise ValueError(f"is not valid YAML{line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"is not valid YAML: {error}") from None


def scalar(text: str) -> Any:
    """Return the value that *text* has in YAML, or *text* itself where it is no YAML.

    >>> scalar("1e-6"), scalar("[1, 2]"), scalar("burst:3")
    (1e-06, [1, 2], 'burst:3')
    """
    try:
        return yaml.load(text, Loader=PlainLoader)
    except (yaml.YAMLError, ValueError):
        return text
