"""The figures of fault-aware training and of architecture search, on little."""

import pytest

pytest.importorskip("optuna")

from benchmarks import architecture, training


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


@pytest.mark.slow
def test_the_benchmark_of_architectures_tells_the_gain_of_equal_searches(monkeypatch, tmp_path):
    monkeypatch.setitem(architecture.DATA, "digits", (architecture.digits, 2, 1))
    found = architecture.compared("digits", tmp_path)
    assert found["architectures"] == 2
    assert found["least"] <= found["most"] < 0.1
    assert found["ra_gain"] <= found["ra_gain_best"]
    assert found["overhead"] > -1
    assert architecture.compared("digits", tmp_path) == found  # from what is kept
