"""`torchfault protect`: the choice, the front, and what is refused."""

import json

import pytest

from torchfault.campaign import run
from torchfault.cli import main
from torchfault.store import Store
from torchfault.testing import example_campaign


@pytest.fixture(autouse=True)
def stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store("torchfault.db") as store:
        run(example_campaign(trials=1500), store=store, name="example")


def test_the_choice_and_the_front_are_shown(capfd):
    assert main(["protect", "--by", "bit", "--budget", "4%"]) == 0
    out = capfd.readouterr().out
    assert "1 groups to protect, 3.125 % of the bits" in out
    assert "of the failures, at least" in out
    assert main(["protect", "example", "--by", "bit", "--budget", "0.04", "--json", "--greedy"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["groups"] == [{"bit": 30, "bits": 12}]
    assert told["residual"]["high"] >= told["residual"]["value"]
    assert told["front"][0]["bits"] == 1 / 32


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "0"], "expected a share of the bits above 0"),
        (["--budget", "much"], "got 'much'"),
        (["--budget", "1%", "--by", "chan"], "did you mean 'channel'?"),
        (["other", "--budget", "1%"], "other"),
        (["--budget", "1%", "--level", "2"], "a level between 0.5 and 1, got 2"),
        (["--budget", "1%", "--level", "0.4"], "a level between 0.5 and 1, got 0.4"),
    ],
)
def test_bad_input_is_refused_in_one_line(more, message, capfd):
    assert main(["protect", *more]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
