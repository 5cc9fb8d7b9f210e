"""What a run says first: what was understood of the data, how good the model is without faults, and what it judges."""

import re

import numpy as np
import pytest

from torchfault.cli import header, main

MODULE = """\
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        hidden = self.body(x).relu()
        return {"hidden": hidden, "logits": self.head(hidden)}

def two(): return Two()
def one(): return nn.Linear(6, 1)
def twin(): return nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 6))
"""
RNG = np.random.default_rng(0)
X = RNG.random((600, 6), dtype=np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "header_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("model", "labels", "told"),
    [
        ("two", RNG.integers(0, 4, 600), [
            r"data      600 inputs, float32 \(6\) from 0\.\d+ to 0\.\d+; labels int64 from 0 to 3, 4 different",
            "failure   top1:output=logits .of 2 outputs 'logits' is judged: the class with the highest of 4 scores",
            r"note: \d+\.\d % golden accuracy, where guessing gives 25 %: check weights, labels and how inputs",
        ]),
        ("one", RNG.integers(0, 2, 600), ["failure   threshold:0 .the side of 0 on which the single value lies"]),
        ("twin", X, ["failure   error:0.1 .a change of the values of shape .6,. by a tenth of the largest"]),
        ("two", np.eye(4, dtype=np.float32)[RNG.integers(0, 4, 600)], ["note: labels of shape .4,. look one-hot"]),
        ("one", None, ["data      600 inputs, float32 .6. from .*; no labels", "failure   threshold:0"]),
    ],
)  # fmt: skip
def test_a_run_says_what_it_understood(model, labels, told, capfd):
    held = {"x": X} if labels is None else {"x": X, "y": labels}
    np.savez("a.npz", **held)
    assert main(["run", "--model", f"header_networks:{model}", "--data", "a.npz", "--trials", "60"]) == 0
    err = capfd.readouterr().err
    for line in told:
        assert re.search(line, err), err


def test_an_explicit_criterion_is_described_too(capfd):
    np.savez("a.npz", x=X)
    base = ["run", "--model", "header_networks:two", "--data", "a.npz", "--trials", "60", "--criterion"]
    assert main([*base, "top1:output=hidden,axis=1"]) == 0
    told = "failure   top1:output=hidden,axis=1 (output 'hidden' of 2, 8 classes along axis 1)"
    assert told in capfd.readouterr().err
    assert main([*base, "tokens:output=logits", "--name", "b"]) == 2
    assert "tokens are whole numbers, got torch.float32" in capfd.readouterr().err


def test_a_metric_needs_no_criterion_that_fits(capfd):
    np.savez("a.npz", x=X, y=RNG.integers(0, 2, 600))
    command = ["run", "--model", "header_networks:one", "--data", "a.npz", "--trials", "20", "--metric"]
    assert main([*command, "accuracy:threshold=0"]) == 0
    assert "failure   drop of accuracy:threshold=0" in capfd.readouterr().err
    assert main([*command, "accuracy", "--name", "b"]) == 2
    assert "for one logit use ThresholdChange(0) or Misclassified(threshold=0)" in capfd.readouterr().err


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), SystemExit(1)], ids=["pipe", "rich's end"])
def test_a_header_that_nobody_reads_leaves_no_thread_with_a_traceback(monkeypatch, capfd, error):
    """It is told late by a thread of its own; the command's next line meets the same broken pipe."""

    def broken(*_, **__):
        raise error

    died = []
    monkeypatch.setattr("threading.excepthook", died.append)
    monkeypatch.setattr(header, "_PATIENCE", 0.0)
    monkeypatch.setattr(header, "say", broken)
    opening = header.Opening()
    opening.title("a", "")
    assert opening._timer is not None
    opening._timer.join(10)
    assert not opening._timer.is_alive()
    with pytest.raises(type(error)):
        opening.title("b", "")
    assert not died
    assert capfd.readouterr().err == ""
