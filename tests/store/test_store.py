"""The store: packing, transactions, versions, and one clear line for everything that can be wrong with a file."""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import traceback
import tracemalloc
import zlib
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchfault.errors import StoreError
from torchfault.results import export_trials, load
from torchfault.sampling import Design, Strata
from torchfault.space import FaultSpace, Site
from torchfault.store import SCHEMA_VERSION, Columns, Record, Store, pack, unpack

SPACE = FaultSpace(
    (
        Site("conv.weight", (4, 2, 3, 3), module="conv", module_type="Conv2d", channel=0),
        Site("conv:input", (2, 8, 8), kind="input", module="conv", module_type="Conv2d", channel=0, bits=(30, 31)),
        Site("fc.bias", (5,), word="int8", kind="bias", module="fc"),
    )
)


COLUMNS = tuple(part.name for part in fields(Columns) if part.name not in ("flags", "unit"))
DEFAULTS = {"weights": 1, "strata": 0, "counts": 1, "lanes": 1}


def columns(n: int, rng: np.random.Generator, *, counts: bool = False, values: bool = False) -> Columns:
    """Return n random trials."""
    number = rng.integers(1, 4, n) if counts else np.ones(n, dtype=np.int64)
    failed = rng.random(n) < 0.3
    return Columns(
        rng.integers(0, len(SPACE), number.sum()),
        rng.integers(0, 10, n),
        {"failed": failed, "due": failed & (rng.random(n) < 0.5)},
        counts=number if counts else None,
        values=rng.normal(size=n) if values else None,
        metric=rng.normal(size=n) if values else None,
    )


def record(name: str = "first", **changes) -> Record:
    """Return a campaign without trials."""
    described = {"configuration": {"fault": {"class": "BitFlip"}}, "design": Design(Strata.one(len(SPACE))).plain()}
    return Record(name, space=SPACE.plain(), faults=len(SPACE), inputs=10, seed=2**70, **{**described, **changes})


def same(one: Columns, two: Columns) -> bool:
    """Tell whether two sets of columns stand for the same trials."""
    everything = Columns.join([Columns.empty(), one]), Columns.join([Columns.empty(), two])
    for name in COLUMNS:
        left, right = (getattr(side, name) for side in everything)
        if (left is None) != (right is None):
            return False
        if left is not None and left.tobytes() != right.tobytes():
            return False
    left, right = everything
    alike = all(left.flag(name).tolist() == right.flag(name).tolist() for name in {*left.flags, *right.flags})
    return alike and left.unit == right.unit


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.sqlite"


@st.composite
def any_columns(draw) -> Columns:
    n, word = draw(st.integers(0, 40)), draw(st.booleans())
    whole = st.integers(-1, 2**62)
    elements = {
        "weights": (np.float64, st.floats(width=64)),
        "strata": (np.int32, None),
        "values": (np.float64, None),
        "metric": (np.float64, None),
        "lanes": (np.int64, st.integers(0, 3)),
        "words": (np.uint64, None),
        "answers": (np.int32, None),
        "changes": (np.float32, None),
        "counts": (np.int64, st.integers(1, 5)),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(elements))))
    held = {name: draw(hnp.arrays(elements[name][0], n, elements=elements[name][1])) for name in sorted(chosen)}
    names = draw(st.sets(st.sampled_from(["failed", "due", "vouched", "wrong", "of my own"])))
    faults = int(held["counts"].sum()) if "counts" in held else n
    return Columns(
        draw(hnp.arrays(np.int64, faults, elements=st.integers(0, 2**63 - 1))),
        draw(hnp.arrays(np.int64, n, elements=whole)),
        {name: draw(hnp.arrays(np.uint64 if word else np.bool_, n)) for name in sorted(names)},
        **held,
        unit="word" if word else "fault",
    )


@given(any_columns())
@settings(max_examples=150, deadline=None)
def test_packing_keeps_every_bit(given_columns):
    back = unpack(pack(given_columns))
    for name in COLUMNS:
        before, after = getattr(given_columns, name), getattr(back, name)
        if before is not None and name in DEFAULTS and (before == DEFAULTS[name]).all():
            before = None
        assert (before is None) == (after is None), name
        if before is not None:
            assert before.dtype == after.dtype
            assert before.tobytes() == after.tobytes(), name
    assert back.unit == given_columns.unit
    for name, flag in given_columns.flags.items():
        assert back.flag(name).dtype == flag.dtype
        assert back.flag(name).tolist() == flag.tolist()
    assert set(back.flags) == {name for name, flag in given_columns.flags.items() if flag.any()}


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
    flags = {"failed": np.array([True, True]), "due": np.array([False, True]), "crash": np.zeros(2, dtype=bool)}
    blob = pack(Columns(np.array([7, 300]), np.array([0, 1]), flags))
    assert blob[:4] == b"TFB\x02"
    body = zlib.decompress(blob[4:])
    end = 4 + int.from_bytes(body[:4], "little")
    header = json.loads(body[4:end])
    assert header == {
        "trials": 2,
        "unit": "fault",
        "columns": [["faults", "<u2", 2], ["inputs", "|u1", 2]],
        "flags": [["due", "bits", 2], ["failed", "bits", 2]],
    }
    assert body[end:] == bytes([7, 0, 44, 1, 0, 1, 0b01000000, 0b11000000])


def test_the_flags_of_words_are_masks():
    masks = {"failed": np.array([1 << 31, 0], dtype=np.uint64), "due": np.array([0, 0], dtype=np.uint64)}
    blob = pack(Columns(np.array([0, 64]), np.array([0, 1]), masks, unit="word"))
    body = zlib.decompress(blob[4:])
    end = 4 + int.from_bytes(body[:4], "little")
    assert json.loads(body[4:end])["flags"] == [["failed", "<u4", 2]]
    assert body[-8:] == (1 << 31).to_bytes(4, "little") + bytes(4)
    back = unpack(blob)
    assert (back.unit, back.failed.dtype, back.due.tolist()) == ("word", np.uint64, [0, 0])


def inflated(header: dict, body: bytes) -> bytes:
    """Return a batch with any header and contents."""
    text = json.dumps(header).encode()
    return b"TFB\x02" + zlib.compress(len(text).to_bytes(4, "little") + text + body)


@pytest.mark.parametrize(
    ("columns", "body", "message"),
    [
        ([["faults", "<u8", 2**30], ["inputs", "|u1", 2]], 16, "announces 8589934594 bytes, more than"),
        ([["faults", "<u8", 2], ["inputs", "<u8", 2**40]], 16, "1099511627776 entries for 2 trials"),
        ([["faults", "<u8", 2], ["inputs", "|u1", 2]], 2**28, "other than the 18 bytes that it announces"),
        ([["faults", "<u8", 2], ["inputs", "|u1", 2]], 17, "other than the 18 bytes that it announces"),
        ([["faults", "<u8", -2], ["inputs", "|u1", 2]], 16, "announces -14 bytes"),
        ([["faults", "O", 2], ["inputs", "|u1", 2]], 18, "OBJECT"),
    ],
)
def test_no_more_is_inflated_than_a_batch_can_hold(columns, body, message):
    blob = inflated({"trials": 2, "unit": "fault", "columns": columns, "flags": []}, bytes(body))
    tracemalloc.start()
    with pytest.raises(StoreError, match=f"cannot be read .*{message}.*the store is damaged"):
        unpack(blob)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_batch_of_another_format_is_refused():
    blob = pack(Columns.empty())
    with pytest.raises(StoreError, match="format 2, got 03; upgrade"):
        unpack(blob[:3] + b"\x03" + blob[4:])
    with pytest.raises(StoreError, match="damaged"):
        unpack(blob[:-5])
    with pytest.raises(StoreError, match="damaged"):
        unpack(b"")


def test_columns_of_unequal_length_are_refused():
    flags = np.zeros(2, dtype=bool)
    with pytest.raises(StoreError, match="one entry per trial"):
        Columns(np.arange(3), np.arange(2), {"failed": flags})
    with pytest.raises(StoreError, match="one entry per trial"):
        Columns(np.arange(2), np.arange(2), {"failed": flags, "due": flags[:1]})
    with pytest.raises(StoreError, match="one entry per trial"):
        Columns(np.arange(2), np.arange(2), weights=np.ones(3))
    with pytest.raises(StoreError, match="hold 'values' or none"):
        Columns.join([columns(2, np.random.default_rng(0)), columns(2, np.random.default_rng(0), values=True)])


def test_campaigns_come_back_as_they_were(path, rng):
    first, second = columns(300, rng, counts=True), columns(100, rng, counts=True)
    with Store(path) as store:
        assert store.campaigns() == ()
        assert not path.exists()  # nothing is made before there is something to keep
        golden = {"failed": 3, "outputs": [0.25, -1.0]}
        made = store.create(record(versions={"torch": "2"}, model="m", data="d", golden=golden))
        assert (made.status, made.trials, made.seconds) == ("running", 0, 0.0)
        store.append("first", first, first=0, seconds=1.5)
        store.append("first", second, first=300, seconds=2.0)
        store.create(record("second"))
        store.finish("first", reason="400 of 400 trials run")
    with Store(path, access="read") as store:
        assert [known.name for known in store.campaigns()] == ["first", "second"]
        back = store.campaign("first")
        assert load(store, "first").space == SPACE
        assert load(store, "first").design.plain() == Design(Strata.one(len(SPACE))).plain()
        assert (back.seed, back.inputs, back.faults, back.model) == (2**70, 10, len(SPACE), "m")
        assert (back.golden, back.versions) == (golden, {"torch": "2"})
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
    before = other.read_bytes()
    with pytest.raises(StoreError, match="database of something else, with the table 'birds'"):
        Store(other)
    assert other.read_bytes() == before

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
            with pytest.raises(StoreError, match="cannot be read"):
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


def contents(path) -> list:
    """Return all that a store tells."""
    with Store(path, access="read") as store:
        records = store.campaigns()  # of these and the trials everything else is made
        return [records, [pack(store.trials(record.name)) for record in records], "second" in store]


def test_every_flip_of_a_bit_in_the_file_is_noticed_or_harmless(path, rng):
    """Anywhere, and in the counts of rows that every page of the database begins with: these hide rows altogether."""
    with Store(path) as store:
        for name in ("first", "second"):
            store.create(record(name))
            for first in range(0, 900, 300):
                store.append(name, columns(300, rng), first=first, seconds=1.0)
        store.finish("first")
    whole, truth = path.read_bytes(), contents(path)
    size = int.from_bytes(whole[16:18], "big")
    heads = [page + (100 if page == 0 else 0) + byte for page in range(0, len(whole), size) for byte in range(12)]
    bits = [*rng.integers(0, 8 * len(whole), 120).tolist(), *(8 * at + bit for at in heads for bit in (0, 2))]
    said = []
    for bit in bits:
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(broken))
        try:
            assert contents(path) == truth, f"bit {bit % 8} of byte {bit // 8} changed the results unseen"
        except StoreError as error:
            said.append(str(error))
    assert len(bits) > 200
    assert len(said) > len(bits) / 5
    assert all("\n" not in line for line in said)


def test_batches_that_are_missing_at_the_end_are_noticed(path, rng):
    with Store(path) as store:
        store.create(record())
        for first in range(0, 30, 10):
            store.append("first", columns(10, rng), first=first, seconds=1.0)
        store.finish("first")
        with pytest.raises(StoreError, match="campaign 'first' has ended, and takes no more trials; reopen it first"):
            store.append("first", columns(10, rng), first=30, seconds=1.0)
        store.reopen("first", {})
        store.append("first", columns(10, rng), first=30, seconds=1.0)
        store.finish("first")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM torchfault_batches WHERE number = 3")
        connection.commit()
    with (
        Store(path, access="read") as store,
        pytest.raises(StoreError, match="ended with 40 trials, got 30; the store"),
    ):
        store.campaign("first")


def test_a_name_is_looked_up_by_one_query(path, rng):
    from sqlalchemy import event

    with Store(path) as store:
        for number in range(40):
            store.create(record(f"c{number}"))
            store.append(f"c{number}", columns(5, rng), first=0, seconds=1.0)
        asked = []
        event.listen(store._engine, "before_cursor_execute", lambda _, __, said, *___: asked.append(said))
        assert "c17" in store
        assert "d17" not in store
        assert 17 not in store
        queries = [said for said in asked if said.lstrip().startswith("SELECT")]
        assert len(queries) == 2
        assert all("configuration" not in said and "LIKE" not in said for said in queries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE torchfault_batches SET data = x'00112233' WHERE number = 1", "batch 1 of campaign 'first' .* damaged"),
        ("UPDATE torchfault_batches SET first = 9 WHERE number = 1", "batch 1 of campaign 'first' .* its checksum"),
        ("DELETE FROM torchfault_batches WHERE number = 0", "should hold trials 0 to 5, got 5 from 5"),
        ("UPDATE torchfault_batches SET seconds = 9 WHERE number = 1", "batch 1 of campaign 'first' .* its checksum"),
        ("UPDATE torchfault_campaigns SET space = '{}'", "row of campaign 'first' does not fit its checksum"),
        ("UPDATE torchfault_campaigns SET seed = '7'", "row of campaign 'first' does not fit its checksum"),
        ("UPDATE torchfault_campaigns SET seed = 'x'", "row of campaign 'first' does not fit its checksum"),
        ("UPDATE torchfault_campaigns SET space = '[{'", "is damaged"),
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
        "import sys, numpy as np; from torchfault.store import Columns, Record, Store\n"
        "name = sys.argv[2]\n"
        "with Store(sys.argv[1]) as store, store.writer(name):\n"
        "    store.create(Record(name, space={}, faults=288, inputs=1))\n"
        "    for first in range(0, 1000, 50):\n"
        "        store.append(name, Columns(np.arange(50), np.arange(50)), first=first, seconds=0.1)\n"
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


@pytest.mark.parametrize("access", ["create", "write", "read"])
@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_an_older_store_is_refused_with_one_line_that_says_how_to_read_it(path, access, version):
    """What is missing in it, the designs from which intervals follow, cannot be made up."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1.replace("VALUES (1)", f"VALUES ({version})"))
        connection.commit()
    before = path.read_bytes()
    said = f"reads schema {SCHEMA_VERSION}, got {version}, written before 0.2; read it with 'pip install torchfault=="
    with pytest.raises(StoreError, match=f"results.sqlite: this torchfault {said}") as caught:
        Store(path, access=access)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("access", ["create", "write", "read"])
def test_a_newer_store_is_refused(path, access):
    with Store(path) as store:
        store.create(record())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE torchfault_schema SET version = ?", (SCHEMA_VERSION + 1,))
        connection.commit()
    wanted = f"results.sqlite: this torchfault reads schema {SCHEMA_VERSION}, got {SCHEMA_VERSION + 1}; upgrade"
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
        rows = export_trials(store, "first", target)
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
            assert export_trials(store, "first", path.with_suffix(suffix)) == 0
            assert list(read(path.with_suffix(suffix)).columns)[:3] == ["trial", "site", "kind"]


def test_exports_that_cannot_be_written(path, tmp_path, monkeypatch):
    with Store(path) as store:
        store.create(record())
        with pytest.raises(StoreError, match=r"a \.parquet or a \.csv file, got 'x\.xls'"):
            export_trials(store, "first", tmp_path / "x.xls")
        with pytest.raises(StoreError, match="needs a folder that exists"):
            export_trials(store, "first", tmp_path / "nowhere" / "x.csv")
        with pytest.raises(StoreError, match="no campaign 'other'"):
            export_trials(store, "other", tmp_path / "x.csv")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(StoreError, match=r'pip install "torchfault\[analytics\]"'):
            export_trials(store, "first", tmp_path / "x.parquet")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.sqlite"]


def test_a_store_needs_few_bytes_per_trial(path, rng):
    n = 20_000
    failed = rng.random(n) < 0.02
    with Store(path) as store:
        store.create(record())
        for first in range(0, n, 4_000):
            flags = {"failed": failed[:4000], "due": failed[:4000]}
            part = Columns(rng.integers(0, 8_600_000, 4_000), rng.integers(0, 100, 4_000), flags)
            store.append("first", part, first=first, seconds=1.0)
    assert path.stat().st_size / n < 8


def test_reading_a_store_needs_no_torch(path, rng):
    with Store(path) as store:
        store.create(record())
        store.append("first", columns(50, rng), first=0, seconds=1.0)
    program = (
        "import sys; from pathlib import Path\n"
        "from torchfault.results import export_trials, load; from torchfault.store import Store\n"
        "with Store(sys.argv[1], access='read') as store:\n"
        "    print(load(store, 'first').table('site').to_csv()); export_trials(store, 'first', Path(sys.argv[2]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, path, path.with_suffix(".csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "conv.weight" in done.stdout
