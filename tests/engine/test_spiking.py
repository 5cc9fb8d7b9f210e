"""Networks with states: every state is a site with time steps, and every trial comes out as the reference says."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.reference import reference
from tests.support.spiking_networks import SPIKING, STEPS, spiking
from torchfault.adapters.over_time import over_time
from torchfault.data import Data, leaves
from torchfault.engine.graph.executor import GraphExecutor
from torchfault.engine.hooks.executor import HooksExecutor
from torchfault.engine.inject import inject
from torchfault.errors import FaultError, ModelError
from torchfault.faults import DEAD, SATURATED, Lasting, StuckAt
from torchfault.model.discover import find
from torchfault.model.states import find_cells
from torchfault.space import Fault
from torchfault.trials import pack

STATES = {
    "snntorch_passed": {"lif1:state.mem", "lif2:state.syn", "lif2:state.mem"},
    "snntorch_held": {"1:state.mem", "3:state.mem"},
    "snntorch_recurrent": {"1:state.spk", "1:state.mem"},
    "spikingjelly_single": {"1:state.v", "3:state.v"},
    "spikingjelly_multi": {"1:state.v", "3:state.v"},
    "norse_cells": {"1:state.v", "1:state.i", "3:state.v", "3:state.i"},
    "norse_whole": {"1:state.v", "1:state.i", "2:state.z", "2:state.v", "2:state.i", "4:state.v", "4:state.i"},
    "Cells": {"gru:state.h", "cell:state.h", "cell:state.c"},
}
SLOW = {"snntorch_recurrent", "spikingjelly_multi", "norse_whole", "snntorch_held"}
MARKED = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SPIKING]


@pytest.mark.parametrize("name", MARKED)
def test_both_executors_agree_with_the_reference_on_every_site_and_step(name: str) -> None:
    model, data = spiking(name)
    hooks = HooksExecutor(model, data, memory=2**26)
    graph = GraphExecutor(model, data, memory=2**26)
    states = hooks.space.select(kinds="state")
    assert set(states.names) == STATES[name]
    assert {site.steps for site in states.sites} == {(0, STEPS)}
    assert set(hooks.space.names) == set(graph.space.names)
    with torch.no_grad():
        assert_agree(leaves(graph.golden()), leaves(hooks.golden()))
    for executor, seed, fault in ((graph, 0, None), (hooks, 1, None), (graph, 2, Lasting(StuckAt(1)))):
        trials = random_trials(executor.space, len(data), 120, seed=seed, model=fault)
        expected = _reference(model, data, trials, name)
        assert_agree(collect(executor, trials), expected)


def _reference(model: nn.Module, data: Data, trials, name: str) -> list[torch.Tensor]:
    """Return the reference's outputs with one row per trial, wherever the network has its batch axis."""
    axis = 1 if name == "snntorch_passed" else 0
    rows = [leaves(reference(model, data, trials.take(np.array([i])))) for i in range(len(trials))]
    return [torch.cat([row[i].movedim(axis, 0) for row in rows]) for i in range(len(rows[0]))]


@pytest.mark.parametrize("name", ["snntorch_held", "spikingjelly_single", "norse_cells"])
def test_inject_strikes_a_state_at_its_step_and_leaves_the_model_as_it_was(name: str) -> None:
    model, data = spiking(name)
    found = find(model, data)
    state = next(site for site in found.space.sites if site.kind == "state" and site.name.startswith("1:"))
    with torch.no_grad():
        golden = model(data.inputs).clone()
        before = _held(model)
        with inject(model, Fault(state.name, 2, bit=30, step=1), space=found):
            faulty = model(data.inputs)
        assert _held(model) == before
        again = model(data.inputs)
        trials = pack(found.space, [Fault(state.name, 2, bit=30, step=1)])
        for sample in range(len(data)):
            alone = reference(model, data, trials.on(np.array([sample])))
            torch.testing.assert_close(faulty[sample : sample + 1], alone, equal_nan=True)
        with inject(model, Fault(state.name, 2, bit=30, step=1, sample=3), space=found):
            one = model(data.inputs)
    torch.testing.assert_close(one[3], faulty[3], equal_nan=True)
    assert torch.equal(one[:3], golden[:3])
    assert torch.equal(again, golden)
    assert torch.equal(golden[:, :1], faulty[:, :1])  # the state is struck behind step 1, whose output it cannot reach
    with (
        pytest.raises(FaultError, match="has time steps, which only the model shows"),
        inject(model, Fault(state.name, 2, bit=30, step=1)),
    ):
        model(data.inputs)


def _held(model: nn.Module) -> list[tuple[str, bytes]]:
    """Return every tensor that the modules hold, in buffers, attributes and dictionaries, by its bytes."""
    found = []
    for path, module in model.named_modules():
        homes = [module.__dict__, *(value for value in module.__dict__.values() if isinstance(value, dict))]
        for home in homes:
            for name, value in home.items():
                if isinstance(value, torch.Tensor):
                    found.append((f"{path}.{name}", value.detach().numpy().tobytes()))
    return found


def test_dead_and_saturated_neurons_spike_never_and_always() -> None:
    model, data = spiking("spikingjelly_single")
    found = find(model, data)
    with torch.no_grad():
        for fault, level in ((DEAD, 0.0), (SATURATED, 1.0)):
            with inject(model, Fault("3:output", 2, bit=0, step=1, model=fault), space=found):
                spikes = model(data.inputs)
            assert (spikes[:, 1:, 2] == level).all()


def test_a_model_runs_over_time_under_its_own_names_and_stays_as_it_is() -> None:
    inner = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    model = over_time(inner, steps=4)
    x = torch.rand(5, 3)
    assert isinstance(model, nn.Sequential)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert model(x).shape == (5, 4, 2)
    assert inner(x).shape == (5, 2)
    torch.testing.assert_close(over_time(inner, steps=4, read="last")(x), inner(x))  # products of other shapes
    trains = torch.rand(5, 4, 3)
    torch.testing.assert_close(over_time(inner)(trains), inner(trains))
    torch.testing.assert_close(over_time(inner, read="count")(trains), inner(trains).sum(1))
    torch.testing.assert_close(over_time(inner, whole=True, read="mean")(trains), inner(trains).mean(1))
    for wrong in ({"steps": 0}, {"read": "sum"}):
        with pytest.raises(ModelError, match="got"):
            over_time(inner, **wrong)
    with pytest.raises(ModelError, match=r"spike trains are \(N, T, ...\), got shape \(5,\)"):
        over_time(inner)(torch.rand(5))


class Custom(nn.Module):
    """A neuron of one's own: a state in an attribute, one that is only written, and one edited in place."""

    def __init__(self) -> None:
        super().__init__()
        self.level = self.seen = None
        self.register_buffer("total", torch.zeros(1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.level = x if self.level is None else 0.5 * self.level + x
        self.seen = x * 2
        self.total.add_(x[:1])
        return (self.level > 1).float() + self.total


def test_states_are_what_a_module_changes_and_reads_again() -> None:
    neuron = Custom()
    model = nn.Sequential(neuron, nn.Linear(3, 3), neuron)
    (cell,) = find_cells(model, torch.rand(1, 3))
    assert {slot.name for slot in cell.held} == {"level", "total"}
    assert neuron.level is None
    assert torch.equal(neuron.total, torch.zeros(1, 3))
    shared = nn.Linear(3, 3)
    for plain in (
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
        nn.Sequential(shared, nn.Sequential(shared), shared),
    ):
        assert find_cells(plain.eval(), torch.rand(2, 3)) == ()
