"""The compact notations of a configuration: ``23-30,sign``, ``3:7``, ``1GiB``, ``10m``."""

import re

from torchfault.expressions import IMPORTED

__all__ = [
    "check_imported",
    "check_level",
    "parse_bits",
    "parse_bytes",
    "parse_lasting",
    "parse_seconds",
    "parse_steps",
]

FIELDS = ("sign", "exponent", "mantissa", "magnitude")
_LARGEST_BIT = 63
_LOWEST, _HIGHEST = 0.01, 1 - 1e-9  # confidence levels that somebody can mean
_LONGEST = 100 * 365.25 * 86_400.0  # seconds


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
    raise ValueError(f"expected a time above 0 such as 90s, 10m or 1h30m, up to 100 years, got '{value}'")


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
        raise ValueError(f"expected package.module:name, got '{text}'")
    return text
