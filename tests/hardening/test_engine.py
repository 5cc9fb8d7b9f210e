"""Faults strike hardened models as they strike any: both executors, against edits of the stored words by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.networks import NETWORKS
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.engine.graph.executor import GraphExecutor
from torchfault.engine.hooks.executor import HooksExecutor
from torchfault.faults import BitFlip
from torchfault.hardening import (
    Checksums,
    InvariantBits,
    Ranges,
    Secded,
    WeightChecksums,
    WeightRanges,
    harden,
    profile,
)
from torchfault.model.discover import find
from torchfault.recipes import survival
from torchfault.testing import check_executor
from torchfault.trials import strike

RECIPES = {
    "guards": (InvariantBits(), WeightRanges(), Ranges()),
    "codes": (Secded("*.weight"), Ranges(action="zero", per="channel")),
    "sums": (WeightChecksums(), Ranges(action="mean")),
}


@pytest.mark.parametrize("executor", ["graph", "hooks"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_struck_words_and_protection_have_the_outcome_of_editing_them(executor, recipe):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval().requires_grad_(False)
    data = Data(torch.randn(6, 1, 6, 6))
    safe = harden(model, *RECIPES[recipe], profile=profile(model, data))
    found = find(safe, data, buffers=True)
    kind = GraphExecutor if executor == "graph" else HooksExecutor
    check_executor(kind(safe, data, memory=2**28, found=found), safe, data, trials=300)


def test_both_executors_tell_the_same_of_activations_that_leave_their_range():
    model, data = NETWORKS["digits"]()
    safe = harden(model.requires_grad_(False), Ranges(), profile=profile(model, data))
    outcomes = []
    for executor in ("graph", "hooks"):
        engine = Engine(safe, data, executor=executor)
        space = engine.space.select(["relu*:output", "max_pool2d*:output", "conv*:input"], bits=[28, 29, 30])
        rng = np.random.default_rng(1)
        where = space.locate(rng.integers(0, len(space), 200))
        trials = strike(space, where, model=BitFlip(), rng=rng, inputs=rng.integers(0, len(data), 200))
        found = torch.zeros(200, 10)
        for lanes in engine.run(trials):
            found[lanes.trial] = lanes.outputs
        outcomes.append(found)
    assert torch.allclose(*outcomes, rtol=1e-4, atol=1e-5)
    assert outcomes[0].abs().max() < 1e3


def test_the_same_faults_fail_less_after_hardening():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval().requires_grad_(False)
    data = Data(torch.randn(60, 8))
    safe = harden(model, InvariantBits(), Ranges(), profile=profile(model, data))
    before, after = Engine(model, data, executor="hooks"), Engine(safe, data, executor="hooks")
    table = survival(before, after, trials=4000).set_index("faults")
    assert table.loc["weights", "low"] > 1
    assert table.loc["activations", "fewer"] > 1
    assert table.loc["weights", "difference_high"] < 0
    assert (table["before"] - table["after"] + table["difference"]).abs().max() < 1e-12
    parts = []
    same = survival(before, before, trials=400, progress=lambda standing: parts.append(standing.part))
    same = same.set_index("faults")
    told = ["weights before", "weights after", "activations before", "activations after"]
    assert list(dict.fromkeys(parts)) == told
    assert (same["fewer"] == 1).all()
    assert (same["low"] < 1).all()


def test_what_checksums_put_right_is_struck_where_they_see_it():
    torch.manual_seed(3)
    model, data = nn.Sequential(nn.Linear(8, 4)).eval(), Data(torch.randn(20, 8))
    table = survival(Engine(model, data), Engine(harden(model, Checksums()), data), trials=400).set_index("faults")
    assert table.loc["activations", "before"] > 0.05
    assert table.loc["activations", "after"] == 0
    assert table.loc["weights", "before"] == table.loc["weights", "after"]
