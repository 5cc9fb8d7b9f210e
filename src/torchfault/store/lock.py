"""One writer at a time per campaign: locks that the system itself drops when their process dies, however it dies."""

import sqlite3
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Engine, text

from torchfault.errors import StoreError

__all__ = ["lock_file", "lock_session"]

Release = Callable[[], None]
_TRIES = 20


def lock_file(path: Path, name: str) -> Release:
    """Lock the file at *path* for the campaign *name* and return what unlocks and removes it.

    SQLite's own file locks do the work: they exist on every platform, they also hold between two stores of one
    process, and the operating system drops them after ``kill -9``. Raises :class:`StoreError` where another holds it.
    """
    for _ in range(_TRIES):
        try:
            path.touch()
        except OSError as error:
            raise StoreError(f"the lock {path} cannot be made ({error.strerror}); make its folder writable") from None
        before = _identity(path)
        held = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            held.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            held.close()
            if "locked" in str(error):
                raise _busy(name) from None
            raise StoreError(f"the lock {path} cannot be taken ({error}); if no campaign runs, delete it") from None
        # Had its last holder removed the file before we locked it, another could lock a new one beside ours.
        if before is not None and before == _identity(path):
            return lambda: _release(held, path)
        held.close()
    raise _busy(name)


def lock_session(engine: Engine, name: str) -> Release:
    """Take PostgreSQL's advisory lock for the campaign *name* on a connection of its own; return what unlocks it."""
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    key = zlib.crc32(f"torchfault {name}".encode())
    if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
        connection.close()
        raise _busy(name)

    def release() -> None:
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})
        connection.close()

    return release


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _release(held: sqlite3.Connection, path: Path) -> None:
    # Removed while still locked: whoever opened it meanwhile sees that it is gone (Windows keeps open files: harmless).
    with suppress(OSError):
        path.unlink()
    held.close()


def _busy(name: str) -> StoreError:
    return StoreError(
        f"campaign '{name}' is being run by another process, and has one writer at a time; "
        "wait for it, or choose another name"
    )
