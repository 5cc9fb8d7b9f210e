"""Campaigns of every recipe end by any signal, at any moment, and go on to the very results of a run in one piece."""

import concurrent.futures
import contextlib
import importlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.digits import save_digits
from torchfault.cli import interruption, main
from torchfault.cli.trust import remember

MODEL = ["--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz"]
RECIPES = {
    "run": ["run", *MODEL, "--kinds", "weight", "--trials", "6000"],
    "adaptive": ["run", *MODEL, "--kinds", "weight", "--sampler", "adaptive", "--half-width", "site=0.06"],
    "pooled": [
        *("run", *MODEL, "--include", "fc*.weight", "--sampler", "adaptive:deviations", "--resolver", "pooled:16"),
        *("--half-width", "site=0.05", "--trials", "20000"),
    ],
    "metric": ["run", *MODEL, "--include", "fc2.*", "--metric", "accuracy", "--trials", "200"],
    "search": ["search", *MODEL, "--kinds", "weight", "--trials", "6000"],
    "vulnerability": ["vulnerability", *MODEL, "--kinds", "weight", "--share", "all", "--weights", "3"],
    "ra": ["ra", *MODEL, "--accelerator", "nvdla-like", "--flip-flops", "100000", "--trials", "30000"],
}
TABLES = {
    "ra": ("summary", "layer", "type", "bit", "what-if"),
    "search": ("recall", "found", "bit"),
    "vulnerability": ("site", "channel", "bit", "model"),
}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals to a process")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_digits(tmp_path, 20)
    return tmp_path


def told(capfd, recipe: str, name: str) -> str:
    """Return the tables and the export of a campaign."""
    capfd.readouterr()
    for by in TABLES.get(recipe, ("model", "site", "channel", "bit")):
        assert main(["show", name, "--by", by, "--format", "csv"]) == 0
    assert main(["export", name, "--output", f"{name}.csv", "--force"]) == 0
    return capfd.readouterr().out + Path(f"{name}.csv").read_text()


def killed(command: list[str], end: int, wait: float) -> tuple[int, str]:
    """Run a command until *wait* seconds after its first batch, and end it; return its status and standard error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torchfault", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not Path("torchfault.db").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(end)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_campaign_goes_on_to_the_same_results(capfd, recipe, rng):
    command = [*RECIPES[recipe], "--name", "parts"]
    for end in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        status, err = killed(command, end, float(rng.uniform(0, 1.5)))
        assert status in (-end, 0), err
        assert "Traceback" not in err
    assert main(command) == 0, capfd.readouterr().err
    assert main([*RECIPES[recipe], "--name", "whole"]) == 0
    assert told(capfd, recipe, "parts") == told(capfd, recipe, "whole")


@pytest.mark.parametrize("recipe", RECIPES)
def test_ctrl_c_stops_and_resume_goes_on(capfd, recipe):
    command = [*RECIPES[recipe], "--name", "parts"]
    status, err = killed(command, signal.SIGINT, 0.1)
    assert "Traceback" not in err
    kept = re.search(r"stopped: interrupted; [\d,]+ trials are kept in torchfault.db\n\n  next  torchfault resume", err)
    if status != 0:  # it may have been done by then
        assert status == 130, err
        assert kept or "stopped: interrupted" in err, err
    assert main(["resume", "parts"] if kept else command) == 0, capfd.readouterr().err
    assert main([*RECIPES[recipe], "--name", "whole"]) == 0
    assert told(capfd, recipe, "parts") == told(capfd, recipe, "whole")


def test_three_ctrl_c_in_a_row_end_it_once(rng):
    for round_ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "torchfault", *RECIPES["run"], "--name", f"n{round_}", "--trials", "9000000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not Path("torchfault.db").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(3.0 if round_ else 0.5)
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(float(rng.uniform(0, 0.05)))
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (130, ""), err
        assert "Traceback" not in err
        assert err.count("stopped:") == 1


def test_an_interruption_that_became_another_error_is_told_as_one(monkeypatch, capfd):
    def interrupted(*_):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise RuntimeError("of a library that catches what it should not")

    monkeypatch.setattr("torchfault.cli._dispatch", interrupted)
    assert main(["status"]) == 130
    assert capfd.readouterr().err == "stopped: interrupted; what a store held before is kept\n"


def test_ctrl_c_amid_an_import_waits_for_its_end(monkeypatch, tmp_path):
    (tmp_path / "loads_long.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(0.2)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt), interruption.once(last=False):
        importlib.import_module("loads_long").__dict__.update(ended=time.sleep(5))
    assert sys.modules.pop("loads_long").whole
    (tmp_path / "loads_forever.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGINT)\nwhile True:\n    time.sleep(0.05)\n"
    )
    monkeypatch.setattr(interruption, "PATIENCE", 0.3)
    with pytest.raises(KeyboardInterrupt), interruption.once(last=False):
        importlib.import_module("loads_forever")


def test_an_interrupted_exec_of_text_does_not_kill_at_exit():
    Path("ends.py").write_text(  # a module, since scripts end another way
        "import sys; from torchfault import cli\n"
        "cli._complain('first', 0)\n"  # whose imports, full of `exec`, would hide it
        "def dispatch(_): exec('import signal; signal.raise_signal(signal.SIGINT)')\n"
        "cli._dispatch = dispatch\n"
        "sys.exit(cli.main())"
    )
    ended = subprocess.run([sys.executable, "-m", "ends"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (130, ""), ended.stderr
    assert ended.stderr == "error: first\nstopped: interrupted; what a store held before is kept\n"


def test_ctrl_c_before_anything_was_kept_says_so():
    command = [sys.executable, "-m", "torchfault", *RECIPES["run"]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") or process.returncode == -signal.SIGINT, err
    assert "Traceback" not in err or process.returncode == -signal.SIGINT


def test_a_store_of_someone_else_is_not_trusted(capfd, folder, monkeypatch):
    Path("my_own_nets.py").write_text(
        "import pathlib\nfrom torchfault.zoo import digits_cnn\n"
        "def make():\n    pathlib.Path('ran').touch()\n    return digits_cnn()\n"
    )
    command = ["run", "--model", "my_own_nets:make", *MODEL[2:], "--kinds", "bias", "--trials", "50"]
    assert main(command) == 0, capfd.readouterr().err
    assert main(["resume", "--trials", "60"]) == 0, capfd.readouterr().err
    Path("ran").unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "another user"))
    capfd.readouterr()
    assert main(["resume", "--trials", "70"]) == 2
    err = capfd.readouterr().err
    assert "says that campaign 'make' imports and runs my_own_nets:make" in err
    assert "give --trust if you know the store" in err
    for shown in (["show"], ["show", "--by", "bit"], ["export"]):
        assert main(shown) == 0
    assert not Path("ran").exists(), "nothing was imported or run"
    assert main(["resume", "--trials", "70", "--trust"]) == 0
    assert main(["resume", "--trials", "80"]) == 0, "what was run once is known from then on"
    assert main([*command[:-1], "90"]) == 0, "a configuration at hand is the user's own"


def test_campaigns_that_start_together_are_all_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("torchfault.cli.trust._MOST", 100)
    with concurrent.futures.ThreadPoolExecutor(8) as several:
        list(several.map(lambda number: remember({"seed": number}), range(150)))
    file = tmp_path / "torchfault" / "trusted"
    assert len(set(file.read_text().split())) == 150
    remember({"seed": 149})
    assert len(file.read_text().split()) == 150, "what is known is not noted twice"
    for number in range(150, 201):
        remember({"seed": number})
    assert len(file.read_text().split()) == 101, "the oldest go"
    assert list(file.parent.iterdir()) == [file]


def test_torchfaults_own_models_need_no_trust(capfd, folder, monkeypatch):
    assert main([*RECIPES["run"], "--trials", "50"]) == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "another user"))
    assert main(["resume", "--trials", "60"]) == 0, capfd.readouterr().err


def test_a_state_folder_that_cannot_be_written_to_is_no_obstacle(capfd, folder, monkeypatch):
    (folder / "file").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "file"))
    assert main([*RECIPES["run"], "--trials", "50"]) == 0, capfd.readouterr().err


def test_passwords_are_neither_kept_nor_shown(capfd, folder):
    Path("my_secret_data.py").write_text(
        "import numpy as np\n"
        "def load(url, token):\n"
        "    assert (url, token) == ('https://me:pa55word@host', 't0ken')\n"
        "    held = np.load('digits.npz')\n    return held['images'], held['labels']\n"
    )
    secret = ["--set", "data.kwargs.url=https://me:pa55word@host", "--set", "data.kwargs.token=t0ken"]
    command = ["run", *MODEL[:2], "--data", "my_secret_data:load", "--kinds", "bias", *secret]
    assert main([*command, "--trials", "50"]) == 0, capfd.readouterr().err
    out, err = capfd.readouterr()
    held = b"".join(path.read_bytes() for path in folder.glob("torchfault.db*"))
    for text in (out, err, held.decode("latin-1")):
        assert "pa55word" not in text
        assert "t0ken" not in text
    assert main(["resume", "--trials", "60"]) == 2
    assert (
        "a store keeps no passwords, and 'data.kwargs.url' is one; give --set data.kwargs.url="
        in capfd.readouterr().err
    )
    assert main(["resume", "--trials", "60", *secret]) == 0, capfd.readouterr().err
