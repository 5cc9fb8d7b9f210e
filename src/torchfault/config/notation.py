"""The compact notations of a configuration: ``burst:3``, ``top1 | margin:0.5``, ``23-30,sign``, ``1GiB``, ``10m``."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torchfault.errors import did_you_mean

__all__ = [
    "CRITERIA",
    "FAULTS",
    "IMPORTED",
    "METRICS",
    "And",
    "Atom",
    "Expression",
    "Not",
    "Or",
    "parse_bits",
    "parse_bytes",
    "parse_criterion",
    "parse_fault",
    "parse_lasting",
    "parse_metric",
    "parse_seconds",
    "parse_steps",
]

IMPORTED = re.compile(r"^[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*$")
"""``package.module:name``, the way to something of the user's own."""

FIELDS = ("sign", "exponent", "mantissa", "magnitude")
_LARGEST_BIT = 63


@dataclass(frozen=True)
class Atom:
    """A name and its argument: ``burst:3``. An imported object has the name ``import`` and no argument but *text*."""

    name: str
    text: str
    argument: float | int | None = None


@dataclass(frozen=True)
class Not:
    """The negation of an expression."""

    part: "Expression"


@dataclass(frozen=True)
class And:
    """Both of two expressions."""

    left: "Expression"
    right: "Expression"


@dataclass(frozen=True)
class Or:
    """Either of two expressions."""

    left: "Expression"
    right: "Expression"


Expression = Atom | Not | And | Or


def _number(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        raise ValueError
    return value


def _between(read: Callable[[str], float | int], low: float, high: float = math.inf) -> Callable[[str], float | int]:
    """Return a reader of finite numbers from *low* to *high*."""

    def bounded(text: str) -> float | int:
        value = read(text)
        if not low <= value <= high or math.isinf(value):
            raise ValueError
        return value

    return bounded


_at_least_zero = _between(_number, 0)
_overlap = _between(_number, math.nextafter(0, 1), 1)
_ratio = _between(_number, 1)
_length = _between(int, 1, _LARGEST_BIT + 1)
_count = _between(int, 1)

Reader = tuple[Callable[[str], float | int], str] | None
"""How an argument is read, and what it is called in messages; ``None`` for a name that takes none."""

FAULTS: Mapping[str, Reader] = {
    "flip": None,
    "stuck-at-0": None,
    "stuck-at-1": None,
    "random-word": None,
    "burst": (_length, "a number of bits from 1 to 64, as in burst:3"),
    "value": (_number, "a number, as in value:0"),
    "dead": None,
    "saturated": None,
}
CRITERIA: Mapping[str, Reader] = {
    "top1": None,
    "topk": (_count, "a whole number of 1 or more, as in topk:5"),
    "misclassified": None,
    "margin": (_at_least_zero, "a number of 0 or more, as in margin:0.5"),
    "error": (_at_least_zero, "a number of 0 or more, as in error:0.01"),
    "non-finite": None,
    "boxes": (_overlap, "an overlap above 0 and up to 1, as in boxes:0.5"),
    "masks": (_overlap, "an overlap above 0 and up to 1, as in masks:0.5"),
    "perplexity": (_ratio, "a ratio of 1 or more, as in perplexity:1.1"),
    "spike-count": None,
    "first-spike": None,
}
METRICS: Mapping[str, Reader] = {
    "accuracy": None,
    "perplexity": None,
    "mean-iou": (_count, "a number of classes, as in mean-iou:21"),
}


def _atom(text: str, known: Mapping[str, Reader], what: str) -> Atom:
    name, colon, argument = text.partition(":")
    if name not in known:
        if IMPORTED.match(text):
            return Atom("import", text)
        choices = ", ".join(f"{key}:..." if reader else key for key, reader in known.items())
        hint = did_you_mean(name, known) or f"; use {choices} or package.module:name"
        raise ValueError(f"no {what} is called '{text}'{hint}")
    reader = known[name]
    if reader is None:
        if colon:
            raise ValueError(f"'{name}' takes no argument, got '{text}'; write {name}")
        return Atom(name, text)
    read, wanted = reader
    try:
        return Atom(name, text, read(argument))
    except ValueError:
        raise ValueError(f"'{name}' needs {wanted}, got '{text}'") from None


def parse_fault(text: str) -> Atom:
    """Return the fault model that *text* names, or raise :class:`ValueError`.

    >>> parse_fault("burst:3")
    Atom(name='burst', text='burst:3', argument=3)
    """
    return _atom(text.strip(), FAULTS, "fault model")


def parse_criterion(text: str) -> Expression:
    """Return the expression that *text* writes with ``~``, ``&``, ``|`` and parentheses, or raise :class:`ValueError`.

    >>> parse_criterion("~topk:3")
    Not(part=Atom(name='topk', text='topk:3', argument=3))
    """
    tokens = re.findall(r"[()&|~]|[^\s()&|~]+", text)
    expression, rest = _either(tokens, text)
    if rest:
        raise ValueError(f"expected '&', '|' or the end before '{rest[0]}' in '{text}'")
    return expression


def _either(tokens: list[str], text: str) -> tuple[Expression, list[str]]:
    left, rest = _both(tokens, text)
    while rest and rest[0] == "|":
        right, rest = _both(rest[1:], text)
        left = Or(left, right)
    return left, rest


def _both(tokens: list[str], text: str) -> tuple[Expression, list[str]]:
    left, rest = _single(tokens, text)
    while rest and rest[0] == "&":
        right, rest = _single(rest[1:], text)
        left = And(left, right)
    return left, rest


def _single(tokens: list[str], text: str) -> tuple[Expression, list[str]]:
    if not tokens or tokens[0] in (")", "&", "|"):
        found = f"'{tokens[0]}'" if tokens else "the end"
        raise ValueError(f"expected a criterion before {found} in '{text}'; use {', '.join(CRITERIA)}")
    if tokens[0] == "~":
        part, rest = _single(tokens[1:], text)
        return Not(part), rest
    if tokens[0] == "(":
        inner, rest = _either(tokens[1:], text)
        if not rest or rest[0] != ")":
            raise ValueError(f"a parenthesis is not closed in '{text}'")
        return inner, rest[1:]
    return _atom(tokens[0], CRITERIA, "criterion"), tokens[1:]


def parse_metric(text: str) -> Atom:
    """Return the metric that *text* names, or raise :class:`ValueError`.

    >>> parse_metric("mean-iou:21").argument
    21
    """
    return _atom(text.strip(), METRICS, "metric")


def parse_bits(value: object) -> tuple[int | str, ...]:
    """Return the bit positions and names of bit fields in *value*, or raise :class:`ValueError`.

    *value* is a number, text such as ``23-30,sign``, or a list of these.

    >>> parse_bits("28-30,sign")
    (28, 29, 30, 'sign')
    """
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    if isinstance(value, bool | dict | float) or value is None:
        raise ValueError(f"expected bit positions such as 30, 23-30 or sign, got {value!r}")
    bits: list[int | str] = []
    for part in parts:
        bits += _bit_range(part)
    return tuple(dict.fromkeys(bits))


def _bit_range(part: object) -> list[int | str]:
    text = str(part).strip()
    if text in FIELDS:
        return [text]
    found = None if isinstance(part, bool | float) else re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    if not found:
        raise ValueError(f"expected a bit position, a range such as 23-30 or one of {', '.join(FIELDS)}, got '{text}'")
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last or last > _LARGEST_BIT:
        raise ValueError(f"bit positions run upwards from 0 to {_LARGEST_BIT}, got '{text}'")
    return list(range(first, last + 1))


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_steps(value: object) -> tuple[int, int] | None:
    """Return the range of time steps in *value*, text such as ``3:7`` (3 to 6), or raise :class:`ValueError`.

    >>> parse_steps("3:7"), parse_steps("5")
    ((3, 7), (5, 6))
    """
    if value is None:
        return None
    text = ":".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    found = None if isinstance(value, bool | float) else re.fullmatch(r"([0-9]{1,9})(?::([0-9]{1,9}))?", text.strip())
    if not found or (found[2] and int(found[1]) >= int(found[2])):
        raise ValueError(f"expected a time step or a range such as 3:7 (steps 3 to 6), got '{value}'")
    return int(found[1]), int(found[2] or int(found[1]) + 1)


def parse_lasting(value: object) -> int | str | None:
    """Return for how many time steps a fault stays, or ``end``; raises :class:`ValueError` for anything else.

    >>> parse_lasting("end"), parse_lasting("4")
    ('end', 4)
    """
    text = str(value).strip()
    if value is None or text == "end":
        return None if value is None else text
    if isinstance(value, bool | float) or not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ValueError(f"expected a number of time steps from 1, or end for a permanent fault, got '{value}'")
    return int(text)


def parse_bytes(value: object) -> int:
    """Return the number of bytes that *value* means, or raise :class:`ValueError`.

    >>> parse_bytes("256MiB"), parse_bytes(2_000_000)
    (268435456, 2000000)
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", str(value).strip())
    if isinstance(value, bool | float) or not found or found[2].upper() not in _UNITS:
        raise ValueError(f"expected a number of bytes such as 256MiB or 1GiB, got '{value}'")
    size = int(float(found[1]) * _UNITS[found[2].upper()])
    if size < 2**20:
        raise ValueError(f"the memory budget starts at 1MiB, got '{value}'")
    return size


def parse_seconds(value: object) -> float:
    """Return the number of seconds that *value* means, or raise :class:`ValueError`.

    >>> parse_seconds("1h30m"), parse_seconds(45)
    (5400.0, 45.0)
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    found = re.fullmatch(r"(?:([0-9.]+)\s*h)?\s*(?:([0-9.]+)\s*m(?:in)?)?\s*(?:([0-9.]+)\s*s)?", str(value).strip())
    try:
        parts = [float(part or 0) for part in found.groups()] if found else []
    except ValueError:
        parts = []
    if seconds := sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False)):
        return seconds
    raise ValueError(f"expected a time above 0 such as 90s, 10m or 1h30m, got '{value}'")
