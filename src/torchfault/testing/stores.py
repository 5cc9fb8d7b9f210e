"""The suite for databases that keep campaigns."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np

from torchfault.errors import StoreError
from torchfault.store import Columns, Record, Store, pack
from torchfault.testing.examples import example_record
from torchfault.testing.rules import hold, rule

__all__ = ["check_store"]


def check_store(where: str | Path) -> None:
    """Raise AssertionError, naming the rule, where the database at path or URL *where* does not do as a store.

    The rules: records and trials come back to the bit, also numbers beyond 64 bits; a batch goes in at its place or
    not at all; a name is taken once; a campaign has one writer at a time, which others can see; campaigns of several
    threads grow side by side; how one ended is kept. It leaves campaigns of its own behind, with random names.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     check_store(f"{folder}/results.sqlite")
    """
    rng, name = np.random.default_rng(20261121), f"check-{uuid4().hex}"
    first, second = _columns(300, rng), _columns(41, rng)
    golden = {"failed": [3], "outputs": [0.25, -1.5e300]}
    record = replace(example_record(name), seed=2**70 - 1, golden=golden, versions={"ü": "2.13"}, model="m" * 64)
    with Store(where) as store:
        with rule(store, "records and trials come back to the bit, in every store on the same database"):
            store.create(record)
            store.append(name, first, first=0, seconds=1.5)
            store.append(name, second, first=len(first), seconds=0.25, workers=3)
            _check_back(where, record, Columns.join([first, second]))
        with rule(store, "a batch goes in at its place or not at all"):
            for place in (0, 300, 342, 10**12):
                _refused(partial(store.append, name, second, first=place, seconds=1.0), f"trial {place}")
            hold(len(store.trials(name)) == 341, f"{len(store.trials(name))} trials instead of 341")
        with rule(store, "a name is taken once, and unknown ones are told"):
            _refused(lambda: store.create(record), "the same name again")
            _refused(lambda: store.campaign(f"{name}-not"), "an unknown name")
            hold(name in store and f"{name}-not" not in store, "wrong names")
        _check_writers(where, store, name)
        with rule(store, "how a campaign ended is kept, and it may go on"):
            store.finish(name, reason="enough")
            hold((store.campaign(name).status, store.campaign(name).reason) == ("finished", "enough"), "another end")
            store.reopen(name, {"settings": {"trials": 5}})
            hold(store.campaign(name).status == "running", "no new beginning")
        _check_threads(where)


def _columns(n: int, rng: np.random.Generator) -> Columns:
    flags = {flag: rng.random(n) < 0.3 for flag in ("failed", "due")}
    return Columns(rng.integers(2**62, size=n), rng.integers(10, size=n), flags, weights=rng.random(n) * 1e-300)


def _check_back(where: str | Path, record: Record, whole: Columns) -> None:
    with Store(where, access="read") as other:
        back = other.campaign(record.name)
        kept = replace(record, created=back.created, trials=len(whole), seconds=1.75)
        hold(back == kept, f"{back} instead of {kept}")
        hold(pack(other.trials(back.name)) == pack(whole), "other trials")
        hold(other.pace(back.name, batches=1) == (41, 0.25), f"a pace of {other.pace(back.name, batches=1)}")
        hold(other.workers(back.name) == 3, f"{other.workers(back.name)} workers")


def _refused(change: Callable[[], object], what: str) -> None:
    try:
        change()
    except StoreError:
        return
    hold(False, f"{what} was taken")


def _check_writers(where: str | Path, store: Store, name: str) -> None:
    with rule(store, "a campaign has one writer at a time, which others can see"), Store(where) as other:
        hold(not other.running(name), "a writer before there was one")
        with store.writer(name):
            hold(other.running(name), "no writer seen beside the one")
            hold(not other.running(f"{name}-not"), "a writer of another campaign")
            with other.writer(f"{name}-not"):
                pass
            _refused(lambda: other.writer(name).__enter__(), "a second writer")
        hold(not other.running(name), "a writer after it went")
        with other.writer(name):
            pass


def _check_threads(where: str | Path) -> None:
    """Have four campaigns written at the same time, and hold each to what its thread wrote."""
    names = [f"check-{uuid4().hex}" for _ in range(4)]
    parts = [[_columns(50, np.random.default_rng(seed)) for _ in range(8)] for seed in range(4)]
    failed: list[Exception] = []

    def write(name: str, batches: list[Columns]) -> None:
        try:
            with Store(where) as own, own.writer(name):
                own.create(example_record(name))
                for number, batch in enumerate(batches):
                    own.append(name, batch, first=50 * number, seconds=0.1)
        except Exception as error:
            failed.append(error)

    with rule(where, "campaigns of several threads grow side by side"):
        threads = [threading.Thread(target=write, args=pair) for pair in zip(names, parts, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        hold(not failed, f"{failed[:1]}")
        with Store(where, access="read") as store:
            for name, batches in zip(names, parts, strict=True):
                hold(pack(store.trials(name)) == pack(Columns.join(batches)), f"other trials of {name}")
