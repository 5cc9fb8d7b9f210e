"""Models of other libraries, each in a process of its own: their packages stand beside the environment, not in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = sorted((Path(__file__).parent / "ecosystem").glob("models_*.py"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda path: path.stem)
def test_models_of(check: Path) -> None:
    folder = Path(os.environ.get("TORCHFAULT_ECOSYSTEM", Path(sys.prefix) / "ecosystem"))
    if not folder.is_dir():
        reason = f"no packages in {folder}; make test installs them: see ecosystem.txt"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # Behind the environment's own packages, so that none of them is replaced.
    start = f"import sys, pytest; sys.path.append({str(folder)!r}); sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", str(check)]
    done = subprocess.run([sys.executable, "-c", start, *options], capture_output=True, text=True, cwd=check.parents[2])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
