"""The benchmark of the engine draws what it says, and its table has a row for each figure that a record holds."""

import numpy as np

from benchmarks import rows
from benchmarks.engine import layer_trials
from torchfault.site import Site
from torchfault.space import FaultSpace

SPACE = FaultSpace(
    (Site("small.weight", (2,)), Site("large.weight", (3, 30)), Site("bytes.weight", (40,), word="int8"))
)


def test_faults_of_a_lane_lie_in_one_layer_and_layers_are_drawn_by_their_size() -> None:
    trials = layer_trials(SPACE, 5, 2000, seed=0, faults=16)
    site = trials.site[trials.offsets[:-1]]
    assert (trials.site == site[trials.owner]).all()
    share = np.bincount(site, minlength=3) / 2000
    bits = np.array([2 * 32, 90 * 32, 40 * 8])
    np.testing.assert_allclose(share, bits / bits.sum(), atol=0.03)
    assert set(trials.inputs) == set(range(5))
    assert trials.element[trials.site == 1].max() == 89
    assert 1 << 7 <= trials.toggle[trials.site == 2].max() < 1 << 8  # several bits of one word are one edit


def test_the_table_tells_of_several_faults_and_of_one_thread_where_they_were_measured() -> None:
    old = {
        "lane_cost": {"weights": 0.2, "inputs": 0.3},
        "lanes_per_second": {"weights": 9000, "inputs": 6000},
        "overhead": {"cnn": {kind: {"100000": 1.0} for kind in ("weights", "activations")}},
        "agreement": {"trials": 100, "disagreements": 0, "ties": 0},
        "peak_mib": 200.0,
    }
    new = {
        "lane_cost_batch1": {"weights": 0.12, "inputs": 0.23},
        "multi_fault": {"2": 1.9, "100": 7.5},
        "multi_fault_layer": {"2": 1.1, "100": 1.8},
    }
    before, after = rows.engine(old), rows.engine(old | new)
    assert [line for line in after if line not in before] == [
        "| one fault on one thread, in passes of one image | 0.12 in a weight, 0.23 in an input |",
        "| several weights of a lane, anywhere, in lanes of one | 2 faults 1.9, 100 faults 7.5 |",
        "| several weights of a lane, in one layer, in lanes of one | 2 faults 1.1, 100 faults 1.8 |",
    ]
