"""Actors of Ray and jobs by submitit run lanes as processes of one's own do."""

import contextlib
import gc
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from torchfault import Engine, cluster, demo
from torchfault.campaign import Campaign, run
from torchfault.cluster import Ray, Slurm
from torchfault.errors import EngineError
from torchfault.resolve import Pooled
from torchfault.statistics import MaxTrials
from torchfault.store import Store

# submitit does not wait for a local job that it has cancelled, of which Python warns once the job is forgotten.
_LOCAL = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def forgotten():
    """Forget jobs within the test that began them, and not at the end of all, where a warning is an error."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def campaign():
    engine = Engine(demo.model(), demo.data())
    return Campaign(engine, engine.space.select(kinds="weight"), stop=MaxTrials(60_000))


@pytest.fixture(scope="module")
def alone(campaign):
    return run(campaign)


def same(one, two) -> bool:
    """Return whether two results have the same trials and outcomes; those of this network tie nowhere."""
    return np.array_equal(one.columns.faults, two.columns.faults) and all(
        np.array_equal(one.columns.flags[name], two.columns.flags[name]) for name in ("failed", "due", "crash")
    )


def actors() -> list[int]:
    """Return the processes of Ray's actors."""
    found = subprocess.run(["pgrep", "-f", "ray::_Actor"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.slow
def test_actors_of_ray_run_lanes_and_lost_ones_are_replaced(campaign, alone):
    pytest.importorskip("ray", reason="Ray is not installed")
    killed = []

    def kill(standing):
        if standing.done >= 8000 and not killed and (alive := actors()):
            os.kill(alive[0], signal.SIGKILL)
            killed.append(alive[0])

    assert same(run(campaign, workers=Ray(2), progress=kill), alone)
    assert killed
    for _ in range(300):
        if not actors():
            break
        time.sleep(0.1)
    else:
        pytest.fail("actors outlived the campaign by half a minute")


@pytest.mark.slow
def test_pools_go_to_actors_too(campaign):
    pytest.importorskip("ray", reason="Ray is not installed")
    pooled = Campaign(campaign.engine, campaign.space, resolver=Pooled(64), stop=MaxTrials(30_000))
    assert same(run(pooled, workers=Ray(2)), run(pooled))


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "127.0.0.1:{port}00000"])
def test_a_cluster_that_does_not_answer_is_told_at_once(campaign, address):
    """Ray itself would try again for minutes."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:  # a port that nobody listens at once it is given back
        address = address.format(port=taken.getsockname()[1])
    began = time.monotonic()
    with pytest.raises(EngineError, match=f"no Ray cluster at '{address}' .*start one with `ray start --head`"):
        run(campaign, workers=Ray(2, address=address))
    assert time.monotonic() - began < 60


@_LOCAL
@pytest.mark.slow
def test_jobs_join_over_the_network_and_are_cancelled_at_the_end(campaign, alone, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    slurm = Slurm(2, host="127.0.0.1", folder=tmp_path / "jobs", cluster="local")
    assert same(run(campaign, workers=slurm), alone)


@_LOCAL
@pytest.mark.slow
def test_a_job_that_the_queue_lets_begin_late_joins_the_campaign(campaign, alone, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed")
    store, begins, seen, made = tmp_path / "c.db", tmp_path / "begins", [], Slurm._executor

    def queued(slurm):
        executor = made(slurm)
        submit, jobs = executor.submit, []

        def late(function, *arguments):
            while not begins.exists():
                time.sleep(0.05)
            return function(*arguments)

        def submitted(function, *arguments):
            jobs.append(submit(late, function, *arguments) if jobs else submit(function, *arguments))
            return jobs[-1]

        executor.submit = submitted
        return executor

    def watch(standing):
        if store.exists():
            with Store(store, access="read") as held:
                seen.append(held.workers("campaign"))
        if standing.done >= 8000:
            begins.touch()

    monkeypatch.setattr(Slurm, "_executor", queued)
    longer = Campaign(campaign.engine, campaign.space, stop=MaxTrials(400_000))
    slurm = Slurm(2, host="127.0.0.1", folder=tmp_path / "jobs", cluster="local")
    results = run(longer, store=store, workers=slurm, progress=watch)
    assert {1, 2} <= set(seen)
    assert len(results) == 400_000
    assert np.array_equal(results.columns.faults[:60_000], alone.columns.faults)
    assert np.array_equal(results.columns.flags["failed"][:60_000], alone.columns.flags["failed"])


@_LOCAL
@pytest.mark.slow
def test_a_job_that_is_killed_is_done_without_and_what_it_was_at_runs_again(campaign, alone, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    killed = []

    def kill(standing):
        if standing.done >= 8000 and not killed and len(alive := jobs_at(tmp_path)) == 2:
            os.kill(alive[0], signal.SIGKILL)
            killed.append(alive[0])

    slurm = Slurm(2, host="127.0.0.1", folder=tmp_path / "jobs", cluster="local")
    assert same(run(campaign, workers=slurm, progress=kill), alone)
    assert killed


@_LOCAL
@pytest.mark.slow
def test_a_campaign_without_any_job_left_ends_and_goes_on(campaign, alone, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setattr(cluster.slurm, "_LOOK", 0.2)

    def kill(standing):
        if standing.done >= 8000:
            for job in jobs_at(tmp_path):
                os.kill(job, signal.SIGKILL)

    slurm = Slurm(1, host="127.0.0.1", folder=tmp_path / "jobs", cluster="local")
    with pytest.raises(EngineError, match=r"all 1 jobs of Slurm have ended.*torchfault resume"):
        run(campaign, store=tmp_path / "c.db", workers=slurm, progress=kill)
    assert same(run(campaign, store=tmp_path / "c.db"), alone)


def jobs_at(folder: Path) -> list[int]:
    """Return the processes that run jobs of submitit kept in *folder*: those that run nothing else."""
    found = subprocess.run(
        ["pgrep", "-f", f"submitit.core._submit {folder}"], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.parametrize("gpus", [0.5, 1.25])
def test_slurm_gives_no_parts_of_a_gpu(gpus):
    with pytest.raises(EngineError, match=rf"whole GPUs to a job, got {gpus}; give {int(gpus) + 1}"):
        Slurm(2, gpus=gpus)


def test_a_machine_without_slurm_says_so(campaign, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    with contextlib.chdir(tmp_path), pytest.raises(EngineError, match="no jobs can be submitted"):
        run(campaign, workers=Slurm(2, folder=tmp_path / "jobs"))
