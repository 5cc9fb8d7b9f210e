"""A PostgreSQL server of the tests' own: on loopback, in a temporary folder, run by somebody without rights."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

from sqlalchemy import URL, create_engine

__all__ = ["PASSWORD", "Postgres", "programs", "served"]

PASSWORD = "geheim-4711"
_NOBODY = 65534


def programs() -> Path | None:
    """Return the folder of the server's programs, `None` where it is not installed or has no driver here."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return None
    found = shutil.which("initdb")
    folders = [*sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True), *([os.path.dirname(found)] if found else [])]
    return next((Path(one) for one in folders if (Path(one) / "pg_ctl").exists()), None)


class Postgres:
    """A server in *folder*, which stops and starts as a test asks."""

    def __init__(self, bin: Path, folder: Path) -> None:
        self._bin, self._folder, self._databases = bin, folder, 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "password").write_text(PASSWORD)
        if os.name == "posix" and os.getuid() == 0:  # which the server refuses to be
            for path in (folder, folder / "password"):
                os.chown(path, _NOBODY, _NOBODY)
        self._do("initdb", "--no-sync", "--auth=scram-sha-256", "--username=tester", f"--pwfile={folder}/password")
        self.start()

    def _do(self, program: str, *arguments: str) -> None:
        drop = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
        with (self._folder / "log").open("a") as log:  # no pipe, which the server would inherit and hold open
            subprocess.run(
                [self._bin / program, "-D", self._folder / "data", *arguments],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                timeout=60,
                **drop,
            )

    def start(self) -> None:
        """Let the server answer."""
        options = f"-p {self.port} -h 127.0.0.1 -k {self._folder} -F"  # -F: no sync, since no power cut is tried
        self._do("pg_ctl", "-w", "-o", options, "start")

    def stop(self) -> None:
        """End the server at once, and with it all connections, as a crash does."""
        self._do("pg_ctl", "-w", "-m", "immediate", "stop")

    def url(self, database: str) -> str:
        """Return the URL of a database, with its password."""
        url = URL.create("postgresql+psycopg", "tester", PASSWORD, "127.0.0.1", self.port, database)
        return url.render_as_string(hide_password=False)

    def database(self) -> str:
        """Return the URL of a new, empty database."""
        self._databases += 1
        self.query("postgres", f"CREATE DATABASE store{self._databases}")
        return self.url(f"store{self._databases}")

    def query(self, database: str, statement: str) -> list[tuple[object, ...]]:
        """Return what *statement* does in a database, over a connection of its own."""
        engine = create_engine(self.url(database), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                found = connection.exec_driver_sql(statement)
                return [tuple(row) for row in found] if found.returns_rows else []
        finally:
            engine.dispose()

    def cut(self) -> int:
        """Cut all connections of all databases, and return how many there were."""
        others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        return len(self.query("postgres", f"SELECT pg_terminate_backend(pid) {others}"))


@contextmanager
def served(bin: Path) -> Iterator[Postgres]:
    """Run a server in a temporary folder, where somebody without rights may enter; the tests' own admit their owner."""
    with tempfile.TemporaryDirectory(prefix="torchfault-postgres-", ignore_cleanup_errors=True) as folder:
        server = Postgres(bin, Path(folder))
        try:
            yield server
        finally:
            server.stop()
