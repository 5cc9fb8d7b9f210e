"""The figures of fault-aware training and of architecture search, on little."""

import pytest

pytest.importorskip("optuna")

from benchmarks import architecture, training, training_rows


@pytest.mark.slow
def test_the_benchmark_of_training_tells_draws_failures_and_cost(monkeypatch):
    monkeypatch.setattr(training, "_EPOCHS", 3)
    fat = training.figures(seeds=2, trials=2000, repeats=1)["fat"]
    for drop in training.DROPS:
        row = fat[f"{drop:g}"]
        assert row["ratio"] == pytest.approx(row["uniform"] / row["importance"], abs=0.06)
        assert row["uniform"] > row["importance"] >= 1
    assert fat["failures_ratio"] == fat["networks"]["bounded, trained under faults"]["ratio"] > 5
    assert fat["networks"]["rectified"]["ratio"] == 1
    assert abs(fat["clean_change"]) < 0.05
    assert fat["overhead_every_step"] > 0
    assert len(training_rows.drops({"fat": fat})) == 2 + len(training.DROPS)
    shown = training_rows.trained({"fat": fat})
    assert shown[2].startswith("| rectified | ")
    assert f"every step {100 * fat['overhead_every_step']:.0f} %" in shown[-1]


@pytest.mark.slow
def test_the_benchmark_of_architectures_tells_the_gain_of_equal_searches(monkeypatch, tmp_path):
    monkeypatch.setitem(architecture.DATA, "digits", (architecture.digits, 2, 1))
    found = architecture.compared("digits", tmp_path)
    assert found["architectures"] == 2
    assert found["least"] <= found["most"] < 0.1
    assert found["ra_gain"] <= min(found["ra_gain_best"], found["ra_gain_no_less"])
    assert found["overhead"] > 0
    shown = training_rows.architectures({"search": {"ra_gain": 0.0, "overhead": 0.0, "digits": found}})
    assert shown[0] == "|  | digits |"
    assert shown[2] == "| architectures, images learnt, epochs | 2, 1,200, 1 |"
    assert architecture.compared("digits", tmp_path) == found  # from what is kept
