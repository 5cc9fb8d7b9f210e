"""Layers of every name: all commands show them, store them and find them again, or refuse them in one line."""

import json
from pathlib import Path

import pytest

from tests.support.nasty_names import NAMES, printable
from torchfault.cli import main
from torchfault.text import visible

MODULE = """\
import torch
from tests.support.nasty_names import NAMES
from torch import nn

def net(name):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.add_module(called(name), nn.Linear(4, 3))
    return model

def called(name):
    return NAMES[name].replace(".", "_")[:300]

def data():
    return torch.arange(24.0).reshape(6, 4) / 24, torch.arange(6) % 3
"""
REFUSED = {"a picture": "has ':' in its name", "a link": "has ':' in its name", "a lone surrogate": "rename the module"}
SHOWN = [
    ["show", "--by", "site"],
    ["show", "--by", "layer", "--format", "csv"],
    ["show", "--by", "layer", "--format", "markdown"],
    ["show", "--by", "layer", "--format", "json"],
    ["show", "--by", "site", "--plot", "plot.svg"],
]


@pytest.fixture
def inside(tmp_path, monkeypatch):
    (tmp_path / "nasty_network.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def run(capfd, *arguments):
    """Return what a command printed, once it has done it without obeying anything."""
    status = main(list(arguments))
    out, err = capfd.readouterr()
    assert printable(out + err), (arguments, out, err)
    assert "Traceback" not in err, (arguments, err)
    return status, out, err


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_of_any_name_is_struck_and_shown(name, capfd):
    from torchfault.site import Site

    base = ["--model", "nasty_network:net", "--data", "nasty_network:data", "--set", f"model.kwargs.name={name}"]
    base += ["--executor", "hooks"]
    known = visible(NAMES[name].replace(".", "_")[:300])
    status, out, err = run(capfd, "run", *base, "--trials", "300", "--name", "a", "--kinds", "weight")
    if name in REFUSED:
        assert status == 2
        assert REFUSED[name] in err
        assert err.count("\n") == 1
        return
    assert status == 0, err
    assert Site(NAMES[name], (1,)).name == NAMES[name]
    assert known.strip()[:40] in out
    for command in SHOWN:
        status, out, err = run(capfd, *command)
        assert status == 0, err
        if "json" in command:
            assert known in [row["key"] for row in json.loads(out)]
        elif "markdown" not in command:
            assert known.strip()[:12].replace('"', "") in out.replace('"', "")
    for file in ("trials.csv", "trials.parquet"):
        assert run(capfd, "export", "--output", file)[0] == 0
    assert printable(Path("trials.csv").read_text())
    assert known.strip()[:12].replace('"', "") in Path("trials.csv").read_text().replace('"', "")
    assert run(capfd, "resume", "--trials", "350")[0] == 0
    assert run(capfd, "sites", *base)[0] == 0
