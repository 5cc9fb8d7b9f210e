"""Disks that are full or fail at any call, two writers, flipped bits: whole batches stay, one line says why."""

import sqlite3

import pytest
from sqlalchemy import event

from tests.support.doubles import SPACE, Double
from torchfault.campaign import Campaign, run
from torchfault.errors import StoreError
from torchfault.results import load
from torchfault.statistics import MaxTrials
from torchfault.store import Store, pack

ERRORS = ("database or disk is full", "disk I/O error", "attempt to write a readonly database", "database is locked")


def campaign() -> Campaign:
    return Campaign(Double(), SPACE, seed=5, stop=MaxTrials(1500))


@pytest.fixture(scope="module")
def whole():
    return pack(run(campaign()).columns)


def held(path) -> int:
    if not path.exists():
        return 0
    with Store(path) as store:  # not for reading alone: the disk may have failed before there were tables
        return sum(record.trials for record in store.campaigns())


def failing(path, whole, tried, *, said, at):
    """Let the statement number *at* of a campaign fail as SQLite fails, then run it again."""
    count = 0
    with Store(path) as store:

        @event.listens_for(store._engine, "before_cursor_execute")
        def fails(*_):
            nonlocal count
            count += 1
            if count >= at:
                raise sqlite3.OperationalError(said)

        with tried(f"'{said}' from the disk, for good") as found:
            try:
                run(campaign(), store=store, name="c", batch=100)
            except StoreError as error:
                found.said(2, str(error), nonsense="\n" in str(error) or "a.db" not in str(error))
            except sqlite3.OperationalError as error:
                found.said(1, f"Traceback {error}", what=at)
    before = held(path)
    with tried("resuming after the disk failed") as found:
        found.changed(pack(run(campaign(), store=path, name="c", batch=100).columns) != whole)
        with Store(path, access="read") as store:
            found.changed(pack(load(store, "c").columns) != whole)
            found.lost(len(load(store, "c")) < before)


@pytest.mark.parametrize("said", ERRORS)
def test_disks_that_fail(tmp_path, whole, rng, tried, said):
    for number, at in enumerate(rng.integers(1, 90, 3).tolist()):
        (tmp_path / f"{number}").mkdir()
        failing(tmp_path / f"{number}" / "a.db", whole, tried, said=said, at=at)


@pytest.mark.slow
@pytest.mark.parametrize("at", range(1, 100, 7))
def test_disks_that_fail_at_many_statements(tmp_path, whole, tried, at):
    for said in ERRORS:
        folder = tmp_path / said.split()[-1]
        folder.mkdir(exist_ok=True)
        failing(folder / "a.db", whole, tried, said=said, at=at)


def test_two_writers(tmp_path, whole, tried):
    """A second run of the same campaign, at every moment of the first, is refused and changes nothing."""

    def second(_):
        with tried("a second writer of a campaign") as found:
            try:
                run(campaign(), store=tmp_path / "a.db", name="c", batch=100)
                found.said(0, "", nonsense=True)
            except StoreError as error:
                found.said(2, str(error), nonsense="run by another process" not in str(error))

    run(campaign(), store=tmp_path / "a.db", name="c", batch=300, progress=second)
    assert held(tmp_path / "a.db") == 1500
    with Store(tmp_path / "a.db", access="read") as store:
        assert pack(load(store, "c").columns) == whole


def flipped(path, whole_bytes, bit, truth, tried):
    broken = bytearray(whole_bytes)
    broken[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(broken))
    with tried("a flipped bit in the file of a store") as found:
        try:
            with Store(path, access="read") as store:
                found.changed([store.campaigns(), pack(load(store, "c").columns)] != truth)
        except StoreError as error:
            found.said(2, str(error), nonsense="\n" in str(error))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("flips") / "a.db"
    run(campaign(), store=path, name="c", batch=300)
    with Store(path, access="read") as store:
        truth = [store.campaigns(), pack(load(store, "c").columns)]
    return path.read_bytes(), truth


def test_flipped_bits(tmp_path, stored, rng, tried):
    for bit in rng.integers(0, 8 * len(stored[0]), 60).tolist():
        flipped(tmp_path / "a.db", stored[0], bit, stored[1], tried)


@pytest.mark.slow
def test_many_flipped_bits(tmp_path, stored, rng, tried):
    for bit in rng.integers(0, 8 * len(stored[0]), 2000).tolist():
        flipped(tmp_path / "a.db", stored[0], bit, stored[1], tried)
