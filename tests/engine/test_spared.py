"""Where golden values do not fit, those held lie in memory that is used again, and lanes do not tell the difference."""

import gc
import re
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import assert_agree, assert_reference, collect, random_trials
from tests.support.networks import NETWORKS
from torchfault.data import Data, leaves, map_tensors
from torchfault.engine.engine import Engine
from torchfault.engine.graph.golden_pass import Golden, golden_pass
from torchfault.engine.graph.spared import Reused, spares
from torchfault.engine.graph.sweep import Sweep
from torchfault.engine.monitor import Monitor


class Block(nn.Module):
    """A residual block whose normalisations are not trivial."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((self.body(x) - x).relu().mean((2, 3)))


class Counting(nn.Module):
    """Picks a value of each input by its number in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[torch.arange(len(x)), x.argmax(1)].unsqueeze(1)


def residual(images: int = 40) -> tuple[nn.Module, Data]:
    torch.manual_seed(5)
    model = Block()
    model.train()
    for _ in range(3):
        model(torch.randn(16, 3, 16, 16))
    return model.eval(), Data(torch.randn(images, 3, 16, 16))


def made(name: str) -> tuple[nn.Module, Data]:
    return residual() if name == "residual" else NETWORKS[name]()


def planned(model, data):
    """Return the program of a model, what is spared of it, and how to run it."""
    executor = Engine(model, data, executor="graph")._executor
    options = {"channels_last": executor.channels_last}
    with torch.inference_mode():
        one = golden_pass(executor.program, data.inputs, np.arange(1), **options)
        return executor.program, spares(executor.program, one.values, executor.plan.last_reader), options


def assert_alike(mine, theirs):
    for a, b in zip(leaves(mine), leaves(theirs), strict=True):
        assert (torch.equal(a, b), a.stride()[1:], a.dtype) == (True, b.stride()[1:], b.dtype)


@pytest.mark.parametrize("name", ["residual", "digits", "depthwise"])
@pytest.mark.parametrize("step", [3, 8])
def test_values_are_those_of_the_whole_in_any_order(name, step):
    """All at once, to the bit; a few inputs at a time, but for the order of sums in convolutions."""
    model, data = made(name)
    program, plan, options = planned(model, data)
    memory = Reused(plan.nodes, 8, step)
    with torch.inference_mode():
        golden_pass(program, data.inputs, np.arange(len(data))[-8:], **options, plan=memory)  # leaves its values there
        whole = golden_pass(program, data.inputs, np.arange(3), **options)
        found = golden_pass(program, data.inputs, np.arange(3), **options, plan=memory)
        rows = torch.tensor([2, 0, 2])
        order = np.random.default_rng(0).permutation(len(program.nodes))
        for position in (*range(len(program.nodes)), *order.tolist()):
            assert_alike(found.values[position], whole.values[position])
            assert_alike(found.take(position, rows), whole.take(position, rows))
            assert found.holds(position) == (position not in plan.nodes)
            for like, value in zip(leaves(found.like(position)), leaves(whole.values[position]), strict=True):
                assert (like.shape, like.dtype) == (value.shape, value.dtype)
        assert_alike(found.outputs(rows), whole.outputs(rows))


def test_a_few_inputs_at_a_time_are_all_of_them():
    program, plan, options = planned(*residual())
    data = residual()[1]
    with torch.inference_mode():
        inputs = np.array([0, 3, 4, 5, 9, 17, 39])
        whole = golden_pass(program, data.inputs, inputs, **options)
        found = golden_pass(program, data.inputs, inputs, **options, plan=Reused(plan.nodes, 9, 3))
        for position in range(len(program.nodes)):
            torch.testing.assert_close(found.values[position], whole.values[position], rtol=1e-5, atol=1e-6)


def test_what_somebody_still_reads_is_not_written_over():
    program, plan, options = planned(*residual())
    data, memory = residual()[1], Reused(plan.nodes, 4, 2)
    with torch.inference_mode():
        first = golden_pass(program, data.inputs, np.arange(4), **options, plan=memory)
        address = first.values[program.outputs[0].node].data_ptr()
        known = {p: first.values[p].clone() for p in range(len(program.nodes))}
        second = golden_pass(program, data.inputs, np.arange(4, 8), **options, plan=memory)
        assert second.values[program.outputs[0].node].data_ptr() != address
        assert all(torch.equal(first.values[p], value) for p, value in known.items())
        address = second.values[program.outputs[0].node].data_ptr()
        del first, second
        third = golden_pass(program, data.inputs, np.arange(8, 11), **options, plan=memory)
        assert third.values[program.outputs[0].node].data_ptr() == address
        memory.forget()
        assert not memory.tensors
        assert len(third.values[program.outputs[0].node]) == 3


def test_what_only_cheap_operations_read_of_cheap_ones_is_spared():
    program, plan, _ = planned(*residual())
    assert [program.nodes[p].op for p in sorted(plan.nodes)] == ["batch_norm", "batch_norm", "sub"]
    assert not planned(*NETWORKS["digits"]())[1].nodes


def test_a_program_with_values_that_are_no_rows_of_inputs_runs_in_one_piece():
    model, data = NETWORKS["transformer"]()
    assert planned(model, data)[1] is None
    many = Data(map_tensors(lambda x: torch.cat([x] * 20), data.inputs))
    tight = Engine(model, many, executor="graph", memory="1MiB")
    assert (tight.graph.reused, tight.graph.chunk < len(many)) == (None, True)
    assert planned(Counting(), Data(torch.randn(6, 4)))[1] is None


@pytest.mark.parametrize("name", ["residual", "depthwise", "digits"])
def test_lanes_are_those_of_the_reference_where_not_all_is_held(name):
    """Also lanes that start at what is spared: at normalisations, and at the sum."""
    model, data = made(name)
    data = data if name == "residual" else Data(torch.cat([data.inputs + 0.01 * i for i in range(40)]))
    tight = Engine(model, data, executor="graph", memory="3MiB")
    assert tight.graph.chunk < len(data)
    assert tight.graph.reused is not None
    trials = random_trials(tight.space, len(data), 300, seed=3)
    assert_reference(tight, model, data, trials)
    assert tight.graph.reused.tensors
    tight.graph.forget()
    assert not tight.graph.reused.tensors


def test_golden_outputs_may_be_asked_for_while_lanes_run():
    model, data = residual()
    roomy, tight = (Engine(model, data, executor="graph", memory=memory) for memory in ("1GiB", "3MiB"))
    trials = random_trials(roomy.space, len(data), 400, seed=4)
    rows: dict[int, torch.Tensor] = {}
    for lanes in tight.run(trials):
        rows |= dict(zip(lanes.trial.tolist(), lanes.outputs, strict=True))
        tight.graph._outputs = None
        tight.golden()
    assert_agree([torch.stack([rows[i] for i in range(len(trials))])], collect(roomy, trials))


@pytest.mark.parametrize("images", [40, 500])
def test_the_memory_that_is_told_holds_golden_values_of_all_inputs(images):
    model, data = residual(images)
    tight = Engine(model, data, executor="graph", memory="3MiB")
    some = f"golden values of {tight.graph.chunk} of {images} inputs fit into 3 MiB of memory"
    told = re.fullmatch(some + r", those of all into (\d+) MiB", tight.recomputed)
    assert told, tight.recomputed
    enough = Engine(model, data, executor="graph", memory=f"{told[1]}MiB")
    assert (enough.graph.chunk, enough.recomputed) == (images, "")
    assert Engine(model, data, executor="graph", memory=f"{int(told[1]) - 1}MiB").graph.chunk < images
    assert Engine(model, data, executor="hooks", memory="3MiB").recomputed == ""


def test_monitors_see_what_is_not_held():
    model, data = residual()
    tables = []
    for memory in ("1GiB", "3MiB"):
        engine = Engine(model, data, executor="graph", memory=memory)
        monitor = Monitor(engine.space)
        for _ in engine.run(random_trials(engine.space, len(data), 60, seed=3), monitor=monitor):
            pass
        tables.append(monitor.table())
    assert (tables[0]["lanes"] == tables[1]["lanes"]).all()
    np.testing.assert_allclose(tables[0]["changed"], tables[1]["changed"], atol=1)


def test_what_sweeps_held_is_free_at_once():
    model, data = residual()
    engine = Engine(model, data, executor="graph")
    trials = random_trials(engine.space, len(data), 400, seed=2, faults=2)
    gc.collect()
    others = [id(found) for found in held(Golden, Sweep)]  # what engines of other tests hold, and go on holding
    gc.disable()
    try:
        collect(engine, trials)
        kept = [weakref.ref(found) for found in held(Golden) if id(found) not in others]
        engine.graph.forget()
        assert kept
        assert not any(ref() is not None for ref in kept)
        assert not [found for found in held(Sweep) if id(found) not in others]
    finally:
        gc.enable()


def held(*kinds: type) -> list[object]:
    return [found for found in gc.get_objects() if type(found) in kinds]
