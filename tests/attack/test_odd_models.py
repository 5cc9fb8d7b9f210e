"""Models whose outputs are no numbers, and campaigns of a handful of upsets: refused, or told within what can be."""

import json

import pytest

from tests.support.digits import save_digits
from torchfault.cli import main

NETS = """
import torch
from torch import nn

class Nowhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1)) / 0.0 * 0.0

class Somewhere(Nowhere):
    def forward(self, x):
        x = x.flatten(1)
        known = x[:, :1] + x[:, 20:21] > x.mean(1, keepdim=True)
        return torch.where(known, self.layer(x), torch.full((len(x), 10), -torch.inf))

class Raises(Nowhere):
    def forward(self, x):
        raise LookupError("[bold]never[/x]")

class Leaves(Nowhere):
    def forward(self, x):
        raise SystemExit(0)

class Sometimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        scores = self.layer(x.flatten(1))
        if not scores.abs().max() < 50:
            raise GeneratorExit
        return scores
"""
COMMANDS = {
    "plan": [],
    "run": ["--trials", "100"],
    "search": ["--trials", "1000"],
    "vulnerability": [],
    "ra": ["--accelerator", "flat", "--trials", "100"],
    "harden": ["--method", "ranges:zero", "--trials", "50"],
    "init": [],
}


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    save_digits(tmp_path, 20)
    (tmp_path / "odd_nets.py").write_text(NETS)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("command", COMMANDS)
def test_outputs_that_are_no_numbers_are_refused_or_told_with_their_count(command, capfd, tried):
    base = [command, "--data", "digits.npz", "--executor", "hooks", *COMMANDS[command], "--model"]
    with tried("outputs that are not finite without faults") as found:
        status = main([*base, "odd_nets:Nowhere"])
        out, err = capfd.readouterr()
        found.said(status, err, nonsense=status != 2 or out != "" or "not finite on any input" not in err, what=command)
    with tried("outputs that are not finite without faults") as found:
        status = main([*base, "odd_nets:Somewhere"])
        err = " ".join(capfd.readouterr().err.split())
        found.said(status, err, nonsense=status == 0 and "are not finite on" not in err, what=command)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("net", ["Raises", "Leaves"])
@pytest.mark.parametrize("command", [*COMMANDS, "sites"])
def test_models_that_never_answer_are_told_in_one_line(command, net, capfd, tried):
    base = [command, "--data", "digits.npz", "--executor", "hooks", *COMMANDS.get(command, [])]
    with tried("a model that raises, or ends the process, without faults") as found:
        status = main([*base, "--model", f"odd_nets:{net}"])
        out, err = capfd.readouterr()
        why = {"Raises": "LookupError: [bold]never[/x]", "Leaves": "the model raised SystemExit(0)"}[net]
        found.said(status, err, nonsense=status != 2 or out != "" or why not in " ".join(err.split()), what=command)


@pytest.mark.usefixtures("inside")
def test_what_ends_a_process_is_a_crash_where_a_fault_brings_it(capfd, tried):
    with tried("a model that ends the process with faults") as found:
        base = [
            "run",
            "--model",
            "odd_nets:Sometimes",
            "--data",
            "digits.npz",
            "--executor",
            "hooks",
            "--flag",
            "crash",
        ]
        status = main([*base, "--bits", "30", "--trials", "200", "--kinds", "weight", "--json"])
        out, err = capfd.readouterr()
        found.said(status, err, nonsense=json.loads(out)["estimate"]["value"] < 0.2, what=out)


def numbers(told, path=""):
    """Yield every share that an object tells, with its path; rates have units of their own."""
    for key, value in told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ():
        if key in ("value", "low", "high", "drop", "share") and isinstance(value, float) and "FIT" not in str(told):
            yield f"{path}.{key}", value
        yield from numbers(value, f"{path}.{key}")


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    "accelerator", ["weight-stationary", *(pytest.param(n, marks=pytest.mark.slow) for n in ("flat", "nvdla-like"))]
)
def test_a_handful_of_upsets_tells_what_can_be(accelerator, capfd, tried):
    for trials, seed in ((1, 0), (2, 1), (3, 0), (40, 1)):
        model = ["--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz", "--seed", str(seed), "--json"]
        command = ["ra", *model, "--accelerator", accelerator, "--trials", str(trials), "--name", f"c{trials}"]
        with tried("a handful of upsets") as found:
            status = main(command)
            out, err = capfd.readouterr()
            told = dict(numbers(json.loads(out)))
            assert len(told) > 20
            found.said(status, err, nonsense=any(not -1 <= value <= 1 for value in told.values()), what=told)
            tables = json.loads(out)["tables"]["summary"]
            plain = [row for row in tables if row["quantity"] in ("RA", "SA", "SDC", "DUE")]
            assert len(plain) == 4
            dust = 1e-9
            found.changed(any(row["low"] < -dust or row["high"] > 1 + dust for row in plain))
            found.changed(any(not row["low"] - dust <= row["value"] <= row["high"] + dust for row in plain))
