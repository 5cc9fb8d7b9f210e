"""What a report says of repeating a campaign: the very file and command give the very campaign."""

import shlex
from urllib.parse import unquote

import numpy as np
import pytest

from tests.support.digits import save_digits
from tests.support.page import read_page
from torchfault.cli import main
from torchfault.report import render
from torchfault.results import load
from torchfault.store import Store

BASE = ["--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz", "--executor", "hooks"]
CAMPAIGNS = {
    "run": ["--kinds", "weight", "--fault", "stuck-at-1", "--criterion", "topk:2", "--trials", "40", "--seed", "3"],
    "search": ["--kinds", "bias", "--trials", "64", "--set", "search.side=16", "--set", "search.block=16"],
    "ra": ["--accelerator", "flat", "--trials", "1100"],
}


@pytest.mark.parametrize("recipe", CAMPAIGNS)
def test_the_command_and_the_file_of_a_report_give_the_same_campaign(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_digits(tmp_path, 8)
    assert main([recipe, *BASE, *CAMPAIGNS[recipe], "--name", "first", "--store", "a.db"]) == 0
    with Store("a.db", access="read") as store:
        before = load(store, "first")
    page = render([before])
    shown = [part.split("</pre>")[0] for part in page.split("<pre")[1:]]
    command = shown[0].partition(">")[2]
    (file,) = [held for _, held in read_page(page).tags if (held.get("download") or "").endswith(".yaml")]
    (tmp_path / file["download"]).write_text(unquote(file["href"].partition(",")[2]))
    assert main(shlex.split(command)[1:]) == 0
    with Store("first.db", access="read") as store:
        after = load(store, "first")
    assert np.array_equal(after.columns.faults, before.columns.faults)
    assert np.array_equal(after.columns.failed, before.columns.failed)
    same = ("model", "data", "seed", "space", "design", "inputs")
    assert all(getattr(after.record, name) == getattr(before.record, name) for name in same)
