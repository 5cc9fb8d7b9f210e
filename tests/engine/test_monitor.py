"""Monitors against plain forward passes: what activations look like, and how far errors travel."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import collect, random_trials
from tests.support.networks import NETWORKS
from tests.support.reference import reference
from tests.support.spiking_networks import STEPS, spiking
from torchfault.data import Data, call, leaves, rows
from torchfault.engine import Engine, Monitor, inject
from torchfault.errors import EngineError
from torchfault.faults import BitFlip
from torchfault.model.discover import find
from torchfault.model.lane_axis import lanes_first
from torchfault.model.watch import Moment, visiting
from torchfault.trials import strike


class Recorder:
    """Keeps every output and state of one pass, those of all time steps together."""

    def __init__(self, layouts) -> None:
        self.layouts, self.seen = layouts, {}

    def __call__(self, moment: Moment) -> None:
        for i, tensor in enumerate(moment.tensors):
            name = f"{moment.base}:{moment.role.partition('#')[0]}{i or ''}"
            if name in self.layouts:
                found = lanes_first(tensor, self.layouts[name])[0].detach().double().flatten()
                self.seen[name] = torch.cat([self.seen.get(name, found[:0]), found])


def recorded(model: nn.Module, data: Data, which: int, layouts, words: dict) -> dict:
    """Return all outputs for one input, with words of parameters replaced."""
    cells = find(model, data).cells
    recorder, stored = Recorder(layouts), dict(model.named_parameters())
    saved = {name: stored[name].detach().clone() for name in words}
    leaf = [path for path, module in model.named_modules() if path and not list(module.children())]
    try:
        for name, value in words.items():
            stored[name].data.copy_(value)
        with torch.no_grad(), visiting(model, recorder, modules=leaf, operations=None, cells=cells):
            call(model, rows(data.inputs, slice(which, which + 1)))
    finally:
        for name, value in saved.items():
            stored[name].data.copy_(value)
    return recorder.seen


SLOW = {("digits", "hooks"), ("transformer", "graph"), ("lstm", "hooks")}  # a quarter of a minute each
TABLES = [
    pytest.param(name, executor, marks=[pytest.mark.slow] if (name, executor) in SLOW else [])
    for name in ("digits", "depthwise", "transformer", "lstm", "folded")
    for executor in ("graph", "hooks")
]


@pytest.mark.parametrize(("name", "executor"), TABLES)
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


def potentials(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the neurons of SpikingJelly's network fire and hold at each step, (steps, neurons), for one input."""
    seen: dict[str, list[torch.Tensor]] = {}

    def note(path: str):
        def hook(module, args, output):
            del args
            seen.setdefault(f"{path}:output", []).append(output[0].clone())
            if hasattr(module, "v"):
                seen.setdefault(f"{path}:state.v", []).append(module.v[0].clone())

        return hook

    handles = [model[i].register_forward_hook(note(str(i))) for i in range(4)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return {name: torch.stack(steps) for name, steps in seen.items()}


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_a_spiking_network_is_followed_over_all_its_steps(executor: str) -> None:
    model, data = spiking("spikingjelly_single")
    engine = Engine(model, data, executor=executor, buffers=executor == "hooks")
    monitor = Monitor(engine.space)
    stepped = {"0:output", "1:state.v", "1:output", "2:output", "3:state.v", "3:output"}
    assert set(monitor.sites) == stepped | {"stack:output"}
    space = engine.space.select("0.weight", bits=[22, 23, 29, 31])
    rng, count = np.random.default_rng(3), 24
    where, inputs = space.locate(rng.integers(0, len(space), count)), rng.integers(0, len(data), count)
    trials = strike(space, where, model=BitFlip(), rng=rng, inputs=inputs)
    assert sum(len(lanes.trial) for lanes in engine.run(trials, monitor=monitor)) == count
    travel, whole, single = monitor.travel(), monitor.table().set_index("site"), monitor.table(by="step")
    golden = [potentials(model, data.inputs[i : i + 1]) for i in inputs]
    faulty = []
    for trial, which in enumerate(inputs):
        with inject(model, trials.take(np.array([trial]))):
            faulty.append(potentials(model, data.inputs[which : which + 1]))
    for site in stepped:
        before, after = (torch.stack([seen[site] for seen in passes]).double() for passes in (golden, faulty))
        mine = single[single.site == site]
        assert mine.step.tolist() == list(range(STEPS))
        for side, values in (("golden", before), ("faulty", after)):
            found = whole.loc[site, [f"{side}_min", f"{side}_max", f"{side}_mean"]].to_numpy(dtype=float)
            expected = [values.min().item(), values.max().item(), values.mean().item()]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(mine[f"{side}_mean"], values.mean((0, 2)), rtol=1e-4, atol=1e-5)
        moved = (before - after).abs().amax(2) > 1e-4
        assert whole.changed[site] >= moved.any(1).sum()  # bit for bit, more have changed than by much
        if site in ("1:output", "3:output"):  # spikes are exact
            assert mine.changed.tolist() == moved.sum(0).tolist()
            assert whole.changed[site] == moved.any(1).sum()
    spikes = [(b["3:output"] != a["3:output"]).any(1) for b, a in zip(golden, faulty, strict=True)]
    assert travel.masked.tolist() == [not bool(x.any()) for x in spikes]
    for trial in np.flatnonzero(~travel.masked):
        assert travel.last_changed[trial] == "stack:output"
        assert travel.last_step[trial] >= spikes[trial].nonzero().max()
    assert 0 < travel.masked.sum() < count
    assert set(travel.masked_at[travel.masked]) <= {*monitor.sites[1:]}


@pytest.mark.parametrize("name", ["spikingjelly_multi", "norse_whole"])
def test_both_executors_see_the_same_inside_of_a_layer_that_runs_all_its_steps(name: str) -> None:
    model, data = spiking(name)
    found = []
    for executor in ("graph", "hooks"):
        engine = Engine(model, data, executor=executor)
        monitor = Monitor(engine.space)
        trials = random_trials(engine.space.select(kinds=("state", "weight")), len(data), 40, seed=3)
        assert sum(len(lanes.trial) for lanes in engine.run(trials, monitor=monitor)) == 40
        found.append((monitor.travel(), monitor.table(by="step")))
    (one, table), (two, again) = found
    assert any(":state." in site for site in one.last_changed)
    assert one.last_step.notna().sum() > 10
    # They compute in batches of other sizes, so that a last bit may differ.
    assert (one.last_step.fillna(-1) == two.last_step.fillna(-1)).mean() >= 0.9
    assert (one.last_changed == two.last_changed).mean() >= 0.9
    assert table.site.tolist() == again.site.tolist()
    np.testing.assert_allclose(table.golden_mean, again.golden_mean, atol=1e-6)


def test_the_activations_of_quantised_layers_are_followed_by_their_values() -> None:
    static = pytest.importorskip("tests.engine.test_quantised").static
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, data = static(), Data(torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1)))
        engine = Engine(model, data)
        monitor = Monitor(engine.space)
        trials = random_trials(engine.space.select("1.weight"), 4, 20, seed=3)
        assert sum(len(lanes.trial) for lanes in engine.run(trials, monitor=monitor)) == 20
        with torch.no_grad():
            values = model[1](model[0](data.inputs)).dequantize()[trials.inputs]
    row = monitor.table().set_index("site").loc["1:output"]
    assert row.changed > 0
    assert (row.golden_min, row.golden_max) == (values.min().item(), values.max().item())


def test_a_state_that_is_overwritten_ends_the_error_in_time() -> None:
    model, data = spiking("spikingjelly_single")
    with torch.no_grad():
        model[0].bias.fill_(3.0)
        model[0].weight.zero_()
    for executor in ("graph", "hooks"):
        engine = Engine(model, data, executor=executor)
        space = engine.space.select("1:state.v", bits=[0, 29])
        number = [space.number(np.array([0]), np.array([element]), np.array([29]))[0] for element in (2, 6 + 2)]
        inputs = np.zeros(2, int)
        trials = strike(space, space.locate(number), model=BitFlip(), rng=np.random.default_rng(0), inputs=inputs)
        monitor = Monitor(engine.space)
        assert sum(len(lanes.trial) for lanes in engine.run(trials, monitor=monitor)) == 2
        # Every neuron fires at every step and is reset to 0: a potential of 0 has no bit 29 to lose, but one to gain,
        # which makes 1e-19 of it: no subnormal number that a kernel might flush.
        assert monitor.travel().last_step.tolist() == [0, 1]
        assert monitor.travel().last_changed.tolist() == ["1:state.v"] * 2
        assert monitor.travel().masked_at.tolist() == ["1:output"] * 2


def test_a_monitor_belongs_to_its_engine() -> None:
    engine = Engine(*NETWORKS["digits"]())
    trials = random_trials(engine.space, 6, 3)
    with pytest.raises(EngineError, match=r"Monitor\(engine.space\)"):
        engine.run(trials, monitor=Monitor(engine.space.select("conv1*")))


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_what_has_not_run_is_missing_and_runs_may_take_turns(executor: str) -> None:
    model, data = NETWORKS["digits"]()
    engine = Engine(model, data, executor=executor)
    space = engine.space.select("conv2.weight", bits=[30, 0])
    rng = np.random.default_rng(3)
    parts = [strike(space, space.locate(rng.integers(0, len(space), 150)), model=BitFlip(), rng=rng) for _ in range(3)]
    alone = []
    for part in parts:
        monitor = Monitor(engine.space)
        for _ in engine.run(part, monitor=monitor):
            pass
        alone.append(monitor.travel())
    together = Monitor(engine.space)
    runs = [engine.run(part, monitor=together) for part in parts]
    assert together.trials == 450
    assert together.travel().masked.isna().all()
    assert together.travel()[["last_changed", "last_step", "masked_at"]].isna().all(axis=None)
    finished = np.zeros(450, dtype=bool)
    pending = [(0, runs[0]), (1, runs[1])]  # the third is never consumed
    while pending:
        which, run = pending.pop(0)
        lanes = next(run, None)
        if lanes is not None:
            finished[150 * which + lanes.trial] = True
            pending.append((which, run))
            travel = together.travel()
            assert (travel.masked.notna() == finished).all()
    assert finished.tolist() == [True] * 300 + [False] * 150
    for which in (0, 1):
        mine = together.travel().iloc[150 * which : 150 * (which + 1)].reset_index(drop=True)
        columns = ["last_changed", "masked", "masked_at"]
        assert mine[columns].equals(alone[which][columns])
    assert together.travel().iloc[300:].masked.isna().all()
    assert together.lanes == 300
