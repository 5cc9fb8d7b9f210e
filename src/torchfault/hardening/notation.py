"""Methods as text, as the command line writes them: ``ranges:zero:channel``."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from torchfault.errors import ModelError, did_you_mean
from torchfault.hardening.checksums import Checksums, WeightChecksums
from torchfault.hardening.encodings import Parity, Secded, Triplicate
from torchfault.hardening.harden import Method
from torchfault.hardening.ranges import Ranges
from torchfault.hardening.standby import Standby
from torchfault.hardening.weights import InvariantBits, WeightRanges
from torchfault.hardening.zero_space import ZeroSpace

__all__ = ["METHODS", "method"]

METHODS: Mapping[str, Callable[..., Method]] = {
    "ranges": Ranges,
    "invariant-bits": InvariantBits,
    "weight-ranges": WeightRanges,
    "parity": Parity,
    "secded": Secded,
    "triplicate": Triplicate,
    "weight-checksums": WeightChecksums,
    "checksums": Checksums,
    "zero-space": ZeroSpace,
    "standby": Standby,
}
_WORDS = {"clamp": "action", "zero": "action", "mean": "action", "layer": "per", "channel": "per"}
_NUMBERS = {"ranges": ("share", float), "triplicate": ("bits", int), "standby": ("margin", float)}


def method(text: str) -> Method:
    """Return the method that *text* names: ``name[:option]...``.

    An option of ``ranges`` and ``weight-ranges`` is a word (``clamp``, ``zero``, ``mean``; ``layer``, ``channel``), of
    ``ranges`` also the share of golden values inside the bounds, of ``triplicate`` the number of bits, of ``standby``
    the margin, of ``invariant-bits`` and ``weight-ranges`` the word ``buffers``. Raises :class:`ModelError` for a name
    or an option that there is not.

    >>> method("ranges:zero:0.999"), method("triplicate:3")
    (Ranges(sites=(), action='zero', per='layer', share=0.999, margin=0.0), Triplicate(sites='*', bits=3))
    """
    name, *options = text.strip().split(":")
    if name not in METHODS:
        raise ModelError(
            f"no method of hardening is called '{name}'{did_you_mean(name, METHODS)}; there are {', '.join(METHODS)}"
        )
    given: dict[str, Any] = {}
    for option in options:
        key, value = _option(name, option, text)
        if key in given:
            raise ModelError(f"'{text}': the {key} is given twice, as {given[key]} and {value}")
        given[key] = value
    return METHODS[name](**given)


def _option(name: str, option: str, text: str) -> tuple[str, Any]:
    """Return what *option* of the method called *name* sets, and to what."""
    words = {word: (key, word) for word, key in _WORDS.items()} if name in ("ranges", "weight-ranges") else {}
    more = {"buffers": ("buffers", True)} if name in ("invariant-bits", "weight-ranges") else {}
    known: Mapping[str, tuple[str, Any]] = words | more
    if option in known:
        return known[option]
    if name in _NUMBERS:
        key, kind = _NUMBERS[name]
        with suppress(ValueError):
            return key, kind(option)
    raise ModelError(f"'{text}': {name} has no option '{option}'{did_you_mean(option, known)}")
