"""Output that nobody reads, or that has no place: silence and a status of its own, from every command that prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.digits import save_digits
from torchfault.campaign import run
from torchfault.cli import UNREAD, main
from torchfault.testing import example_campaign

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
MODEL = ["--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz", "--executor", "hooks", "--limit", "8"]
WEIGHTS = [*MODEL, "--kinds", "weight"]
# Each command, and the streams that it writes to at least a line.
COMMANDS = {
    "--version": ("stdout",),
    "--help": ("stdout",),
    "show --help": ("stdout",),
    "nosuch": ("stderr",),
    "show": ("stdout", "stderr"),
    "show --by bit --format csv": ("stdout",),
    "show --by bit --top 1 --format markdown": ("stdout",),
    "show --json": ("stdout",),
    "status": ("stdout", "stderr"),
    "status --json": ("stdout",),
    "protect --budget 10%": ("stdout",),
    "protect --budget 10% --json": ("stdout",),
    "evidence --output e": ("stdout",),
    "evidence --output e --json": ("stdout",),
    "report --output r.html": ("stderr",),
    "report --output r.html --json": ("stdout",),
    "export --output a.csv": ("stderr",),
    "export --output a.csv --json": ("stdout",),
    "doctor": ("stdout",),
    " ".join(["sites", *WEIGHTS]): ("stdout", "stderr"),
    " ".join(["sites", *WEIGHTS, "--json"]): ("stdout",),
    " ".join(["plan", *WEIGHTS, "--speed", "100"]): ("stdout", "stderr"),
    " ".join(["init", *WEIGHTS, "--output", "i.yaml"]): ("stderr",),
    " ".join(["run", *WEIGHTS, "--trials", "200", "--store", "other.db"]): ("stdout", "stderr"),
    " ".join(["run", *WEIGHTS, "--trials", "200", "--store", "other.db", "--json"]): ("stdout",),
    " ".join(["harden", *WEIGHTS, "--method", "ranges", "--trials", "50"]): ("stdout", "stderr"),
}
CASES = [(command, stream) for command, streams in COMMANDS.items() for stream in streams]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    save_digits(folder, 20)
    run(example_campaign(trials=200), store=folder / "torchfault.db", name="c")
    return folder


@pytest.fixture
def inside(tmp_path, monkeypatch, made):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(("command", "stream"), CASES)
def test_a_reader_that_left_ends_a_command_in_silence(command, stream, monkeypatch, capfd, tried):
    read, written = os.pipe()
    os.close(read)
    with tried("output that nobody reads any more") as found, open(written, "w") as unread:
        monkeypatch.setattr(sys, stream, unread)
        status = main(command.split())
        out, err = capfd.readouterr()
        told = {"stdout": out, "stderr": err}[stream]
        wanted = 2 if command == "nosuch" else UNREAD
        found.said(0 if status == wanted else 1, err, nonsense=told != "" or "Error" in err, what=(command, status))


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("piped", ["show", "show --by bit --format csv", "show nosuch 2>&1"])
def test_in_a_shell_nothing_is_said_at_exit_either(piped):
    line = f"{sys.executable} -m torchfault {piped} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2 if "nosuch" in piped else UNREAD, "")
    assert not any(word in done.stderr for word in ("Error", "Exception", "error"))


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_streams_that_are_closed_do_not_give_their_numbers_to_files(tried):
    """What a library prints by the number of the stream would stand in the export."""
    shout = "import os, sys; from torchfault.cli import main; os.write(2, b'x') if main() == 0 else os._exit(9)"
    with tried("a command that is started without its streams") as found:
        line = f'exec 0<&- 1>&- 2>&-; {sys.executable} -c "{shout}" export c --output a.csv'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        found.said(done.returncode, done.stderr, nonsense=not Path("a.csv").read_text().startswith("trial,"))
    for line in ("show --json >&-", "show nosuch 2>&-", "show nosuch 2>/dev/full"):
        with tried("a command that is started without its streams") as found:
            done = subprocess.run(
                ["bash", "-c", f"{sys.executable} -m torchfault {line}"], capture_output=True, check=False
            )
            wanted = 2 if "nosuch" in line else 0
            found.said(
                done.returncode,
                done.stderr.decode(),
                nonsense=done.returncode != wanted or done.stdout != b"",
                what=line,
            )
