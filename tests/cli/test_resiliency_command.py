"""`torchfault ra`: what it shows, from the run and from the store, and what it refuses before anything runs."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.support.digits import save_digits
from torchfault.campaign import Campaign, run
from torchfault.cli import main
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.hardware.accelerator import FLAT
from torchfault.hardware.layers import layers_in
from torchfault.hardware.measure import UpsetMeasure
from torchfault.hardware.upset_space import upset_space
from torchfault.hardware.upsets import Upset
from torchfault.results import fit, load, resiliency
from torchfault.statistics import MaxTrials
from torchfault.store import Store
from torchfault.zoo import digits_cnn

RA = ["ra", "--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz", "--trials", "1100", "--name", "chip"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_digits(tmp_path, 20)
    return tmp_path


def told(capfd, *arguments):
    """Run a command, which succeeds; return what it printed."""
    capfd.readouterr()
    status, (out, err) = main(list(arguments)), capfd.readouterr()
    assert status == 0, err
    return out


def refused(capfd, *arguments):
    """Run a command, which is refused; return what it said."""
    capfd.readouterr()
    assert main(list(arguments)) == 2
    return capfd.readouterr().err


def test_the_store_shows_what_the_run_showed(capfd, folder):
    out = told(capfd, *RA, "--accelerator", "flat", "--protect", "fc1")
    assert "accuracy, given an upset" in out
    assert "chip: " in out
    assert "What takes accuracy away, by layer" in out
    assert "protect fc1" in out
    assert "protect conv" not in out
    assert out.partition("\n\n  next")[0].rstrip() == told(capfd, "show", "chip").partition("\n\n  next")[0].rstrip()
    with Store("torchfault.db", access="read") as store:
        results = load(store, "chip")
    found = resiliency(results)
    table = pd.read_csv(io.StringIO(told(capfd, "show", "chip", "--by", "summary", "--format", "csv")))
    held = dict(zip(table["quantity"], table["value"], strict=True))
    assert held["RA"] == pytest.approx(found.ra.value)
    assert held["DUE FIT"] == pytest.approx(fit(results).due.value)
    bits = json.loads(told(capfd, "show", "chip", "--by", "bit", "--format", "json"))
    assert sum(row["drop"] for row in bits) == pytest.approx(found.drop.value)
    narrow = told(capfd, "show", "chip", "--by", "summary", "--format", "csv", "--level", "0.5")
    low = pd.read_csv(io.StringIO(narrow)).set_index("quantity")["low"]
    assert low["RA"] > found.ra.low
    told(capfd, "show", "chip", "--by", "layer", "--plot", "layers.png")
    assert (folder / "layers.png").stat().st_size > 1000


def test_options_describe_the_chip(capfd):
    told(capfd, *RA, "--accelerator", "output-stationary", "--harden", "control", "--buffer", "weight=4096",
         "--flip-flops", "100000", "--inputs-per-fault", "2", "--proposal", "IS", "--level", "0.9")  # fmt: skip
    with Store("torchfault.db", access="read") as store:
        results = load(store, "chip")
    chip = resiliency(results).sample.space.accelerator
    assert (chip.flip_flops, chip.type_of("control").fit, chip.type_of("weight buffer").memory) == (104_096, 200, True)
    assert len(resiliency(results).sample) == 550
    assert results.level == 0.9
    assert "ECC for weight buffer" in told(capfd, "show", "chip", "--by", "what-if")


@pytest.mark.parametrize("proposal", ["IS-B", "UNIFORM"])
def test_published_proposals_are_shown_with_their_accuracy(capfd, proposal):
    """The profile of IS-B is a block of its own, whose draws count with their weights as all others do."""
    told(capfd, *RA, "--proposal", proposal, "--trials", "3000")
    with Store("torchfault.db", access="read") as store:
        found = resiliency(load(store, "chip"))
    table = pd.read_csv(io.StringIO(told(capfd, "show", "chip", "--by", "summary", "--format", "csv")))
    ra = table.set_index("quantity").loc["RA"]
    assert (ra["low"], ra["value"], ra["high"]) == pytest.approx((found.ra.low, found.ra.value, found.ra.high))
    assert 0 <= ra["low"] < ra["value"] <= ra["high"] <= 1
    for by in ("layer", "type", "bit", "what-if"):
        assert told(capfd, "show", "chip", "--by", by, "--format", "csv").count("\n") > 1


def test_what_cannot_be_is_refused_before_anything_runs(capfd, folder):
    cases = {
        "no layer is called 'fc7'": ["--protect", "fc7"],
        "accelerator": ["--accelerator", "flatt"],
        "did you mean 'IS-B'": ["--proposal", "ISB"],
        "give --flip-flops": ["--buffer", "weight=4096"],
        "expected input, weight or output = bits": ["--accelerator", "flat", "--buffer", "weights=4096"],
        "it is --proposal now": ["--estimator", "IS"],
    }
    for message, options in cases.items():
        assert message in refused(capfd, *RA, *options), options
    np.savez(folder / "plain.npz", images=np.zeros((4, 1, 8, 8), dtype=np.float32))
    assert "labels" in refused(capfd, *RA, "--data", "plain.npz")
    assert not (folder / "torchfault.db").exists()


def test_other_campaigns_of_upsets_are_shown_as_campaigns(capfd):
    with np.load("digits.npz") as held:
        engine = Engine(digits_cnn(), Data(*map(torch.from_numpy, (held["images"], held["labels"]))))
    layers = layers_in(engine)
    space = upset_space(FLAT, layers.works, layers.space)
    campaign = Campaign(engine, space, measure=UpsetMeasure(in_use=True), fault=Upset(layers), stop=MaxTrials(50))
    run(campaign, store="torchfault.db", name="own")
    out = told(capfd, "show", "own")
    assert "accuracy" not in out
    assert "of 50 trials fail" in out
    assert "input" in told(capfd, "show", "own", "--by", "type")
