"""Files that a user names: regular ones alone are opened, and no more of them is read than makes sense."""

import os
import stat
from pathlib import Path

__all__ = ["read_start", "unreadable"]


def unreadable(path: str | Path) -> str | None:
    """Return in words why *path* is no regular file that can be read, or ``None`` where it is one.

    A pipe is not waited for, and a device not read.

    >>> unreadable("/"), unreadable("/no/such/file"), unreadable("/dev/null")
    ('is a folder', 'does not exist', 'is a device, a pipe or another special file')
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return "is a folder"
        if not stat.S_ISREG(mode):
            return "is a device, a pipe or another special file"
        read_start(path, 1)
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:  # no permission; or a file of /proc that looks like a regular one
        return f"cannot be read ({error.strerror or error})"
    except ValueError:  # a NUL, a lone surrogate
        return "has a name that no file can have"
    return None


def read_start(path: str | Path, most: int) -> bytes:
    """Return the first *most* bytes of a file, or all of a shorter one."""
    with open(path, "rb", buffering=0) as opened:
        held = bytearray()
        while len(held) < most and (part := opened.read(most - len(held))):
            held += part
        return bytes(held)
