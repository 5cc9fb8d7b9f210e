"""The store: packing, transactions, versions, and one clear line for everything that can be wrong with a file."""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import traceback
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchfault.errors import StoreError
from torchfault.space import FaultSpace, Site
from torchfault.store import MIGRATIONS, SCHEMA_VERSION, Columns, Record, Store, pack, unpack

SPACE = FaultSpace(
    (
        Site("conv.weight", (4, 2, 3, 3), module="conv", module_type="Conv2d", channel=0),
        Site("conv:input", (2, 8, 8), kind="input", module="conv", module_type="Conv2d", channel=0, bits=(30, 31)),
        Site("fc.bias", (5,), word="int8", kind="bias", module="fc"),
    )
)


def columns(n: int, rng: np.random.Generator, *, counts: bool = False, values: bool = False) -> Columns:
    """Return n random trials."""
    number = rng.integers(1, 4, n) if counts else np.ones(n, dtype=np.int64)
    failed = rng.random(n) < 0.3
    return Columns(
        rng.integers(0, len(SPACE), number.sum()),
        rng.integers(0, 10, n),
        failed,
        failed & (rng.random(n) < 0.5),
        counts=number if counts else None,
        values=rng.normal(size=n) if values else None,
        metric=rng.normal(size=n) if values else None,
    )


def record(name: str = "first", **changes) -> Record:
    """Return a campaign without trials."""
    return Record(name, space=SPACE, inputs=10, configuration={"fault": {"class": "BitFlip"}}, seed=2**70, **changes)


def same(one: Columns, two: Columns) -> bool:
    """Tell whether two sets of columns stand for the same trials."""
    everything = Columns.join([Columns.empty(), one]), Columns.join([Columns.empty(), two])
    names = ("faults", "inputs", "failed", "due", "weights", "strata", "counts", "values", "metric")
    for name in names:
        left, right = (getattr(side, name) for side in everything)
        if (left is None) != (right is None):
            return False
        if left is not None and left.tobytes() != right.tobytes():
            return False
    return True


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.sqlite"


@st.composite
def any_columns(draw) -> Columns:
    n = draw(st.integers(0, 40))
    whole = st.integers(-1, 2**62)
    optional = {}
    if draw(st.booleans()):
        optional["weights"] = draw(hnp.arrays(np.float64, n, elements=st.floats(width=64)))
    if draw(st.booleans()):
        optional["strata"] = draw(hnp.arrays(np.int32, n))
    if draw(st.booleans()):
        optional["values"] = draw(hnp.arrays(np.float64, n))
        optional["metric"] = draw(hnp.arrays(np.float64, n))
    counts = None
    if draw(st.booleans()):
        counts = optional["counts"] = draw(hnp.arrays(np.int64, n, elements=st.integers(1, 5)))
    faults = n if counts is None else int(counts.sum())
    return Columns(
        draw(hnp.arrays(np.int64, faults, elements=st.integers(0, 2**63 - 1))),
        draw(hnp.arrays(np.int64, n, elements=whole)),
        draw(hnp.arrays(np.bool_, n)),
        draw(hnp.arrays(np.bool_, n)),
        **optional,
    )


@given(any_columns())
@settings(max_examples=150, deadline=None)
def test_packing_keeps_every_bit(given_columns):
    back = unpack(pack(given_columns))
    trivial = {"weights": 1, "strata": 0, "counts": 1}
    for name in ("faults", "inputs", "failed", "due", "weights", "strata", "counts", "values", "metric"):
        before, after = getattr(given_columns, name), getattr(back, name)
        if before is not None and name in trivial and (before == trivial[name]).all():
            before = None
        assert (before is None) == (after is None), name
        if before is not None:
            assert before.dtype == after.dtype
            assert before.tobytes() == after.tobytes(), name


@given(any_columns(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_split_rejoined_is_the_whole(given_columns, data):
    cut = data.draw(st.integers(0, len(given_columns)))
    parts = [given_columns.take(0, cut), given_columns.take(cut, len(given_columns))]
    whole = Columns.join(parts)
    assert pack(whole) == pack(given_columns) if len(given_columns) else len(whole) == 0


@given(any_columns(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_batch_is_noticed_or_harmless(given_columns, data):
    blob = bytearray(pack(given_columns))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        back = unpack(bytes(blob))
    except StoreError:
        return
    assert pack(back) == pack(given_columns)  # zlib leaves a few header bits free


def test_the_bytes_of_a_batch_are_what_the_docstring_says():
    done = Columns(np.array([7, 300]), np.array([0, 1]), np.array([True, True]), np.array([False, True]))
    blob = pack(done)
    assert blob[:4] == b"TFB\x01"
    body = zlib.decompress(blob[4:])
    end = 4 + int.from_bytes(body[:4], "little")
    header = json.loads(body[4:end])
    assert header == {"trials": 2, "columns": [["faults", "<u2", 2], ["inputs", "|u1", 2], ["flags", "|u1", 2]]}
    assert body[end:] == bytes([7, 0, 44, 1, 0, 1, 1, 3])


def test_a_batch_of_another_format_is_refused():
    blob = pack(Columns.empty())
    with pytest.raises(StoreError, match="format 1, got 02; upgrade"):
        unpack(blob[:3] + b"\x02" + blob[4:])
    with pytest.raises(StoreError, match="damaged"):
        unpack(blob[:-5])
    with pytest.raises(StoreError, match="damaged"):
        unpack(b"")


def test_columns_of_unequal_length_are_refused():
    flags = np.zeros(2, dtype=bool)
    with pytest.raises(StoreError, match="one entry per trial"):
        Columns(np.arange(3), np.arange(2), flags, flags)
    with pytest.raises(StoreError, match="one entry per trial"):
        Columns(np.arange(2), np.arange(2), flags, flags[:1])
    with pytest.raises(StoreError, match="hold 'values' or none"):
        Columns.join([columns(2, np.random.default_rng(0)), columns(2, np.random.default_rng(0), values=True)])


def test_campaigns_come_back_as_they_were(path, rng):
    first, second = columns(300, rng, counts=True), columns(100, rng, counts=True)
    with Store(path) as store:
        assert store.campaigns() == ()
        assert not path.exists()  # nothing is made before there is something to keep
        made = store.create(record(versions={"torch": "2"}, model="m", data="d", population=77))
        assert (made.status, made.trials, made.seconds) == ("running", 0, 0.0)
        store.append("first", first, first=0, seconds=1.5)
        store.append("first", second, first=300, seconds=2.0)
        store.create(record("second"))
        store.finish("first", reason="400 of 400 trials run")
    with Store(path, access="read") as store:
        assert [known.name for known in store.campaigns()] == ["first", "second"]
        back = store.campaign("first")
        assert back.space == SPACE
        assert back.space.sites[1].bits == (30, 31)
        assert (back.seed, back.inputs, back.population, back.model) == (2**70, 10, 77, "m")
        assert (back.status, back.reason) == ("finished", "400 of 400 trials run")
        assert (back.trials, back.seconds) == (400, 3.5)
        assert back.created.endswith("+00:00")
        assert same(store.trials("first"), Columns.join([first, second]))
        assert [batch.first for batch in store.batches("first")] == [0, 300]
        assert len(store.trials("second")) == 0
        assert "first" in store
        assert "third" not in store
    assert [file.name for file in path.parent.iterdir()] == ["results.sqlite"]


def test_a_batch_goes_in_at_its_place_or_not_at_all(path, rng):
    with Store(path) as store:
        store.create(record())
        store.append("first", columns(5, rng), first=0, seconds=1.0)
        for first in (0, 4, 6):
            with pytest.raises(StoreError, match="trial 5 comes next"):
                store.append("first", columns(5, rng), first=first, seconds=1.0)
        assert len(store.trials("first")) == 5
        with pytest.raises(StoreError, match="already has a campaign 'first'"):
            store.create(record())
        with pytest.raises(StoreError, match="no campaign 'frist'"):
            store.append("frist", columns(5, rng), first=0, seconds=1.0)


def test_an_unknown_campaign_is_answered_with_a_suggestion(path):
    with Store(path) as store:
        with pytest.raises(StoreError, match="it holds none"):
            store.campaign("first")
        store.create(record())
        with pytest.raises(StoreError, match="no campaign 'frist', it holds first; did you mean 'first'"):
            store.campaign("frist")
        for name in ("", "x" * 201):
            with pytest.raises(StoreError, match="1 to 200 characters"):
                store.create(record(name))


def test_reading_changes_nothing(path, rng):
    with Store(path) as store:
        store.create(record())
        store.append("first", columns(5, rng), first=0, seconds=1.0)
    before = path.read_bytes()
    with Store(path, access="read") as store:
        assert len(store.trials("first")) == 5
        with pytest.raises(StoreError, match="opened for reading"):
            store.append("first", columns(5, rng), first=5, seconds=1.0)
        with pytest.raises(StoreError, match="opened for reading"):
            store.finish("first")
    assert path.read_bytes() == before


def test_what_is_no_store_is_refused_and_left_alone(path, tmp_path):
    path.write_bytes(b"These are not the bytes of a database. " * 40)
    with pytest.raises(StoreError, match=r"results\.sqlite is not an SQLite database"):
        Store(path)
    assert path.read_bytes().startswith(b"These are not")

    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    with pytest.raises(StoreError, match="database of something else, with the table 'birds'"):
        Store(other)

    with pytest.raises(StoreError, match="got the folder"):
        Store(tmp_path)
    with pytest.raises(StoreError, match=r"folder .*nowhere of the store does not exist"):
        Store(tmp_path / "nowhere" / "results.sqlite")
    for access in ("read", "write"):
        with pytest.raises(StoreError, match="there is no store at"):
            Store(tmp_path / "missing.sqlite", access=access)
        (tmp_path / "empty.sqlite").touch()
        with pytest.raises(StoreError, match="is empty"):
            Store(tmp_path / "empty.sqlite", access=access)
    assert not (tmp_path / "missing.sqlite").exists()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("sqlite://", "outlives its process"),
        ("sqlite:///:memory:", "outlives its process"),
        ("://", "a store is a file or a URL"),
        ("nosuchdb://host/name", "no database is called 'nosuchdb'"),
    ],
)
def test_urls_that_name_no_store(where, message):
    with pytest.raises(StoreError, match=message):
        Store(where)


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"needs the driver psycopg, which is not installed; pip install"):
        Store("postgresql+psycopg://somebody:secret@nowhere/results")
    with pytest.raises(StoreError) as caught:
        Store("postgresql+psycopg://somebody:secret@nowhere/results")
    assert "secret" not in str(caught.value)


def test_a_url_to_a_file_is_that_file(path):
    with Store(f"sqlite:///{path}") as store:
        store.create(record())
    with Store(path, access="read") as store:
        assert len(store.campaigns()) == 1


def without_rights(body) -> None:
    """Run *body* in a process that may not write everywhere, even where the tests run as root."""
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            body()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no permissions to take away")
def test_an_unwritable_folder_is_refused_and_its_stores_are_readable():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        path = Path(folder) / "results.sqlite"
        with Store(path) as store:
            store.create(record())
        path.chmod(0o444)
        path.parent.chmod(0o555)

        def body() -> None:
            for place in (path, path.with_name("new.sqlite")):
                with pytest.raises(StoreError, match="cannot be written to; make it and its folder writable"):
                    Store(place)
            with Store(path, access="read") as store:
                assert [known.name for known in store.campaigns()] == ["first"]
            assert [file.name for file in path.parent.iterdir()] == ["results.sqlite"]

        without_rights(body)
        path.chmod(0o000)

        def unreadable() -> None:
            with pytest.raises(StoreError, match="cannot be read; ask for permission"):
                Store(path, access="read")

        without_rights(unreadable)
        path.parent.chmod(0o755)


def test_an_unwritable_place_is_refused(path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    with pytest.raises(StoreError, match="cannot be written to"):
        Store(path)
    assert not path.exists()


def test_a_damaged_file_is_one_clear_line(path, rng):
    with Store(path) as store:
        store.create(record())
        for first in range(0, 50_000, 5_000):
            store.append("first", columns(5_000, rng), first=first, seconds=1.0)
    whole = path.read_bytes()
    said = []
    for seed in range(20):
        broken = bytearray(whole)
        place = np.random.default_rng(seed).integers(4096, len(whole) - 4096)
        broken[place : place + 4096] = np.random.default_rng(seed).bytes(4096)
        path.write_bytes(bytes(broken))
        try:
            with Store(path, access="read") as store:
                store.trials("first")
        except StoreError as error:
            said.append(str(error))
    assert len(said) >= 18
    assert all("\n" not in line and ("results.sqlite" in line or "'first'" in line) for line in said)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged"), Store(path, access="read") as store:
        store.trials("first")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE torchfault_batches SET data = x'00112233' WHERE number = 1", "batch 1 of campaign 'first' .* damaged"),
        ("UPDATE torchfault_batches SET first = 9 WHERE number = 1", "should hold trials 5 to 10, got 5 from 9"),
        ("DELETE FROM torchfault_batches WHERE number = 0", "should hold trials 0 to 5, got 5 from 5"),
        ("UPDATE torchfault_campaigns SET space = 'x'", "do not fit their digest"),
        ("UPDATE torchfault_campaigns SET sites = '[{}]'", "cannot be read"),
        ("UPDATE torchfault_campaigns SET sites = '[{'", "is damaged"),
        ("UPDATE torchfault_schema SET version = 'x'", "schema version, got 'x'"),
        ("DELETE FROM torchfault_schema", "schema version, got None"),
        ("DROP TABLE torchfault_batches", "no such table"),
    ],
)
def test_contents_that_make_no_sense_are_refused(path, rng, change, message):
    with Store(path) as store:
        store.create(record())
        store.append("first", columns(5, rng), first=0, seconds=1.0)
        store.append("first", columns(5, rng), first=5, seconds=1.0)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    with pytest.raises(StoreError, match=message), Store(path, access="read") as store:
        store.trials("first")


def test_another_writers_transaction_is_waited_for_and_then_reported(path, rng):
    with Store(path, timeout=0.2) as store:
        store.create(record())
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="is locked by another process; wait"):
                store.append("first", columns(5, rng), first=0, seconds=1.0)
            assert len(store.trials("first")) == 0  # readers do not wait
            other.execute("ROLLBACK")
        store.append("first", columns(5, rng), first=0, seconds=1.0)
        assert len(store.trials("first")) == 5


def test_one_writer_at_a_time_per_campaign(path):
    with Store(path) as store, Store(path) as other:
        with store.writer("first"):
            with pytest.raises(StoreError, match="'first' is being run by another process"), other.writer("first"):
                pass
            with other.writer("second"):
                pass
        with other.writer("first"):
            pass
    assert list(path.parent.iterdir()) == []


def test_the_right_to_write_dies_with_its_process(path):
    program = (
        "import sys, time; from torchfault.store import Store\n"
        "with Store(sys.argv[1]) as store, store.writer('first'):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with Store(path) as store:
            with pytest.raises(StoreError, match="another process"), store.writer("first"):
                pass
            holder.kill()
            holder.wait()
            with store.writer("first"):
                pass
    finally:
        holder.kill()
        holder.communicate()
    assert list(path.parent.iterdir()) == []


def test_many_processes_extend_one_file_together(path):
    program = (
        "import sys, numpy as np; from torchfault.space import FaultSpace, Site\n"
        "from torchfault.store import Columns, Record, Store\n"
        "name, flags = sys.argv[2], np.zeros(50, dtype=bool)\n"
        "with Store(sys.argv[1]) as store, store.writer(name):\n"
        "    store.create(Record(name, space=FaultSpace((Site('a', (9,)),)), inputs=1))\n"
        "    for first in range(0, 1000, 50):\n"
        "        store.append(name, Columns(np.arange(50), np.arange(50), flags, flags), first=first, seconds=0.1)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), f"c{i}"]) for i in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    with Store(path, access="read") as store:
        assert {known.name: known.trials for known in store.campaigns()} == {f"c{i}": 1000 for i in range(4)}


VERSION_1 = """
CREATE TABLE torchfault_schema (version INTEGER NOT NULL);
CREATE TABLE torchfault_campaigns (
    id INTEGER NOT NULL PRIMARY KEY, name VARCHAR(200) NOT NULL UNIQUE, created VARCHAR(40) NOT NULL,
    configuration JSON NOT NULL, seed VARCHAR(80) NOT NULL, versions JSON NOT NULL, model VARCHAR(64) NOT NULL,
    data VARCHAR(64) NOT NULL, space VARCHAR(64) NOT NULL, sites JSON NOT NULL, inputs BIGINT NOT NULL,
    status VARCHAR(20) NOT NULL
);
CREATE TABLE torchfault_batches (
    campaign INTEGER NOT NULL REFERENCES torchfault_campaigns (id), number INTEGER NOT NULL, first BIGINT NOT NULL,
    trials BIGINT NOT NULL, seconds FLOAT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (campaign, number)
);
INSERT INTO torchfault_schema VALUES (1);
"""


def version_1(path, done: Columns) -> None:
    """Write a store as the first version did."""
    space = FaultSpace((Site("fc.weight", (4,), module="fc"),))
    sites = '[{"name": "fc.weight", "shape": [4], "word": "float32", "width": 32, "kind": "weight", "module": "fc"}]'
    row = (1, "old", "2026-01-01T00:00:00+00:00", "{}", "5", "{}", "m", "d", space.digest(), sites, 3, "finished")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
        connection.execute(f"INSERT INTO torchfault_campaigns VALUES ({', '.join('?' * 12)})", row)
        connection.execute("INSERT INTO torchfault_batches VALUES (1, 0, 0, ?, 0.5, ?)", (len(done), pack(done)))
        connection.commit()


def schema_of(path) -> dict[str, set[tuple]]:
    """Return name, nullability and key of every column of every table."""
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {table: connection.execute(f"PRAGMA table_info({table})").fetchall() for table in tables}
    return {table: {(name, type_, key) for _, name, type_, _, _, key in rows[table]} for table in tables}


def test_an_older_store_is_brought_up_to_date_with_all_its_trials(path, tmp_path, rng):
    done = Columns(rng.integers(0, 128, 40), rng.integers(0, 3, 40), rng.random(40) < 0.5, np.zeros(40, dtype=bool))
    version_1(path, done)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"has schema 1, not {SCHEMA_VERSION}; open it once with access='write'"):
        Store(path, access="read")
    assert path.read_bytes() == before

    with Store(path, access="write") as store:
        old = store.campaign("old")
        assert (old.reason, old.population, old.trials, old.seed) == ("", None, 40, 5)
        assert same(store.trials("old"), done)
        store.append("old", done, first=40, seconds=0.5)
        store.finish("old", reason="enough")
    with Store(path, access="read") as store:
        assert store.campaign("old").reason == "enough"
        assert len(store.trials("old")) == 80

    with Store(tmp_path / "fresh.sqlite") as store:
        store.create(record())
    assert schema_of(path) == schema_of(tmp_path / "fresh.sqlite")


def test_a_failing_migration_leaves_the_old_store_whole(path, rng, monkeypatch):
    from torchfault.store import schema

    done = Columns(rng.integers(0, 128, 40), rng.integers(0, 3, 40), rng.random(40) < 0.5, np.zeros(40, dtype=bool))
    version_1(path, done)

    def breaks(connection) -> None:
        connection.exec_driver_sql("ALTER TABLE torchfault_campaigns ADD COLUMN half_done TEXT")
        connection.exec_driver_sql("ALTER TABLE nowhere ADD COLUMN x TEXT")

    before = schema_of(path)
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", (breaks,))
        with pytest.raises(StoreError, match="no such table: nowhere"):
            Store(path)
    assert schema_of(path) == before
    with Store(path) as store:
        assert same(store.trials("old"), done)


def test_every_version_has_a_way_up():
    assert len(MIGRATIONS) == SCHEMA_VERSION - 1


@pytest.mark.parametrize("access", ["create", "write", "read"])
def test_a_newer_store_is_refused(path, access):
    with Store(path) as store:
        store.create(record())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE torchfault_schema SET version = ?", (SCHEMA_VERSION + 1,))
        connection.commit()
    wanted = f"results.sqlite: this torchfault reads schema 1 to {SCHEMA_VERSION}, got {SCHEMA_VERSION + 1}; upgrade"
    with pytest.raises(StoreError, match=wanted):
        Store(path, access=access)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("values", [False, True])
def test_exports_hold_one_row_per_fault(path, rng, suffix, values):
    first, second = (columns(n, rng, counts=True, values=values) for n in (30, 12))
    target = path.with_suffix(suffix)
    with Store(path) as store:
        store.create(record())
        store.append("first", first, first=0, seconds=1.0)
        store.append("first", second, first=30, seconds=1.0)
        rows = store.export("first", target)
        assert rows == len(first.faults) + len(second.faults)
    table = pd.read_csv(target) if suffix == ".csv" else pd.read_parquet(target)
    whole = Columns.join([first, second])
    where = SPACE.locate(whole.faults)
    assert len(table) == rows
    assert table["trial"].tolist() == whole.owner.tolist()
    assert table["site"].tolist() == [SPACE.names[i] for i in where.site]
    assert table["layer"].tolist() == [SPACE.sites[i].module for i in where.site]
    assert table["element"].tolist() == where.element.tolist()
    assert table["bit"].tolist() == where.bit.tolist()
    assert table["channel"].tolist() == SPACE.channels(where).tolist()
    assert table["input"].tolist() == whole.inputs[whole.owner].tolist()
    assert table["failed"].astype(bool).tolist() == whole.failed[whole.owner].tolist()
    assert table["due"].astype(bool).tolist() == whole.due[whole.owner].tolist()
    assert set(table["weight"]) == {1.0}
    assert ("value" in table) == values
    if values:
        assert table["value"].tolist() == whole.values[whole.owner].tolist()
    assert SPACE.number(where.site, table["element"], table["bit"]).tolist() == whole.faults.tolist()


def test_an_export_of_nothing_has_its_columns(path):
    with Store(path) as store:
        store.create(record())
        for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
            assert store.export("first", path.with_suffix(suffix)) == 0
            assert list(read(path.with_suffix(suffix)).columns)[:3] == ["trial", "site", "kind"]


def test_exports_that_cannot_be_written(path, tmp_path, monkeypatch):
    with Store(path) as store:
        store.create(record())
        with pytest.raises(StoreError, match=r"a \.parquet or a \.csv file, got 'x\.xls'"):
            store.export("first", tmp_path / "x.xls")
        with pytest.raises(StoreError, match="cannot be written"):
            store.export("first", tmp_path / "nowhere" / "x.csv")
        with pytest.raises(StoreError, match="no campaign 'other'"):
            store.export("other", tmp_path / "x.csv")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(StoreError, match=r'pip install "torchfault\[analytics\]"'):
            store.export("first", tmp_path / "x.parquet")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.sqlite"]


def test_a_store_needs_few_bytes_per_trial(path, rng):
    n = 20_000
    failed = rng.random(n) < 0.02
    with Store(path) as store:
        store.create(record())
        for first in range(0, n, 4_000):
            part = Columns(rng.integers(0, 8_600_000, 4_000), rng.integers(0, 100, 4_000), failed[:4000], failed[:4000])
            store.append("first", part, first=first, seconds=1.0)
    assert path.stat().st_size / n < 8


def test_reading_a_store_needs_no_torch(path, rng):
    with Store(path) as store:
        store.create(record())
        store.append("first", columns(50, rng), first=0, seconds=1.0)
    program = (
        "import sys; from torchfault.campaign import load; from torchfault.store import Store\n"
        "with Store(sys.argv[1], access='read') as store:\n"
        "    print(load(store, 'first').table('site').to_csv()); store.export('first', sys.argv[2])\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, path, path.with_suffix(".csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "conv.weight" in done.stdout
