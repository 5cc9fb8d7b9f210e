"""Golden values that do not fit are computed again, segment by segment, with the same bits."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.networks import NETWORKS
from torchfault.data import Data, leaves
from torchfault.engine.engine import Engine
from torchfault.engine.graph.golden_pass import golden_pass
from torchfault.engine.graph.segments import Segmented, segments
from torchfault.engine.monitor import Monitor


def deep(layers: int = 24) -> tuple[nn.Module, Data]:
    """Return a chain of layers, all of whose values take 30 times what one of them does."""
    torch.manual_seed(3)
    blocks = [part for _ in range(layers) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    return model, Data(torch.randn(3, 8, 32, 32))


@pytest.mark.parametrize("name", ["depthwise", "transformer", "lstm", "deep"])
def test_values_of_segments_are_those_of_the_whole(name):
    model, data = deep() if name == "deep" else NETWORKS[name]()
    executor = Engine(model, data, executor="graph")._executor
    program, options = executor.program, {"channels_last": executor.channels_last}
    with torch.inference_mode():
        one = golden_pass(program, data.inputs, np.arange(1), **options)
        plan = segments(program, one.values, executor.plan.last_reader, most=0)
        assert len(plan.starts) > 1
        whole = golden_pass(program, data.inputs, np.arange(3), **options)
        parts = golden_pass(program, data.inputs, np.arange(3), **options, plan=plan)
        assert isinstance(parts.values, Segmented)
        order = np.random.default_rng(0).permutation(len(program.nodes))
        for position in (*range(len(program.nodes)), *order.tolist()):
            mine, theirs = leaves(parts.values[position]), leaves(whole.values[position])
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), position
            assert len(parts.values.at_hand) <= 2


def test_segments_are_as_few_as_fit_and_as_small_as_can_be():
    model, data = deep()
    executor = Engine(model, data, executor="graph")._executor
    with torch.inference_mode():
        one = golden_pass(executor.program, data.inputs, np.arange(1), channels_last=executor.channels_last)
    needs = [segments(executor.program, one.values, executor.plan.last_reader, most=n) for n in (1 << 30, 800_000, 0)]
    assert [len(plan.starts) == 1 for plan in needs] == [True, False, False]
    assert needs[1].nbytes <= 800_000 < needs[0].nbytes
    assert needs[2].nbytes <= needs[1].nbytes < needs[0].nbytes / 2
    assert 0 < len(needs[1].starts) <= len(needs[2].starts)


@pytest.mark.slow
def test_lanes_and_monitors_come_out_alike_within_a_small_budget():
    model, data = deep()
    found = []
    for memory in ("1GiB", "4.4MiB"):
        engine = Engine(model, data, executor="graph", memory=memory)
        trials = random_trials(engine.space, len(data), 150)
        assert (len(engine._executor.segments.starts) > 1) == (memory == "4.4MiB")
        found.append(collect(engine, trials))
        monitor, golden = Monitor(engine.space), leaves(engine.golden())[0]
        for lanes in engine.run(trials, monitor=monitor):
            assert torch.allclose(leaves(lanes.golden)[0], golden[torch.from_numpy(lanes.inputs)], atol=1e-6)
        assert set(monitor.table()["lanes"]) == {150}
    assert_agree(*found)
