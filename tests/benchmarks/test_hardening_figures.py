"""The figures of hardening: every method, every kind of fault, on the digits."""

import json

import pytest

from benchmarks import hardening


@pytest.mark.slow
def test_the_benchmark_tells_of_every_method(tmp_path, monkeypatch, capsys):
    file = tmp_path / "figures.json"
    options = ["hardening", "--network", "digits CNN", "--trials", "200", "--repeats", "2", "--json", str(file)]
    monkeypatch.setattr("sys.argv", options)
    hardening.main()
    figures = json.loads(file.read_text())
    board = figures["leaderboard"]["digits CNN"]
    assert set(board) == {*hardening.WEIGHTS, *hardening.ACTIVATIONS, *hardening.BOTH, "recipe"}
    for name, row in board.items():
        assert row["accuracy_change"] >= -0.01, name
        assert set(row["latency"]) == {"batch 128", "batch 1"}
        for one in row["faults"].values():
            assert one["low"] <= one["ratio"] <= one["high"] or one["after"] == 0, name
    assert figures["detection"]["digits CNN"]["checksums"]["false_alarms"][0] == 0
    assert "invariant bits" in capsys.readouterr().out
