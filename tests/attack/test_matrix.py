"""Faults in the tool itself, crossed with who runs the lanes and where they are kept: none is lost, none doubled."""

import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sqlalchemy import event
from torch import nn

from tests.support.crews import Threads
from tests.support.doubles import SPACE, Double
from tests.support.small_network import small_network
from torchfault.campaign import Campaign, run, session
from torchfault.engine import Engine
from torchfault.errors import CampaignError, StoreError
from torchfault.results import load
from torchfault.statistics import MaxTrials
from torchfault.store import Store, pack

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes")
TRIALS = 1500
CREWS = {"alone": None, "2 workers": Threads(2)}
SLOW = pytest.mark.slow
CELLS = [
    ("alone", "SQLite"),
    ("2 workers", "PostgreSQL"),
    pytest.param(("2 workers", "SQLite"), marks=SLOW),
    pytest.param(("alone", "PostgreSQL"), marks=SLOW),
]


def campaign() -> Campaign:
    return Campaign(Double(), SPACE, seed=5, stop=MaxTrials(TRIALS))


@pytest.fixture(scope="module")
def whole():
    return pack(run(campaign()).columns)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(session, "SHARD", 60)


@pytest.fixture(params=CELLS, ids=", ".join)
def cell(request):
    return request.param


@pytest.fixture
def crew(cell):
    """Return who runs the lanes."""
    return cell[0]


@pytest.fixture
def database(cell):
    return cell[1]


@pytest.fixture
def kept(request, database, tmp_path):
    """Return what a database is called, and where it is."""
    if database == "SQLite":
        return database, str(tmp_path / "a.db")
    return database, request.getfixturevalue("postgres").database()


def held(where: str) -> int:
    if "://" not in where and not Path(where).exists():
        return 0
    with Store(where) as store:  # not for reading alone: the disk may have failed before there were tables
        return sum(record.trials for record in store.campaigns())


def ends_alike(found, where, truth, *, before: int = 0) -> None:
    """Note whether the store holds the trials of *truth*, each once, and no fewer than *before*."""
    with Store(where, access="read") as store:
        columns, record = load(store, "c").columns, store.campaign("c")
    found.lost(len(columns) < max(before, TRIALS))
    found.changed(pack(columns) != truth or len(columns) != TRIALS or record.status != "finished")


def goes_on(found, where, crew, truth, *, before: int) -> None:
    run(campaign(), store=where, name="c", batch=100, workers=CREWS[crew])
    ends_alike(found, where, truth, before=before)


@pytest.mark.parametrize("database", ["SQLite", "PostgreSQL"])
def test_workers_that_are_lost(kept, whole, tried):
    with tried(f"matrix: workers lost, 2 workers, {kept[0]}") as found:
        lossy = Threads(2, loses=lambda shard: shard in (1, 4, 5, 9))
        run(campaign(), store=kept[1], name="c", batch=100, workers=lossy)
        ends_alike(found, kept[1], whole)


DRIVER = """
import os, signal
from tests.attack.test_matrix import CREWS, campaign
from torchfault.campaign import run, session
session.SHARD, calls = 60, []
def ends(standing):
    calls.append(standing.done)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
run(campaign(), store={where!r}, name="c", batch=100, workers=CREWS[{crew!r}], progress=ends)
"""


@pytest.mark.parametrize("at", [4, pytest.param(1, marks=SLOW), pytest.param(9, marks=SLOW)])
def test_a_driver_that_is_killed(at, kept, crew, whole, tried):
    """What it held, its lock and the right to write, is stale and stops nobody."""
    with tried(f"matrix: driver killed, its lock left behind, {crew}, {kept[0]}") as found:
        script = DRIVER.format(at=at, where=kept[1], crew=crew)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        before = held(kept[1])
        assert before < TRIALS
        goes_on(found, kept[1], crew, whole, before=before)


@pytest.mark.parametrize("crew", CREWS)
def test_a_database_that_is_lost_and_back(postgres, crew, whole, tried):
    with tried(f"matrix: database lost and back, {crew}, PostgreSQL") as found, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        where, calls = postgres.database(), []

        def harm(standing):
            calls.append(standing.done)
            if len(calls) in (2, 6):
                postgres.cut()
            elif len(calls) == 4:
                postgres.stop()
                postgres.start()

        run(campaign(), store=where, name="c", batch=100, workers=CREWS[crew], progress=harm)
        assert len(calls) >= 6
        ends_alike(found, where, whole)


@pytest.mark.parametrize("crew", CREWS)
@pytest.mark.parametrize("said", ["database or disk is full", "disk I/O error"])
def test_a_disk_that_is_full(said, crew, whole, tmp_path, tried):
    for at in (3, 25, 60):
        path, count = tmp_path / f"{at}.db", 0
        with tried(f"matrix: {said}, {crew}, SQLite") as found:
            with Store(path) as store:

                @event.listens_for(store._engine, "before_cursor_execute")
                def fails(*_, at=at):
                    nonlocal count
                    count += 1
                    if count >= at:
                        raise sqlite3.OperationalError(said)

                with pytest.raises(StoreError) as told:
                    run(campaign(), store=store, name="c", batch=100, workers=CREWS[crew])
                found.said(2, str(told.value), nonsense="\n" in str(told.value))
            goes_on(found, str(path), crew, whole, before=held(str(path)))


class Striker(nn.Module):
    """A network that asks for more memory than there is, raises, or gives no numbers: as *harm* says at the moment."""

    harm = ""

    def __init__(self) -> None:
        super().__init__()
        self.net, _ = small_network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores, or the harm."""
        if Striker.harm == "memory" and len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        scores = self.net(x)
        if Striker.harm == "raises" and not scores.abs().max() < 60:
            raise IndexError("out of range")
        return scores * torch.nan if Striker.harm == "nan" else scores


@pytest.fixture
def struck(monkeypatch):
    """Return a campaign on a real engine, which can be harmed."""
    monkeypatch.setattr(Striker, "harm", "")
    engine = Engine(Striker().eval(), small_network()[1], executor="hooks")
    return Campaign(engine, engine.space, seed=5, stop=MaxTrials(TRIALS))


def test_memory_that_runs_out_in_a_sweep(struck, kept, crew, monkeypatch, tried):
    truth = pack(run(struck).columns)
    with tried(f"matrix: no memory for a pass, {crew}, {kept[0]}") as found:
        monkeypatch.setattr(Striker, "harm", "memory")
        run(struck, store=kept[1], name="c", workers=CREWS[crew])
        ends_alike(found, kept[1], truth)


def test_a_model_that_raises_on_some_faults(struck, kept, crew, monkeypatch, tried):
    plain = run(struck).columns
    monkeypatch.setattr(Striker, "harm", "raises")
    truth = run(struck).columns
    crashed, failed = (truth.flag(name).astype(bool) for name in ("crash", "failed"))
    assert 10 < crashed.sum() < TRIALS / 2
    assert failed[crashed].all()
    assert np.array_equal(failed[~crashed], plain.flag("failed").astype(bool)[~crashed])
    with tried(f"matrix: a model that raises on some faults, {crew}, {kept[0]}") as found:
        run(struck, store=kept[1], name="c", workers=CREWS[crew])
        ends_alike(found, kept[1], pack(truth))


def test_outputs_that_are_no_numbers(kept, crew, monkeypatch, tried):
    monkeypatch.setattr(Striker, "harm", "nan")
    engine = Engine(Striker().eval(), small_network()[1], executor="hooks")
    begun = Campaign(engine, engine.space, seed=5, stop=MaxTrials(TRIALS))
    with tried(f"matrix: golden outputs that are not finite, {crew}, {kept[0]}") as found:
        with pytest.raises(CampaignError, match="not finite on any input") as told:
            run(begun, store=kept[1], name="c", workers=CREWS[crew])
        found.said(2, str(told.value), nonsense=held(kept[1]) != 0)


def test_a_clock_that_jumps(kept, crew, whole, monkeypatch, tried):
    """The time of day goes back and forth by days, and the machine sleeps for hours between two looks."""
    with tried(f"matrix: a clock that jumps, {crew}, {kept[0]}") as found:
        plain, day, asleep, jumps = time.time, time.perf_counter, [0.0], iter(range(1 << 30))
        monkeypatch.setattr(time, "time", lambda: plain() + 86_400 * (-1) ** next(jumps) * (next(jumps) % 5))

        def slept():
            asleep[0] += 3600.0 if next(jumps) % 7 == 0 else 0.0
            return day() + asleep[0]

        monkeypatch.setattr(time, "perf_counter", slept)
        run(campaign(), store=kept[1], name="c", batch=100, workers=CREWS[crew])
        monkeypatch.undo()
        ends_alike(found, kept[1], whole)
        with Store(kept[1], access="read") as store:
            assert 0 <= store.campaign("c").seconds < 1e9


def test_two_drivers_of_one_campaign(kept, crew, whole, tried):
    refused = []

    def second(_):
        try:
            run(campaign(), store=kept[1], name="c", batch=100)
            refused.append("")
        except StoreError as error:
            refused.append(str(error))

    with tried(f"matrix: a second driver, {crew}, {kept[0]}") as found:
        run(campaign(), store=kept[1], name="c", batch=300, workers=CREWS[crew], progress=second)
        assert refused
        for one in refused:
            found.said(2, one, nonsense="another process" not in one)
        ends_alike(found, kept[1], whole)
