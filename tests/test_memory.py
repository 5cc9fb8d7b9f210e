"""The engine keeps within the memory it is given, seen from outside the process."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "engine.py"
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
