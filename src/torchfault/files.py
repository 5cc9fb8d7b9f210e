"""Files that a user names: regular ones alone are opened, and no more of them is read than makes sense."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_target", "read_start", "unreadable", "written"]


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


def check_target(path: Path, *, force: bool) -> str | None:
    """Return in words why no file can be written to *path*, or ``None``; one that exists is for *force* alone.

    >>> check_target(Path("/no/such/folder/a.csv"), force=False)
    'needs a folder that exists; make /no/such/folder first'
    """
    try:
        if path.is_dir():
            return "is a folder; name a file"
        if not path.absolute().parent.is_dir():
            return f"needs a folder that exists; make {path.parent} first"
        if path.exists() and not path.is_file():
            return "is a device, a pipe or another special file; name a file"
        if os.path.lexists(path) and not force:
            return "exists; choose another name, or write over it with --force"
        if not os.access(path.absolute().parent, os.W_OK):
            return "lies in a folder that cannot be written to; choose another place"
    except (OSError, ValueError) as error:
        return f"cannot be written ({getattr(error, 'strerror', None) or 'no such name'}); choose another place"
    return None


@contextmanager
def written(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a new file beside *path*, which takes its name once it is complete: never through a link laid there.

    Raises :class:`FileExistsError` where a file of that name has appeared meanwhile, unless *force*.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, written(Path(folder) / "a.csv", force=False) as part:
    ...     _ = part.write_text("1")
    """
    part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.part{path.suffix}")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield part
        if force:
            os.replace(part, path)
        else:
            _name(part, path)
    finally:
        part.unlink(missing_ok=True)


def _name(part: Path, path: Path) -> None:
    """Give *part* the name *path*, which must be free."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists") from None
        os.replace(part, path)
