"""The compact notations of a configuration: ``pooled:64,audit=0.1``, ``23-30,sign``, ``3:7``, ``1GiB``, ``10m``."""

import re
from typing import Any

from torchfault.expressions import IMPORTED
from torchfault.plain_yaml import scalar

__all__ = [
    "check_imported",
    "check_level",
    "parse_bits",
    "parse_bytes",
    "parse_kind",
    "parse_lasting",
    "parse_seconds",
    "parse_steps",
    "parse_widths",
]

FIELDS = ("sign", "exponent", "mantissa", "magnitude")
_LARGEST_BIT = 63
_LOWEST, _HIGHEST = 0.01, 1 - 1e-9  # confidence levels that somebody can mean
_LONGEST = 100 * 365.25 * 86_400.0  # seconds


def parse_kind(text: str) -> tuple[str, Any, dict[str, Any]]:
    """Return the kind that *text* names, the value right behind the colon (``None`` without), and those with names.

    >>> parse_kind("importance:GBIN,floor=0.2"), parse_kind("uniform")
    (('importance', 'GBIN', {'floor': 0.2}), ('uniform', None, {}))
    """
    name, colon, rest = text.strip().partition(":")
    first, named = None, dict[str, Any]()
    for place, item in enumerate(rest.split(",") if colon else ()):
        key, equals, value = item.partition("=")
        if not equals and place:
            raise ValueError(f"only the first value stands without its name, got '{text[:60]}'; write {name}:key=value")
        if not equals:
            first = scalar(item.strip())
        elif (key := key.strip()) in named:
            raise ValueError(f"'{name}' is given {key} twice in '{text[:60]}'; keep one of them")
        else:
            named[key] = scalar(value.strip())
    return name, first, named


def parse_widths(value: object) -> object:
    """Return half-widths by grouping: of a number that of the model, of ``site=0.01`` that of each site.

    Several are parted by commas, or listed. What is no such text stays as it is.

    >>> parse_widths(0.01), parse_widths("site=0.01,model=0.001")
    ({'model': 0.01}, {'site': 0.01, 'model': 0.001})
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"model": value}
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        return value
    found: dict[str, Any] = {}
    for item in value:
        by, equals, width = str(item).rpartition("=")
        by = by.strip() if equals else "model"
        if by in found:
            raise ValueError(f"the half-width of '{by}' is given twice; keep one of them")
        found[by] = scalar(width.strip())
    return found


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
        raise ValueError(
            f"expected a bit position, a range such as 23-30 or one of {', '.join(FIELDS)}, got '{text[:60]}'"
        )
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last or last > _LARGEST_BIT:
        raise ValueError(f"bit positions run upwards from 0 to {_LARGEST_BIT}, got '{text}'")
    return list(range(first, last + 1))


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
        raise ValueError(f"expected a time step or a range such as 3:7 (steps 3 to 6), got '{str(value)[:60]}'")
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
        raise ValueError(f"expected a number of time steps from 1, or end for a permanent fault, got '{text[:60]}'")
    return int(text)


_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(value: object) -> int:
    """Return the number of bytes that *value* means, or raise :class:`ValueError`.

    >>> parse_bytes("256MiB"), parse_bytes("2G"), parse_bytes(2_000_000)
    (268435456, 2000000000, 2000000)
    """
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*(?:([kmgt]?)(i?)b?)", str(value).strip().lower())
    if isinstance(value, bool | float) or not found:
        raise ValueError(f"expected a number of bytes such as 256MiB or 1GiB, got '{str(value)[:60]}'")
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2]])
    if not 2**20 <= size < 2**60:
        raise ValueError(f"the memory budget starts at 1MiB, got '{value}'")
    return size


def parse_seconds(value: object) -> float:
    """Return the number of seconds that *value* means, or raise :class:`ValueError`.

    >>> parse_seconds("1h30m"), parse_seconds(45)
    (5400.0, 45.0)
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LONGEST:
        return float(value)
    found = re.fullmatch(r"(?:([0-9.]+)\s*h)?\s*(?:([0-9.]+)\s*m(?:in)?)?\s*(?:([0-9.]+)\s*s)?", str(value).strip())
    try:
        parts = [float(part or 0) for part in found.groups()] if found else []
    except ValueError:
        parts = []
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if 0 < seconds <= _LONGEST:
        return seconds
    raise ValueError(f"expected a time above 0 such as 90s, 10m or 1h30m, up to 100 years, got '{str(value)[:60]}'")


def check_level(value: float) -> float:
    """Return a confidence level as it is, or raise :class:`ValueError`.

    >>> check_level(95.0)
    Traceback (most recent call last):
    ValueError: expected a confidence level between 0 and 1, got 95; did you mean 0.95?
    """
    if not _LOWEST <= value <= _HIGHEST:
        hint = f"; did you mean {value / 100:g}?" if 1 <= value < 100 else ""
        raise ValueError(f"expected a confidence level between 0 and 1, got {value:g}{hint}")
    return value


def check_imported(text: str) -> str:
    """Return the way to an object of the user's own as it is, or raise :class:`ValueError`.

    >>> check_imported("my.data:test")
    'my.data:test'
    """
    if not IMPORTED.match(text):
        raise ValueError(f"expected package.module:name, got '{text[:60]}'")
    return text
