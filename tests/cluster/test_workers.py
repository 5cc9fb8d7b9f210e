"""Whoever runs the lanes, and whoever is lost on the way: the same campaign, byte for byte."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import torchfault
from tests.campaign.test_resume import CAMPAIGNS
from tests.support.crews import Threads, children
from tests.support.doubles import SPACE, Double
from tests.support.small_network import small_network
from torchfault import Engine, demo, recipes
from torchfault.campaign import Campaign, CampaignInterrupted, run, session
from torchfault.cli import main
from torchfault.cluster import Processes, processes
from torchfault.cluster.dispatch import Dispatch
from torchfault.criteria import Accuracy
from torchfault.errors import CampaignError, EngineError
from torchfault.hardware.accelerator import NVDLA_LIKE
from torchfault.resolve import Pooled
from torchfault.sampling import Adaptive
from torchfault.statistics import HalfWidth, MaxTrials
from torchfault.store import pack

SOME = 1500


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(session, "SHARD", 60)


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_any_campaign_is_the_same_with_any_number_of_workers(name, rng):
    begun = Campaign(Double(), SPACE, seed=7, **({"stop": MaxTrials(10_000)} | CAMPAIGNS[name]))
    begun = replace(begun, stop=MaxTrials(300 if begun.sampler.block == 32 else SOME) | begun.stop)
    alone = run(begun)
    for count in (1, 2, 5):
        results = run(begun, workers=Threads(count), batch=int(rng.integers(50, 600)))
        assert pack(results.columns) == pack(alone.columns)
        assert results.record.reason == alone.record.reason


def test_metrics_are_the_same_with_workers():
    begun = Campaign(Double(), SPACE, metric=Accuracy(), stop=MaxTrials(90))
    assert pack(run(begun, workers=Threads(3), batch=100).columns) == pack(run(begun, batch=100).columns)


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_real_engines_are_rebuilt_in_workers(executor):
    model, data = small_network()
    engine = Engine(model, data, executor=executor)
    space = engine.space.select(kinds=("weight", "input"))
    campaigns = {
        "plain": Campaign(engine, space, stop=MaxTrials(400)),
        "vulnerability": recipes.vulnerability(engine, weights=None, neurons=None, share=1.0),
        "ra": recipes.upsets(engine, NVDLA_LIKE, stop=MaxTrials(2048)),
        "adaptive, pooled": Campaign(
            engine, space, sampler=Adaptive(block=256), resolver=Pooled(8), stop=HalfWidth(0.1, by="site")
        ),
    }
    for name, campaign in campaigns.items():
        alone = run(campaign)
        assert pack(run(campaign, workers=Threads(2)).columns) == pack(alone.columns), name
        assert len(alone) > 0


@pytest.mark.parametrize("name", ["several inputs", "adaptive, pooled", "gated and closure"])
def test_lost_workers_change_nothing(name):
    begun = Campaign(Double(), SPACE, seed=3, **({"stop": MaxTrials(2000)} | CAMPAIGNS[name]))
    begun = replace(begun, stop=MaxTrials(2000) | begun.stop)
    lost = run(begun, workers=Threads(2, loses=lambda shard: shard % 4 == 3), batch=100)
    assert pack(lost.columns) == pack(run(begun).columns)


def test_a_campaign_goes_on_with_other_workers_where_it_was_stopped(tmp_path):
    begun = Campaign(Double(), SPACE, seed=5, stop=MaxTrials(1000))
    for trials, workers in ((130, None), (417, Threads(2)), (700, Threads(5)), (1000, None)):
        stored = run(replace(begun, stop=MaxTrials(trials)), store=tmp_path / "c.db", workers=workers, batch=64)
    assert pack(stored.columns) == pack(run(begun, workers=Threads(1)).columns)


def test_a_rule_stops_at_the_same_trial_though_workers_are_ahead():
    begun = Campaign(Double(), SPACE, seed=2, stop=HalfWidth(0.02) | MaxTrials(9000))
    alone = run(begun, batch=256)
    crowd = run(begun, batch=256, workers=Threads(4))
    assert (len(crowd), crowd.record.reason) == (len(alone), alone.record.reason)
    assert len(alone) < 9000


class Fragile(nn.Module):
    """A linear layer that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lock = nn.Linear(3, 5), threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_what_cannot_be_sent_is_told_before_anything_runs(tmp_path):
    model = Fragile().eval()
    engine = Engine(model, torch.ones(4, 3), executor="hooks")
    campaign = Campaign(engine, engine.space, stop=MaxTrials(10))
    with pytest.raises(EngineError, match=r"cannot be sent to workers \(.*lock.*\); run without"):
        run(campaign, store=tmp_path / "c.db", workers=Processes(1))
    for wrong in (2, "two", Processes):
        with pytest.raises(CampaignError, match=r"workers are those of torchfault.cluster, got .*write workers=Proc"):
            run(campaign, workers=wrong)
    with pytest.raises(EngineError, match="count of workers is at least 1, got 0"):
        Processes(0)


def test_processes_that_are_killed_are_replaced_and_nothing_is_lost():
    engine = Engine(demo.model(), demo.data())
    campaign = Campaign(engine, engine.space.select(kinds="weight"), stop=MaxTrials(60_000))
    alone, killed = run(campaign), []

    def kill(standing):
        if standing.done >= 8000 * (len(killed) + 1) and len(killed) < 2 and (alive := children(os.getpid())):
            os.kill(alive[0], signal.SIGKILL)
            killed.append(alive[0])

    results = run(campaign, workers=Processes(2, threads=1), progress=kill)
    assert len(killed) == 2
    assert not set(killed) & set(children(os.getpid()))
    wrong = {name: int((results.columns.flags[name] != alone.columns.flags[name]).sum()) for name in ("failed", "due")}
    assert wrong == {"failed": 0, "due": 0}  # ties would be the only reason, and this network has none
    assert np.array_equal(results.columns.faults, alone.columns.faults)
    assert children(os.getpid()) == []


class Brief:
    """A process that has ended as soon as it is looked at."""

    returncode = -signal.SIGKILL

    def poll(self) -> int:
        return self.returncode

    def kill(self) -> None: ...

    wait = poll


@pytest.mark.parametrize("answers", [True, False])
def test_processes_that_end_soon_are_replaced_as_long_as_shards_are_answered(answers, monkeypatch):
    dispatch, spawned = Dispatch(1), []

    def spawn(door):
        spawned.append(door)
        dispatch.answered += answers
        if len(spawned) == 12:
            dispatch.close()
        return Brief()

    monkeypatch.setattr(processes, "_spawned", spawn)
    monkeypatch.setattr(processes, "_LOOK", 0)
    processes._keep(1, None, dispatch)
    assert len(spawned) == (12 if answers else 3)
    with pytest.raises(EngineError, match="have ended" if answers else r"as soon as they begin \(signal 9\)"):
        dispatch.submit(None).result()


SCRIPT = """
import sys, torch
from torchfault import run
from torchfault.cluster import Processes

class Net(torch.nn.Module):  # known to this script alone
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
    def forward(self, x):
        return self.fc(x).relu()

torch.manual_seed(0)
print("ready", flush=True)
results = run(Net().eval(), torch.randn(20, 4), kinds="weight", trials=int(sys.argv[1]), workers=1,
              store=sys.argv[2], progress=lambda standing: print(standing.done, flush=True))
print(len(results), results.record.status)
"""


def started(tmp_path, trials: int) -> "subprocess.Popen[str]":
    """Start the script on so many trials."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(trials), str(tmp_path / "c.db")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_models_of_scripts_are_sent_and_workers_end_with_their_driver(tmp_path):
    process = started(tmp_path, 10**9)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and not (line.strip().isdecimal() and int(line) > 1000):
        pass
    workers = children(process.pid)
    assert len(workers) == 1
    process.kill()
    process.communicate(timeout=30)
    for _ in range(300):
        if not any(os.path.exists(f"/proc/{worker}") for worker in workers):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker outlived its driver by half a minute")
    done = started(tmp_path, 40_000)
    output, errors = done.communicate(timeout=120)
    assert output.splitlines()[-1] == "40000 finished", errors


def test_ctrl_c_ends_the_workers_and_keeps_what_is_done(tmp_path):
    campaign = Campaign(Double(seconds=0.002), SPACE, stop=MaxTrials(10**7))

    def interrupt(standing):
        if standing.done > 500:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(CampaignInterrupted) as caught:
        run(campaign, store=tmp_path / "c.db", workers=Threads(2), batch=200, progress=interrupt)
    assert len(caught.value.results) > 500
    assert torchfault.load(torchfault.Store(tmp_path / "c.db"), "campaign").record.status == "interrupted"


@pytest.mark.slow
def test_the_command_line_runs_workers_and_keeps_nothing_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "torchfault"]
    settings = ["--model", "torchfault.demo:model", "--data", "torchfault.demo:data", "--trials", "3000"]
    for name, more in (("alone", ["--threads", "1"]), ("two", ["--threads", "1", "--workers", "2"])):
        ran = subprocess.run(
            [*command, "run", *settings, "--name", name, *more], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
    with torchfault.Store(tmp_path / "torchfault.db") as store:
        alone, two = (torchfault.load(store, name) for name in ("alone", "two"))
    assert pack(two.columns) == pack(alone.columns)
    assert two.record.configuration["settings"] | {"name": ""} == alone.record.configuration["settings"] | {"name": ""}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cluster", "local"], "a cluster runs workers, got none; give --workers 8"),
        (["--workers", "2", "--gpus-per-worker", "1"], "gpus_per_worker is what a cluster gives, got no cluster"),
        (["--workers", "-1"], "workers: expected a number of at least 0, got -1"),
        (["--workers", "many"], "workers: expected a whole number, got 'many'"),
    ],
)
def test_workers_that_cannot_be_are_told_in_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = ["--model", "torchfault.demo:model", "--data", "torchfault.demo:data", "--trials", "300"]
    assert main(["run", *settings, *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_lanes_of_single_shards_are_told_to_the_progress(monkeypatch):
    monkeypatch.setattr(session, "SHARD", 4096)
    campaign, seen = Campaign(Double(), SPACE, resolver=Pooled(8), stop=MaxTrials(1500)), []
    results = run(campaign, workers=Threads(2), progress=lambda standing: seen.append(standing.lanes))
    assert seen[-1] >= results.columns.lanes.sum() > 0


def test_the_metric_without_faults_is_measured_once():
    measured = []

    def metric(outputs, _labels):
        measured.append(1)
        return float(outputs.argmax(1).float().mean())

    campaign = Campaign(Double(), SPACE, metric=metric, stop=MaxTrials(60))
    run(campaign, batch=10)
    once, measured[:] = len(measured), []
    run(campaign, batch=600)
    assert len(measured) == once
