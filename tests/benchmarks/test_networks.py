"""The benchmark of networks of real size, on small ones: its figures, by the names that others read."""

import pytest

from benchmarks import networks
from benchmarks.rows import networks as row
from tests.support.networks import NETWORKS

KEYS = {"start_s", "golden_s", "ratio", "lane_s", "peak_mib", "disagreements", "ties"}


@pytest.mark.parametrize("name", ["digits", "depthwise"])
def test_figures_of_a_network_have_their_names(name, monkeypatch):
    monkeypatch.setattr(networks, "NETWORKS", {name: NETWORKS[name]})
    found = networks.measured(name, lanes=8, repeats=1, trials=20, device="cpu")
    assert set(found) == KEYS
    assert set(found["ratio"]) == {"weights", "inputs"}
    assert min(found["start_s"], found["golden_s"], *found["ratio"].values()) >= 0
    assert found["disagreements"] == found["ties"]
    assert name in networks.table({"networks": {name: found}})
    assert len(row({"networks": {"gpt2": found}})) == 3
