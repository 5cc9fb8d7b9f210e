"""The benchmark of samplers: what is computed follows the formulas, and its JSON has the stated shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def test_lanes_of_a_stratified_sample_follow_neyman_and_the_rule_of_three():
    from benchmarks.samplers_economy import _needed

    p = np.array([0.5, 0.5])
    spread = np.sqrt(p * (1 - p)) / 2
    assert _needed(spread, np.ones(2), 0.01) == np.ceil(1.96**2 * 0.25 / 0.01**2)
    quiet = np.array([0.0, 0.5]) / 2  # a stratum in which nothing fails still takes half of the draws
    assert _needed(quiet, np.ones(2), 0.01) == np.ceil(2 * 1.96**2 * 0.0625 / 0.01**2)
    assert _needed(np.array([0.0, 1e-9]), np.ones(2), 0.01) == np.ceil(3.84 / 2 / (2 * 0.01) * 2)


@pytest.mark.slow
def test_the_quick_economy_section_has_the_stated_shape(resnet20):  # the data are there
    del resnet20
    command = [sys.executable, str(ROOT / "benchmarks" / "samplers.py"), "economy", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    found = json.loads(done.stdout)
    assert found["lanes"].keys() == found["seconds"].keys() == {"layer_1.0"}
    lanes = found["lanes"]["layer_1.0"]
    assert {"layer-wise", "data-aware", "adaptive", "adaptive by bit", "pooled", "pooled+monotone"} <= lanes.keys()
    assert lanes["adaptive"] <= 500 * len(found["layers"])
    assert all(one["low"] <= one["value"] <= one["high"] for one in found["layers"].values())
    assert found["widest"]["layer_1.0"]["adaptive"] <= 0.01


@pytest.mark.slow
def test_the_quick_record_needs_fewer_lanes_than_plans_need_faults(resnet20):  # the data are there
    from benchmarks.samplers_record import record

    del resnet20
    found = record("quick")["record"]
    assert found["population"] == 8_586_752
    assert found["conservative"] == 863_788, "N / (1 + e^2 (N - 1) / (1.96^2 / 4))"
    assert found["iterative"] < found["conservative"] / 10
    for one in found["ours"].values():
        assert one["lanes"] <= one["trials"]
        rate = one["rate"]
        assert rate["high"] - rate["low"] <= 2 * found["margin"]
        assert one["lanes"] < found["iterative"]
