"""The engine keeps within the memory it is given, seen from outside the process."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "engine.py"
BUDGET_MIB = 256


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="this system does not tell a process's peak memory"
)
@pytest.mark.parametrize("kind", ["weights", "inputs"])
def test_peak_memory_stays_under_the_budget(kind, data_dir):
    run = subprocess.run(
        [sys.executable, str(BENCHMARK), "--peak-of", kind],
        check=True,
        capture_output=True,
        text=True,
        env={"TORCHFAULT_DATA": str(data_dir), "OMP_NUM_THREADS": "2", "PATH": ""},
    )
    peak = float(run.stdout)
    assert 20 < peak <= BUDGET_MIB


PEAK_OF_QUANTISED = """
import sys, warnings
warnings.simplefilter("ignore")
from benchmarks.engine import random_trials, watched
from benchmarks.representations import deployed
from torchfault.engine import Engine
model, data = deployed()
engine = Engine(model, data, memory="{budget}MiB")
for _ in range(2):  # kernels are loaded and kept on their first use, whatever the engine
    with watched() as peak:
        engine.graph.forget()
        for _ in engine.run(random_trials(engine.space.select(kinds={kinds}), len(data), 2000, seed=1)):
            pass
        found = peak()
print(found)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="this system does not tell a process's peak memory"
)
@pytest.mark.parametrize("kinds", [["weight"], ["output"], ["scale", "zero_point"]])
def test_peak_memory_of_a_quantised_network_stays_under_the_budget(kinds, data_dir):
    program = PEAK_OF_QUANTISED.format(budget=32, kinds=kinds)
    env = {"TORCHFAULT_DATA": str(data_dir), "OMP_NUM_THREADS": "2", "PATH": ""}
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=env)
    assert 0 < float(run.stdout) <= 32
