"""The figures of hardening: every method, every kind of fault, on the digits; what to protect; checksums."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks import checksums, hardening, leaderboard, rows, subjects
from benchmarks.latency import _median
from torchfault.statistics import proportion


@pytest.mark.slow
def test_the_benchmark_tells_of_every_method(monkeypatch, capsys):
    options = ["hardening", "--network", "digits CNN", "--trials", "100", "--repeats", "1", "--only", "leaderboard"]
    monkeypatch.setattr("sys.argv", [*options, "--json"])
    hardening.main()
    figures = json.loads(capsys.readouterr().out)
    board = figures["leaderboard"]["digits CNN"]
    assert set(board) == {*leaderboard.WEIGHTS, *leaderboard.ACTIVATIONS, *leaderboard.BOTH, "recipe"}
    assert "torch.int8, got torch.float32" in board.pop("zero-space")["refused"]
    for name, row in board.items():
        assert row["accuracy_change"] >= -0.01, name
        assert {"latency", "memory"} <= row.keys()
        for one in row.values():
            if isinstance(one, dict) and "ratio" in one:
                assert one["ratio"] is None or one["high"] is None or one["low"] <= one["ratio"] <= one["high"], name
    assert board["recipe"]["chosen"]["name"] in subjects.digits().recipes
    assert board["recipe"]["weights"]["after"] < board["recipe"]["weights"]["before"] / 4
    lines = rows.hardening(figures)
    assert sum(line.startswith("| SECDED + ranges |") for line in lines) == 1


@pytest.mark.slow
def test_checksums_are_measured_at_work_and_on_standby():
    found = checksums.abft(clean=256, trials=300)
    assert found["coverage"][0] > 0.9
    assert found["false_alarms"][:2] == [0, 256]
    assert 0 < found["latency"] < found["latency_at_work"]


def test_the_cost_of_a_bit_is_two_bits_where_it_never_varies_and_two_copies_else():
    subject = subjects.digits()
    cost = hardening.added(subject.model)
    weight = subject.model.conv1.weight
    assert weight.abs().max() < 2
    assert cost({"site": "conv1.weight", "bit": 30, "bits": weight.numel()}) == 2
    assert cost({"site": "conv1.weight", "bit": 31, "bits": weight.numel()}) == 2 * weight.numel()
    assert cost({"site": "fc2.bias", "bit": 0, "bits": 10}) == 20


def test_what_was_found_becomes_lines():
    one = {"before": 0.5, "after": 0.0, "ratio": None, "low": 3.0, "high": None}
    row = {"weights": one, "accuracy_change": -0.001, "latency": 0.04, "latency_single": 0.3, "memory": 0.0004}
    found = {
        "leaderboard": {"digits": {"parity": row, "zero-space": {"refused": "no codes"}}},
        "protection": {"share_95": 4.17e-6, "removed": [0.97, 0.95], "predicted": [0.001, 0.002]}
        | {"measured": [0.001, 0.0008, 0.0012]},
    }
    abft = {
        "abft": {
            "coverage": [1.0, 0.99, 1.0, 400],
            "latency": 0.045,
            "latency_at_work": 0.12,
            "false_alarms": [0, 100_000, 3e-5],
        }
        | {"attention": {"bfloat16": [2, 1000, 7e-3]}},
    }
    lines = rows.hardening(found)
    assert "| parity | all [3, -] | -0.10 | +4.0 %, +30 % | +0.04 % |" in lines
    row["latency_bounds"] = [-0.012, 0.05]
    assert "| parity | all [3, -] | -0.10 | +4.0 % [-1.2, 5.0], +30 % | +0.04 % |" in rows.hardening(found)
    assert "- zero-space refuses: no codes." in lines
    assert any("| 0.00042 % | 97.0 % [at least 95.0] | 0.100 % [at most 0.200] |" in line for line in lines)
    assert "for 4.5 % of the pass at batch 128 on standby (12.0 % at work), with" in rows.checksums(abft)[0]
    assert "0 alarms on 100,000 clean inputs (at most 3.0e-05 of them)" in rows.checksums(abft)[0]
    assert "raised 2 on 1,000 inputs in bfloat16 (at most 7.0e-03 of them)" in rows.checksums(abft)[1]


def test_bounds_of_a_latency_hold_its_median_as_often_as_they_say():
    rng, held = np.random.default_rng(3), 0
    for _ in range(400):
        found = _median(rng.exponential(1.0, 31))
        held += found.low <= math.log(2) <= found.high
        assert found.low <= found.value <= found.high
        assert found.trials == 31
    assert proportion(held, 400, level=0.99).high >= 0.95


def test_the_fastest_recipe_is_chosen_that_keeps_answers_and_gains_enough():
    told = {
        "slow": {"fewer": 40, "most": 90, "changed": 0.0, "latency": 0.2},
        "fast": {"fewer": 12, "most": 30, "changed": 0.002, "latency": 0.1},
        "wrong": {"fewer": 50, "most": 99, "changed": 0.01, "latency": 0.01},
        "weak": {"fewer": 5, "most": 8, "changed": 0.0, "latency": 0.01},
    }
    assert leaderboard.fastest(told) == "fast"
    quick = {
        "likely": {"fewer": 9, "most": 20, "changed": 0.0, "latency": 0.03},
        "less": {"fewer": 7, "most": 12, "changed": 0.0, "latency": 0.02},
    }
    assert leaderboard.fastest(told | quick) == "likely"
    quick["sure"] = {"fewer": 11, "most": 25, "changed": 0.0, "latency": 0.04}
    assert leaderboard.fastest(told | quick) == "sure"
    assert leaderboard.fastest({name: told[name] for name in ("weak", "wrong")}) == "weak"
    assert leaderboard.fastest({"wrong": told["wrong"]}) == "wrong"
    assert leaderboard.CHOICE != leaderboard.MEASUREMENT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_raises_no_alarm_on_images(dtype, data_dir, monkeypatch):
    monkeypatch.setenv("TORCHFAULT_DATA", str(data_dir))
    assert checksums._attention(dtype, 200)[:2] == [0, 200]
    batches = list(checksums._batches(200))
    assert [len(batch) for batch in batches] == [128, 72]
    assert len(torch.unique(torch.cat(batches), dim=0)) == 200
