"""From a path or a URL to a database: SQLite files in WAL mode, other databases as SQLAlchemy finds them."""

import json
import os
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.pool import QueuePool

from torchfault.errors import StoreError
from torchfault.text import masked

__all__ = ["Place", "connect", "place", "translated", "write_ahead"]


@dataclass(frozen=True)
class Place:
    """Where a store is: its URL, the file behind it if it is one, and how messages call it."""

    url: URL
    file: Path | None
    shown: str


def place(where: str | Path) -> Place:
    """Return the place that a path or an SQLAlchemy URL names, or raise :class:`StoreError`.

    >>> place("results.sqlite").shown, place("sqlite:///results.sqlite").file.name
    ('results.sqlite', 'results.sqlite')
    """
    if isinstance(where, Path) or "://" not in where:
        return Place(URL.create("sqlite", database=os.fspath(where)), Path(where), os.fspath(where))
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):  # such as a port that is no number
        raise StoreError(
            f"a store is a file or a URL such as postgresql+psycopg://host/name, got '{masked(where)}'"
        ) from None
    shown = masked(url.render_as_string(hide_password=True))
    if url.get_backend_name() != "sqlite":
        return Place(url, None, shown)
    if url.database in (None, "", ":memory:"):
        raise StoreError(f"a store outlives its process, got '{shown}'; name a file, or run without a store")
    return Place(url, Path(str(url.database)), shown)


def connect(where: Place, *, readonly: bool, timeout: float) -> Engine:
    """Return the engine for *where*; nothing is opened yet."""
    try:
        if where.file is None:
            return create_engine(where.url, pool_pre_ping=True)
        path = where.file.absolute()
        engine = create_engine("sqlite://", creator=lambda: _open(path, readonly, timeout), poolclass=QueuePool)
    except NoSuchModuleError:
        name = where.url.get_backend_name()
        raise StoreError(f"no database is called '{name}'; use a file or postgresql+psycopg://host/name") from None
    except ModuleNotFoundError as error:
        raise StoreError(
            f"'{where.shown}' needs the driver {error.name}, which is not installed; pip install {error.name}"
        ) from None
    event.listen(engine, "begin", _begin)
    return engine


def _open(path: Path, readonly: bool, timeout: float) -> sqlite3.Connection:
    """Open an SQLite file that this module, not the driver, begins transactions on."""
    options: dict[str, Any] = {"timeout": timeout, "isolation_level": None, "check_same_thread": False}
    if readonly:
        return _open_to_read(path, options)
    connection: sqlite3.Connection = sqlite3.connect(path, **options)
    try:
        # In WAL mode NORMAL survives any death of the process; a power cut may lose the last batches, never break it.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def write_ahead(engine: Engine) -> None:
    """Let readers of an SQLite file go on while it is written to, which the file itself remembers: for stores alone."""
    connection = engine.raw_connection()
    try:
        with suppress(sqlite3.OperationalError):  # another process is switching, or the file system has no WAL
            connection.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


def _open_to_read(path: Path, options: dict[str, Any]) -> sqlite3.Connection:
    """Open an SQLite file for queries; readers put WAL files beside it, which only those who may write can remove."""
    tidy = os.access(path.parent, os.W_OK) and os.access(path, os.W_OK)
    alone = not path.with_name(path.name + "-wal").exists()
    mode = "rw" if tidy else "ro&immutable=1" if alone else "ro"
    connection: sqlite3.Connection = sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, **options)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _begin(connection: Connection) -> None:
    # A writer that began as a reader cannot wait for another writer: it would fail at once, whatever the timeout.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


_ADVICE = (
    ("file is not a database", "is not an SQLite database; choose another file"),
    ("malformed", "is damaged; restore it from a copy, or salvage it with `sqlite3 FILE .recover`"),
    (
        "disk i/o error",
        "cannot be read or written (disk I/O error); check the disk, and whether a limit or quota lets no file grow, "
        "then resume, or restore the file from a copy",
    ),
    ("locked", "is locked by another process; wait until it is done, or end it"),
    ("readonly", "cannot be written to; make the file and its folder writable, or choose another place"),
    ("unable to open", "cannot be opened; check that its folder exists and that you may write there"),
    ("is full", "cannot grow, since the disk is full; make room and resume"),
)


# What `torchfault vulnerability --keep` wrote before 0.2.
_ARCHIVE = "is an archive (a kept analysis of torchfault 0.1?), no database; choose another file and run it again there"


def _is_archive(file: Path | None) -> bool:
    """Whether *file* is a ZIP archive, as those of NumPy are."""
    try:
        return file is not None and zipfile.is_zipfile(file)
    except OSError:
        return False


@contextmanager
def translated(where: Place) -> Iterator[None]:
    """Turn what the database says into one clear :class:`StoreError` that names the store.

    A key that is already taken passes through: only the caller knows what that means.
    """
    try:
        yield
    except IntegrityError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"the store {where.shown} is damaged ({error}); restore it from a copy") from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        said = " ".join(str(original).split())
        for sign, advice in _ADVICE:
            if sign in said.lower():
                advice = _ARCHIVE if _is_archive(where.file) else advice
                raise StoreError(f"the store {where.shown} {advice}") from error
        if where.file is None and isinstance(error, OperationalError | InterfaceError):
            raise StoreError(
                f"the store {where.shown} cannot be reached ({said}); what it holds is kept, and campaigns in it "
                "resume once it answers"
            ) from error
        raise StoreError(f"the store {where.shown} cannot be used: {said}") from error
