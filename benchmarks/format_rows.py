"""The tables of what formats of weights bear, as lines of Markdown, from what benchmarks/formats.py finds."""

from collections.abc import Mapping
from typing import Any

from benchmarks.rows import table

__all__ = ["format_bits", "formats"]

Found = Mapping[str, Any]


def formats(found: Found) -> list[str]:
    """Return accuracy, size and failures of every network in every format."""
    heads = (
        "network",
        "format",
        "accuracy (%)",
        "megabytes",
        "a flip in an element fails (%)",
        "a flip in a scale fails (%)",
        "failures of 100 upsets in each megabyte",
        "elements, less the first, paired (%)",
    )
    lines = []
    for row in found["rows"]:
        kinds = (_interval(row[kind], 2) if row[kind] else "-" for kind in ("elements", "scales"))
        failures, difference = _interval(row["failures_per_upset_a_megabyte"], 3), _interval(row["difference"], 2)
        size = (f"{100 * row['accuracy']:.1f}", f"{row['megabytes']:.3f}")
        lines.append((row["network"], row["format"], *size, *kinds, failures, difference))
    return table(heads, lines)


def format_bits(found: Found) -> list[str]:
    """Return the bits of which some flips fail, from the top, with their shares."""
    lines = []
    for row in found["rows"]:
        for kind in ("elements", "scales"):
            if row[kind]:
                bits = "; ".join(f"{bit}: {_interval(one, 2)}" for bit, one in row[kind]["bits"].items())
                lines.append((row["network"], row["format"], kind, str(row[kind]["width"]), bits or "none"))
    return table(("network", "format", "struck", "bits of a word", "bit: flips that fail (%)"), lines)


def _interval(one: Mapping[str, float], digits: int) -> str:
    value, low, high = (f"{100 * one[bound]:.{digits}f}" for bound in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
