"""The benchmark of scale-out: its table, what a command needs, and that killed workers change no byte of a store."""

import pytest

from benchmarks import scaling
from benchmarks.rows import scaling as table
from torchfault import Engine, demo, run
from torchfault.campaign import Campaign
from torchfault.statistics import MaxTrials

FOUND = {
    "lanes_per_second": {"alone, 1 thread": 6264, "1 worker of 1 thread": 5367},
    "efficiency_2": 0.914,
    "driver_trials_per_second": 1_895_200.6,
    "writer_rows_per_second": {"sqlite": 3_623_683.4},
    "bytes_per_million": 8_806_400.0,
    "show_10m_seconds": 1.65,
    "show_10m_peak_mib": 765.2,
    "report_10m_seconds": 6.1,
    "report_10m_peak_mib": 955.0,
}


def test_the_table_tells_what_was_measured():
    lines = table(FOUND | {"thousand_workers": scaling.on_paper(FOUND, 1000)})
    assert "| ResNet-20, 1 worker of 1 thread | 5,367 lanes of weights a second |" in lines
    assert "| a million trials, SQLite | 8.8 MB |" in lines
    assert "| `report` of ten million trials | 6.1 s, 955 MiB |" in lines
    assert lines[-1].endswith("| 353 workers, then the driver (draw, count, store) |")


def test_a_digest_of_a_store_knows_every_trial_and_no_time(tmp_path):
    engine = Engine(demo.model(), demo.data(), executor="hooks")
    space = engine.space.select("fc2.bias")
    for name, trials in (("one", 60), ("two", 60), ("fewer", 59)):
        run(Campaign(engine, space, stop=MaxTrials(trials)), store=tmp_path / f"{name}.db")
    one, two, fewer = (scaling.kept(tmp_path / f"{name}.db") for name in ("one", "two", "fewer"))
    assert one == two
    assert one[0] != fewer[0]
    assert (one[1], fewer[1]) == (60, 59)


def test_a_command_tells_its_own_needs():
    seconds, peak = scaling.needed(["--version"])
    assert seconds > 0
    assert 5 < peak < 200  # no torch, whatever this process holds itself


@pytest.mark.slow
def test_a_campaign_whose_workers_are_killed_is_the_same():
    found = scaling.kills(trials=150_000, every=1.0)
    assert found["kills"] > 0
    assert found["same_bytes"]
    assert found["trials_lost"] == 0
