"""A sweep that finds no memory is halved and goes on: every lane once, with the outcome that it would have had."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.networks import NETWORKS
from torchfault.data import Data
from torchfault.engine import device_memory
from torchfault.engine.crashes import separated
from torchfault.engine.device_memory import free_bytes
from torchfault.engine.engine import Engine
from torchfault.engine.graph import recompute, scheduler
from torchfault.engine.graph.sweep import Sweep
from torchfault.hardening import Secded, harden

LACKS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("error", LACKS.values(), ids=LACKS)
@pytest.mark.parametrize("most", [1, 5])
def test_parts_are_halved_until_they_fit(error, most):
    def run(lanes):
        if len(lanes) > most:
            raise error
        return len(lanes)

    found = list(separated(np.arange(13), run))
    assert np.concatenate([part for part, _ in found]).tolist() == list(range(13))
    assert all(fits == len(part) <= most for part, fits in found)


def test_a_lane_that_does_not_fit_alone_is_an_error():
    def run(_):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(separated(np.arange(3), run))


@pytest.mark.parametrize("name", ["digits", "causal"])
@pytest.mark.parametrize("faults", [1, 3])
def test_sweeps_are_halved_and_stay_so(name, faults, monkeypatch):
    model, data = NETWORKS[name]()
    engine = Engine(model, data, executor="graph")
    monkeypatch.setattr(device_memory, "_MOST_CPU_TENSOR_BYTES", 40 * int(engine._executor.footprint.largest.max()))
    trials = random_trials(engine.space, len(data), 400, faults=faults)
    expected, plain, failed = collect(engine, trials), Sweep.run, []

    def run(self, *args):
        if len(self.inputs) > 10:
            failed.append(len(self.inputs))
            raise torch.OutOfMemoryError("CUDA out of memory")
        plain(self, *args)

    monkeypatch.setattr(Sweep, "run", run)
    assert_agree(collect(engine, trials), expected)
    assert failed
    assert len(failed) <= 12  # which is the first sweep in its parts, and none of those behind it


@pytest.mark.parametrize("kinds", [["input", "output"], ["weight", "bias"]])
def test_lanes_whose_boxes_or_channels_do_not_fit_are_swept_whole(kinds, monkeypatch):
    model, data = NETWORKS["depthwise"]()
    engine = Engine(model, data, executor="graph")
    trials = random_trials(engine.space.select(kinds=kinds), len(data), 80)
    expected, calls = collect(engine, trials), []

    def walk(lanes, node, part):
        calls.append((len(lanes.rows), node, part))
        raise MemoryError

    monkeypatch.setattr(scheduler, "walk", walk)
    assert_agree(collect(engine, trials), expected)
    assert calls


@pytest.mark.parametrize(("free", "reserved", "used"), [(100, 0, 0), (100, 70, 30), (0, 8, 8)])
def test_what_torch_holds_of_a_gpu_without_using_it_is_free(free, reserved, used, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (free, 1 << 40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: used)
    assert free_bytes(torch.device("cuda:1")) == free + reserved - used
    assert asked == [torch.device("cuda:1")]
    assert free_bytes(torch.device("cpu")) > 1 << 60


def test_sweeps_are_no_wider_than_what_is_free(monkeypatch):
    model, data = NETWORKS["transformer"]()
    engine = Engine(model, data, executor="graph")
    trials = random_trials(engine.space, len(data), 300)
    plain, widths = Sweep.run, []

    def run(self, *args):
        widths.append(len(self.inputs))
        plain(self, *args)

    monkeypatch.setattr(Sweep, "run", run)
    expected = collect(engine, trials)
    widest = max(widths)
    need = int(engine._executor.footprint.alive.max())
    monkeypatch.setattr(scheduler, "free_bytes", lambda _: 6 * 7 * need)
    widths.clear()
    assert_agree(collect(engine, trials), expected)
    assert max(widths) < widest / 4


def test_what_is_computed_from_struck_weights_alone_counts_for_the_lanes_that_run_together(monkeypatch):
    torch.manual_seed(0)
    model = harden(nn.Sequential(nn.Linear(16, 16)).eval().requires_grad_(False), Secded())
    data, weight = Data(torch.randn(20, 16)), model[0].weight
    parts, run = [], recompute.Anew._vmap
    monkeypatch.setattr(recompute.Anew, "_vmap", lambda *args: parts.append(len(args[5])) or run(*args))
    limit, found = 400 * weight.nbytes, []
    for most in (limit, 10**9):
        monkeypatch.setattr(recompute, "_VMAP_BYTES", most)
        engine = Engine(model, data, executor="graph")
        trials = random_trials(engine.space.select("0.weight", bits=[20, 30]), len(data), 200, seed=1)
        found.append(collect(engine._executor, trials))
    assert sum(parts) == 2 * 200
    assert max(parts[:-1]) * 10 * weight.nbytes <= limit  # to decode takes dozens of tensors of the weight's size
    assert_agree(*found)
