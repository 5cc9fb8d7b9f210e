"""What a guard saw wrong is computed again: transient faults are gone, lasting ones are mended as before."""

import numpy as np
import pytest
import torch
from torch import nn

from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import ModelError
from torchfault.faults import BitFlip
from torchfault.hardening import InvariantBits, Ranges, detecting, detection, harden, profile, recomputing
from torchfault.trials import strike


class Strikes(nn.Module):
    """Puts *value* into a row of what it reads, the first *times* that it is called."""

    def __init__(self, value, times):
        super().__init__()
        self.value, self.times, self.calls = value, times, 0

    def forward(self, x):
        self.calls += 1
        if self.calls > self.times:
            return x
        x = x.clone()
        x[1, 2] = self.value
        return x


def network(value=0.0, times=0):
    torch.manual_seed(0)
    layers = (nn.Linear(4, 6), nn.ReLU(), Strikes(value, times), nn.Linear(6, 3))
    return nn.Sequential(*layers).eval().requires_grad_(False)


DATA = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("value", [1e30, float("nan"), -50.0])
def test_a_transient_fault_that_is_seen_is_gone(value):
    golden, clean = profile(network(), DATA), network()(DATA)
    struck = network(value, 1)
    safe = recomputing(harden(struck, Ranges(), profile=golden))
    assert torch.equal(safe(DATA), clean)
    assert safe.watched.model[2].calls == 2
    assert torch.equal(safe(DATA), clean)
    assert safe.watched.model[2].calls == 3  # nothing was seen, so nothing is computed again


def test_a_lasting_fault_is_mended_as_without():
    golden = profile(network(), DATA)
    lasting = harden(network(1e30, 9), Ranges(), profile=golden)
    assert torch.equal(recomputing(lasting)(DATA), lasting(DATA))
    safe = harden(network(), InvariantBits())
    safe[0].weight.view(torch.int32)[0, 0] ^= 1 << 30
    assert torch.equal(recomputing(safe)(DATA), network()(DATA))


def test_rows_in_which_nothing_was_seen_stay_as_they_are():
    golden, clean = profile(network(), DATA), network()(DATA)
    safe = recomputing(harden(network(0.123, 1), Ranges(), profile=golden))
    found = safe(DATA)
    assert not torch.equal(found[1], clean[1])  # within its range
    assert torch.equal(found[2:], clean[2:])


def test_flips_that_are_seen_leave_no_trace_in_the_engine():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval().requires_grad_(False)
    safe = recomputing(harden(model, Ranges(), profile=profile(model, DATA)))
    engine = Engine(safe, Data(DATA), executor="hooks")
    space = engine.space.select("watched.model.1:output", bits=[30])
    rng = np.random.default_rng(0)
    where, inputs = space.locate(rng.integers(0, len(space), 80)), rng.integers(0, len(DATA), 80)
    same = 0
    for lanes in engine.run(strike(space, where, model=BitFlip(), rng=rng, inputs=inputs)):
        same += int((lanes.outputs == lanes.golden).all(1).sum())
    assert same > 60  # a value of 0 becomes 2, within the range


def test_a_model_without_guards_is_refused():
    with pytest.raises(ModelError, match="no guards"):
        recomputing(network())


def test_a_captured_model_computes_the_same():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval().requires_grad_(False)
    safe = recomputing(harden(model, Ranges(), profile=profile(model, DATA)))
    captured = torch.export.export(safe, (DATA,), strict=False).module()
    assert torch.allclose(captured(DATA), model(DATA))


def test_latency_is_told_in_layers_that_computed_until_a_guard_saw_a_failure():
    torch.manual_seed(0)
    layers = (nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model, data = nn.Sequential(*layers).eval().requires_grad_(False), Data(torch.randn(20, 4))
    golden = profile(model, data)
    found = {}
    for name, methods in {
        "weights": (InvariantBits(),),
        "next": (Ranges(("2:input", "4:input")),),
        "last": (Ranges("4:output"),),
    }.items():
        engine = Engine(detecting(harden(model, *methods, profile=golden), mend=False), data, executor="hooks")
        space = engine.space.select("model.0.weight", bits=[30])
        found[name] = detection(engine, space=space, trials=300)
        assert sum(found[name].latency) == round(found[name].coverage.value * found[name].coverage.trials) > 50
    assert len(found["weights"].latency) == 1  # before another layer computes
    assert len(found["next"].latency) == 2
    assert found["next"].latency[0] > 10 * found["next"].latency[1] > 0  # a few leave their range one layer later
    assert found["last"].latency[:2] == (0, 0)
    assert len(found["last"].latency) == 3


def test_what_no_guard_saw_is_not_detected_even_where_the_answer_is_no_number():
    model, data = nn.Sequential(nn.Linear(2, 2)).eval().requires_grad_(False), Data(torch.rand(5, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)  # a flip of bit 30 makes it infinite
    watched = detecting(harden(model, Ranges("0:input"), profile=profile(model, data)), mend=False)
    engine = Engine(watched, data, executor="hooks")
    found = detection(engine, space=engine.space.select("*.weight", bits=[30]), trials=50)
    assert found.coverage.trials == 50
    assert (found.coverage.value, found.latency) == (0, ())
