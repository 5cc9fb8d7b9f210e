"""Memory budgets and thread counts: no outcome moves with them, and what is taken stays within them or is told."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchfault import demo
from torchfault.campaign import Campaign, run
from torchfault.engine import Engine
from torchfault.statistics import MaxTrials

BUDGETS = ("1MiB", "2MiB", "5MiB", "16MiB", "64MiB", "256MiB", "1GiB")
THREADS = (1, 2, 3)
tells_peaks = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="this system does not tell a process's peak memory"
)


@pytest.fixture(scope="module")
def digits():
    return demo.model(), demo.data().take(slice(0, 100))


def outcomes(digits, executor, *, memory="1GiB", threads=2):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        engine = Engine(*digits, executor=executor, memory=memory)
        columns = run(Campaign(engine, engine.space, stop=MaxTrials(1000), seed=3)).columns
    finally:
        torch.set_num_threads(before)
    return np.stack((columns.faults, columns.inputs, columns.failed, columns.due))


@pytest.mark.parametrize("executor", ["graph", pytest.param("hooks", marks=pytest.mark.slow)])
def test_seven_budgets_and_three_thread_counts(executor, digits, tried):
    truth = outcomes(digits, executor)
    assert truth[2].any()
    for memory in BUDGETS:
        with tried("a memory budget from 1 MiB to 1 GiB") as found:
            found.changed((outcomes(digits, executor, memory=memory) != truth).any())
    for threads in THREADS:
        with tried("one to three threads") as found:
            found.changed((outcomes(digits, executor, threads=threads) != truth).any())


# Each program makes ready, and then `act`, whose peak beyond what was there before is printed in MiB.
PEAK = """
import ctypes, gc, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
from torch import nn
from benchmarks.engine import watched
from torchfault.data import Data
from torchfault.engine import Engine
{program}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    gc.collect()
    with watched() as peak:
        act()
        found = peak()
print(found, *(str(one.message) for one in told), sep="\\n")
"""

BILLION = """
from torchfault.campaign import Campaign, run
from torchfault.criteria import OutputError
from torchfault.sampling import Statistical, bits_from
from torchfault.statistics import MaxTrials
model = nn.Sequential(*[nn.Linear(1000, 1000, bias=False) for _ in range(32)]).eval()
engine = Engine(model, Data(torch.randn(4, 1000)), executor="hooks", memory="1GiB")
space = engine.space.select(kinds="weight")
assert len(space) > 10**9
def act():
    bits = bits_from(space, dict(model.named_parameters()))
    for method in ({"method": "data-aware", "bits": bits}, {"method": "data-unaware"}):
        run(Campaign(engine, space, sampler=Statistical(**method), criterion=OutputError(0.1), stop=MaxTrials(300)))
"""

# What the activations of an input take stays below 200 MiB; three inputs, all held twice, would be 1.2 GiB and more.
LARGE = """
def block(old, new):
    return nn.Sequential(nn.Conv2d(old, new, 3, padding=1), nn.BatchNorm2d(new), nn.ReLU(), nn.MaxPool2d(2))
model = nn.Sequential(block(3, 8), block(8, 16), block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 9))
data = Data(torch.randn(3, 3, 1024, 1024))
def act():
    Engine(model.eval(), data, executor="{executor}", memory="{memory}")
"""


def peak(program):
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(program=program)], check=True, capture_output=True, text=True
    )
    found, *told = done.stdout.splitlines()
    return float(found), told


@tells_peaks
@pytest.mark.slow
def test_samples_of_a_billion_faults_stay_within_their_budget(tried):
    with tried("a statistical sample of 1e9 faults under 1 GiB") as found:
        taken, _ = peak(BILLION)
        found.changed(not 20 < taken < 700)


@tells_peaks
@pytest.mark.slow
@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_to_look_at_a_model_takes_what_is_told(executor, tried):
    with tried("a model of inputs of 3 x 1024 x 1024 is looked at under a budget") as found:
        taken, told = peak(LARGE.format(executor=executor, memory="512MiB"))
        assert [line for line in told if "to look at Sequential takes about" in line], told
        figure = float(told[0].split(" takes about ")[1].split(" MiB")[0].replace(",", ""))
        found.changed(not 200 < taken < 1.25 * figure + 100)
        _, told = peak(LARGE.format(executor=executor, memory="4GiB"))
        assert not told


def test_golden_words_beyond_the_budget_are_told(digits):
    model, data = digits
    engine = Engine(model, data, executor="hooks", memory="1MiB")
    space = engine.space.select(kinds="output")
    assert 1 < sum(4 * site.elements for site in space.sites) * len(data) / 2**20 < 8
    with pytest.warns(
        UserWarning, match=r"golden words of \d sites on 100 inputs.*more than the memory budget of 1 MiB"
    ):
        engine.words(space)
    Engine(model, data, executor="hooks", memory="64MiB").words(space)
