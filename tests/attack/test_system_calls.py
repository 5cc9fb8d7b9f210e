"""Kills at single system calls, by strace, of every kind that a store is written with: whole batches stay."""

import shutil
import subprocess
import sys

import pytest

from tests.attack.test_signals import told, trials_in
from tests.support.digits import save_digits

STRACE = shutil.which("strace")
CALLS = ("pwrite64", "fsync,fdatasync", "unlink", "ftruncate", "openat")
MODEL = ["--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz", "--executor", "hooks", "--threads", "1"]
RUN = ["run", *MODEL, "--kinds", "weight", "--trials", "900"]


def traced(folder, name, *options):
    """Run a campaign under strace, following what becomes of *folder*'s database alone; return status and errors."""
    files = [f"--trace-path={folder / file}" for file in FILES]
    command = [
        STRACE,
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-o",
        "trace",
        *files,
        *options,
        sys.executable,
        "-m",
        "torchfault",
    ]
    done = subprocess.run([*command, *RUN, "--name", name], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


FILES = ("torchfault.db", "torchfault.db-wal", "torchfault.db-shm", "torchfault.db-journal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("calls")
    save_digits(here, 20)
    if STRACE is None:
        pytest.skip("strace is not installed, which ends a process at a chosen system call")
    status, err = traced(here, "first", "-e", "trace=openat")
    if status and ("ptrace" in err or "PTRACE" in err):
        pytest.skip(f"strace may not trace here: {err.strip().splitlines()[-1]}")
    assert status == 0, err
    return here


def plain(folder, name):
    done = subprocess.run(
        [sys.executable, "-m", "torchfault", *RUN, "--name", name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def killed(folder, calls, numbers, truth, tried):
    """End campaigns at the call of a kind that comes as *numbers* say, and run each to its end."""
    for number in numbers:
        fresh(folder)
        with tried(f"SIGKILL at a system call ({calls})") as found:
            inject = f"inject={calls}:signal=KILL:when={number}"
            status, err = traced(folder, "parts", "-e", f"trace={calls}", "-e", inject)
            found.said(0 if status in (-9, 137) else status, err, what=(calls, number))
            before = trials_in(folder, "parts")
            status, err = plain(folder, "parts")
            found.said(status, err, nonsense=status != 0, what="the run afterwards")
            found.lost(trials_in(folder, "parts") < max(before, 900))
            found.changed(told(folder, "run", "parts") != truth)


def fresh(folder):
    for path in folder.glob("torchfault.db*"):
        path.unlink()


@pytest.fixture(scope="module")
def truth(folder):
    fresh(folder)
    assert plain(folder, "parts")[0] == 0
    return told(folder, "run", "parts")


@pytest.mark.slow
@pytest.mark.parametrize("calls", CALLS)
def test_kills_at_system_calls(calls, folder, truth, tried):
    fresh(folder)
    status, err = traced(folder, "parts", "-e", f"trace={calls}")
    assert status == 0, err
    count = sum(f"{call}(" in line for line in (folder / "trace").read_text().splitlines() for call in calls.split(","))
    assert count
    numbers = sorted({1 + (count - 1) * i // 42 for i in range(43)})
    killed(folder, calls, numbers, truth, tried)
