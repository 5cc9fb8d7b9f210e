"""A real PostgreSQL server that cuts connections, crashes and stays away: the same trials as without."""

import re
import threading
import time
import warnings
from pathlib import Path

import pytest

from tests.support.digits import save_digits
from tests.support.doubles import SPACE, Double
from tests.support.postgres import PASSWORD
from torchfault.campaign import Campaign, run
from torchfault.cli import main
from torchfault.errors import StoreError
from torchfault.results import load
from torchfault.statistics import MaxTrials
from torchfault.store import Store, pack

MODEL = ["--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz", "--executor", "graph"]
RUN = ["run", *MODEL, "--kinds", "weight", "--name", "c"]


def campaign(trials: int = 1500) -> Campaign:
    return Campaign(Double(), SPACE, seed=5, stop=MaxTrials(trials))


@pytest.fixture(scope="module")
def whole():
    return pack(run(campaign()).columns)


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    save_digits(tmp_path, 20)
    return tmp_path


def disturbed(url, whole, harm, found, *, moments):
    """Run a campaign into the database of *url*, harm it at some *moments*, and hold what it stored against *whole*."""
    rounds = []

    def harms(standing):
        rounds.append(standing.done)
        if len(rounds) in moments:
            harm()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(campaign(), store=url, name="c", batch=100, progress=harms)
    found.said(0, "\n".join(str(one.message) for one in told), nonsense=any(PASSWORD in str(one) for one in told))
    with Store(url, access="read") as store:
        found.changed(pack(load(store, "c").columns) != whole)
        found.changed(store.campaign("c").status != "finished")


def test_connections_that_are_all_cut(postgres, whole, tried):
    """The lock, the transactions and the reading at the end included."""
    with tried("every connection to PostgreSQL is cut, ten times in a campaign") as found:
        disturbed(postgres.database(), whole, postgres.cut, found, moments=range(1, 11))


def test_a_server_that_crashes_and_comes_back(postgres, whole, tried):
    def again():
        postgres.stop()
        postgres.start()

    with tried("PostgreSQL crashes and starts anew, amid a campaign") as found:
        disturbed(postgres.database(), whole, again, found, moments=(2, 5))


@pytest.mark.slow
def test_outages_of_four_seconds(postgres, whole, tried):
    def away():
        postgres.stop()
        threading.Timer(4.0, postgres.start).start()

    for moment in (1, 4, 9):
        with tried("PostgreSQL is away for 4 s, amid a campaign") as found:
            disturbed(postgres.database(), whole, away, found, moments=(moment,))


def test_the_right_to_write_is_taken_again(postgres):
    """The database gives a lock back with the connection that held it: for a moment nobody has it."""
    url = postgres.database()
    run(campaign(100), store=url, name="c")
    with Store(url) as store, Store(url) as other:
        with store.writer("c"):
            with pytest.raises(StoreError, match="another process"), other.writer("c"):
                pass
            assert postgres.cut() >= 2
            with pytest.warns(UserWarning, match="trying again"):
                store.reopen("c", store.campaign("c").configuration)
            with pytest.raises(StoreError, match="another process"), other.writer("c"):
                pass
        with other.writer("c"):
            pass


def test_while_reading_connections_are_cut_too(postgres, whole):
    url, parts = postgres.database(), []
    run(campaign(), store=url, name="c", batch=100)
    with Store(url, access="read") as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in store.batches("c"):
            parts.append(batch.columns)
            postgres.cut()
    assert pack(type(parts[0]).join(parts)) == whole


def test_a_server_that_never_answered_is_not_waited_for(postgres):
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"tester:\*\*\*@127.*cannot be reached") as told:
        Store(postgres.url("nosuch"))
    assert time.monotonic() - began < 5
    assert "\n" not in str(told.value)


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_an_outage_that_lasts_ends_in_one_line_and_is_resumed(postgres, capfd, tried):
    """By the command line, which waits for 30 s; the password is told and kept nowhere."""
    url = postgres.database()
    name = url.rpartition("/")[2]

    def stop_once_there_is_a_batch():
        tables = "SELECT 1 FROM pg_tables WHERE tablename = 'torchfault_batches'"
        while not (postgres.query(name, tables) and postgres.query(name, "SELECT 1 FROM torchfault_batches")):
            time.sleep(0.05)
        postgres.stop()

    with tried("PostgreSQL is away for good, amid a campaign") as found:
        watch = threading.Thread(target=stop_once_there_is_a_batch, daemon=True)
        watch.start()
        status = main([*RUN, "--trials", "1000000", "--store", url])
        watch.join()
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        found.said(status, err, nonsense=status == 0 or len(lines) != 1 or PASSWORD in out + err, what=lines)
    assert "resume once it answers" in err
    postgres.start()
    with Store(url, access="read") as store:
        kept = load(store, "c").columns
    assert 0 < len(kept) < 1_000_000
    with tried("resuming after PostgreSQL was away") as found:
        status = main(["resume", "c", "--store", url, "--trials", str(len(kept) + 1000)])
        out, err = capfd.readouterr()
        found.said(status, err, nonsense=status != 0 or PASSWORD in out + err)
        assert main([*RUN, "--trials", str(len(kept) + 1000), "--store", "whole.db"]) == 0
        with Store(url, access="read") as store, Store("whole.db", access="read") as other:
            found.changed(pack(load(store, "c").columns) != pack(load(other, "c").columns))
            found.lost(len(load(store, "c")) != len(kept) + 1000)


@pytest.mark.usefixtures("inside")
def test_passwords_are_told_and_kept_nowhere(postgres, capfd):
    url = postgres.database()
    commands = (
        [*RUN, "--trials", "300", "--store", url],
        [*RUN, "--trials", "200", "--store", url],
        ["resume", "--trials", "400", "--store", url],
        ["show", "--store", url],
        ["show", "nosuch", "--store", url],
        ["export", "c", "--output", "c.csv", "--store", url],
        ["show", "--store", url.replace("4711", "4712")],
        ["show", "--store", url.replace("@127", "@nosuch.invalid")],
    )
    statuses = [main(command) for command in commands]
    out, err = capfd.readouterr()
    assert statuses == [0, 2, 0, 0, 2, 0, 2, 2], err
    assert "geheim" not in out + err
    assert re.search(r"tester:\*\*\*@127\.0\.0\.1", err)
    name = url.rpartition("/")[2]
    for table in ("torchfault_campaigns", "torchfault_batches"):
        assert "geheim" not in str(postgres.query(name, f"SELECT t::text FROM {table} t"))
    for path in Path().rglob("*"):
        assert not path.is_file() or b"geheim" not in path.read_bytes(), path
