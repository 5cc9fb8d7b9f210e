"""Upsets in the engine, against layers computed product by product with the wrong operand in its place."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.layer_products import LAYERS, Product, flip, products
from tests.support.upset_trials import made
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import HardwareError, SpaceError
from torchfault.hardware.accelerator import ACCELERATORS, FLAT, NVDLA_LIKE
from torchfault.hardware.layers import layers_of
from torchfault.hardware.measure import UpsetMeasure
from torchfault.hardware.patterns import find_pattern
from torchfault.hardware.upset_space import UpsetSpace, upset_space
from torchfault.hardware.upsets import Upset

SIZE = 4


def expected(layer, x, one, pattern, u):
    """Return the layer's output under upset *u* (a row of the columns), product by product."""
    a, b, back = (part.double() if torch.is_tensor(part) else part for part in products(layer, x))
    g, row, step, column = int(u.group), int(u.row), int(u.step), int(u.column)
    y = a @ b
    depth, width = a.shape[2], b.shape[2]
    tile = column // SIZE * SIZE
    rows, columns = [row], [column]
    if pattern in ("systolic input", "16 channels"):
        columns = range(column if pattern == "systolic input" else tile, min(tile + SIZE, width))
    if pattern == "output-stationary weight":
        rows = range(row, min(row // SIZE * SIZE + SIZE, a.shape[1]))
    if pattern == "weight-stationary weight":
        rows = range(row, a.shape[1])
    if pattern == "16 pixels":
        rows = range(row // 16 * 16, min(row // 16 * 16 + 16, a.shape[1]))
    if one.holds == "output":
        first = step // SIZE * SIZE if pattern == "weight-stationary sum" else 0
        total = sum(a[g, row, k] * b[g, k, column] for k in range(first, step + 1))
        y[g, row, column] += flip(total, u.bit) - np.float32(total)
        return back(y).float()
    for r in rows:
        for c in columns:
            left, right = a[g].clone(), b[g].clone()
            if one.holds == "input":
                left[row, step] = flip(left[row, step], u.bit)
            else:
                right[step, column] = flip(right[step, column], u.bit)
            y[g, r, c] = sum(left[r, k] * right[k, c] for k in range(depth))
    return back(y).float()


def drawn(space, kind, bit, *, rng):
    """Return the number of a random upset for each given type and bit of the first layer."""
    cells = [
        np.flatnonzero((space.layer == 0) & (space.type == one) & (space.cells.bit == which))[0]
        for one, which in np.broadcast(kind, bit)
    ]
    return space.number_of(cells, UpsetMeasure().draw_places(space, cells, rng=rng))


def upset_cases(accelerator):
    """Yield the types that make a pattern of their own."""
    for kind, one in enumerate(accelerator.types):
        if find_pattern(one.pattern).effect in ("operand", "partial", "tile-partial"):
            yield kind, one


def same(one, two):
    """Tell whether two outputs agree up to rounding, infinities and NaN at the same places."""
    return torch.allclose(one, two, rtol=2e-4, atol=2e-4, equal_nan=True)


@torch.no_grad()
@pytest.mark.parametrize("accelerator", ACCELERATORS.values(), ids=ACCELERATORS)
@pytest.mark.parametrize("name", LAYERS)
def test_upsets_do_what_wrong_operands_do(name, accelerator, rng):
    build, shape = LAYERS[name]
    torch.manual_seed(1)
    layer, data = build().eval(), Data(torch.randn(3, *shape))
    accelerator = replace(accelerator, height=SIZE, width=SIZE)
    layers, engine = layers_of(layer, data), Engine(layer, data, executor="hooks")
    space, n = upset_space(accelerator, layers.works, engine.space), 24
    for kind, one in upset_cases(accelerator):
        bits = rng.integers(0, 32, n)
        index, inputs = drawn(space, kind, bits, rng=rng), rng.integers(0, 3, n)
        upsets, (trials, kept) = space.locate(index), struck(layers, space, index, engine, inputs=inputs)
        assert len(kept) == (upsets.row >= 0).sum() > 0
        for lanes in engine.run(trials):
            for at, trial in enumerate(lanes.trial):
                which = kept[trial]
                u = upsets.take(which)
                x = data.inputs[inputs[which]][None]
                check_variable(layer, x, one, u)
                wanted = expected(layer, x, one, one.pattern, u)
                assert same(lanes.faulty[at], wanted[0]), (one.name, u)


def check_variable(layer, x, one, u):
    """The product must be one that the drawn variable is in."""
    a, b, back = products(layer, x)
    if one.holds == "input":
        assert x.reshape(-1)[u.element] == a[u.group, u.row, u.step]
    elif one.holds == "weight":
        flat = x.transpose(1, 2).reshape(-1) if isinstance(layer, Product) else layer.weight.reshape(-1)
        assert flat[u.element] == b[u.group, u.step, u.column]
    else:
        ramp = torch.zeros(a.shape[0], a.shape[1], b.shape[2])
        ramp[u.group, u.row, u.column] = 1
        moved = back(ramp) - back(0 * ramp)
        assert moved.reshape(-1).abs().argmax() == int(u.element)


def struck(layers, space, index, engine, *, inputs=None):
    """Return the trials of upsets, on the first input unless told, and which upsets they are."""
    given = np.zeros(len(index), int) if inputs is None else inputs
    words = np.random.default_rng(0).integers(0, 2**64, size=len(index), dtype=np.uint64)
    return made(Upset(layers), space, index, given, words=words, engine=engine)


def test_every_use_flips_the_variable_itself(rng):
    layer, data = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten()).eval(), Data(torch.randn(2, 1, 4, 4))
    accelerator = replace(FLAT, types=tuple(replace(one, pattern="every use") for one in FLAT.types[:2]))
    layers, engine = layers_of(layer, data), Engine(layer, data, executor="hooks")
    space = upset_space(accelerator, layers.works, engine.space)
    index = drawn(space, np.arange(9) % 2, 30, rng=rng)
    trials, kept = struck(layers, space, index, engine)
    assert len(kept) == 9
    assert {engine.space.sites[i].name for i in trials.site} == {"0:input", "0.weight"}
    assert (trials.element == space.locate(index).element).all()
    assert (trials.toggle == 1 << 30).all()
    assert (trials.keep == 2**32 - 1).all()


class Last(nn.Module):
    """A recurrent layer whose last state is the answer."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        """Take (N, time, 3)."""
        return self.gru(x)[0][:, -1]


def test_recurrent_layers_are_struck_at_their_variables(rng):
    layer, data = Last().eval(), Data(torch.randn(2, 5, 3))
    layers, engine = layers_of(layer, data), Engine(layer, data)
    space = upset_space(FLAT, layers.works, engine.space)
    trials, kept = struck(layers, space, drawn(space, np.arange(60) % 3, 5, rng=rng), engine)
    assert len(kept) == 60
    names = np.array(engine.space.names)[trials.site]
    assert set(names[0::3]) == {"gru:input"}
    assert set(names[1::3]) == {"gru.weight_ih_l0", "gru.weight_hh_l0"}
    assert set(names[2::3]) == {"gru:output"}
    assert sum(len(lanes.trial) for lanes in engine.run(trials)) == 60


def test_inputs_that_no_product_uses_make_no_trial(rng):
    layer, data = nn.Conv2d(1, 2, 1, stride=3).eval(), Data(torch.randn(2, 1, 3, 3))
    layers, engine = layers_of(layer, data), Engine(layer, data, executor="hooks")
    space = upset_space(FLAT, layers.works, engine.space)
    index = drawn(space, np.zeros(50, int), 0, rng=rng)
    upsets, (_, kept) = space.locate(index), struck(layers, space, index, engine)
    assert (upsets.element[kept] == 0).all()
    assert len(kept) == (upsets.element == 0).sum()
    assert (upsets.row[upsets.element > 0] == -1).all()


@pytest.fixture(scope="module")
def two_layers():
    """Return an engine on a network of a convolution and a linear layer, and its layers."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).eval()
        data = Data(torch.randn(70, 1, 8, 8))
    return Engine(model, data), layers_of(model, data)


def test_random_words_are_written_as_they_are_given(two_layers, rng):
    engine, layers = two_layers
    space, fault = upset_space(NVDLA_LIKE, layers.works, engine.space), Upset(layers)
    (kind,) = (at for at, one in enumerate(NVDLA_LIKE.types) if one.name == "local control")
    index, inputs = drawn(space, np.full(20, kind), -1, rng=rng), np.arange(20)[::-1] % 7
    words = np.random.default_rng(1).integers(0, 2**64, size=20, dtype=np.uint64)
    trials, kept = made(fault, space, index, inputs, words=words, engine=engine)
    assert len(kept) == 20
    assert (trials.inputs == inputs).all()
    assert (trials.keep == 0).all()
    assert (trials.toggle == words >> np.uint64(32)).all()
    assert (trials.element == space.locate(index).element).all()
    assert {engine.space.sites[i].name for i in trials.site} == {"0:output"}


@pytest.mark.parametrize("memory", [1 << 20, 1 << 30])
@pytest.mark.parametrize("chip", ACCELERATORS.values(), ids=ACCELERATORS)
def test_parts_are_the_same_trials_within_the_memory(chip, memory, two_layers, rng, monkeypatch):
    monkeypatch.setattr("torchfault.hardware.upsets._AT_ONCE", 2048)
    model, data, layers = two_layers[0].model, two_layers[0].data, two_layers[1]
    engine = Engine(model, data, memory=memory)
    space, fault, n = upset_space(chip, layers.works, engine.space), Upset(layers), 3000
    mass = UpsetMeasure(in_use=True).mass(space)
    cell = rng.choice(len(mass), size=n, p=mass)
    index = space.number_of(cell, UpsetMeasure().draw_places(space, cell, rng=rng))
    inputs, words = rng.integers(0, 70, n), np.random.default_rng(1).integers(0, 2**64, size=n, dtype=np.uint64)
    whole, kept = made(fault, space, index, inputs, words=words, engine=Engine(model, data))
    assert (whole.inputs == inputs[kept]).all()
    seen = np.zeros(n, dtype=int)
    expected = {at: [part.tolist() for part in edits(whole, number)] for number, at in enumerate(kept)}
    for trials, at in fault.parts(space, index, inputs, words=words, engine=engine):
        assert len(np.unique(trials.inputs)) <= 64
        assert len(trials) <= 2048
        assert len(trials) <= 1 or len(trials.toggle) * 128 <= memory / 4
        assert (trials.inputs == inputs[at]).all()
        for number, which in enumerate(at):
            site, element, keep, toggle = edits(trials, number)
            assert [part.tolist() for part in (site, element, keep)] == expected[which][:3]
            assert near(toggle, np.array(expected[which][3], dtype=np.uint64), keep)
        seen[at] += 1
    assert (seen == np.isin(np.arange(n), kept)).all()


def edits(trials, number):
    """Return the columns of one trial."""
    here = slice(trials.offsets[number], trials.offsets[number + 1])
    return trials.site[here], trials.element[here], trials.keep[here], trials.toggle[here]


def near(one, two, keep):
    """Tell whether words are the same; where they are computed from golden, up to what a batch's size may change."""
    values, others = (part.astype(np.uint32).view(np.float32) for part in (one, two))
    return (one[keep > 0] == two[keep > 0]).all() and np.allclose(values, others, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_upsets_without_a_trial_are_refused_or_left_out(two_layers):
    engine, layers = two_layers
    space, fault = upset_space(FLAT, layers.works, engine.space), Upset(layers)
    with pytest.raises(HardwareError, match="control strikes no variable"):
        struck(layers, space, np.array([0, len(space) - 1]), engine)
    other = UpsetSpace(FLAT, space.works[:1], space.widths[:1])
    mass = UpsetMeasure(in_use=True).mass(space)
    fault.check(space, mass, engine)
    for wrong in (other, engine.space):
        with pytest.raises(HardwareError, match="make the space of these layers"):
            fault.check(wrong, mass, engine)
    with pytest.raises(HardwareError, match=r"take measure=UpsetMeasure\(in_use=True\)"):
        fault.check(space, UpsetMeasure().mass(space), engine)
    with pytest.raises(SpaceError, match="no site is called"):
        fault.check(space, mass, Engine(nn.Linear(2, 2), Data(torch.zeros(1, 2))))
    none = np.array([], dtype=int)
    assert list(fault.parts(space, none, none, words=none.astype(np.uint64), engine=engine)) == []
