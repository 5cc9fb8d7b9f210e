"""Kills at single system calls, by strace, of every kind that a store is written with: whole batches stay."""

import shutil
import signal
import subprocess

import pytest

from tests.attack.test_signals import Commands, told, trials_in
from tests.support.digits import save_digits

STRACE = shutil.which("strace")
CALLS = ("pwrite64", "fsync,fdatasync", "unlink", "ftruncate", "openat")
MODEL = ["--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz", "--executor", "hooks", "--threads", "1"]
RUN = ["run", *MODEL, "--kinds", "weight", "--trials", "900", "--name", "parts"]
FILES = [f"torchfault.db{end}" for end in ("", "-wal", "-shm", "-journal")]


@pytest.fixture(scope="module")
def commands():
    held = Commands()
    yield held
    held.process.communicate()


def traced(commands, folder, calls, *options):
    """Run a campaign under strace, which sees the *calls* on *folder*'s database alone; return status and errors."""
    where = [f"--trace-path={folder / file}" for file in FILES]

    tracers = []

    def watch(child):
        command = [STRACE, "-f", f"--attach={child}", f"--output={folder / 'trace'}", *where, f"--trace={calls}"]
        tracer = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        tracers.append((tracer, tracer.stderr.readline()))

    done = commands.run(RUN, folder, watch=watch)
    (tracer, said), *_ = tracers
    tracer.communicate()
    if "attached" not in said:
        pytest.skip(f"strace may not trace here: {said.strip()}")
    return done


@pytest.fixture
def folder(tmp_path):
    if STRACE is None:
        pytest.skip("strace is not installed, which ends a process at a chosen system call")
    save_digits(tmp_path, 20)
    return tmp_path


def fresh(folder):
    for path in folder.glob("torchfault.db*"):
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("calls", CALLS)
def test_kills_at_system_calls(calls, folder, commands, tried):
    """At every call of a kind, or at 43 of them: a campaign that is ended there goes on to the same bytes."""
    status, err = traced(commands, folder, calls)
    assert status == 0, err
    truth = told(folder, "run", "parts")
    count = sum(f"{call}(" in line for line in (folder / "trace").read_text().splitlines() for call in calls.split(","))
    assert count
    ended = 0
    for number in sorted({1 + (count - 1) * i // 42 for i in range(43)}):
        fresh(folder)
        with tried(f"SIGKILL at a system call ({calls})") as found:
            inject = f"--inject={calls}:signal=KILL:when={number}"
            status, err = traced(commands, folder, calls, inject)
            ended += status == -signal.SIGKILL
            found.said(0 if status == -signal.SIGKILL else status, err, what=(calls, number))
            before = trials_in(folder, "parts")
            status, err = commands.run(RUN, folder)
            found.said(status, err, nonsense=status != 0, what="the run afterwards")
            found.lost(trials_in(folder, "parts") < max(before, 900))
            found.changed(told(folder, "run", "parts") != truth)
    assert ended
