"""`status` tells from another terminal how far campaigns are, and which of them nobody runs any more."""

import contextlib
import json
import sqlite3
import subprocess
import sys

import pytest

from tests.support.crews import Threads
from tests.support.doubles import SPACE, Double
from torchfault.campaign import Campaign, run
from torchfault.cli import main
from torchfault.faults import BitFlip
from torchfault.statistics import MaxTrials
from torchfault.store import Store


def told(store, capsys, *more) -> dict[str, dict]:
    """Return what ``status --json`` says of each campaign."""
    assert main(["status", "--store", str(store), "--json", *more]) == 0
    return {one["name"]: one for one in json.loads(capsys.readouterr().out)["campaigns"]}


def test_status_tells_running_killed_and_finished_campaigns_apart(tmp_path, capsys):
    path, seen = tmp_path / "s.db", {}
    campaign = Campaign(Double(), SPACE, fault=BitFlip(), stop=MaxTrials(3000))
    run(campaign, store=path, name="done")

    def look(standing):
        if standing.done >= 1024 and not seen:
            seen.update(told(path, capsys))
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run(campaign, store=path, name="other", progress=look, settings={"stop": {"trials": 3000}})
    assert (seen["done"]["state"], seen["other"]["state"]) == ("finished", "running")
    assert seen["done"]["trials"] == 3000
    assert 1024 <= seen["other"]["trials"] < 3000 == seen["other"]["wanted"]
    assert seen["other"]["left"] > 0
    assert seen["other"]["rate"] > 0
    assert told(path, capsys)["other"]["state"] == "failed"
    with Store(path) as store:  # as after a kill: nobody holds the campaign that calls itself running
        store.reopen("other", store.campaign("other").configuration)
    (after,) = told(path, capsys, "other").values()
    assert (after["state"], after["left"]) == ("killed", None)
    results = run(campaign, store=path, name="other", settings={"stop": {"trials": 3000}})
    whole = told(path, capsys)["other"]
    estimate = results.estimate()
    assert (whole["value"], whole["low"], whole["high"]) == (estimate.value, estimate.low, estimate.high)


def test_status_tells_how_many_workers_a_running_campaign_has(tmp_path, capsys):
    path, seen = tmp_path / "s.db", []

    def look(_):
        if path.exists():  # made with the first batch
            seen.append(told(path, capsys)["mine"]["workers"])
            main(["status", "--store", str(path)])
            seen.append(capsys.readouterr().out)

    with_three = Campaign(Double(), SPACE, stop=MaxTrials(2000))
    run(with_three, store=path, name="mine", progress=look, workers=Threads(3))
    assert set(seen[::2]) == {3}
    assert all("workers" in table for table in seen[1::2])
    assert told(path, capsys)["mine"]["workers"] is None
    seen.clear()
    run(Campaign(Double(), SPACE, stop=MaxTrials(4000)), store=path, name="mine", progress=look)
    assert seen[-2] == 0
    assert told(path, capsys)["mine"]["workers"] is None


def test_a_store_without_a_place_for_workers_is_read_and_written_all_the_same(tmp_path, capsys):
    path, seen = tmp_path / "s.db", []
    run(Campaign(Double(), SPACE, stop=MaxTrials(1000)), store=path, name="old")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE torchfault_workers")

    def look(standing):
        if standing.done > 1000:
            seen.append(told(path, capsys)["old"])

    run(Campaign(Double(), SPACE, stop=MaxTrials(3000)), store=path, name="old", progress=look, workers=Threads(2))
    assert {one["workers"] for one in seen} == {None}
    assert "running" in {one["state"] for one in seen}
    assert told(path, capsys)["old"]["trials"] == 3000


def test_the_table_says_what_to_do_next(tmp_path, capsys):
    path = tmp_path / "s.db"
    run(Campaign(Double(), SPACE, stop=MaxTrials(500)), store=path, name="first")
    assert main(["status", "--store", str(path), "--every", "0.5"]) == 0  # none runs: it looks once
    captured = capsys.readouterr()
    assert "first" in captured.out
    assert "finished" in captured.out
    assert "500" in captured.out
    assert f"torchfault show first --store {path}" in " ".join(captured.err.split())
    with Store(path) as store:
        store.reopen("first", store.campaign("first").configuration)
    assert main(["status", "--store", str(path)]) == 0
    assert "torchfault resume first" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--every", "0"], "--every: expected seconds from 0.1 to 86400, got 0; try 5"),
        (["--every", "nan"], "--every: expected seconds from 0.1 to 86400, got nan"),
        (["nosuch"], "no campaign 'nosuch'"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, capsys, more, message):
    path = tmp_path / "s.db"
    run(Campaign(Double(), SPACE, stop=MaxTrials(10)), store=path, name="first")
    assert main(["status", "--store", str(path), *more]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_status_starts_without_torch(tmp_path):
    path = tmp_path / "s.db"
    run(Campaign(Double(), SPACE, stop=MaxTrials(10)), store=path, name="first")
    program = f"import sys; from torchfault.cli import main; main(['status', '--store', {str(path)!r}]); "
    program += "sys.exit(any(name in sys.modules for name in ('torch', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0
