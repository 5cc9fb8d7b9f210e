"""The names of word formats, read without torch: how wide a word is, and what the parameters in a name are."""

import re
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["FIELDS", "NATIVE", "NOTATIONS", "parameters", "width_of"]

NATIVE: Mapping[str, int] = MappingProxyType(
    {
        "float64": 64,
        "float32": 32,
        "float16": 16,
        "bfloat16": 16,
        "float8_e4m3fn": 8,
        "float8_e5m2": 8,
        "float8_e4m3fnuz": 8,
        "float8_e5m2fnuz": 8,
        "float8_e8m0fnu": 8,
        "float4_e2m1fn_x2": 8,
        "int64": 64,
        "int32": 32,
        "int16": 16,
        "int8": 8,
        "uint64": 64,
        "uint32": 32,
        "uint16": 16,
        "uint8": 8,
        "bool": 1,
    }
)
"""The bits of a word of the formats that torch has types for, by name."""

FIELDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "float64": (52, 11),
        "float32": (23, 8),
        "bfloat16": (7, 8),
        "float16": (10, 5),
        "float8_e4m3fn": (3, 4),
        "float8_e5m2": (2, 5),
        "float8_e4m3fnuz": (3, 4),
        "float8_e5m2fnuz": (2, 5),
        "float8_e8m0fnu": (0, 8),
    }
)
"""The bits of mantissa and of exponent, lowest first, of torch's floating-point types; what is above them is the sign.

A ``float4_e2m1fn_x2`` is not among them: it holds two numbers.
"""

NOTATIONS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "fixed point": re.compile(r"q(?P<integer>[0-9]{1,2})\.(?P<fraction>[0-9]{1,2})"),
        "minifloat": re.compile(r"e(?P<exponent>[0-9]{1,2})m(?P<mantissa>[0-9]{1,2})(?P<finite>fn)?"),
        "overflow to NaN": re.compile(r"float8_e(?P<exponent>4)m(?P<mantissa>3)fn\[nan\]"),
        "narrow integer": re.compile(r"(?P<kind>u?int)(?P<width>[1-7])"),
        "quantised": re.compile(r"(?P<kind>u?int)(?P<width>[2-8])\[(?P<scale>[0-9.e+-]+):(?P<zero_point>-?[0-9]+)\]"),
    }
)
"""The formats that a name gives by their parameters, by kind."""


def parameters(name: str) -> tuple[str, Mapping[str, str]] | None:
    """Return the kind of format that *name* gives by its parameters, and these; ``None`` for another name.

    >>> parameters("q3.4")
    ('fixed point', {'integer': '3', 'fraction': '4'})
    """
    for kind, pattern in NOTATIONS.items():
        if found := pattern.fullmatch(name):
            return kind, found.groupdict()
    return None


def width_of(name: str) -> int | None:
    """Return the bits of a word of the format called *name*, ``None`` where no format is called so.

    >>> [width_of(name) for name in ("int8", "q3.4", "e3m2fn", "int4", "uint8[0.02:128]", "fp8")]
    [8, 8, 6, 4, 8, None]
    """
    if name in NATIVE:
        return NATIVE[name]
    found = parameters(name)
    if found is None:
        return None
    given = found[1]
    if "width" in given:
        return int(given["width"])
    first, second = ("integer", "fraction") if "fraction" in given else ("exponent", "mantissa")
    return 1 + int(given[first]) + int(given[second])
