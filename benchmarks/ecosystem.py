"""Other libraries, which `make test` keeps beside the environment, in its folder ``ecosystem`` (see ecosystem.txt)."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["folder", "look_beside", "missing"]


def folder() -> Path:
    """Return where these libraries are."""
    return Path(os.environ.get("TORCHFAULT_ECOSYSTEM", Path(sys.prefix) / "ecosystem"))


def look_beside() -> None:
    """Let Python find these libraries, behind the environment's own packages, of which none is replaced."""
    if (where := str(folder())) not in sys.path:
        sys.path.append(where)


def missing(*packages: str) -> list[str]:
    """Return those of *packages* that are neither installed nor beside the environment.

    >>> missing("torch", "nosuchpackage")
    ['nosuchpackage']
    """
    look_beside()
    return [name for name in packages if find_spec(name) is None]
