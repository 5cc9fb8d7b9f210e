"""Full disks and spent memory, by the command line: one line, nothing lost, and the same bytes once there is room."""

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attack.test_signals import told, trials_in
from tests.support.digits import save_digits
from torchfault.campaign import run
from torchfault.cli import main
from torchfault.errors import StoreError
from torchfault.store import Store
from torchfault.store.lock import lock_file
from torchfault.testing import example_campaign

resource = pytest.importorskip("resource", reason="this system bounds no sizes of files")
MODEL = ["--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz", "--executor", "hooks"]
RUN = ["run", *MODEL, "--kinds", "weight", "--trials", "4000"]
# What a process may write, and take, as the shell's ulimit has it.
LIMITED = """
import resource, signal, sys
from torchfault.cli import main
from torchfault.errors import StoreError
from torchfault.store.lock import lock_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
sys.exit(main(sys.argv[1:]))
"""


def command(arguments, folder, *, size=None):
    program = ["-m", "torchfault"] if size is None else ["-c", LIMITED.format(size=size)]
    done = subprocess.run(
        [sys.executable, *program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    save_digits(folder, 20)
    status, _, err = command([*RUN, "--name", "c"], folder)
    assert status == 0, err
    return told(folder, "run", "c"), (folder / "torchfault.db").stat().st_size


def said_one_line(status, err):
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    room = "is full" in err or "limit or quota lets no file grow" in err or "No space left" in err
    return status == 2 and len(lines) == 1 and room and "delete" not in lines[0]


@pytest.mark.parametrize(
    "share", [0.02, pytest.param(0.3, marks=pytest.mark.slow), pytest.param(0.7, marks=pytest.mark.slow)]
)
def test_files_that_may_not_grow(tmp_path, whole, share, tried):
    save_digits(tmp_path, 20)
    with tried("a file system that lets no file grow beyond a size") as found:
        status, out, err = command([*RUN, "--name", "c"], tmp_path, size=int(share * whole[1]))
        found.said(status, err, nonsense=not said_one_line(status, err) or out != "", what=share)
        before = trials_in(tmp_path, "c")
        status, _, err = command([*RUN, "--name", "c"], tmp_path)
        found.said(status, err, nonsense=status != 0, what="afterwards")
        found.lost(trials_in(tmp_path, "c") < before)
        found.changed(told(tmp_path, "run", "c") != whole[0])


@pytest.fixture
def small(tmp_path):
    """Return a folder on a file system of its own, of half a MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 30_000, 60_000, 100_000, 150_000, 200_000])
def test_file_systems_that_are_full(small, whole, left, tried):
    """Of so many bytes left: with none, not even a lock can be made.

    200,000 hold the log with every trial, but not the pages of it in the database too: those stay in the log.
    """
    save_digits(small, 20)
    space = os.statvfs(small)
    ballast = small / "ballast"
    ballast.write_bytes(bytes(max(space.f_bavail * space.f_frsize - left, 0)))
    with tried("a file system that is full") as found:
        status, out, err = command([*RUN, "--name", "c"], small)
        ballast.unlink()  # even to read a log takes room for its index
        before = trials_in(small, "c")
        kept = status == 0 and before == 4000 and "4,000 trials fail" in out
        stopped = said_one_line(status, err) and out == "" and before < 4000
        found.said(status, err, nonsense=not (kept if left == 200_000 else stopped), what=left)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        status, _, err = command([*RUN, "--name", "c"], small)
        found.said(status, err, nonsense=status != 0, what="afterwards")
        found.lost(trials_in(small, "c") < before)
        found.changed(told(small, "run", "c") != whole[0])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("output", [[], ["--json"]])
def test_output_onto_a_full_disk(tmp_path, output, tried):
    with Store(tmp_path / "torchfault.db") as store:
        run(example_campaign(trials=200), store=store, name="c")
    with tried("output onto a file system that is full") as found, Path("/dev/full").open("w") as full:
        shown = [sys.executable, "-m", "torchfault", "show", "c", *output]
        done = subprocess.run(shown, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        found.said(done.returncode, done.stderr, nonsense="the output cannot be written (No space" not in done.stderr)


def test_only_a_lock_that_is_broken_is_to_be_deleted(tmp_path, monkeypatch):
    (tmp_path / "b.lock").write_bytes(b"no database" * 500)
    with pytest.raises(StoreError, match=r"cannot be taken \(.*not a database\); if no campaign runs, delete it"):
        lock_file(tmp_path / "b.lock", "c")

    class Full:
        def execute(self, _):
            raise sqlite3.OperationalError("database or disk is full")

        def close(self):
            pass

    monkeypatch.setattr("torchfault.store.lock.sqlite3.connect", lambda *_, **__: Full())
    with pytest.raises(StoreError, match=r"disk is full.*; make room on the disk") as told:
        lock_file(tmp_path / "a.lock", "c")
    assert "delete" not in str(told.value)

    def spent(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "touch", spent)
    with pytest.raises(StoreError, match=r"cannot be made \(No space left on device\); make room"):
        lock_file(tmp_path / "a.lock", "c")


SPENT = {
    "numpy's": "MemoryError('Unable to allocate 8.00 GiB for an array with shape (1, 1) and data type float64')",
    "python's": "MemoryError()",
    "torch's": 'RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can\'t allocate "\n'
    "            'memory: you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)')",
    "a device's": "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
}
HUNGRY = """
import pathlib, torch
from torchfault.zoo import digits_cnn
def make():
    model = digits_cnn()
    model.register_forward_pre_hook(count)
    return model
def count(module, args):
    if pathlib.Path("hungry").exists() and pathlib.Path("torchfault.db").exists():
        left = int(pathlib.Path("hungry").read_text()) - 1
        pathlib.Path("hungry").write_text(str(left))
        if left < 0:
            raise {error}
"""


@pytest.mark.parametrize("whose", SPENT)
def test_memory_that_runs_out(tmp_path, monkeypatch, capfd, whose, tried):
    """Even for one lane, at once or amid the campaign: what was stored is kept, the rest comes once there is memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    save_digits(tmp_path, 20)
    name = f"hungry_net_{list(SPENT).index(whose)}"
    Path(f"{name}.py").write_text(HUNGRY.format(error=SPENT[whose]))
    run = ["run", "--model", f"{name}:make", *MODEL[2:], "--kinds", "weight", "--trials", "1500"]
    assert main([*run, "--name", "whole", "--store", "other.db"]) == 0
    for left in (0, 2):
        Path("hungry").write_text(str(left))
        capfd.readouterr()
        with tried(f"memory runs out: {whose} error") as found:
            status = main([*run, "--name", "parts"])
            out, err = capfd.readouterr()
            lines = [line for line in err.splitlines() if line.startswith("error: ")]
            found.said(status, err, nonsense=status != 2 or out != "" or len(lines) != 1 or "memory" not in lines[0])
            before = trials_in(tmp_path, "parts")
            Path("hungry").unlink()
            assert main([*run, "--name", "parts"]) == 0, capfd.readouterr().err
            found.lost(trials_in(tmp_path, "parts") < max(before, 1500))
            assert main(["export", "parts", "--output", "parts.csv", "--force"]) == 0
            assert main(["export", "whole", "--output", "whole.csv", "--force", "--store", "other.db"]) == 0
            found.changed(Path("parts.csv").read_bytes() != Path("whole.csv").read_bytes())
        Path("torchfault.db").unlink()
