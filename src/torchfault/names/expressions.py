"""Regular expressions that cannot explode: all ways to match are followed at once, as one set of positions.

Python's own engine tries one way after the other, and ``(a+)+$`` has more of them on one long name than it can ever
try. A set of positions (bit i of a number for position i) is as large as the text at most, so that the time grows with
the size of the expression, and with the length of the text to the power of how deep its repeats are nested.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

__all__ = ["searcher"]

_Step = Callable[[str, int], int]
"""Takes the positions in a text at which a match may stand, and returns those that it may reach from there."""

_DEEPEST = 3
_KINDS = {
    codes.CATEGORY_DIGIT: r"\d",
    codes.CATEGORY_NOT_DIGIT: r"\D",
    codes.CATEGORY_SPACE: r"\s",
    codes.CATEGORY_NOT_SPACE: r"\S",
    codes.CATEGORY_WORD: r"\w",
    codes.CATEGORY_NOT_WORD: r"\W",
}
_BORDERS = {
    codes.AT_BEGINNING: "^",
    codes.AT_BEGINNING_STRING: r"\A",
    codes.AT_END: "$",
    codes.AT_END_STRING: r"\Z",
    codes.AT_BOUNDARY: r"\b",
    codes.AT_NON_BOUNDARY: r"\B",
}


def searcher(expression: str) -> Callable[[str], bool]:
    """Return a function that tells whether *expression* matches anywhere in a text.

    Raises :class:`re.error` for what is no regular expression, or asks for more than a set of positions can tell:
    references to groups, looking ahead or behind, flags; and for repeats in repeats in repeats in repeats.

    >>> found = searcher(r"^conv\\d+\\.(weight|bias)$")
    >>> found("conv12.bias"), found("conv.bias")
    (True, False)
    >>> searcher("(a+)+$")("a" * 5000 + "b")
    False
    """
    parsed = _parser.parse(expression)
    if parsed.state.flags & ~re.UNICODE:
        raise re.error("flags are not known here")
    step = _sequence(parsed, 0)
    return lambda text: step(text, (2 << len(text)) - 1) != 0


@lru_cache(maxsize=1)
def _where(text: str) -> dict[str, int]:
    """Return the positions of each character of *text*."""
    found: dict[str, int] = {}
    for i, character in enumerate(text):
        found[character] = found.get(character, 0) | 1 << i
    return found


def _sequence(items: Iterable[tuple[Any, Any]], depth: int) -> _Step:
    steps = [_step(code, argument, depth) for code, argument in items]

    def follow(text: str, at: int) -> int:
        for step in steps:
            at = step(text, at) if at else 0
        return at

    return follow


def _step(code: Any, argument: Any, depth: int) -> _Step:
    """Return what one item of an expression, inside *depth* repeats, does."""
    if code == codes.LITERAL:
        return lambda text, at: (at & _where(text).get(chr(argument), 0)) << 1
    if code in (codes.NOT_LITERAL, codes.ANY, codes.IN):
        fits = lru_cache(_fits(code, argument))
        return lambda text, at: (at & sum(mask for character, mask in _where(text).items() if fits(character))) << 1
    if code == codes.AT:
        border = re.compile(_BORDERS[argument])
        return lambda text, at: at & sum(1 << i for i in range(len(text) + 1) if border.match(text, i))
    if code == codes.SUBPATTERN and not argument[1] and not argument[2]:
        return _sequence(argument[3], depth)
    if code == codes.BRANCH:
        return _branch([_sequence(way, depth) for way in argument[1]])
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
        if depth == _DEEPEST:
            raise re.error(f"more than {_DEEPEST} repeats inside each other")
        return _repeat(argument[0], argument[1], _sequence(argument[2], depth + 1))
    raise re.error(f"{str(code).lower().replace('_', ' ')} is not known here")


def _branch(ways: list[_Step]) -> _Step:
    def follow(text: str, at: int) -> int:
        reached = 0
        for way in ways:
            reached |= way(text, at)
        return reached

    return follow


def _repeat(least: int, most: Any, step: _Step) -> _Step:
    def follow(text: str, at: int) -> int:
        for _ in range(least):
            before, at = at, step(text, at)
            if at == before:
                break
        # From a position that fewer repeats have reached too, more of them get no farther.
        reached = fresh = at
        times = least
        while fresh and (most is codes.MAXREPEAT or times < most):
            fresh = step(text, fresh) & ~reached
            reached, times = reached | fresh, times + 1
        return reached

    return follow


def _fits(code: Any, argument: Any) -> Callable[[str], bool]:
    """Return whether a character is one that an item of an expression stands for."""
    if code == codes.ANY:
        return lambda character: character != "\n"
    if code == codes.IN:
        negated = argument[0][0] == codes.NEGATE
        any_of = [_fits(*item) for item in argument[negated:]]
        return lambda character: any(fits(character) for fits in any_of) != negated
    if code == codes.RANGE:
        return lambda character: bool(argument[0] <= ord(character) <= argument[1])
    if code == codes.CATEGORY:
        kind = re.compile(_KINDS[argument])
        return lambda character: kind.match(character) is not None
    return lambda character: bool((ord(character) == argument) == (code == codes.LITERAL))
