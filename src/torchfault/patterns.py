"""Globs and regular expressions over names, with suggestions where nothing matches; no dependencies."""

import fnmatch
import re
from collections.abc import Iterable, Sequence

from torchfault.errors import SpaceError, did_you_mean

__all__ = ["listed", "matching"]


def listed(patterns: str | Iterable[str]) -> list[str]:
    """Return *patterns* as a list, also where it is one.

    >>> listed("conv*")
    ['conv*']
    """
    return [patterns] if isinstance(patterns, str) else list(patterns)


def matching(known: Sequence[str], patterns: str | Iterable[str], *, what: str) -> set[int]:
    """Return the positions of the names in *known* that fit any pattern; each pattern must fit at least one.

    A pattern is a glob, or a regular expression behind ``re:``. Raises :class:`SpaceError`, naming *what* was looked
    for and with a suggestion, for a pattern that fits none.

    >>> matching(["conv1", "conv2", "fc"], "conv*", what="site")
    {0, 1}
    """
    found: set[int] = set()
    for pattern in listed(patterns):
        try:
            glob = re.compile(fnmatch.translate(pattern)).match
            fits = re.compile(pattern[3:]).search if pattern.startswith("re:") else glob
            hits = {i for i, name in enumerate(known) if fits(name)}
        except re.error as error:
            raise SpaceError(f"'{pattern}' is not a regular expression ({error}); use re:<expression>") from None
        if not hits:
            raise SpaceError(f"no {what} matches '{pattern}'{_suggest(pattern, known)}")
        found |= hits
    return found


def _suggest(pattern: str, known: Sequence[str]) -> str:
    """Suggest names near *pattern*; for a glob with a star at its end, near beginnings."""
    if pattern.endswith("*") and len(pattern) > 1:
        stem = pattern.rstrip("*")
        return did_you_mean(pattern, dict.fromkeys(name[: len(stem)] + "*" for name in known))
    return did_you_mean(pattern, dict.fromkeys(known))
