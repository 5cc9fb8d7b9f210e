"""A model that raises under a fault: an outcome of its lane alone, by whichever executor, and counted as detected."""

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

import torchfault as tf
from torchfault.engine import Engine, Monitor
from torchfault.engine.crashes import is_crash, separated
from torchfault.errors import EngineError
from torchfault.faults import BitFlip
from torchfault.trials import strike
from torchfault.words import encode, word


class Checks(nn.Module):
    """Refuses what is not finite, as careful code does; *leave* says how."""

    def __init__(self, leave) -> None:
        super().__init__()
        self.first, self.second, self.leave = nn.Linear(4, 6), nn.Linear(6, 3), leave
        self.busy = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.busy = True
        h = self.first(x)
        if not bool(torch.isfinite(h).all()) or float(h.abs().max()) > 1e6:
            self.leave()
        self.busy = False
        return self.second(torch.relu(h))


def raises(error):
    def leave():
        raise error

    return leave


class Looks(nn.Module):
    """Looks up a row by a computed number, which a fault may put out of the table; that can be captured as a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.pick, self.table, self.head = nn.Linear(4, 6), nn.Embedding(11, 4), nn.Linear(4, 3)
        with torch.no_grad():
            self.pick.weight.mul_(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row = (self.pick(x).sum(1) + 5).floor().long()
        return self.head(self.table(row))


def by_hand(model: nn.Module, data: tf.Data, trials, trial: int):
    """Return the output of one trial in stored words, and ``None`` where the model raises."""
    twin, row = copy.deepcopy(model), trials.offsets[trial]
    site = trials.sites[trials.site[row]]
    words = encode(dict(twin.named_parameters())[site.name].data, word(site.word)).view(-1)
    struck = (int(words[trials.element[row]]) & 0xFFFFFFFF & int(trials.keep[row])) ^ int(trials.toggle[row])
    words[trials.element[row]] = struck - (struck >> 31 << 32)
    which = int(trials.inputs[trial])
    try:
        with torch.no_grad():
            return twin(data.inputs[which : which + 1])[0]
    except (Exception, SystemExit):
        return None


def weights(engine: Engine, n: int, rng) -> object:
    names = ("pick.*", "head.*") if isinstance(engine.model, Looks) else ("first.*", "second.*")
    space = engine.space.select(names, bits=range(27, 32))
    where = space.locate(rng.choice(len(space), n, replace=False))
    inputs = rng.integers(0, len(engine.data), n)
    return strike(space, where, model=BitFlip(), rng=rng, inputs=inputs)


MODELS = {
    "value": (lambda: Checks(raises(ValueError("too large"))), "hooks"),
    "assertion": (lambda: Checks(raises(AssertionError())), "hooks"),
    "exit": (lambda: Checks(lambda: sys.exit(3)), "hooks"),
    "lookup": (Looks, "graph"),
    "lookup by hooks": (Looks, "hooks"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_lane_that_crashes_is_told_alone(kind, rng):
    make, executor = MODELS[kind]
    torch.manual_seed(1)
    model = make().eval()
    data = tf.Data(torch.randn(6, 4))
    engine = Engine(model, data, executor=executor)
    trials = weights(engine, 150, rng)
    seen = np.zeros(150, dtype=int)
    crashes = 0
    for lanes in engine.run(trials):
        for i, trial in enumerate(lanes.trial.tolist()):
            seen[trial] += 1
            expected = by_hand(model, data, trials, trial)
            assert lanes.crashed[i] == (expected is None), trial
            if expected is None:
                crashes += 1
                assert torch.equal(lanes.faulty[i], lanes.golden[i])
                assert not lanes.masked[i]
                assert lanes.outputs[i].isnan().all()
            elif expected.isfinite().all() and expected.abs().max() < 1e6:
                torch.testing.assert_close(lanes.faulty[i], expected, rtol=1e-4, atol=1e-4)
    assert (seen == 1).all()
    assert 3 < crashes < 100
    assert not getattr(model, "busy", False)  # the model is as it was, not as it was left


@pytest.mark.parametrize("kind", ["value", "lookup"])
def test_a_campaign_counts_crashes_as_failed_and_due(kind, rng):
    make, executor = MODELS[kind]
    model = make().eval()
    data = tf.Data(torch.randn(5, 4))
    engine = Engine(model, data, executor=executor)
    space = engine.space.select("first.weight" if kind == "value" else "pick.weight", bits=[30])
    results = tf.run(tf.Campaign(engine, space, stop=tf.MaxTrials(40), seed=3)).faults()
    index = rng.permutation(len(space))[:8]
    trials = strike(space, space.locate(index), model=BitFlip(), rng=rng)
    crashed = [by_hand(model, data, trials, i) is None for i in range(8)]
    assert any(crashed)
    hit = results.set_index(["site", "element"])
    for at, gone in zip(index.tolist(), crashed, strict=True):
        fault = space[at]
        rows = hit[(hit.index == (fault.site, fault.element)) & (hit["input"] == 0)]
        assert not gone or (rows.failed.all() and rows.due.all())
    assert results.due.any()


def test_a_monitor_goes_on_behind_a_crash():
    model, data = MODELS["lookup"][0]().eval(), tf.Data(torch.randn(5, 4))
    for executor in ("graph", "hooks"):
        engine = Engine(model, data, executor=executor)
        trials = weights(engine, 60, np.random.default_rng(4))
        monitor = Monitor(engine.space)
        crashed = np.zeros(60, dtype=bool)
        for lanes in engine.run(trials, monitor=monitor):
            crashed[lanes.trial] = lanes.crashed
        assert crashed.any()
        travel = monitor.travel()
        assert not travel.masked[crashed].any()
        assert travel.masked.notna().all()
        assert monitor.lanes == 60


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), EngineError("no"), MemoryError(), RuntimeWarning("asked to be an error")]
)
def test_what_is_no_outcome_goes_on_its_way(error, rng):
    model = Checks(raises(error)).eval()
    engine = Engine(model, tf.Data(torch.randn(4, 4)), executor="hooks")
    space = engine.space.select("first.weight", bits=[30])
    trials = strike(space, space.locate(np.arange(len(space))), model=BitFlip(), rng=rng)
    with pytest.raises(type(error)):
        list(engine.run(trials))
    assert not model._forward_hooks
    assert not model.first._forward_hooks


def test_a_lack_of_memory_is_no_crash():
    lacking = RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried")
    assert not is_crash(lacking)
    assert not is_crash(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_crash(RuntimeError("size mismatch"))


@pytest.mark.parametrize("bad", [[], [0], [7], [3, 4], list(range(16))])
def test_parts_are_halved_until_the_lanes_to_blame_are_alone(bad):
    calls = []

    def run(lanes):
        calls.append(lanes)
        if set(lanes.tolist()) & set(bad):
            raise IndexError
        return lanes.sum()

    found = list(separated(np.arange(16), run))
    assert np.concatenate([part for part, _ in found]).tolist() == list(range(16))
    assert [part.tolist() for part, outputs in found if outputs is None] == [[one] for one in sorted(bad)]
    assert all(outputs == part.sum() for part, outputs in found if outputs is not None)
    assert len(calls) <= 1 + 2 * 4 * max(len(bad), 1)
