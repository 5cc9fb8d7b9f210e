"""Campaigns of every recipe, ended by signals at random moments: whole batches stay, the rest comes byte for byte."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_interrupted import MODEL, RECIPES, TABLES
from tests.support.digits import save_digits
from torchfault.cli import main
from torchfault.errors import StoreError
from torchfault.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals to a process")
ALL = {**RECIPES, "ra": ["ra", *MODEL, "--trials", "6000"]}
SIGNALS = [getattr(signal, f"SIG{name}", signal.SIGTERM) for name in ("KILL", "INT", "TERM", "HUP")]
SHOWN = {**TABLES, "ra": ("summary", "layer", "type")}

# One process that has everything imported forks one for every command, so that a hundred starts cost little.
FORKS = """
import json, os, signal, sys
import scipy.stats, sqlalchemy.dialects.sqlite, torch, torchfault.cli.app, torchfault.cli.running, torchfault.campaign
import torchfault.config.build, torchfault.zoo, torchfault.engine, torchfault.recipes.upsets
torch.set_num_threads(1)
from torchfault.cli import main
from torchfault.errors import StoreError
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(asked["folder"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if asked["halted"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        sys.argv = ["torchfault", *asked["command"]]
        status = main()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    if asked["halted"]:
        os.waitpid(child, os.WUNTRACED)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Commands:
    """Runs commands in processes of their own, and sends them signals."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, command, folder, *, end=None, after=0.0, times=1, watch=None, begun=lambda: True):
        """Run *command* to its end, or send it *end* so many seconds *after* it has *begun*; return status and errors.

        *watch* is called with the number of the process before that begins.
        """
        asked = {"command": command, "folder": str(folder), "halted": watch is not None}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if watch is not None:
            watch(child)
            os.kill(child, signal.SIGCONT)
        if end is not None:
            while not begun():
                time.sleep(0.05)
            time.sleep(after)
            for _ in range(times):
                os.kill(child, end)  # not waited for before the next line, so the number is still its own
                time.sleep(0.01)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), (folder / "err").read_text(errors="replace")


@pytest.fixture(scope="module")
def commands():
    held = Commands()
    yield held
    held.process.communicate()


@pytest.fixture(scope="module")
def wholes(tmp_path_factory, commands):
    """Return, for a recipe, a folder with its data, what it tells when nothing ends it, and how long it takes."""
    held = {}

    def whole(recipe):
        if recipe not in held:
            folder = tmp_path_factory.mktemp(recipe)
            save_digits(folder, 20)
            began = time.monotonic()
            status, err = commands.run([*ALL[recipe], "--name", "whole"], folder)
            assert status == 0, err
            held[recipe] = folder, told(folder, recipe, "whole"), time.monotonic() - began
        return held[recipe]

    return whole


def told(folder, recipe, name):
    """Return the tables and the export of a campaign, as text."""
    texts = []
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for by in SHOWN.get(recipe, ("model", "site", "channel", "bit")):
            target = Path(f"{by}.json")
            with target.open("w") as file, pytest.MonkeyPatch.context() as inner:
                inner.setattr(sys, "stdout", file)
                assert main(["show", name, "--by", by, "--format", "json"]) == 0
            texts.append(target.read_text())
        assert main(["export", name, "--output", "x.csv", "--force"]) == 0
        return "".join([*texts, Path("x.csv").read_text()])


def trials_in(folder, name):
    try:
        with Store(folder / "torchfault.db", access="read") as store:
            return store.campaign(name).trials if name in store else 0
    except StoreError as error:
        if "there is no store" in str(error) or "is empty" in str(error):
            return 0
        raise


def attacked(recipe, signals, *, commands, wholes, rng, tried, times=1):
    """End a campaign by each of the *signals*, let it end at last, and hold it against the one nothing ended."""
    folder, truth, seconds = wholes(recipe)
    name, before = f"parts-{int(rng.integers(1 << 40))}", 0
    command = [*ALL[recipe], "--name", name]
    for end in signals:
        with tried(f"{signal.Signals(end).name} amid {recipe}") as found:
            status, err = commands.run(command, folder, end=end, after=float(rng.uniform(0, seconds)), times=times)
            now = trials_in(folder, name)
            found.lost(now < before)
            found.said(0 if status == -end else status, err, what=(recipe, end))
            before = now
    with tried(f"resuming {recipe}") as found:
        status, err = commands.run(command, folder)
        found.said(status, err, nonsense=status != 0, what=recipe)
        found.changed(told(folder, recipe, name) != truth)


LONG = {"vulnerability", "ra", "adaptive"}  # ten seconds each, and the slow test below has them too


@pytest.mark.parametrize("recipe", [recipe for recipe in ALL if recipe not in LONG])
def test_signals_at_random_moments(recipe, commands, wholes, rng, tried):
    attacked(recipe, SIGNALS[:2], commands=commands, wholes=wholes, rng=rng, tried=tried)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ALL)
def test_many_signals_at_random_moments(recipe, commands, wholes, rng, tried):
    signals = [signal.SIGKILL] * 16 + [*SIGNALS[1:]] * 1
    for first in range(0, len(signals), 4):
        attacked(recipe, signals[first : first + 4], commands=commands, wholes=wholes, rng=rng, tried=tried)


@pytest.mark.slow
def test_three_interrupts_in_a_row(commands, wholes, rng, tried):
    for recipe in ("run", "search", "vulnerability"):
        attacked(recipe, [signal.SIGINT] * 8, commands=commands, wholes=wholes, rng=rng, tried=tried, times=3)


@pytest.mark.slow
def test_ten_seconds_of_vulnerability_are_kept(commands, tmp_path, tried):
    """However long it has still to go: a batch is stored every few seconds."""

    def begun():
        with Store(tmp_path / "torchfault.db", access="read") as store:
            return "parts" in store

    save_digits(tmp_path, 20)
    command = [*("vulnerability", *MODEL, "--executor", "hooks"), "--share", "all", "--weights", "12", "--name"]
    status, err = commands.run([*command, "whole"], tmp_path)
    assert status == 0, err
    with tried("SIGKILL after 10 s of vulnerability") as found:
        status, err = commands.run([*command, "parts"], tmp_path, end=signal.SIGKILL, after=10, begun=begun)
        kept = trials_in(tmp_path, "parts")
        found.said(0 if status == -signal.SIGKILL else status, err, nonsense=kept == 0)
        status, err = commands.run([*command, "parts"], tmp_path)
        found.said(status, err, nonsense=status != 0, what=f"resumed with {kept} trials")
        found.lost(trials_in(tmp_path, "parts") < kept)
        found.changed(told(tmp_path, "vulnerability", "parts") != told(tmp_path, "vulnerability", "whole"))
