"""The store: campaigns and their batches of trials, each batch one transaction, one writer per campaign."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from sqlalchemy import Connection, func, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError

from torchfault.errors import StoreError, did_you_mean
from torchfault.files import unreadable
from torchfault.store import queries, schema
from torchfault.store.columns import Columns, pack, unpack
from torchfault.store.connect import connect, place, translated, write_ahead
from torchfault.store.interrupts import uninterrupted
from torchfault.store.lock import SESSION_LOCKS, SessionLock, identity, is_locked, key_of, lock_beside, lock_file
from torchfault.store.outage import Patience
from torchfault.store.record import Batch, Record, batch_checksum, from_row, row_checksum, to_row

__all__ = ["Store"]

Answer = TypeVar("Answer")


class Store:
    """Campaigns in an SQLite file (or, by URL, another database); a context manager.

    *where* is a path or an SQLAlchemy URL such as ``postgresql+psycopg://host/name``. *access* is ``"create"`` (the
    file is made when the first campaign is), ``"write"`` (it must exist) or ``"read"`` (it is never changed). *timeout*
    is how many seconds to wait for another writer's transaction, and for a database behind a network that does not
    answer, which is tried again so long. Every batch is one transaction, so that whatever
    happens to the process, the store holds whole batches; rows and batches carry checksums, which are verified when
    they are read. Raises :class:`StoreError` for a place that holds something else, cannot be opened, is damaged or of
    another version.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with Store(Path(folder.name) / "results.sqlite") as store:
    ...     store.campaigns()
    ()
    >>> folder.cleanup()
    """

    def __init__(
        self, where: str | Path, *, access: Literal["create", "write", "read"] = "create", timeout: float = 30.0
    ) -> None:
        self._place = place(where)
        self._access = access
        self._ready = False
        self._tells_workers = False
        self._sound: set[str] = set()
        self._identity: tuple[int, int] | None = None
        self._lock: SessionLock | None = None
        # SQLite waits for other writers by itself.
        self._patience = Patience(0.0 if self._place.file else timeout, self._place.shown)
        file = self._place.file
        if file is not None:
            _check_file(file, access)
        self._engine = connect(self._place, readonly=access == "read", timeout=timeout)
        if file is None or (file.exists() and file.stat().st_size > 0):
            try:
                self.prepare()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return self._place.shown

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def campaigns(self) -> tuple[Record, ...]:
        """Return every campaign, oldest first."""
        if not self._ready:
            return ()

        def every(connection: Connection) -> tuple[Record, ...]:
            self._check(connection, schema.campaigns.name)
            return tuple(from_row(row) for row in connection.execute(queries.records()))

        return self._read(every)

    def campaign(self, name: str) -> Record:
        """Return the campaign called *name*, or raise :class:`StoreError` with a suggestion."""

        def one(connection: Connection) -> Record | None:
            self._check(connection, schema.campaigns.name)
            row = connection.execute(queries.records().where(schema.campaigns.c.name == name)).one_or_none()
            return None if row is None else from_row(row)

        writable = name.isprintable() or not re.search("[\0\ud800-\udfff]", name)  # else no database could hold it
        if self._ready and writable and (found := self._read(one)) is not None:
            return found
        known = [record.name for record in self.campaigns()]
        held = f"it holds {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}" if known else "it holds none"
        raise StoreError(f"the store {self} has no campaign '{name}', {held}{did_you_mean(name, known)}")

    def __contains__(self, name: object) -> bool:
        if not self._ready or not isinstance(name, str):
            return False
        wanted = select(schema.campaigns.c.id).where(schema.campaigns.c.name == name)
        return self._read(lambda connection: connection.execute(wanted).first() is not None)

    def create(self, record: Record) -> Record:
        """Add a campaign without trials and return it as stored; raises :class:`StoreError` where the name is taken."""
        if not record.name or len(record.name) > 200:
            raise StoreError(f"a campaign's name has 1 to 200 characters, got {len(record.name)}; choose another")
        self.prepare()
        fresh = replace(record, created=datetime.now(UTC).isoformat(timespec="seconds"), status="running", reason="")
        row = to_row(fresh)

        def add(connection: Connection, again: bool) -> None:
            wanted = select(schema.campaigns.c.checksum).where(schema.campaigns.c.name == record.name)
            if not (again and connection.execute(wanted).scalar() == row["checksum"]):
                connection.execute(insert(schema.campaigns).values(row))

        try:
            self._write(add)
        except IntegrityError:
            raise StoreError(f"the store {self} already has a campaign '{record.name}'; choose another name") from None
        return self.campaign(record.name)

    def append(self, name: str, columns: Columns, *, first: int, seconds: float, workers: int = 0) -> None:
        """Add one batch, wholly or not at all: trials *first* onwards, which must be the next ones.

        So many *workers* are running the campaign now.
        """
        batches, blob = schema.batches.c, pack(columns)
        checksum = batch_checksum(first, len(columns), seconds, blob)

        def add(connection: Connection, again: bool) -> None:
            number = self._number(connection, name)
            mine = batches.campaign == number
            held = select(batches.checksum).where(mine, batches.first == first)
            if again and connection.execute(held).scalar() == checksum:
                return
            if connection.execute(select(schema.campaigns.c.total).where(schema.campaigns.c.id == number)).scalar_one():
                raise StoreError(f"campaign '{name}' has ended, and takes no more trials; reopen it first")
            ends = select(func.count(), func.coalesce(func.max(batches.first + batches.trials), 0))
            count, done = connection.execute(ends.where(mine)).one()
            if first != done:
                raise StoreError(
                    f"trial {done} comes next in campaign '{name}', got {first}; "
                    "another process has extended it: run it again to resume"
                )
            row = {"campaign": number, "number": count, "first": first, "trials": len(columns)}
            connection.execute(insert(schema.batches).values(**row, seconds=seconds, data=blob, checksum=checksum))
            if self._tells_workers:
                queries.tell_workers(connection, number, workers)

        self._write(add)

    def batches(self, name: str) -> Iterator[Batch]:
        """Yield the batches of a campaign in order, one in memory at a time."""
        self.campaign(name)
        batches = schema.batches.c

        def keys(connection: Connection) -> tuple[int, Sequence[int]]:
            self._check(connection, schema.batches.name)
            campaign = self._number(connection, name)
            mine = select(batches.number).where(batches.campaign == campaign).order_by(batches.number)
            return campaign, connection.execute(mine).scalars().all()

        (campaign, numbers), expected = self._read(keys), 0
        for number in numbers:
            row = self._read(partial(queries.batch, campaign=campaign, number=number))
            columns = self._unpacked(name, number, row)
            if (row.first, row.trials) != (expected, len(columns)):
                raise StoreError(
                    f"batch {number} of campaign '{name}' in {self} should hold trials {expected} to "
                    f"{expected + row.trials}, got {len(columns)} from {row.first}; the store is damaged"
                )
            expected += len(columns)
            yield Batch(row.first, columns, row.seconds)

    def trials(self, name: str) -> Columns:
        """Return all trials of a campaign, in order."""
        return Columns.join([batch.columns for batch in self.batches(name)])

    def finish(self, name: str, *, status: str = "finished", reason: str = "") -> None:
        """Note how a campaign ended, and why; :meth:`reopen` lets it go on."""
        self._mark(name, {"status": status, "reason": reason}, ended=True)

    def reopen(self, name: str, configuration: Mapping[str, Any]) -> None:
        """Note that a campaign goes on, under *configuration*."""
        self._mark(name, {"status": "running", "reason": "", "configuration": dict(configuration)}, ended=False)

    @contextmanager
    def writer(self, name: str) -> Iterator[None]:
        """Hold the sole right to run the campaign *name*; the system takes it back when the process dies.

        Raises :class:`StoreError` where another process, or another store in this one, holds it.
        """
        file = self._place.file
        if file is not None:
            release = lock_file(lock_beside(file, name), name)
        elif self._engine.dialect.name == "postgresql":
            with translated(self._place):
                self._lock = SessionLock(self._engine, name)
            release = self._lock.release
        else:
            release = _nothing  # two writers then meet at the number of their first batch, where one is refused
        try:
            yield
        finally:
            self._lock = None
            release()

    def running(self, name: str) -> bool:
        """Return whether a process is running the campaign *name* at this moment, whatever its row says."""
        file = self._place.file
        if file is not None:
            return is_locked(lock_beside(file, name))
        if self._engine.dialect.name != "postgresql":
            return self.campaign(name).status == "running"
        return bool(self._read(lambda connection: connection.execute(text(SESSION_LOCKS), key_of(name)).scalar()))

    def pace(self, name: str, *, batches: int = 16) -> tuple[int, float]:
        """Return how many trials the last *batches* of a campaign hold, and how many seconds they took."""
        rows = self._read(
            lambda connection: queries.latest(connection, campaign=self._number(connection, name), batches=batches)
        )
        return sum(row.trials for row in rows), sum(row.seconds for row in rows)

    def workers(self, name: str) -> int | None:
        """Return how many workers ran a campaign when its last batch ended, ``None`` where the store does not tell.

        None at all, 0, is a campaign that runs in one process.
        """
        if not self._tells_workers:
            return None
        return self._read(lambda connection: queries.workers_of(connection, self._number(connection, name)))

    def verify(self, name: str, *, trials: int) -> None:
        """Read a campaign of *trials* anew, as another process would, or raise :class:`StoreError`.

        A file that was cut, or of which the system lost a part, while it was written to, may still look whole from the
        connections that wrote it.
        """
        if self._place.file is None:
            return
        self._engine.dispose()
        self._sound.clear()
        with translated(self._place):
            self._check_file_is_there()
        held = sum(len(batch.columns) for batch in self.batches(name))
        if held != trials:
            raise StoreError(
                f"the store {self} should hold {trials} trials of campaign '{name}', got {held}; it was changed "
                "while it was written to: run the campaign again into another file"
            )

    def _check(self, connection: Connection, table: str) -> None:
        """Have SQLite check its pages of *table*, once: rows that a damaged page hides would just be missing."""
        if self._place.file is None or table in self._sound:
            return
        said = str(connection.exec_driver_sql(f"PRAGMA integrity_check('{table}')").scalar())
        if said != "ok":
            raise StoreError(f"the store {self} is damaged ({' '.join(said.split())}); restore it from a copy")
        self._sound.add(table)

    def _mark(self, name: str, values: dict[str, Any], *, ended: bool) -> None:
        def mark(connection: Connection, again: bool) -> None:
            del again  # the second time it just says the same
            number = self._number(connection, name)
            mine, said = schema.campaigns.c.id == number, values | {"total": None}
            if ended:
                held = select(func.coalesce(func.sum(schema.batches.c.trials), 0))
                said["total"] = int(connection.execute(held.where(schema.batches.c.campaign == number)).scalar_one())
            row = dict(connection.execute(select(schema.campaigns).where(mine)).one()._mapping) | said
            connection.execute(update(schema.campaigns).where(mine).values(**said, checksum=row_checksum(row)))

        self._write(mark)

    def _number(self, connection: Connection, name: str) -> int:
        number = connection.execute(select(schema.campaigns.c.id).where(schema.campaigns.c.name == name)).scalar()
        if number is None:
            raise StoreError(f"the store {self} has no campaign '{name}'; create it first")
        return int(number)

    def _unpacked(self, name: str, number: int, row: Any) -> Columns:
        try:
            if batch_checksum(row.first, row.trials, row.seconds, row.data) != row.checksum:
                raise StoreError("its row does not fit its checksum; the store is damaged")
            return unpack(row.data)
        except StoreError as error:
            raise StoreError(f"batch {number} of campaign '{name}' in {self}: {error}") from None

    def _read(self, query: Callable[[Connection], Answer]) -> Answer:
        """Return what *query* finds; only a database that has answered before is waited for."""

        def once(again: bool) -> Answer:
            del again  # there is nothing that was done already
            with self._engine.connect() as connection:
                return query(connection)

        with translated(self._place):
            return self._patience.over(once, self._reconnect) if self._ready else once(False)

    def _write(self, change: Callable[[Connection, bool], Answer]) -> Answer:
        """Return what *change* does in a transaction of its own; it is told whether it was tried before."""
        if self._access == "read":
            raise StoreError(f"the store {self} was opened for reading; open it with access='write' to change it")

        def once(again: bool) -> Answer:
            if self._lock is not None:  # may be lost where all others were not
                self._lock.check()
            with uninterrupted(), self._engine.connect() as plain:
                self._check_file_is_there()
                connection = plain.execution_options(writes=True)
                with connection.begin():
                    return change(connection, again)

        with translated(self._place):
            return self._patience.over(once, self._reconnect)

    def _reconnect(self) -> None:
        if self._lock is not None:
            self._lock.renew()

    def _check_file_is_there(self) -> None:
        """Refuse to go on with a file that was deleted or replaced: what is written to the former one, nobody finds."""
        file = self._place.file
        if file is not None and self._identity is not None and identity(file) != self._identity:
            what = "was replaced by another file" if file.exists() else "was deleted"
            raise StoreError(f"the store {self} {what} while it was in use; restore it, or run the campaign again")

    def prepare(self) -> None:
        """Make the tables where there are none, as the first campaign does; refuse all but a store of this version."""
        if self._ready:
            return
        version = self._read(self._version)
        if version is None and self._access == "read":
            raise StoreError(f"the store {self} is empty; run a campaign into it first")
        if self._place.file is not None and self._access != "read":
            with translated(self._place):
                write_ahead(self._engine)
        if version is None:
            self._write(self._make_tables)
        self._ready, self._tells_workers = True, self._read(queries.tells_workers)
        self._identity = None if self._place.file is None else identity(self._place.file)

    def _make_tables(self, connection: Connection, again: bool) -> None:
        del again
        if self._version(connection) is None:  # asked again: another process may have been faster
            schema.create(connection)

    def _version(self, connection: Connection) -> int | None:
        try:
            version = schema.version_of(connection)
        except StoreError as error:
            raise StoreError(f"{self}: {error}") from None
        if version is None and self._place.file is not None and (tables := inspect(connection).get_table_names()):
            raise StoreError(
                f"{self} is an SQLite database of something else, with the table '{tables[0]}'; choose another file"
            )
        return version


def _check_file(file: Path, access: str) -> None:
    """Say early, and without touching anything, why *file* cannot be a store."""
    why = unreadable(file)
    if why not in (None, "is a folder", "does not exist"):
        raise StoreError(f"the store {file} {why}; use another file")
    if file.is_dir():
        raise StoreError(f"a store is a file, got the folder {file}; use a file such as {file / 'results.sqlite'}")
    if access != "create" and not file.exists():
        raise StoreError(f"there is no store at {file}; check the path, or run a campaign into it first")
    if access != "create" and not file.stat().st_size:
        raise StoreError(f"the store {file} is empty; check the path, or run a campaign into it first")
    if not file.parent.is_dir():
        raise StoreError(f"the folder {file.parent} of the store does not exist; create it first")
    target = file if file.exists() else file.parent
    if access != "read" and not (os.access(target, os.W_OK) and os.access(file.parent, os.W_OK)):
        raise StoreError(f"the store {file} cannot be written to; make it and its folder writable, or use another")


def _nothing() -> None:
    return None
