"""What is said of campaigns in words: kinds of sites, faults, criteria, samplers, from what the store describes."""

from collections.abc import Mapping
from typing import Any

from torchfault.results import Results
from torchfault.space import FaultSpace

__all__ = ["brief", "failing", "fault_of", "field_of", "fields_of", "kinds_of", "listed", "metric_of", "unit_word"]

_KINDS = {
    "weight": "weights",
    "bias": "biases",
    "norm": "normalisation",
    "buffer": "buffers",
    "data": "model inputs",
    "input": "layer inputs",
    "output": "layer outputs",
    "state": "states",
    "constant": "constants",
    "control": "control",
}
_FAULTS = {"flip": "a flip of one bit", "stuck-at-0": "a bit stuck at 0", "stuck-at-1": "a bit stuck at 1"}
_MOST_SERIES = 4
_CRITERIA = {
    "Top1Change": "the predicted class is another one than without the fault",
    "TopK": "the class predicted without the fault is no longer among the best",
    "Misclassified": "the predicted class is not the label",
    "MarginDrop": "the margin of the predicted class shrinks by more than allowed",
    "OutputError": "an output differs by more than allowed",
    "NonFinite": "an output is NaN or infinite",
}


def brief(plain: Any) -> str:
    """Return a stored description of a value in one line: its name, and its fields that are numbers or texts.

    >>> brief({"class": "BitErrorRate", "fields": {"rate": 0.001, "words": {"array": "9f"}}})
    'BitErrorRate(rate=0.001)'
    """
    if not isinstance(plain, Mapping):
        return "none" if plain is None else str(plain)
    name = str(plain.get("class", plain.get("function", plain.get("method", "value")))).rpartition(".")[2]
    held = plain.get("fields", {})
    simple = {key: value for key, value in held.items() if isinstance(value, int | float | str)} if held else {}
    inner = held.get("rules") if isinstance(held, Mapping) else None
    if isinstance(inner, list):
        return f"{name}({', '.join(map(brief, inner))})"
    return f"{name}({', '.join(f'{key}={value}' for key, value in simple.items())})" if simple else name


def fault_of(results: Results) -> str:
    """Return what a fault does, in the words of the configuration where there is one."""
    settings = results.record.configuration.get("settings") or {}
    if isinstance(settings.get("fault"), str) and isinstance(results.space, FaultSpace):
        named, lasting = _FAULTS.get(settings["fault"], settings["fault"]), settings.get("lasting")
        return f"{named}, lasting {lasting}" if lasting else str(named)
    plain = brief(results.record.configuration.get("fault"))
    return {"BitFlip": "a flip of one bit", "Upset": "an upset of one flip-flop"}.get(plain, plain)


def failing(results: Results) -> str:
    """Return what counts as a failure, in words."""
    plain = results.record.configuration.get("criterion")
    if isinstance(plain, Mapping) and (told := _CRITERIA.get(str(plain.get("class")))):
        return told
    return f"{brief(plain)} says so"


def metric_of(results: Results) -> str:
    """Return the name of the metric that was measured."""
    settings = results.record.configuration.get("settings") or {}
    return str(settings.get("metric") or brief(results.record.configuration.get("metric")))


def kinds_of(results: Results) -> dict[str, str]:
    """Return the kinds of sites that were struck and what they are called; none where they are too many."""
    if not isinstance(results.space, FaultSpace):
        return {}
    kinds = list(dict.fromkeys(site.kind for site in results.space.sites if site.size))
    return {kind: _KINDS.get(kind, kind) for kind in kinds} if len(kinds) <= _MOST_SERIES else {}


def unit_word(results: Results) -> str:
    """Return what was struck, in the plural: faults, or upsets of an accelerator."""
    return "faults" if isinstance(results.space, FaultSpace) else "upsets"


def fields_of(results: Results) -> list[tuple[str, int, int]]:
    """Return the fields of the one word format that all sites have, each with its lowest and highest bit."""
    from torchfault.names.word_names import FIELDS

    words = {site.word for site in results.space.sites} if isinstance(results.space, FaultSpace) else set()
    if len(words) != 1 or (word := words.pop()) not in FIELDS:
        return []
    mantissa, exponent = FIELDS[word]
    ends = [("sign", mantissa + exponent, mantissa + exponent), ("exponent", mantissa, mantissa + exponent - 1)]
    return [*ends, ("mantissa", 0, mantissa - 1)] if mantissa else ends


def field_of(results: Results, bit: int) -> str:
    """Return the field that a bit belongs to, an empty text where that depends on the site."""
    return next((name for name, first, last in fields_of(results) if first <= bit <= last), "")


def listed(parts: list[str]) -> str:
    """Return a list in words.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
