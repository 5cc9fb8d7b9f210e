"""Thresholds and decay constants outside of buffers: every word is struck as if the attribute were set by hand."""

import struct
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import assert_agree, collect
from tests.support.spiking_networks import STEPS, spiking
from torchfault.data import Data
from torchfault.engine import Engine, Monitor, inject
from torchfault.engine.hooks.executor import HooksExecutor
from torchfault.errors import SpaceError
from torchfault.faults import BitFlip
from torchfault.model.discover import find
from torchfault.space import Fault, FaultSpace
from torchfault.trials import strike

JELLY = ("v_threshold", "v_reset", "tau")
NORSE = ("p.tau_syn_inv", "p.tau_mem_inv", "p.v_leak", "p.v_th", "p.v_reset", "dt")
CONSTANTS = {
    "spikingjelly_single": {"1": JELLY, "3": JELLY[:2]},
    "spikingjelly_multi": {"1": JELLY, "3": JELLY[:1]},
    "norse_cells": {"1": NORSE, "3": (*NORSE[:3], "dt")},
    "norse_whole": {"1": NORSE, "2": NORSE, "4": (*NORSE[:3], "dt")},
}
MARKED = [
    pytest.param(n, marks=pytest.mark.slow) if n in ("norse_whole", "spikingjelly_multi") else n for n in CONSTANTS
]


def flipped(value: float, bit: int) -> float:
    """Return the float32 number *value* with one bit flipped, by nothing that torchfault uses."""
    (word,) = struct.unpack("<I", struct.pack("<f", value))
    return struct.unpack("<f", struct.pack("<I", word ^ 1 << bit))[0]


def by_hand(model: nn.Module, name: str, bit: int) -> Any:
    """Set the attribute that a site is named after, with one bit flipped; return the module's old attribute."""
    path, _, role = name.partition(":constant.")
    module, (root, *field) = model.get_submodule(path), role.split(".")
    before = getattr(module, root)
    if field:
        old = getattr(before, field[0])
        fresh = before._replace(**{field[0]: torch.full_like(old, flipped(float(old), bit))})
    else:
        fresh = flipped(before, bit)
    setattr(module, root, fresh)
    return lambda: setattr(module, root, before)


@pytest.mark.parametrize("executor", ["graph", "hooks"])
@pytest.mark.parametrize("name", MARKED)
def test_every_bit_of_every_constant_is_struck_as_by_hand(name: str, executor: str, rng: np.random.Generator) -> None:
    model, data = spiking(name)
    engine = Engine(model, data, buffers=True, executor=executor)
    space = engine.space.select(kinds="constant")
    assert set(space.names) == {f"{path}:constant.{n}" for path, names in CONSTANTS[name].items() for n in names}
    inputs = rng.integers(0, len(data), len(space))
    trials = strike(space, space.locate(np.arange(len(space))), model=BitFlip(), rng=rng, inputs=inputs)
    found = collect(engine, trials)
    expected, moved = [], set()
    with torch.no_grad():
        golden = model(data.inputs)
        for trial, which in enumerate(inputs):
            site, bit = space.names[trial // 32], trial % 32
            back = by_hand(model, site, bit)
            try:
                expected.append(model(data.inputs[which : which + 1]))
            except ZeroDivisionError:
                expected.append(torch.full_like(golden[:1], torch.nan))
            back()
            if not torch.equal(expected[-1][0], golden[which]):
                moved.add(site)
        assert torch.equal(model(data.inputs), golden)
    assert_agree(found, [torch.cat(expected)])
    quiet = ("v_leak", "v_reset") if name != "norse_whole" else ("v_leak", "v_reset", "tau_syn_inv")
    # Of a network that rests at 0 and runs three steps: these may have nothing to multiply yet.
    assert all(site.endswith(quiet) for site in set(space.names) - moved)


def test_inject_strikes_constants_together_and_puts_the_very_objects_back() -> None:
    model, data = spiking("norse_cells")
    before, steps = model[1].p, model[1].dt
    faults = [
        Fault("1:constant.p.v_th", (), 23),
        Fault("1:constant.p.tau_mem_inv", (), 20),
        Fault("1:constant.dt", (), 3),
    ]
    with torch.no_grad(), inject(model, faults):
        struck = model[1].p
        mine = model(data.inputs)
    assert (float(struck.v_th), float(struck.tau_mem_inv)) == (0.5, flipped(100.0, 20))
    assert model[1].p is before
    assert model[1].dt is steps
    model[1].p, model[1].dt = struck, flipped(steps, 3)
    with torch.no_grad():
        theirs = model(data.inputs)
    model[1].p, model[1].dt = before, steps
    with torch.no_grad():
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, model(data.inputs))
    with (
        pytest.raises(SpaceError, match=r"did you mean '1:constant\.p\.v_th'"),
        inject(model, Fault("1:constant.p.v_tj", (), 0)),
    ):
        pass


class Levels(NamedTuple):
    """Levels of a potential."""

    rest: torch.Tensor
    fire: float


@dataclass(frozen=True)
class Speeds:
    """What is left of a potential after a step, and what is not read."""

    decay: float
    spare: float = 7.0


class Neuron(nn.Module):
    """A neuron of one's own that keeps its numbers in all kinds of places."""

    gain = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.speeds = Levels(torch.tensor([0.1, 0.2]), 1.0), Speeds(0.5)
        self.more = {"leak": 0.125, "steps": 3, "list": [0.0, 0.75]}
        self.register_buffer("shift", torch.zeros(2))
        self.alias = self.shift  # a buffer under another name
        self.potential, self.last = None, 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.levels.rest if self.potential is None else self.potential
        self.potential = self.speeds.decay * before + self.gain * x - self.more["leak"] + self.alias
        fired = (self.potential > self.levels.fire).float()
        self.potential = torch.where(fired > 0, self.potential * self.more["list"][1], self.potential)
        self.last = 0.5 * self.last + 1.0  # a number of the module's own making is no constant
        return fired + self.potential


class Network(nn.Module):
    """A layer and a neuron, over time and from rest."""

    def __init__(self, layer: nn.Module, neuron: Neuron) -> None:
        super().__init__()
        self.layer, self.neuron = layer, neuron

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.neuron.potential, self.neuron.last = None, 0.0
        return torch.stack([self.neuron(self.layer(x)) for _ in range(STEPS)], 1)


def test_constants_are_found_in_all_kinds_of_places_and_nothing_else() -> None:
    model = Network(nn.ReLU(), Neuron()).eval()
    data = Data(torch.linspace(0.05, 1.5, 8).view(4, 2))
    held = {name: value for name, value in model.neuron.__dict__.items() if not name.startswith("_")}
    sites = {site.name: site for site in find(model, data, buffers=True).space.sites if site.kind == "constant"}
    roles = ("levels.rest", "levels.fire", "speeds.decay", "more.leak", "more.list.1", "gain")
    assert set(sites) == {f"neuron:constant.{role}" for role in roles}
    assert (sites["neuron:constant.levels.rest"].shape, sites["neuron:constant.gain"].shape) == ((2,), ())
    assert not find(model, data).space.names.count("neuron:constant.gain")
    changes = {
        "levels.rest": lambda n: setattr(n, "levels", n.levels._replace(rest=torch.tensor([0.1, flipped(0.2, 22)]))),
        "levels.fire": lambda n: setattr(n, "levels", n.levels._replace(fire=flipped(1.0, 22))),
        "speeds.decay": lambda n: setattr(n, "speeds", replace(n.speeds, decay=flipped(0.5, 22))),
        "more.leak": lambda n: n.more.update(leak=flipped(0.125, 22)),
        "more.list.1": lambda n: n.more["list"].__setitem__(1, flipped(0.75, 22)),
        "gain": lambda n: setattr(n, "gain", flipped(2.0, 22)),
    }
    with torch.no_grad():
        for role, change in changes.items():
            element = 1 if role == "levels.rest" else ()
            with inject(model, Fault(f"neuron:constant.{role}", element, 22)):
                mine = model(data.inputs)
            assert all(
                model.neuron.__dict__[name] is value
                for name, value in held.items()
                if name not in ("potential", "last")
            )
            other = Network(model.layer, Neuron()).eval()
            change(other.neuron)
            assert torch.equal(mine, other(data.inputs)), role
            other = Network(model.layer, Neuron()).eval()
            assert not torch.equal(mine, other(data.inputs)), role


def test_a_number_that_python_cannot_work_with_is_a_detected_error() -> None:
    class Divides(Neuron):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1.0 / self.gain)

    model = Network(nn.ReLU(), Divides()).eval()
    data = Data(torch.linspace(0.05, 1.5, 8).view(4, 2))
    executor = HooksExecutor(model, data, buffers=True)
    space = FaultSpace((executor.space.site("neuron:constant.gain"),))
    trials = strike(
        space, space.locate([30, 29]), model=BitFlip(), rng=np.random.default_rng(0), inputs=np.array([1, 1])
    )
    (found,) = collect(executor, trials)  # bit 30 of 2.0 leaves 0.0
    assert found[0].isnan().all()
    assert found[1].isfinite().all()
    engine = Engine(model, data, buffers=True)
    monitor = Monitor(engine.space)
    assert sum(len(lanes.trial) for lanes in engine.run(trials, monitor=monitor)) == 2
    travel = monitor.travel()  # the pass with 0.0 ended before it gave anything else than golden
    assert (travel.last_changed[0], travel.last_changed[1]) == ("", "stack:output")
    assert not travel.masked.any()
    graph = Engine(model, data, executor="graph", buffers=True)  # which has the number as a constant: hooks strike it
    assert torch.equal(collect(graph, trials)[0].isnan(), found.isnan())
    assert_agree([collect(graph, trials)[0][1:]], [found[1:]])
