"""The source of functions and classes, as a digest that a change of comments or layout leaves alone."""

import ast
import hashlib
import inspect
import textwrap
from functools import cache
from typing import Any

__all__ = ["source_digest"]


def source_digest(value: Any) -> str | None:
    """Return a SHA-256 over the source of a function or class; ``None`` where there is none to read.

    >>> source_digest(source_digest) == source_digest(source_digest), source_digest(len) is None
    (True, True)
    """
    return _digest(value)


@cache
def _digest(value: Any) -> str | None:
    try:
        source = textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):
        return None  # typed into an interpreter, or compiled
    try:
        source = ast.unparse(ast.parse(source))
    except (SyntaxError, RecursionError):  # a lambda amid an expression
        source = " ".join(source.split())
    return hashlib.sha256(source.encode()).hexdigest()
