"""Fractions with one-sided bounds: each of the two holds by itself with the confidence that was chosen."""

import math
from dataclasses import replace
from typing import Any

from torchfault.errors import ConfigError
from torchfault.statistics import Estimate, proportion

__all__ = ["METHOD", "check_confidence", "complement", "coverage", "divided", "level_of", "scaled", "told"]

METHOD = "clopper-pearson"

Fraction = dict[str, Any]
"""``value`` (None without trials), ``lower``, ``upper`` and the ``method`` of the bounds."""


def check_confidence(confidence: float) -> None:
    """Raise :class:`ConfigError` unless *confidence* lies between one half and 1."""
    if not 0.5 < confidence < 1:
        raise ConfigError(f"--confidence: expected a number above 0.5 and below 1, got {confidence:g}")


def level_of(confidence: float) -> float:
    """Return the level of the two-sided interval whose ends hold with *confidence* each.

    >>> round(level_of(0.95), 10)
    0.9
    """
    return 2 * confidence - 1


def told(found: Estimate) -> Fraction:
    """Return an estimate as a fraction."""
    value = found.value if math.isfinite(found.value) else None
    return {"value": value, "lower": found.low, "upper": found.high, "method": found.method}


def complement(fraction: Fraction) -> Fraction:
    """Return 1 - *fraction*: the safe fraction of the failing one.

    >>> complement({"value": 0.25, "lower": 0.125, "upper": 0.5, "method": "m"})
    {'value': 0.75, 'lower': 0.5, 'upper': 0.875, 'method': 'm'}
    """
    value = None if fraction["value"] is None else 1 - fraction["value"]
    return {**fraction, "value": value, "lower": 1 - fraction["upper"], "upper": 1 - fraction["lower"]}


def scaled(fraction: Fraction, fit: float) -> dict[str, float | None]:
    """Return a rate: *fit* failures in 10^9 hours times a fraction."""
    value = None if fraction["value"] is None else fit * fraction["value"]
    return {"value": value, "lower": fit * fraction["lower"], "upper": fit * fraction["upper"]}


def divided(found: Estimate, by: float) -> Estimate:
    """Return an estimate of a part of the whole as one of a part of *by*, within 0 to 1."""
    value, low, high = (min(max(end / by, 0.0), 1.0) for end in (found.value, found.low, found.high))
    return replace(found, value=value, low=low, high=high)


def coverage(
    detected: Estimate, undetected: Estimate, *, counts: tuple[int, int] | None, confidence: float
) -> Fraction:
    """Return which fraction of the failing faults a detector tells.

    *counts*, of trials that are plain, are those detected among those that fail: an exact interval. Elsewhere it is
    detected / (detected + undetected), between what their bounds allow, which must hold with half the error each.
    """
    if counts is not None:
        return told(proportion(*counts, method=METHOD, level=level_of(confidence)))
    whole = detected.value + undetected.value
    return {
        "value": detected.value / whole if whole > 0 else None,
        "lower": _part(detected.low, undetected.high, 0.0),
        "upper": _part(detected.high, undetected.low, 1.0),
        "method": f"ratio of bounds ({detected.method})",
    }


def _part(one: float, other: float, otherwise: float) -> float:
    return one / (one + other) if one + other > 0 else otherwise
