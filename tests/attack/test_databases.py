"""Databases behind a network, a stand-in here: cut connections are made anew, outages sat out, longer ones told."""

import re
import sqlite3

import numpy as np
import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from tests.support.doubles import SPACE, Double
from torchfault.campaign import Campaign, run
from torchfault.cli import main
from torchfault.errors import StoreError
from torchfault.results import load
from torchfault.statistics import MaxTrials
from torchfault.store import Columns, Store, pack
from torchfault.testing import example_record

URL = "postgresql+psycopg://somebody:geheim@nowhere/results"


class Server:
    """An SQLite file in the place of a server that drops connections: before or after it has taken a transaction."""

    def __init__(self, path, monkeypatch):
        self.engine = create_engine(f"sqlite:///{path}", poolclass=QueuePool, connect_args={"check_same_thread": False})
        self.lost, self.taken, self.commits, self.meanwhile = set(), set(), 0, lambda _: None
        monkeypatch.setattr("torchfault.store.database.connect", lambda *_, **__: self.engine)
        monkeypatch.setattr("torchfault.store.outage._FIRST", 0.001)
        commit = self.engine.dialect.do_commit

        def cut(connection):
            self.commits += 1
            if self.commits in self.lost:
                connection.rollback()
                self.meanwhile(connection.driver_connection)
                raise sqlite3.OperationalError("server closed the connection unexpectedly")
            commit(connection)
            if self.commits in self.taken:
                raise sqlite3.OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(self.engine.dialect, "do_commit", cut)


@pytest.fixture
def server(tmp_path, monkeypatch):
    return Server(tmp_path / "server.db", monkeypatch)


def campaign() -> Campaign:
    return Campaign(Double(), SPACE, seed=5, stop=MaxTrials(1500))


def test_transactions_that_were_cut_are_made_once(server):
    """Whether the server had taken them or not: nothing is lost, and nothing doubled."""
    whole = run(campaign())
    server.lost, server.taken = set(range(2, 60, 5)) | {3}, set(range(4, 60, 5))
    with pytest.warns(UserWarning, match="does not answer .*trying again for 30 s") as told:
        run(campaign(), store=URL, name="c", batch=100)
    assert len(told) >= 6
    assert not any("geheim" in str(one.message) for one in told)
    with Store(URL) as store:
        assert pack(load(store, "c").columns) == pack(whole.columns)
        assert store.campaign("c").status == "finished"


def test_an_outage_that_lasts_ends_in_one_line_and_is_waited_for_once(server):
    server.lost = set(range(5, 1000))
    with (
        pytest.warns(UserWarning, match="again") as told,
        Store(URL, timeout=0.2) as store,
        pytest.raises(StoreError, match=r"somebody:\*\*\*@nowhere.*cannot be reached .*resume once it answers") as said,
    ):
        run(campaign(), store=store, name="c", batch=100)
    assert len(told) == 1
    assert "\n" not in str(said.value)
    assert "geheim" not in str(said.value)
    server.lost = set()
    assert pack(run(campaign(), store=URL, name="c", batch=100).columns) == pack(run(campaign()).columns)


def test_what_another_process_added_meanwhile_is_no_work_of_ours(server):
    with Store(URL) as store:
        store.create(example_record("first"))
        server.lost = {server.commits + 1}

        def other(connection):
            connection.execute("INSERT INTO torchfault_batches VALUES (1, 0, 0, 1, 0.0, x'00', 'of somebody else')")
            connection.commit()

        server.meanwhile = other
        one = Columns(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
        with pytest.warns(UserWarning, match="again"), pytest.raises(StoreError, match="trial 1 comes next"):
            store.append("first", one, first=0, seconds=0.1)


SECRETS = (
    "postgresql+psycopg://me:geh%40eim@127.0.0.1:1/x?password=geheim&sslpassword=geheim",
    "postgresql+psycopg://me:p@ss:geheim@127.0.0.1:1/x",
    "postgresql+psycopg://:geheim@127.0.0.1:1/x?connect_timeout=1",
    "mysql://me:geheim@nowhere.invalid/x",
)
READERS = (
    "show",
    "status",
    "status --json",
    "report",
    "evidence --output e",
    "protect --budget 1%",
    "export",
    "resume",
)


@pytest.mark.parametrize("url", SECRETS)
def test_passwords_in_urls_of_any_make_are_told_by_no_command(url, tmp_path, monkeypatch, capfd, tried):
    monkeypatch.chdir(tmp_path)
    model = "--model torchfault.zoo:digits_cnn --shape 1,8,8 --executor hooks"
    for command in (*READERS, f"run {model} --trials 10", f"init {model} --output i.yaml --force"):
        with tried("a password in a URL") as found:
            status = main([*command.split(), "--store", url])
            out, err = capfd.readouterr()
            written = "".join(path.read_text() for path in tmp_path.glob("*.yaml"))
            leaks = re.search("geheim|geh%40|p@ss", out + err + written)
            found.said(
                status, err, nonsense=leaks is not None or (status == 0) != command.startswith("init"), what=command
            )


@pytest.mark.parametrize("name", ["\udcff", "a\ud800"])
def test_campaigns_whose_names_no_database_can_hold_are_not_there(name, tmp_path, monkeypatch, capfd, tried):
    monkeypatch.chdir(tmp_path)
    run(campaign(), store="torchfault.db", name="c")
    for command in READERS:
        with tried("a name that no database can hold") as found:
            first, *rest = command.split()
            status = main([first, name, *rest])
            out, err = capfd.readouterr()
            found.said(status, err, nonsense=status != 2 or out != "" or "has no campaign" not in err, what=command)
