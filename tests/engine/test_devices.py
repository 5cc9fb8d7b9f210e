"""Engines leave no tensor on another device than the model's: told without a GPU by a default device without values."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.networks import NETWORKS
from torchfault.data import map_tensors
from torchfault.engine import Engine, Monitor
from torchfault.engine.graph.sweep import Sweep


@pytest.mark.parametrize("executor", ["graph", "hooks"])
@pytest.mark.parametrize(("name", "faults"), [("depthwise", 1), ("depthwise", 3), ("transformer", 1), ("causal", 3)])
def test_tensors_are_made_where_the_values_are(name, executor, faults):
    model, data = NETWORKS[name]()
    engine = Engine(model, data, executor=executor)
    trials = random_trials(engine.space, len(data), 60, faults=faults)
    expected = collect(engine, trials)
    with torch.device("meta"):  # where every tensor lands that is made without saying where
        found = collect(engine, trials)
        watched = [lanes.masked for lanes in engine.run(trials, monitor=Monitor(engine.space))]
    assert_agree(found, expected)
    assert sum(map(len, watched)) == len(trials)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: values that become numbers, and sizes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["digits", "depthwise"])
def test_lanes_leave_a_sweep_without_a_wait_for_each_value(name, monkeypatch):
    model, data = NETWORKS[name]()
    engine = Engine(model, data, executor="graph")
    plain, waits, left = Sweep._let_masked_leave, Waits(), []

    def leave(self, node):
        with waits:
            before = len(self.inputs)
            plain(self, node)
            left.append(before - len(self.inputs))

    monkeypatch.setattr(Sweep, "_let_masked_leave", leave)
    collect(engine, random_trials(engine.space, len(data), 200, faults=2))
    assert sum(left) > 10
    assert waits.count == 0


@pytest.mark.cuda
@pytest.mark.parametrize("executor", ["graph", "hooks"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_gives_what_the_processor_gives(name, executor):
    model, data = NETWORKS[name]()
    here = Engine(model, data, executor=executor)
    trials = random_trials(here.space, len(data), 200)
    expected = collect(here, trials)
    there = Engine(NETWORKS[name]()[0], data, executor=executor, device="cuda")
    assert there.executor == executor
    found = collect(there, trials)
    assert_agree(map_tensors(torch.Tensor.cpu, found), expected)
