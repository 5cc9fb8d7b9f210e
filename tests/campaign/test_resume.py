"""A campaign survives whatever ends its process, and resumes as if nothing had happened, or says what changed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.doubles import SPACE, Double
from torchfault.campaign import Campaign, CampaignInterrupted, run
from torchfault.criteria import Misclassified, Top1Change
from torchfault.errors import CampaignError, CriterionError, StoreError
from torchfault.faults import RandomWord, StuckAt
from torchfault.measures import ProductMeasure
from torchfault.resolve import Gated, Monotone, Pooled
from torchfault.results import export_trials, load
from torchfault.sampling import (
    Adaptive,
    BitErrorRate,
    Exhaustive,
    Importance,
    Learned,
    Score,
    Search,
    Statistical,
    Uniform,
    WholeWords,
)
from torchfault.statistics import HalfWidth, MaxTrials, TimeBudget
from torchfault.store import Store, pack

TABLES = ("model", "site", "layer", "channel", "bit", "kind")

DOUBLE = """
import sys
from tests.support.doubles import SPACE, Double
from torchfault.campaign import Campaign, run
from torchfault.faults import RandomWord
from torchfault.sampling import Uniform
from torchfault.statistics import HalfWidth, MaxTrials
campaign = Campaign(Double(seconds={seconds}), SPACE, sampler=Uniform(faults=2), fault=RandomWord(), seed=11,
                    stop=HalfWidth(0.01) | MaxTrials(9000))
print("ready", flush=True)
run(campaign, store=sys.argv[1], name="c", batch=256)
print("done", flush=True)
"""


def campaign(*, seconds: float = 0.0) -> Campaign:
    """Return the campaign of the programs above."""
    stop = HalfWidth(0.01) | MaxTrials(9000)
    engine = Double(seconds=seconds)
    return Campaign(engine, SPACE, sampler=Uniform(faults=2), fault=RandomWord(), seed=11, stop=stop)


def start(program: str, path: Path) -> subprocess.Popen[str]:
    """Start a program that runs a campaign into *path*, and wait until it does."""
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", process.communicate()
    return process


def tables(path: Path, name: str = "c") -> str:
    """Return every table of a stored campaign, and its trials, as one text."""
    with Store(path, access="read") as store:
        results = load(store, name)
        export = path.with_suffix(".csv")
        export_trials(store, name, export, force=True)
        texts = [results.table(by).to_csv(index=False) for by in TABLES]
    return "\n".join((str(results.estimate()), *texts, export.read_text()))


def trials_in(path: Path) -> int:
    """Return how many trials a store holds, 0 where it is not there yet."""
    if not path.exists():
        return 0
    with Store(path) as store:
        return sum(record.trials for record in store.campaigns())


# One process that has everything imported starts a fresh one for every line it reads, so that a hundred starts cost
# little; what it forks has run nothing yet.
FORKS = """
import os, sys
import scipy.stats, sqlalchemy.dialects.sqlite, torchfault.criteria, torchfault.store
{imports}
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.argv[1:] = [line.strip()]
        {program}
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Forks:
    """Starts a program again and again, and kills it or lets it end."""

    def __init__(self, program: str) -> None:
        imports, _, body = program.partition('print("ready", flush=True)\n')
        body = body.replace('print("done", flush=True)\n', "").replace("\n", "\n        ")
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS.format(imports=imports, program=body)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()

    def run(self, path: Path, *, until: Callable[[], None] | None = None) -> int:
        """Run the program on *path* to its end, or kill it when *until* returns; return its exit status."""
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if until is not None:
            until()
            os.kill(child, signal.SIGKILL)  # not waited for before the next line, so the number is still its own
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def a_while(path: Path, rng: np.random.Generator) -> None:
    """Return a random moment after up to two more batches are in the store at *path*, or after a few seconds."""
    goal, late = trials_in(path) + 256 * int(rng.integers(0, 3)), time.monotonic() + 5
    while trials_in(path) < goal and time.monotonic() < late:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.1))


def test_kill_9_at_twenty_random_moments_loses_at_most_the_batch_in_flight(tmp_path, rng):
    whole, broken = tmp_path / "whole.sqlite", tmp_path / "broken.sqlite"
    alone = run(campaign(), store=whole, name="c", batch=256)
    survived = []
    with Forks(DOUBLE.format(seconds=0.02)) as forks:
        for _ in range(20):
            forks.run(broken, until=lambda: a_while(broken, rng))
            survived.append(trials_in(broken))
        assert forks.run(broken) == 0
    assert tables(broken) == tables(whole)
    with Store(broken, access="read") as store:
        record = store.campaign("c")
        assert (record.status, record.reason, record.trials) == ("finished", alone.record.reason, len(alone))
    assert survived == sorted(survived)
    assert len({trials for trials in survived if 0 < trials < len(alone)}) >= 5


def test_ctrl_c_keeps_what_is_done_and_says_so(tmp_path):
    path = tmp_path / "broken.sqlite"
    program = DOUBLE.format(seconds=0.01)
    guarded = program.replace("\nrun(", "\ntry:\n    run(", 1).replace(
        'batch=256)\nprint("done", flush=True)',
        "batch=256)\nexcept KeyboardInterrupt as stop:\n"
        "    print(type(stop).__name__, stop, len(stop.results), stop.results.record.status, sep='|')",
    )
    process = start(guarded, path)
    while trials_in(path) < 512:
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    kind, message, length, status = output.strip().split("|")
    assert (kind, status) == ("CampaignInterrupted", "interrupted"), errors
    assert message == f"campaign 'c' was interrupted after {length} trials"
    with Store(path, access="read") as store:
        record = store.campaign("c")
        assert (record.status, record.trials) == ("interrupted", int(length))
        assert 512 <= record.trials < 9000
    resumed = run(campaign(), store=path, name="c", batch=256)
    alone = run(campaign(), store=tmp_path / "whole.sqlite", name="c", batch=256)
    assert resumed.record.reason == alone.record.reason
    assert tables(path) == tables(tmp_path / "whole.sqlite")


WORDS = {
    site.name: np.random.default_rng(site.elements)
    .integers(0, 1 << site.width, (10 if site.is_activation else 1, site.elements))
    .astype(np.uint8 if site.width == 8 else np.uint32)
    for site in SPACE.sites
}


def elements_of_even_number(space, index, inputs):
    """Say that every second element changes nothing on the first five inputs."""
    return (space.locate(index).element % 2 == 0) & (inputs < 5)


def all_but_the_last_sites(space, index, inputs):
    """Say that nothing matters in front of the last two sites."""
    del inputs
    return space.locate(index).site < len(space.sites) - 2


@dataclass(frozen=True)
class Odd(Score):
    """A score: odd elements, and high bits."""

    def rows(self, site, elements):
        return np.outer(1.0 + elements % 2, 1.0 + np.arange(len(site.bits)))


CAMPAIGNS = {
    "several inputs": {"inputs_per_fault": 3},
    "all inputs": {"inputs_per_fault": None, "sampler": Uniform(faults=2)},
    "verdicts": {"verdicts": {"wrong": Misclassified(), "unsure": Top1Change(share=0.5)}},
    "statistical": {"sampler": Statistical(margin=0.01)},
    "importance": {"sampler": Importance(Odd(), block=100)},
    "learned": {"sampler": Learned(Odd(), block=100)},
    "search": {"sampler": Search(side=128, block=64)},
    "adaptive by site": {"sampler": Adaptive(block=128), "stop": HalfWidth(0.02, by="site")},
    "adaptive by bit": {"sampler": Adaptive(block=128), "stop": HalfWidth(0.05, by="bit") & HalfWidth(0.02)},
    "adaptive on several inputs": {"sampler": Adaptive(block=128), "stop": HalfWidth(0.02), "inputs_per_fault": 2},
    "whole words": {"sampler": Adaptive(WholeWords(), block=32), "stop": HalfWidth(0.02, by="site")},
    "words by closure": {
        "sampler": Adaptive(WholeWords(), block=32),
        "stop": HalfWidth(0.02, by="site"),
        "resolver": Monotone(WORDS),
    },
    "pooled": {"resolver": Pooled(8, audit=0.1)},
    "closure": {"resolver": Monotone(WORDS)},
    "pooled and closure": {"resolver": Pooled(8, Monotone(WORDS), audit=0.1)},
    "pooled, several inputs": {"resolver": Pooled(8), "inputs_per_fault": 3},
    "adaptive, pooled": {
        "sampler": Adaptive(block=256, pool=8),
        "stop": HalfWidth(0.03, by="site"),
        "resolver": Pooled(8, Monotone(WORDS)),
    },
    "adaptive, most draws without a lane": {
        "sampler": Adaptive(block=128),
        "stop": HalfWidth(0.02, by="site"),
        "resolver": Gated(all_but_the_last_sites),
    },
    "gated": {"resolver": Gated(elements_of_even_number), "verdicts": {"wrong": Misclassified()}},
    "gated and closure": {"resolver": Gated(elements_of_even_number, Monotone(WORDS))},
    "measure": {"measure": ProductMeasure([0.1, 0.2, 0.3, 0.3, 0.1], bits={"add:output": [0, 0.5, 0.25, 0.25]})},
}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_any_campaign_goes_on_byte_for_byte_wherever_it_was_stopped(tmp_path, rng, name):
    """In mid-block, with batches of any size, after a crash while a batch was stored: as if nothing had happened."""
    options = {"stop": MaxTrials(10_000)} | CAMPAIGNS[name]
    begun = Campaign(Double(), SPACE, seed=7, **options)
    stop, end = begun.stop, 300 if begun.sampler.block == 32 else 700
    whole = run(replace(begun, stop=MaxTrials(end) | stop))
    assert len(whole) == end
    path = tmp_path / "pieces.sqlite"
    for cut in np.sort(rng.choice(np.arange(1, end), 5, replace=False)).tolist():
        run(replace(begun, stop=MaxTrials(cut) | stop), store=path, name="c", batch=int(rng.integers(1, 300)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "append", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(replace(begun, stop=MaxTrials(end) | stop), store=path, name="c")
    last = run(replace(begun, stop=MaxTrials(end) | stop), store=path, name="c", batch=77)
    with Store(path, access="read") as store:
        held = load(store, "c")
    assert pack(held.columns) == pack(whole.columns) == pack(last.columns)
    for by in TABLES:
        assert held.table(by).to_csv() == whole.table(by).to_csv()


def interrupting(after: int) -> Double:
    """Return a double that is interrupted after so many lanes."""
    engine = Double()
    whole = engine.run

    def breaks(trials):
        for lanes in whole(trials):
            if engine.lanes > after:
                raise KeyboardInterrupt
            yield lanes

    engine.run = breaks
    return engine


def test_an_interrupt_without_a_store_hands_over_the_results():
    with pytest.raises(CampaignInterrupted) as caught:
        run(replace(campaign(), engine=interrupting(3000)), batch=512)
    results = caught.value.results
    assert 0 < len(results) < 3000
    assert results.record.status == "interrupted"
    assert results.table("site")["trials"].sum() > len(results)  # two faults each
    with pytest.raises(CampaignInterrupted) as caught:
        run(replace(campaign(), engine=interrupting(0)))
    assert len(caught.value.results) == 0


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_within_a_transaction_counts_what_the_store_holds(tmp_path, monkeypatch, moment):
    append, calls = Store.append, []

    def breaks(self, name, columns, *, first, **more):
        calls.append(first)
        if len(calls) == 3 and moment == "before":
            raise KeyboardInterrupt
        append(self, name, columns, first=first, **more)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "append", breaks)
        with pytest.raises(CampaignInterrupted) as caught:
            run(campaign(), store=tmp_path / "broken.sqlite", name="c", batch=512)
    assert len(caught.value.results) == trials_in(tmp_path / "broken.sqlite") == (512 if moment == "before" else 1024)
    run(campaign(), store=tmp_path / "broken.sqlite", name="c", batch=512)
    run(campaign(), store=tmp_path / "whole.sqlite", name="c", batch=512)
    assert tables(tmp_path / "broken.sqlite") == tables(tmp_path / "whole.sqlite")


def test_results_are_the_same_from_memory_and_from_the_store(tmp_path):
    memory = run(campaign())
    stored = run(campaign(), store=tmp_path / "whole.sqlite")
    with Store(tmp_path / "whole.sqlite", access="read") as store:
        loaded = load(store, "campaign")
    for results in (stored, loaded):
        for by in TABLES:
            assert results.table(by).to_csv() == memory.table(by).to_csv()
        assert results.estimate() == memory.estimate()
        assert results.record.reason == memory.record.reason
    assert loaded.record.versions["torch"] == torch.__version__
    assert loaded.record.versions["executor"] == "double"
    assert stored.record == replace(loaded.record, seconds=stored.record.seconds)
    assert stored.record.seconds == pytest.approx(loaded.record.seconds)


def test_a_finished_campaign_runs_no_further(tmp_path):
    path = tmp_path / "whole.sqlite"
    first = run(campaign(), store=path)
    again = campaign()
    second = run(again, store=path)
    assert again.engine.lanes == 0
    assert len(second) == len(first)
    assert second.record.reason == first.record.reason
    exhaustive = Campaign(Double(inputs=2), SPACE, sampler=Exhaustive())
    assert len(run(exhaustive, store=path, name="all")) == 2 * len(SPACE)
    lanes = exhaustive.engine.lanes
    results = run(exhaustive, store=path, name="all")
    assert exhaustive.engine.lanes == lanes
    assert results.estimate().half_width == 0
    with Store(path, access="read") as store:
        assert load(store, "all").estimate().half_width == 0


@pytest.mark.parametrize("sampler", [Uniform(), Uniform(faults=2), BitErrorRate(0.003), Exhaustive(block=100)])
def test_a_campaign_can_be_extended(tmp_path, sampler):
    path = tmp_path / "extended.sqlite"
    short = Campaign(Double(), SPACE, sampler=sampler, seed=3, stop=MaxTrials(700))
    assert len(run(short, store=path, name="c")) == 700
    for stop, length in ((MaxTrials(1500), 1500), (MaxTrials(1501) & MaxTrials(3), 1501), (MaxTrials(10), 1501)):
        assert len(run(replace(short, stop=stop), store=path, name="c")) == length
    run(replace(short, stop=MaxTrials(1501)), store=tmp_path / "whole.sqlite", name="c")
    assert tables(path) == tables(tmp_path / "whole.sqlite")
    with Store(path, access="read") as store:
        assert store.campaign("c").configuration["stop"]["fields"] == {"n": 10}


def test_a_metric_campaign_resumes_too(tmp_path):
    def metric(outputs, labels):
        return float((outputs[:, 0] > outputs[:, 1]).double().mean()) + 0 * float(labels.sum())

    path = tmp_path / "broken.sqlite"
    whole = Campaign(Double(), SPACE, metric=metric, seed=3, stop=MaxTrials(900))
    with pytest.raises(CampaignInterrupted):
        run(replace(whole, engine=interrupting(5000)), store=path, name="c")
    assert 0 < trials_in(path) < 900
    run(whole, store=path, name="c")
    run(whole, store=tmp_path / "whole.sqlite", name="c")
    assert tables(path) == tables(tmp_path / "whole.sqlite")


def test_time_is_counted_over_all_sessions(tmp_path):
    path = tmp_path / "timed.sqlite"
    slow = Campaign(Double(seconds=0.01), SPACE, stop=TimeBudget(0.2))
    first = run(slow, store=path)
    second = run(replace(slow, stop=TimeBudget(0.4)), store=path)
    assert 0.2 <= first.record.seconds < 0.4 <= second.record.seconds < 0.7
    assert len(second) > len(first)
    slow.engine.lanes = 0
    assert len(run(slow, store=path)) == len(second)
    assert slow.engine.lanes == 0


def metric_one(outputs, labels):
    return float(outputs[:, 0].sum()) + 0 * float(labels.sum())


CHANGES = {
    "seed": ({"seed": 12}, r"another seed \(was 11, is now 12\); restore"),
    "sampler": ({"sampler": Uniform(faults=3)}, r"sampler \(was Uniform\(faults=2, .*is now Uniform\(faults=3"),
    "fault": ({"fault": StuckAt(1)}, r"fault \(was RandomWord\(\), is now StuckAt\(level=1\)\)"),
    "criterion": ({"criterion": Misclassified()}, r"criterion \(was Top1Change\(.*is now Misclassified\("),
    "parameter": ({"criterion": Top1Change(share=0.5)}, r"criterion \(was .*share=0.0.*is now .*share=0.5"),
    "metric": ({"metric": metric_one}, r"criterion .*metric \(was None, is now .*test_resume.metric_one\)"),
    "model": ({"engine": Double(model="n" * 64)}, r"another model \(was sha256 m{12}, is now sha256 n{12}\)"),
    "data": ({"engine": Double(inputs=11)}, r"another data \(was sha256 .*inputs \(was 10, is now 11\)"),
    "fewer": ({"space": SPACE.select(exclude="fc.bias")}, r"another space \(now without fc.bias\)"),
    "bits": ({"space": SPACE.select(bits=range(8))}, r"space \(now without add:output; with another conv:input"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_campaign_is_refused_and_named(tmp_path, change):
    path = tmp_path / "whole.sqlite"
    begun = replace(campaign(), stop=MaxTrials(300))
    run(begun, store=path, name="c")
    before = tables(path)
    changes, message = CHANGES[change]
    other = replace(begun, stop=MaxTrials(900), **changes)
    with pytest.raises(CampaignError, match=rf"campaign 'c' was begun with .*{message}"):
        run(other, store=path, name="c")
    assert tables(path) == before
    assert len(run(other, store=path, name="another")) == 900


def test_all_changes_are_named_at_once(tmp_path):
    path = tmp_path / "whole.sqlite"
    begun = replace(campaign(), stop=MaxTrials(300))
    run(begun, store=path)
    with pytest.raises(CampaignError, match=r"another sampler .*, fault .*; restore that to resume it, or choose"):
        run(replace(begun, sampler=Uniform(), fault=StuckAt(0)), store=path)
    run(replace(begun, space=SPACE.select("c*"), seed=1), store=path, name="part")
    with pytest.raises(CampaignError, match=r"space .*with the new fc.bias"):
        run(replace(begun, space=SPACE.select("c*") | SPACE.select("fc*"), seed=1), store=path, name="part")


def test_the_order_of_sites_is_part_of_the_space(tmp_path):
    path = tmp_path / "whole.sqlite"
    begun = replace(campaign(), stop=MaxTrials(300))
    run(begun, store=path)
    turned = type(SPACE)(SPACE.sites[::-1])
    with pytest.raises(CampaignError, match="its sites in another order"):
        run(replace(begun, space=turned), store=path)


def test_two_processes_do_not_run_one_campaign(tmp_path):
    path = tmp_path / "shared.sqlite"
    process = start(DOUBLE.format(seconds=0.02), path)
    try:
        while not trials_in(path):
            time.sleep(0.02)
        with pytest.raises(StoreError, match="campaign 'c' is being run by another process"):
            run(campaign(), store=path, name="c")
        assert len(run(replace(campaign(), stop=MaxTrials(300)), store=path, name="other")) == 300
        with Store(path, access="read") as store:
            assert load(store, "c").estimate().trials > 0  # reading needs no permission
    finally:
        process.kill()
        process.communicate()
    assert run(campaign(), store=path, name="c", batch=512).record.status == "finished"


def test_what_cannot_run_at_all_leaves_nothing_behind(tmp_path):
    path = tmp_path / "none.sqlite"

    def broken(golden, faulty, labels):
        raise CriterionError(f"no fit for {golden.shape} {faulty.shape} {labels.shape}")

    with pytest.raises(CriterionError):
        run(replace(campaign(), criterion=broken), store=path)
    with pytest.raises(CampaignError):
        run(Campaign(Double(), SPACE), store=path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_is_noted_and_can_be_resumed(tmp_path):
    path = tmp_path / "broken.sqlite"
    engine, whole = Double(), Double.run

    def breaks(trials):
        for lanes in whole(engine, trials):
            if engine.lanes > 2000:
                raise RuntimeError("out of luck")
            yield lanes

    engine.run = breaks
    with pytest.raises(RuntimeError, match="out of luck"):
        run(replace(campaign(), engine=engine), store=path, name="c", batch=512)
    with Store(path, access="read") as store:
        record = store.campaign("c")
        assert (record.status, record.reason) == ("failed", "RuntimeError: out of luck")
        assert 0 < record.trials <= 2000
    run(campaign(), store=path, name="c", batch=512)
    run(campaign(), store=tmp_path / "whole.sqlite", name="c", batch=512)
    assert tables(path) == tables(tmp_path / "whole.sqlite")


def test_an_open_store_stays_open(tmp_path):
    with Store(tmp_path / "results.sqlite") as store:
        run(replace(campaign(), stop=MaxTrials(300)), store=store, name="one")
        run(replace(campaign(), stop=MaxTrials(300)), store=store, name="two")
        assert [record.name for record in store.campaigns()] == ["one", "two"]


REAL = """
import sys
import torch
from torchfault.campaign import Campaign, run
from torchfault.engine import Engine
from torchfault.data import Data
from torchfault.statistics import MaxTrials
torch.manual_seed(0)
torch.set_num_threads(2)
features = [torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)]
head = [torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 12 * 12, 10)]
model = torch.nn.Sequential(*features, *head).eval()
engine = Engine(model, Data(torch.randn(16, 1, 16, 16)), executor={executor!r})
campaign = Campaign(engine, engine.space, seed=1, stop=MaxTrials({trials}))
print("ready", flush=True)
run(campaign, store=sys.argv[1], name="c", batch=256)
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_the_engine_itself_is_killed_at_twenty_random_moments(tmp_path, rng, executor):
    whole, broken = tmp_path / "whole.sqlite", tmp_path / "broken.sqlite"
    program = REAL.format(executor=executor, trials=4_000)
    began = time.perf_counter()
    assert start(program, whole).communicate()[0] == "done\n"
    spent = time.perf_counter() - began
    survived = []
    for moment in rng.uniform(0, spent / 10, 20):
        process = start(program, broken)
        time.sleep(moment)
        process.kill()
        process.communicate()
        survived.append(trials_in(broken))
    assert start(program, broken).communicate()[0] == "done\n"
    assert tables(broken) == tables(whole)
    assert survived[-1] > 0


def test_the_engine_runs_a_campaign(tmp_path):
    from torchfault.data import Data
    from torchfault.engine import Engine

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).eval()
    data = Data(torch.randn(8, 6), torch.randint(0, 3, (8,)))
    found = []
    for executor in ("graph", "hooks"):
        engine = Engine(model, data, executor=executor)
        space = engine.space.select("*.weight", bits=[30])
        assert len(space) == 45
        results = run(Campaign(engine, space, sampler=Exhaustive()), store=tmp_path / f"{executor}.sqlite", name="c")
        assert results.record.versions["executor"] == executor
        assert results.estimate().half_width == 0
        found.append(results)
    one, two = (results.columns for results in found)
    assert np.array_equal(one.failed, two.failed)
    assert np.array_equal(one.due, two.due)
    expected = slow_reference(model, data, found[0])
    assert np.array_equal(one.failed, expected)
    assert 0 < expected.mean() < 1


def slow_reference(model, data, results) -> np.ndarray:
    """Return the verdicts of plain injection: edit the weight in place, run the model, put it back."""
    failed = []
    with torch.no_grad():
        golden = model(data.inputs).argmax(1)
        for fault, inputs in zip(results.columns.faults, results.columns.inputs, strict=True):
            where = results.space[int(fault)]
            words = dict(model.named_parameters())[where.site].view(torch.int32).view(-1)
            words[where.element] ^= 1 << where.bit
            faulty = model(data.inputs[inputs : inputs + 1])
            words[where.element] ^= 1 << where.bit
            changed = not bool(faulty.isfinite().all()) or int(faulty.argmax()) != int(golden[inputs])
            failed.append(changed)
    return np.array(failed)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no permissions to take away")
def test_a_store_that_becomes_unwritable_ends_the_campaign_with_one_line(tmp_path, monkeypatch):
    import sqlite3

    from sqlalchemy.exc import OperationalError

    append, calls = Store.append, []

    def full(self, name, columns, *, first, **more):
        calls.append(first)
        if len(calls) > 2:
            from torchfault.store.connect import translated

            with translated(self._place):
                raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        append(self, name, columns, first=first, **more)

    path = tmp_path / "full.sqlite"
    with monkeypatch.context() as patched:
        patched.setattr(Store, "append", full)
        with pytest.raises(StoreError, match="cannot grow, since the disk is full; make room and resume"):
            run(campaign(), store=path, name="c", batch=512)
    run(campaign(), store=path, name="c", batch=512)
    run(campaign(), store=tmp_path / "whole.sqlite", name="c", batch=512)
    assert tables(path) == tables(tmp_path / "whole.sqlite")
