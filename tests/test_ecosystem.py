"""Models of other libraries, each in a process of its own: their packages stand beside the environment, not in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ecosystem import folder

HERE = Path(__file__).parent
CHECKS = {path.stem: [str(path)] for path in sorted((HERE / "ecosystem").glob("models_*.py"))}
# What is skipped where snnTorch, SpikingJelly and Norse are not installed.
SPIKING = "snntorch or spikingjelly or norse or constants or dead_and_saturated or spiking_network or overwritten"
FILES = ("test_spiking.py", "test_spiking_nir.py", "test_constants.py", "test_monitor.py")
ENGINE = HERE / "engine"
CHECKS["spiking"] = ["-m", "not slow", "-k", SPIKING, *(str(ENGINE / name) for name in FILES)]


@pytest.mark.parametrize("check", CHECKS)
def test_models_of(check: str) -> None:
    if not (where := folder()).is_dir():
        reason = f"no packages in {where}; make test installs them: see ecosystem.txt"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # Behind the environment's own packages, so that none of them is replaced.
    start = f"import sys, pytest; sys.path.append({str(where)!r}); sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", *CHECKS[check]]
    done = subprocess.run([sys.executable, "-c", start, *options], capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
