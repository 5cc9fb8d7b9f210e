"""Upsets of operands and sums in blocks: against layers computed with the wrong words in place, and enumeration."""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.hardware_enumeration import all_upsets
from tests.support.layer_products import LAYERS, flip, products
from tests.support.torch_types import skip_without
from tests.support.upset_trials import made
from torchfault.adapters.represent import represent
from torchfault.campaign import run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.hardware.accelerator import ACCELERATORS, FLAT, OUTPUT_STATIONARY
from torchfault.hardware.layers import layers_in
from torchfault.hardware.measure import UpsetMeasure, hardware_measure, known
from torchfault.hardware.patterns import find_pattern, reach_of
from torchfault.hardware.upset_space import SCALE_BIT, UpsetSpace, read_upset_space, upset_space
from torchfault.hardware.upsets import Upset
from torchfault.hardware.work import Product, Work
from torchfault.model.memory import homes
from torchfault.recipes import upsets
from torchfault.results import resiliency
from torchfault.statistics import MaxTrials
from torchfault.storages import activation_storage, storage
from torchfault.words import edit, masks_to_words, word

SIZE = 4
CHIPS = {name: replace(one, height=SIZE, width=SIZE) for name, one in ACCELERATORS.items()}
FORMATS = [
    ("mxfp4:4", "mxfp4:4"),
    ("nvfp4:8", "nvfp4:8[0.001953125]"),
    ("mxfp8_e4m3:5@1", "bfp8:4"),
    ("bfp5:6", None),
    ("int8", "mxint8:6"),
    ("mxfp4:4", "mxfp8_e4m3:3@1"),
]

NAMES = ["strided, dilated", "grouped", "linear", "tokens"]
CASES = [
    (name, *how, list(CHIPS)[(i + j) % len(CHIPS)]) for i, name in enumerate(NAMES) for j, how in enumerate(FORMATS)
]


def flipped(words, part, at, bit, fmt):
    """Return *words* with a bit of the flat word *at* of *part* flipped."""
    held, fmt = {name: tensor.clone() for name, tensor in words.items()}, word(fmt)
    flat = held[part].reshape(-1)
    mask = masks_to_words(np.array([1 << int(bit)], dtype=np.uint64), fmt)
    flat[at] = edit(flat[at : at + 1], None, mask, fmt)[0]
    return {**held, part: flat.reshape(held[part].shape)}


@cache
def shared_by(kept, part, shape):
    """Return which word of *part* each element depends on: the one whose change changes it."""
    words = kept.encode(torch.ones(shape))
    golden, found = kept.decode(words, shape), torch.full(shape, -1)
    for at in range(words[part].numel()):
        flat = words[part].clone().reshape(-1)
        flat[at] = 8
        found[kept.decode({**words, part: flat.reshape(words[part].shape)}, shape) != golden] = at
    return found.reshape(-1)


def wrong_value(kept, words, shape, formats, element, bit):
    """Return the whole tensor under a flipped bit of *element*, or of the scale that it has."""
    if bit < SCALE_BIT:
        return kept.decode(flipped(words, "", element, bit, formats[""]), shape)
    part = "exponent" if "exponent" in words else "scale"
    at = int(shared_by(kept, part, tuple(shape))[element])
    return kept.decode(flipped(words, part, at, bit - SCALE_BIT, formats[part]), shape)


def in_rows(how, x):
    """Return how an activation is kept, its words, the shape in which it is cut into blocks, and their formats."""
    if "@" in how:
        kept = storage(how)
        return kept, kept.encode(x), x.shape, kept.formats
    kept = activation_storage(how).kept
    rows = x.reshape(-1, x[0, 0].numel() if x.ndim > 3 else x.shape[-1])
    return kept, kept.encode(rows), rows.shape, kept.formats


def operands(twin, x, activations, one, u):
    """Return what the layer reads and its weight, with the struck words in place."""
    (home,) = homes(twin)
    stored, element, bit = home.stored, int(u.element), int(u.bit)
    if one.holds == "weight":
        formats = {part: described.word for part, described in stored.parts.items()}
        return x, wrong_value(stored.storage, stored.words, stored.shape, formats, element, bit)
    if activations:
        kept, words, shape, formats = in_rows(activations, x)
        return wrong_value(kept, words, shape, formats, element, bit).reshape(x.shape), twin[0].weight
    plain = x.clone()
    plain.reshape(-1)[element] = flip(x.reshape(-1)[element], bit)
    return plain, twin[0].weight


def expected(twin, x, activations, one, u, grid):
    """Return the output of a layer under upset *u*, product by product, with the wrong words of an operand in place."""
    layer, x = twin[0], activation_storage(activations).round(x) if activations else x
    g, row, step, column = int(u.group), int(u.row), int(u.step), int(u.column)
    a, b, back = products(layer, x)
    y = a.double() @ b.double()
    if one.holds == "output":
        first = step // SIZE * SIZE if one.pattern == "weight-stationary sum" else 0
        total = (a[g, row, first : step + 1].double() * b[g, first : step + 1, column].double()).sum()
        y[g, row, column] += flip(total, u.bit) - np.float32(total)
    else:
        read, weight = operands(twin, x, activations, one, u)
        other = type(layer)(**{name: getattr(layer, name) for name in arguments(layer)}, bias=False)
        other.weight = nn.Parameter(weight, requires_grad=False)
        c, d, _ = products(other, read)
        (top,), (bottom,), (left,), (right,) = reach_of(one.pattern, [row], [column], grid)
        for r, k in itertools.product(range(top, bottom), range(left, right)):
            y[g, r, k] = (c[g, r].double() * d[g, :, k].double()).sum()
    y = back(y).float()
    return activation_storage(activations).round(y) if activations else y


def arguments(layer):
    """Return the names of what a layer is built from."""
    if isinstance(layer, nn.Linear):
        return ("in_features", "out_features")
    return ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


def drawn(space, kind, n, *, rng):
    """Return the numbers of random upsets of a type, half of them of scales where there are some."""
    bits = space.cells.bit
    mine = (space.layer == 0) & (space.type == kind)
    scales, others = np.flatnonzero(mine & (bits >= SCALE_BIT)), np.flatnonzero(mine & (bits < SCALE_BIT))
    cells = np.where(rng.random(n) < 0.5, rng.choice(scales if len(scales) else others, n), rng.choice(others, n))
    return space.number_of(cells, UpsetMeasure().draw_places(space, cells, rng=rng))


def exact(name, weights, activations):
    """Return a layer and inputs in blocks whose scales are powers of two, so that float32 holds all golden sums."""
    skip_without(weights, activations or "")
    build, shape = LAYERS[name]
    torch.manual_seed(1)
    layer, data = build().eval(), Data((torch.randn(3, *shape) * 4).round() / 4)
    for parameter in layer.parameters():
        parameter.copy_((parameter * 16).round() / 8)
    layer.weight.reshape(len(layer.weight), -1)[:, 0] = 2688 / 1024 if weights.startswith("nvfp4") else 127 / 64
    return represent(nn.Sequential(layer), {"0.weight": weights}, activations=activations), data


@torch.no_grad()
@pytest.mark.parametrize(("name", "weights", "activations", "chip"), CASES)
def test_upsets_in_blocks_do_what_wrong_words_do(name, weights, activations, chip, rng):
    twin, data = exact(name, weights, activations)
    engine = Engine(twin, data)
    layers, accelerator = layers_in(engine), CHIPS[chip]
    space, checked = upset_space(accelerator, layers.works, engine.space), 0
    grid = layers.works[0].product.grid(height=SIZE, width=SIZE)
    for kind, one in enumerate(accelerator.types):
        if find_pattern(one.pattern).effect not in ("operand", "partial", "tile-partial"):
            continue
        index, inputs = drawn(space, kind, 8, rng=rng), rng.integers(0, 3, 8)
        struck, words = space.locate(index), np.zeros(8, dtype=np.uint64)
        trials, which = made(Upset(layers), space, index, inputs, words=words, engine=engine)
        for lanes in engine.run(trials):
            for at, trial in enumerate(lanes.trial):
                u = struck.take(which[trial])
                x = data.inputs[inputs[which[trial]]][None]
                wanted = expected(twin, x, activations, one, u, grid)
                assert torch.allclose(lanes.faulty[at], wanted[0], rtol=1e-5, atol=1e-5, equal_nan=True), (one.name, u)
                checked += 1
    assert checked > 8


WORK = Work("layer", "linear", 12, ("l:input",), ("l.weight",), ("l:output",), (6, 6, 4), Product(1, 2, 3, 2))


@pytest.mark.parametrize("chip", ACCELERATORS.values(), ids=ACCELERATORS)
def test_numbers_and_probabilities_are_those_of_all_upsets_written_down(chip):
    chip = replace(chip, height=2, width=2)
    scales = ((3, 2), (2, 4), (3, 4))
    space = UpsetSpace(chip, (WORK, WORK), ((2, 3, 2),) * 2, (scales, ((0, 0), (4, 3), (0, 0))))
    told = {}
    measure = UpsetMeasure()
    mass, sizes = measure.mass(space), space.cells.sizes
    cell = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(space)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    p = mass[cell] * measure.within(space, cell, place)
    for one, share in zip(zip(*space.locate(np.arange(len(space))), strict=True), p, strict=True):
        if share > 0:
            told[tuple(map(int, one))] = share
    wanted = all_upsets(chip, [WORK, WORK], [(2, 3, 2)] * 2, scales=[scales, ((0, 0), (4, 3), (0, 0))])
    assert told.keys() == wanted.keys()
    assert all(told[one] == pytest.approx(wanted[one], rel=1e-9) for one in wanted)
    assert any(one[2] >= SCALE_BIT for one in wanted)
    assert read_upset_space(space.plain()) == space
    assert "scales" not in UpsetSpace(chip, (WORK,), ((2, 3, 2),)).plain()


def small(weights="mxfp4:4", activations="mxfp8_e4m3:4"):
    """Return an engine on a small network whose layers are kept in blocks."""
    skip_without(weights, activations)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
        inputs = torch.randn(5, 6)
    twin = represent(model, weights, activations=activations)
    with torch.no_grad():
        return Engine(twin, Data(inputs, twin(inputs).argmax(1)))


def test_resiliency_is_that_of_all_upsets():
    engine = small()
    layers = layers_in(engine)
    chip = replace(OUTPUT_STATIONARY, height=2, width=2)
    space = upset_space(chip, layers.works, engine.space)
    measure = UpsetMeasure(in_use=True)
    mass, sizes = measure.mass(space), space.cells.sizes
    cell = np.repeat(np.arange(len(sizes)), sizes)
    p = mass[cell] * measure.within(space, cell, np.arange(len(space)) - np.repeat(np.cumsum(sizes) - sizes, sizes))
    index, wrong = np.flatnonzero(p), 0.0
    labels = engine.data.labels
    for which in range(len(labels)):
        inputs = np.full(len(index), which)
        words = np.zeros(len(index), dtype=np.uint64)
        for trials, owner in Upset(layers).parts(space, index, inputs, words=words, engine=engine):
            for lanes in engine.run(trials):
                missed = (lanes.faulty.argmax(1) != labels[which]) | lanes.faulty.isnan().any(1)
                wrong += p[index[owner[lanes.trial]]] @ missed.double().numpy() / len(labels)
    shares = known(space)
    truth = 1 - shares.control - shares.in_use * wrong
    assert wrong > 0.01
    covered = 0
    for seed in range(12):
        found = resiliency(run(upsets(engine, chip, stop=MaxTrials(2048), seed=seed)))
        covered += found.ra.low <= truth <= found.ra.high
        assert found.ra.value == pytest.approx(truth, abs=0.03)
    assert covered >= 10
    bits = resiliency(run(upsets(engine, chip, proposal="UNIFORM", stop=MaxTrials(2048)))).table("bit")
    assert {SCALE_BIT, SCALE_BIT + 7} <= set(bits["bit"])


@pytest.mark.parametrize("kind", ["input", "weight", "output"])
def test_every_use_and_finished_outputs_strike_the_words_of_scales(kind):
    engine = small()
    layers = layers_in(engine)
    pattern = "one output" if kind == "output" else "every use"
    chip = replace(FLAT, types=tuple(replace(one, pattern=pattern) for one in FLAT.types if one.holds == kind))
    space = upset_space(chip, layers.works, engine.space)
    index = np.arange(len(space))
    struck = space.locate(index)
    none = np.zeros(len(index), dtype=np.int64)
    trials, kept = made(Upset(layers), space, index, none, words=none.astype(np.uint64), engine=engine)
    assert len(kept) == len(index)
    names = np.array(engine.space.names)[trials.site]
    mark = ":" if kind == "weight" else "."
    first = {"input": "0:input", "weight": "0.weight", "output": "0:output"}[kind]
    assert set(names[(struck.layer == 0) & (struck.bit >= SCALE_BIT)]) == {f"{first}{mark}scale"}
    assert set(names[(struck.layer == 0) & (struck.bit < SCALE_BIT)]) == {first}
    assert (trials.toggle == np.uint64(1) << (struck.bit % SCALE_BIT).astype(np.uint64)).all()
    scales = struck.bit >= SCALE_BIT
    row = {"input": 6, "weight": 6, "output": 4}[kind]
    mine = scales & (struck.layer == 0)
    per_row = -(-row // 4)
    assert (trials.element[mine] == struck.element[mine] // row * per_row + struck.element[mine] % row // 4).all()
    assert sum(len(lanes.trial) for lanes in engine.run(trials)) == len(index)


def test_the_measure_over_variables_counts_scales_by_their_bits():
    engine = small()
    found = hardware_measure(FLAT, layers_in(engine).works, engine.space)
    index = np.arange(len(found.space))
    where, p = found.space.locate(index), found.probability(index)
    names = np.array(found.space.names)[where.site]
    assert "0.weight:scale" in names
    elements, scales = p[names == "0.weight"], p[names == "0.weight:scale"]
    assert elements.sum() / scales.sum() == pytest.approx(24 * 4 / (8 * 8))
    assert np.allclose(elements[0], scales[0])
