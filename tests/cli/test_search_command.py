"""`torchfault search --drop`: uniform draws against scores, told side by side, stored, and gone on with."""

import json

import pytest

from tests.cli.test_cli import run
from torchfault.cli import main
from torchfault.cli.architectures import _show
from torchfault.config import Settings
from torchfault.nas import Candidate, front
from torchfault.results import dropped, load
from torchfault.statistics import Estimate
from torchfault.store import Store

MODEL = ("--model", "torchfault.demo:model", "--data", "torchfault.demo:data", "--limit", "60", "--kinds", "weight")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_searches_are_told_side_by_side_and_each_by_itself(capfd):
    told = json.loads(run(capfd, "search", *MODEL, "--drop", "25%", "--json")[0])
    assert told["kind"] == "searches"
    assert told["drop"] == pytest.approx(0.25)
    by_score = {row["score"]: row for row in told["searches"]}
    assert by_score["uniform"]["draws"] > by_score["rising"]["draws"] >= 1
    assert all(row["drop"] >= 0.25 and row["seconds"] > 0 and row["found"] >= 1 for row in by_score.values())
    assert [one["name"] for one in told["campaigns"]] == ["model-search-uniform", "model-search-rising"]
    again, out = run(capfd, "search", *MODEL, "--drop", "25%")
    assert again.splitlines()[2].split()[:2] == ["uniform", str(by_score["uniform"]["draws"])]
    assert "torchfault show model-search-rising" in out
    out, _ = run(capfd, "show", "model-search-rising")
    assert f"first     draw {by_score['rising']['draws']}, after " in out
    assert "draws lower the accuracy of 100.00 % by 25.00 % of itself" in out
    out, _ = run(capfd, "show", "model-search-rising", "--by", "found", "--format", "csv")
    assert out.splitlines()[0] == "trial,site,element,bit,drop"


@pytest.mark.parametrize(("kind", "head"), [("ra_sw", "RA_SW %"), ("mvf", "1 - MVF %"), ("none", "")])
def test_what_counts_beside_accuracy_is_named_as_it_is(kind, head, capfd):
    robust = None if kind == "none" else Estimate(0.9, 0.8, 0.95, 100, "wilson")
    one = Candidate(0, {"depth": 2}, 0.5, 1000, robust, 0.8, False, (1.0, 1.0))
    given = {"model": {"factory": "m:f"}, "data": {"path": "x.npz"}, "name": "nets"}
    search = {"architecture": 1, "robustness": kind}
    _show(Settings.model_validate({**given, "recipe": "search", "search": search}), [one], front([one]))
    assert head in capfd.readouterr().out


def test_searches_that_found_nothing_are_told(capfd):
    flags = ("search", *MODEL, "--drop", "90%", "--bits", "0-3", "--trials", "40")
    rows = [line.split() for line in run(capfd, *flags)[0].splitlines()[2:4]]
    assert [(row[0], *row[1:5]) for row in rows] == [(name, "-", "-", "-", "0") for name in ("uniform", "rising")]
    told = json.loads(run(capfd, *flags, "--json")[0])
    assert [(row["draws"], row["drop"]) for row in told["searches"]] == [(None, None)] * 2


def test_a_search_goes_on_where_it_stopped(capfd):
    flags = ("search", *MODEL, "--drop", "50%", "--scores", "GBIN", "--found", "9")
    run(capfd, *flags, "--trials", "68", "--store", "first.db")
    run(capfd, "resume", "model-search-GBIN", "--trials", "2000", "--store", "first.db")
    run(capfd, *flags, "--trials", "2000", "--store", "whole.db")
    found = []
    for file in ("first.db", "whole.db"):
        with Store(file, access="read") as store:
            found.append(dropped(load(store, "model-search-GBIN")))
    one, two = found
    assert len(one.faults) >= 9
    assert one.faults.tolist() == two.faults.tolist()
    assert one.draws == two.draws
    assert (one.values >= 0.5).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--drop", "0"], "--drop: expected a share such as 10% or 0.1"),
        (["--drop", "150%"], "--drop: expected a share"),
        (["--drop", "10%", "--scores", "best"], "--scores: expected effect, joint, rising or a code such as GBIN"),
        (["--drop", "10%", "--criterion", "top1"], "a metric measures every trial on the whole data set"),
        (["--drop", "10%", "--found", "0"], "--found"),
        (["--found", "3"], "found would have no say without drop"),
        (["--scores", "GBIN", "--epochs", "3"], "scores would have no say without drop"),
        (["--drop", "10%", "--architecture", "3"], "drop and architecture are two searches"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capfd, flags, message):
    assert main(["search", *MODEL, *flags]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_a_search_for_a_drop_needs_labels(capfd):
    shape = ["--model", "torchfault.demo:model", "--shape", "1,8,8"]
    assert main(["search", *shape, "--drop", "10%"]) == 2
    err = capfd.readouterr().err
    assert "needs labels" in err


def test_architectures_are_searched_and_gone_on_with(capfd):
    pytest.importorskip("optuna")
    data = ("--data", "torchfault.demo:data", "--limit", "80", "--epochs", "1", "--name", "nets", "--robustness", "mvf")
    out, err = run(capfd, "search", "--architecture", "2", *data)
    assert "2 architectures; none beats these" in out
    assert "torchfault show nets-00" in err
    told = json.loads(run(capfd, "search", "--architecture", "3", *data, "--json")[0])
    assert (told["kind"], told["evaluated"], told["name"]) == ("architectures", 3, "nets")
    assert all(row["low"] <= row["robust"] <= row["high"] for row in told["front"])
    assert "8,192 trials" in run(capfd, "show", "nets-000")[0]
    assert main(["search", "--architecture", "3", *data, "--epochs", "2"]) == 2
    assert "the study 'nets' was begun with another epochs" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--architecture", "0"], "--architecture: expected a number of at least 1, got 0"),
        (["--architecture", "2", "--robustness", "best"], "--robustness: expected ra, ra_sw, mvf"),
        (["--architecture", "2", "--model", "json:loads"], "what builds architectures failed"),
        (["--architecture", "2", "--model", "builtins:getattr"], "what builds architectures failed"),
        (["--architecture", "2", "--model", "math:tau"], "'math:tau' builds no networks"),
        (["--architecture", "2", "--kinds", "weight"], "so that sites would have no say"),
        (["--architecture", "2", "--trials", "9", "--device", "cuda"], "so that stop and device would have no say"),
        (["--architecture", "2", "--limit", "1"], "trained and judged on inputs of their own, got 1"),
    ],
)
def test_what_builds_no_architecture_is_refused_in_one_line(capfd, flags, message):
    assert main(["search", "--data", "torchfault.demo:data", *flags]) == 2
    err = capfd.readouterr().err
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
