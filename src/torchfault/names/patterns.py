"""Globs and regular expressions over names, with suggestions where nothing matches."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence

from torchfault.errors import SpaceError, did_you_mean
from torchfault.names.expressions import searcher

__all__ = ["listed", "matching"]

_LONGEST = 1000


def listed(patterns: str | Iterable[str]) -> list[str]:
    """Return *patterns* as a list, also where it is one.

    >>> listed("conv*")
    ['conv*']
    """
    return [patterns] if isinstance(patterns, str) else list(patterns)


def matching(known: Sequence[str], patterns: str | Iterable[str], *, what: str) -> set[int]:
    """Return the positions of the names in *known* that fit any pattern; each pattern must fit at least one.

    A pattern is a glob, or a regular expression behind ``re:``, in time that is bounded whatever it is; a name fits
    itself, with brackets and stars in it too. Raises :class:`SpaceError`, naming *what* was looked for and with a
    suggestion, for a pattern that fits none.

    >>> matching(["conv1", "conv2", "fc"], "conv*", what="site"), matching(["a[0]", "b"], "a[0]", what="site")
    ({0, 1}, {0})
    """
    found: set[int] = set()
    for pattern in listed(patterns):
        fits = _fits(pattern)
        hits = {i for i, name in enumerate(known) if name == pattern or fits(name)}
        if not hits:
            raise SpaceError(f"no {what} matches '{pattern}'{_suggest(pattern, known)}")
        found |= hits
    return found


def _fits(pattern: str) -> Callable[[str], object]:
    """Return what tells whether a name fits *pattern*."""
    if len(pattern) > _LONGEST:
        raise SpaceError(f"a pattern has at most {_LONGEST} characters, got {len(pattern)}; list several instead")
    if not pattern.startswith("re:"):
        return re.compile(fnmatch.translate(pattern)).match
    try:
        return searcher(pattern[3:])
    except (re.error, RecursionError, OverflowError) as error:
        raise SpaceError(f"'{pattern}' is not a regular expression ({error}); use re:<expression>") from None


def _suggest(pattern: str, known: Sequence[str]) -> str:
    """Suggest patterns of the same kind near *pattern*: names, or beginnings, ends or pieces of them with stars."""
    stem, size = pattern.strip("*"), len(pattern.strip("*"))
    if pattern == stem and any(name.startswith((f"{stem}.", f"{stem}:")) for name in known):
        return f"; did you mean '{stem}*'?"
    begins, ends = pattern.startswith("*"), pattern.endswith("*")
    if not stem or not (begins or ends):
        near = list(known)
    elif begins and ends:
        near = [f"*{piece}*" for name in known for piece in re.split("[.:]", name)]
    else:
        near = [f"*{name[-size:]}" if begins else f"{name[:size]}*" for name in known]
    return did_you_mean(pattern, dict.fromkeys(near))
