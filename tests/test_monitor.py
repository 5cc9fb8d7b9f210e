"""Monitors against plain forward passes: what activations look like, and how far errors travel."""

import numpy as np
import pytest
import torch
from agreement import collect, random_trials
from networks import NETWORKS
from reference import reference
from torch import nn

from torchfault.engine import Engine, Monitor
from torchfault.errors import EngineError
from torchfault.faults import BitFlip, strike
from torchfault.model.data import Data, call, leaves, rows
from torchfault.model.layout import lanes_first
from torchfault.model.sites import find
from torchfault.model.visit import Moment, visiting


class Recorder:
    """Keeps every output of one pass."""

    def __init__(self, layouts) -> None:
        self.layouts, self.seen = layouts, {}

    def __call__(self, moment: Moment) -> None:
        for i, tensor in enumerate(moment.tensors):
            name = f"{moment.base}:{moment.role}{i or ''}"
            if name in self.layouts:
                self.seen[name] = lanes_first(tensor, self.layouts[name])[0].detach().double().flatten()


def recorded(model: nn.Module, data: Data, which: int, layouts, words: dict) -> dict:
    """Return all outputs for one input, with words of parameters replaced."""
    recorder, stored = Recorder(layouts), dict(model.named_parameters())
    saved = {name: stored[name].detach().clone() for name in words}
    leaf = [path for path, module in model.named_modules() if path and not list(module.children())]
    try:
        for name, value in words.items():
            stored[name].data.copy_(value)
        with torch.no_grad(), visiting(model, recorder, modules=leaf, operations=None):
            call(model, rows(data.inputs, slice(which, which + 1)))
    finally:
        for name, value in saved.items():
            stored[name].data.copy_(value)
    return recorder.seen


@pytest.mark.parametrize("executor", ["graph", "hooks"])
@pytest.mark.parametrize("name", ["digits", "depthwise", "transformer", "lstm", "folded"])
def test_tables_are_those_of_plain_passes(name: str, executor: str) -> None:
    model, data = NETWORKS[name]()
    engine = Engine(model, data, executor=executor)
    weights = engine.space.select([name for name, _ in model.named_parameters()])
    trials = random_trials(weights, len(data), 25, seed=4)
    monitor = Monitor(engine.space)
    for part in (trials.take(np.arange(10)), trials.take(np.arange(10, 25))):  # two runs, one after the other
        for _ in engine.run(part, monitor=monitor):
            pass
    layouts = {k: v for k, v in find(model, data).layouts.items() if k in monitor.sites}
    golden, faulty = ([], [])
    for trial in range(25):
        row = trials.offsets[trial]
        site = trials.sites[trials.site[row]].name
        struck = dict(model.named_parameters())[site].detach().clone()
        word = struck.flatten()[trials.element[row]].view(torch.int32).item() & 0xFFFFFFFF
        word = (word & int(trials.keep[row])) ^ int(trials.toggle[row])
        struck.view(-1)[trials.element[row]] = torch.tensor([word]).to(torch.uint32).view(torch.float32)[0]
        golden.append(recorded(model, data, int(trials.inputs[trial]), layouts, {}))
        faulty.append(recorded(model, data, int(trials.inputs[trial]), layouts, {site: struck}))
    table = monitor.table().set_index("site")
    assert (table.lanes == 25).all()
    for site in monitor.sites:
        for side, passes in (("golden", golden), ("faulty", faulty)):
            values = torch.cat([seen[site] for seen in passes])
            fine = values[values.isfinite()]
            tame = fine.abs().max() < 1e30
            lost = 1 - len(fine) / len(values)
            assert table.loc[site, f"{side}_non_finite"] == pytest.approx(lost, abs=1e-9 if tame else 1)
            if tame:
                found = table.loc[site, [f"{side}_min", f"{side}_max", f"{side}_mean"]].to_numpy(dtype=float)
                expected = [fine.min().item(), fine.max().item(), fine.mean().item()]
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(fine.abs().max()))
        moved = sum(not torch.allclose(a[site], b[site], rtol=1e-3, atol=1e-4, equal_nan=True)
                    for a, b in zip(golden, faulty, strict=True))  # fmt: skip
        assert table.loc[site, "changed"] >= moved  # bit for bit, more have changed than by much


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_monitors_do_not_change_outcomes(executor: str) -> None:
    model, data = NETWORKS["depthwise"]()
    engine = Engine(model, data, executor=executor)
    trials = random_trials(engine.space, len(data), 60, faults=2, seed=8)
    plain = collect(engine, trials)
    monitor = Monitor(engine.space)
    watched: dict[int, torch.Tensor] = {}
    for lanes in engine.run(trials, monitor=monitor):
        watched |= dict(zip(lanes.trial.tolist(), leaves(lanes.faulty)[0], strict=True))
    mine = torch.stack([watched[i] for i in range(60)])
    torch.testing.assert_close(mine, plain[0], rtol=1e-4, atol=1e-5, equal_nan=True)
    assert len(monitor.travel()) == monitor.trials == monitor.lanes == 60


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_errors_end_where_they_are_masked(executor: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
        model[2].weight[1, 1] = 0.0
    data = Data(torch.tensor([[1.0, -1.0]]))
    engine = Engine(model, data, executor=executor)
    space = engine.space
    faults = [
        space.number(*(np.array([x]) for x in (space.names.index(name), element, bit)))[0]
        for name, element, bit in [
            ("0.weight", 3, 22),  # doubles -1 or so: the ReLU hides it
            ("0.weight", 0, 22),  # reaches the end
            ("1:output", 1, 30),  # the second layer multiplies it by zero
            ("4.bias", 0, 31),  # 0 becomes -0: nothing is seen
        ]
    ]
    trials = strike(space, space.locate(faults), model=BitFlip(), rng=np.random.default_rng(0), inputs=np.zeros(4, int))
    monitor = Monitor(space)
    lanes = list(engine.run(trials, monitor=monitor))
    assert sum(len(x.trial) for x in lanes) == 4
    travel = monitor.travel()
    assert travel.last_changed.tolist() == ["0:output", "4:output", "1:output", ""]
    assert travel.masked.tolist() == [True, False, True, True]
    assert travel.masked_at.tolist() == ["1:output", "", "2:output", "4:output"]
    expected = leaves(reference(model, data, trials))[0]
    golden = model(data.inputs)
    assert (expected == golden).all(1).tolist() == travel.masked.tolist()


def test_a_monitor_belongs_to_its_engine() -> None:
    engine = Engine(*NETWORKS["digits"]())
    trials = random_trials(engine.space, 6, 3)
    with pytest.raises(EngineError, match=r"Monitor\(engine.space\)"):
        engine.run(trials, monitor=Monitor(engine.space.select("conv1*")))
