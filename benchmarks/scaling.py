"""What more workers and more trials cost: efficiency, the driver, the store, and a model of a thousand workers.

``python benchmarks/scaling.py`` prints a table, ``--json`` one object, ``--quick`` with a tenth of the trials. Rates of
workers are those after all of them have begun; modes take turns, and medians are told. ``--part kills`` runs another
check instead: whether a campaign whose workers are killed every few seconds leaves the same bytes as undisturbed, time
stamps apart; it ends with status 1 where it does not.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engine import resnet20
from tests.support.crews import children
from tests.support.postgres import programs, served
from torchfault import Engine, demo
from torchfault.campaign import Campaign, Standing, run
from torchfault.campaign.workers import Bench, Crew
from torchfault.cluster import Processes
from torchfault.resolve import Verdicts
from torchfault.statistics import MaxTrials
from torchfault.store import Columns, Record, Store
from torchfault.testing import example_record
from torchfault.trials import Trials

BATCH = 4096
SHOWN = 10_000_000
EVERY = 4.0
REPEATS = 3


@dataclass(frozen=True, eq=False)
class Free:
    """Workers that answer at once, with random verdicts: what is left is the driver's own work."""

    @contextmanager
    def start(self, bench: Bench) -> Iterator[Crew]:
        del bench
        yield _Answering()


class _Answering:
    size = present = 1000

    def submit(self, trials: Trials) -> "Future[Verdicts]":
        future: Future[Verdicts] = Future()
        failed = (trials.element + trials.inputs) % 64 == 0
        nothing = np.zeros(len(trials), dtype=bool)
        change = failed.astype(np.float64)
        answer = trials.inputs % 10
        future.set_result({"failed": failed, "due": nothing, "crash": nothing, "answer": answer, "change": change})
        return future


def steady(campaign: Campaign, **options: Any) -> float:
    """Return the lanes a second of a campaign, from its first finished batch to its last."""
    seen: list[tuple[float, int]] = []

    def watch(standing: Standing) -> None:
        if standing.done and (not seen or standing.done > seen[-1][1]):
            seen.append((time.perf_counter(), standing.done))

    run(campaign, progress=watch, **options)
    # What begins with the first batch was begun before it ended: leave out a tenth.
    first = next(entry for entry in seen if entry[1] >= seen[-1][1] // 10)
    return (seen[-1][1] - first[1]) / (seen[-1][0] - first[0])


def efficiency(*, lanes: int) -> dict[str, Any]:
    """Return lanes a second of ResNet-20's weights alone and with workers, and how well two of them share the work."""
    model, data = resnet20()
    torch.set_num_threads(1)
    engine = Engine(model, data)
    campaign = Campaign(engine, engine.space.select(kinds="weight"), stop=MaxTrials(lanes))
    modes: dict[str, dict[str, Any]] = {
        "alone, 1 thread": {},
        "alone, 2 threads": {},
        "1 worker of 1 thread": {"workers": Processes(1, threads=1)},
        "2 workers of 1 thread": {"workers": Processes(2, threads=1)},
    }
    rates: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(REPEATS):
        for name, options in modes.items():
            torch.set_num_threads(2 if "2 threads" in name else 1)
            rates[name].append(steady(campaign, **options))
    torch.set_num_threads(1)
    pairs = zip(rates["2 workers of 1 thread"], rates["1 worker of 1 thread"], strict=True)
    return {
        "lanes_per_second": {name: round(statistics.median(found)) for name, found in rates.items()},
        "efficiency_2": statistics.median(two / (2 * one) for two, one in pairs),
    }


def driver(*, trials: int) -> float:
    """Return the trials a second that one driver draws, counts and stores while workers answer at once."""
    engine = Engine(demo.model(), demo.data())
    campaign = Campaign(engine, engine.space.select(kinds="weight"), stop=MaxTrials(trials))
    with tempfile.TemporaryDirectory() as folder:
        return steady(campaign, store=f"{folder}/driver.db", workers=Free())


def stored(*, trials: int) -> float:
    """Return the bytes that a million trials of a real campaign take in SQLite."""
    engine = Engine(demo.model(), demo.data())
    campaign = Campaign(engine, engine.space.select(kinds=("weight", "output")), stop=MaxTrials(trials))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stored.db"
        run(campaign, store=path)
        return path.stat().st_size / trials * 1e6


def synthetic(record: Record, rng: np.random.Generator, n: int) -> Columns:
    """Return so many trials like those of a campaign with verdicts, answers and changes."""
    flags = {"failed": rng.random(n) < 0.02, "due": rng.random(n) < 0.001, "crash": np.zeros(n, dtype=bool)}
    change = np.where(rng.random(n) < 0.3, rng.random(n).astype(np.float32), 0.0)
    faults, inputs = rng.integers(record.faults, size=n), rng.integers(record.inputs, size=n)
    return Columns(faults, inputs, flags, answers=rng.integers(10, size=n), changes=change)


def written(where: str | Path, *, rows: int) -> float:
    """Return the rows a second that the store at *where* takes, batch by batch."""
    rng, record = np.random.default_rng(0), example_record("written")
    batch = synthetic(record, rng, BATCH)
    with Store(where) as store, store.writer("written"):
        store.create(record)
        began = time.perf_counter()
        for first in range(0, rows, BATCH):
            store.append("written", batch, first=first, seconds=0.1)
        return rows // BATCH * BATCH / (time.perf_counter() - began)


def shown(*, trials: int) -> dict[str, tuple[float, float]]:
    """Return the seconds and the MiB that ``torchfault show`` and ``report`` take for a campaign of so many trials."""
    engine = Engine(demo.model(), demo.data())
    campaign = Campaign(engine, engine.space.select(kinds="weight"), stop=MaxTrials(100))
    record, rng = replace(run(campaign).record, name="shown", status="running", reason=""), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shown.db"
        with Store(path) as store, store.writer("shown"):
            store.create(record)
            for first in range(0, trials, BATCH):
                n = min(BATCH, trials - first)
                store.append("shown", synthetic(record, rng, n), first=first, seconds=0.1)
            store.finish("shown", reason="enough")
        where = ["shown", "--store", str(path)]
        page = ["--output", f"{folder}/shown.html"]
        return {"show": needed(["show", *where]), "report": needed(["report", *where, *page])}


_NEEDED = """
import os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - began, usage.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def needed(command: list[str]) -> tuple[float, float]:
    """Return the seconds and the MiB that a command of torchfault takes.

    A small process starts it: to Linux, the peak of a process begins with what the one that started it had.
    """
    program = [sys.executable, "-m", "torchfault", *command]
    done = subprocess.run([sys.executable, "-c", _NEEDED, *program], check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


def on_paper(found: dict[str, Any], workers: int) -> dict[str, Any]:
    """Return what bounds a campaign on so many workers, by the rates measured here."""
    each = found["lanes_per_second"]["1 worker of 1 thread"]
    bounds = {
        "the workers": workers * each,
        "the driver (draw, count, store)": round(found["driver_trials_per_second"]),
        "the store": round(min(found["writer_rows_per_second"].values())),
        "a network of 1 Gbit/s": round(1e9 / 8 / 60),  # 40 bytes of trials go out for a lane, 20 of verdicts come back
    }
    least = min(bounds, key=bounds.__getitem__)
    return {"bounds": bounds, "bottleneck": least, "busy_workers": round(bounds[least] / each)}


def measured(*, quick: bool) -> dict[str, Any]:
    """Return all figures."""
    part = 10 if quick else 1
    found = efficiency(lanes=100_000 // part)
    found["driver_trials_per_second"] = driver(trials=1_000_000 // part)
    found["bytes_per_million"] = stored(trials=200_000 // part)
    with tempfile.TemporaryDirectory() as folder:
        found["writer_rows_per_second"] = {"sqlite": written(Path(folder) / "w.db", rows=2_000_000 // part)}
    if (folder_of := programs()) is not None:
        with served(folder_of) as server:
            found["writer_rows_per_second"]["postgresql"] = written(server.database(), rows=2_000_000 // part)
    for command, (seconds, peak) in shown(trials=SHOWN // part).items():
        found |= {f"{command}_10m_seconds": seconds, f"{command}_10m_peak_mib": peak}
    return found | {"thousand_workers": on_paper(found, 1000)}


def kills(*, trials: int, every: float = EVERY) -> dict[str, Any]:
    """Return whether a campaign on the digits CNN is the same with a worker killed every so many seconds as without."""
    engine = Engine(demo.model(), demo.data())
    campaign = Campaign(engine, engine.space.select(kinds="weight"), stop=MaxTrials(trials))
    with tempfile.TemporaryDirectory() as folder:
        calm, stormy = (Path(folder) / name for name in ("undisturbed.db", "killed.db"))
        began = time.perf_counter()
        run(campaign, store=calm, workers=Processes(2, threads=1))
        between = time.perf_counter()
        with killing(every) as (killed, watch):
            run(campaign, store=stormy, workers=Processes(2, threads=1), progress=watch)
        seconds = {"undisturbed": between - began, "killed": time.perf_counter() - between}
        same, left = kept(calm) == kept(stormy), kept(stormy)[1]
    return {
        "trials": trials,
        "every_s": every,
        "kills": len(killed),
        "seconds": {name: round(taken, 1) for name, taken in seconds.items()},
        "trials_lost": trials - left,
        "same_bytes": same,
    }


@contextmanager
def killing(every: float) -> Iterator[tuple[list[int], Callable[[Standing], None]]]:
    """Kill a worker of this process every so many seconds within the scope, if trials were finished meanwhile.

    The scope gets the numbers of those that were killed, and what must watch the campaign.
    """
    ended, killed, rng, done = threading.Event(), list[int](), random.Random(0), [0, 0]

    def kill() -> None:
        while not ended.wait(every):
            if done[1] > done[0] and (alive := children(os.getpid())):
                done[0] = done[1]
                killed.append(rng.choice(alive))
                os.kill(killed[-1], signal.SIGKILL)

    def watch(standing: Standing) -> None:
        done[1] = standing.done

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed, watch
    finally:
        ended.set()
        thread.join()


def kept(path: Path) -> tuple[str, int]:
    """Return a digest of all that a store of one campaign holds but time stamps, and its trials."""
    digest, trials = hashlib.sha256(), 0
    with contextlib.closing(sqlite3.connect(path)) as connection:
        columns = (
            "name, configuration, design, golden, seed, versions, model, data, space, faults, inputs, status, total"
        )
        digest.update(repr(connection.execute(f"SELECT {columns} FROM torchfault_campaigns").fetchall()).encode())
        query = "SELECT number, first, trials, data FROM torchfault_batches ORDER BY number"
        for row in connection.execute(query):
            digest.update(repr(row).encode())
            trials += row[2]
    return digest.hexdigest(), trials


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    parser.add_argument("--part", choices=("figures", "kills"), default="figures", help="what to run (figures)")
    parser.add_argument("--trials", type=int, default=10_000_000, help="trials of the part kills (10,000,000)")
    options = parser.parse_args()
    part = measured(quick=options.quick) if options.part == "figures" else {"kills": kills(trials=options.trials)}
    found = {"cores": len(os.sched_getaffinity(0)), "torch": torch.__version__, **part}
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name}: {json.dumps(value)}")
    if not found.get("kills", {"same_bytes": True})["same_bytes"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
