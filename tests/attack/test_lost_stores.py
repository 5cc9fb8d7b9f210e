"""Stores that are deleted, replaced, cut or overwritten while a campaign runs into them: never a success afterwards."""

import os
import shutil
import sys

import pytest

from tests.support.doubles import SPACE, Double
from torchfault.campaign import Campaign, run
from torchfault.errors import StoreError
from torchfault.results import load
from torchfault.statistics import MaxTrials
from torchfault.store import Store, pack


def deleted(path, _):
    path.unlink()


def replaced(path, _):
    shutil.copy(path, path.with_suffix(".copy"))
    os.replace(path.with_suffix(".copy"), path)


def replaced_by_another(path, _):
    other = path.with_name("other.db")
    run(campaign(7), store=other, name="c")
    os.replace(other, path)


def emptied(path, _):
    os.truncate(path, 0)


def cut(path, _):
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path, rng):
    with path.open("r+b") as file:
        file.seek(int(rng.integers(path.stat().st_size)) // 4096 * 4096)
        file.write(rng.bytes(4096))


def log_deleted(path, _):
    path.with_name(path.name + "-wal").unlink(missing_ok=True)


def log_emptied(path, _):
    if (log := path.with_name(path.name + "-wal")).exists():
        os.truncate(log, 0)


def log_overwritten(path, rng):
    if (log := path.with_name(path.name + "-wal")).exists():
        with log.open("r+b") as file:
            file.seek(int(rng.integers(log.stat().st_size)))
            file.write(rng.bytes(512))


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be deleted there")
HARMS = [
    deleted, replaced, replaced_by_another, emptied, cut, overwritten, log_deleted, log_emptied, log_overwritten,
]  # fmt: skip


def campaign(seed: int) -> Campaign:
    return Campaign(Double(), SPACE, seed=seed, stop=MaxTrials(3000))


@pytest.mark.parametrize("moment", [1, 9, 29])
@pytest.mark.parametrize("harm", HARMS, ids=lambda one: one.__name__)
def test_harm_in_mid_run_is_told_or_has_none_of_its_effects(tmp_path, rng, harm, moment, tried):
    path, calls = tmp_path / "a.db", []

    def harms(standing):
        if standing.done and os.path.exists(path):
            calls.append(standing.done)
            if len(calls) == moment:
                harm(path, rng)

    with tried("a store harmed while a campaign runs into it") as found:
        try:
            results = run(campaign(5), store=path, name="c", batch=100, progress=harms)
        except StoreError as error:
            found.noticed("\n" not in str(error))
            return
        with Store(path, access="read") as store:
            found.changed(pack(load(store, "c").columns) != pack(results.columns))
        found.changed(pack(results.columns) != pack(run(campaign(5)).columns))
        found.lost(harm in (deleted, replaced, replaced_by_another))


def test_the_reader_of_a_finished_campaign_sees_what_the_writer_saw(tmp_path):
    with Store(tmp_path / "a.db") as store:
        run(campaign(5), store=store, name="c")
        store.verify("c", trials=3000)
        with pytest.raises(StoreError, match="should hold 3001 trials of campaign 'c', got 3000; it was changed"):
            store.verify("c", trials=3001)
