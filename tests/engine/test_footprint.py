"""What an input takes in memory does not depend on how many others there are, nor on how they lie there."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import collect, random_trials
from tests.support.networks import NETWORKS
from torchfault import Data, Engine
from torchfault.data import map_tensors
from torchfault.engine.graph import executor


@pytest.mark.parametrize("name", ["digits", "transformer", "lstm"])
def test_more_inputs_do_not_make_one_larger(name):
    model, data = NETWORKS[name]()
    few = Engine(model, data.take(slice(0, 2)), executor="graph")
    many = Engine(model, Data(map_tensors(lambda x: torch.cat([x] * 50), data.inputs), None), executor="graph")
    assert few._executor.footprint.golden == many._executor.footprint.golden
    assert many._executor.chunk == len(many.data)


def test_images_whose_channels_come_last_are_as_cheap():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    plain = torch.randn(64, 3, 8, 8)
    turned = plain.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    one, other = (Engine(model, Data(x), executor="graph", memory="1MiB") for x in (plain, turned))
    assert one._executor.chunk == other._executor.chunk > 8
    assert one._executor.footprint.golden == other._executor.footprint.golden


def test_only_inputs_that_trials_strike_are_run_where_not_all_fit(monkeypatch):
    """A few lanes on a few of many inputs do not pay for all of them, and outcomes are the same."""
    model, data = NETWORKS["digits"]()
    data = Data(torch.cat([data.inputs + 0.01 * i for i in range(40)]), None)
    roomy = Engine(model, data, executor="graph")
    tight = Engine(model, data, executor="graph", memory="1MiB")
    assert tight._executor.chunk < len(data) // 4
    ran = []
    plain = executor.golden_pass

    def counted(program, values, inputs, **options):
        ran.append(len(inputs))
        return plain(program, values, inputs, **options)

    monkeypatch.setattr(executor, "golden_pass", counted)
    trials = random_trials(tight.space, len(data), 30, seed=2)
    mine, theirs = collect(tight, trials), collect(roomy, trials)
    assert sum(ran) == len(np.unique(trials.inputs)) + len(data)  # the second engine holds them all
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_outputs_without_faults_are_computed_once(monkeypatch):
    model, data = NETWORKS["digits"]()
    engine = Engine(model, Data(torch.cat([data.inputs] * 40), None), executor="graph", memory="1MiB")
    first = engine.golden()
    monkeypatch.setattr(executor, "golden_pass", lambda *_, **__: pytest.fail("computed again"))
    assert torch.equal(engine.golden(), first)


def test_golden_values_of_all_inputs_are_kept_in_half_of_an_ample_memory():
    graph = Engine(*NETWORKS["digits"](), executor="graph").graph
    for memory, part in ((1 << 20, 3), (255 << 20, 3), (256 << 20, 2), (1 << 30, 2)):
        most = memory // part // graph.footprint.golden
        for inputs, chunk in ((most, most), (most + 1, memory // 4 // graph.footprint.golden)):
            graph.memory, graph.data = memory, Data(torch.zeros(1).expand(inputs, 1), None)
            assert graph.chunk == chunk
