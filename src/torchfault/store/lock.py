"""One writer at a time per campaign: locks that the system itself drops when their process dies, however it dies."""

import errno
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from torchfault.errors import StoreError

__all__ = ["SESSION_LOCKS", "BusyError", "SessionLock", "identity", "is_locked", "key_of", "lock_beside", "lock_file"]

Release = Callable[[], None]
_TRIES = 20
SESSION_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 0 AND objid = :key"
"""How many sessions of PostgreSQL hold the lock of a campaign."""


class BusyError(StoreError):
    """A campaign that another process is running."""


def lock_beside(file: Path, name: str) -> Path:
    """Return the lock of the campaign *name* in the store *file*.

    >>> lock_beside(Path("a.db"), "first").name
    'a.db.9271ee57.lock'
    """
    return file.with_name(f"{file.name}.{zlib.crc32(name.encode(errors='surrogatepass')):08x}.lock")


def lock_file(path: Path, name: str) -> Release:
    """Lock the file at *path* for the campaign *name* and return what unlocks and removes it.

    SQLite's own file locks do the work: they exist on every platform, they also hold between two stores of one
    process, and the operating system drops them after ``kill -9``. Raises :class:`StoreError` where another holds it.
    """
    for _ in range(_TRIES):
        try:
            path.touch()
        except OSError as error:
            remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make its folder writable"
            raise StoreError(f"the lock {path} cannot be made ({error.strerror}); {remedy}") from None
        before = identity(path)
        held = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            held.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            held.close()
            if "locked" in str(error):
                raise _busy(name) from None
            # nothing in the file counts: the system drops locks by itself
            broken = "not a database" in str(error) or "malformed" in str(error)
            remedy = (
                "if no campaign runs, delete it" if broken else "make room on the disk, or check it, and run it again"
            )
            raise StoreError(f"the lock {path} cannot be taken ({error}); {remedy}") from None
        # Had its last holder removed the file before we locked it, another could lock a new one beside ours.
        if before is not None and before == identity(path):
            return lambda: _release(held, path)
        held.close()
    raise _busy(name)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock at *path*, as :func:`lock_file` takes it; a file alone says nothing.

    >>> is_locked(Path("/no/such/lock"))
    False
    """
    if not path.exists():
        return False
    try:
        held = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=0, isolation_level=None, uri=True)
    except sqlite3.Error:
        return False
    try:
        held.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        return "locked" in str(error)
    finally:
        held.close()
    return False


class SessionLock:
    """PostgreSQL's advisory lock for the campaign *name*, held by a connection of its own until it is released.

    Raises :class:`StoreError` where another session holds it.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name
        self._key = key_of(name)
        self._connection = self._taken()

    def _taken(self) -> Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), self._key).scalar():
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        raise _busy(self._name)

    def check(self) -> None:
        """Raise what SQLAlchemy raises where the connection was cut, and the lock is lost with it."""
        self._connection.execute(text("SELECT 1"))

    def renew(self) -> None:
        """Take the lock again where its connection was cut: the database has given it back then."""
        try:
            self.check()
        except SQLAlchemyError:
            with suppress(SQLAlchemyError):
                self._connection.close()
            self._connection = self._taken()

    def release(self) -> None:
        """Give the lock back; with a connection that was cut it is gone already."""
        with suppress(SQLAlchemyError):
            self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), self._key)
        with suppress(SQLAlchemyError):
            self._connection.close()


def key_of(name: str) -> dict[str, int]:
    """Return the key of PostgreSQL's lock for the campaign *name*."""
    return {"key": zlib.crc32(f"torchfault {name}".encode())}


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from others, whatever their names, ``None`` where there is none.

    >>> identity(Path("/no/such/file")) is None
    True
    """
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


def _busy(name: str) -> BusyError:
    return BusyError(
        f"campaign '{name}' is being run by another process, and has one writer at a time; "
        "wait for it, or choose another name"
    )
