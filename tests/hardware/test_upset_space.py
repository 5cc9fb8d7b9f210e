"""Upsets by number, against all upsets written down one by one; and how they are drawn, stored, shown and restored."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from tests.support.hardware_enumeration import all_upsets
from torchfault.data import Data
from torchfault.errors import HardwareError, SpaceError
from torchfault.hardware.accelerator import (
    ACCELERATORS,
    FLAT,
    NVDLA_LIKE,
    Accelerator,
    FlipFlops,
    accelerator_of,
    with_buffer,
)
from torchfault.hardware.layers import layers_of
from torchfault.hardware.measure import UpsetMeasure, known
from torchfault.hardware.patterns import Pattern, Reach, along_row
from torchfault.hardware.upset_space import UpsetSpace, read_upset_space, upset_space
from torchfault.hardware.work import Convolution, Product, Work

CHIPS = {
    **ACCELERATORS,
    "small array": replace(ACCELERATORS["weight-stationary"], height=4, width=4, utilisation="tile"),
    "with buffers": with_buffer(with_buffer(FLAT, "cache", holds="input", share=9.0), "w", holds="weight", share=2.0),
}


def work_of(product, *, count=None, layer="layer"):
    """Return a layer that is *product*."""
    groups, rows, depth, columns = product.groups, product.rows, product.depth, product.columns
    variables = (count or groups * rows * depth, groups * depth * columns, groups * rows * columns)
    macs = groups * rows * depth * columns
    return Work(layer, "any", macs, (), (), (), variables, product)


@st.composite
def convolutions(draw):
    """Return a convolution of one to three axes: strided, dilated, padded unevenly, in groups."""
    axes = draw(st.integers(1, 3))
    small = [draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes)) for _ in range(3)]
    kernel, stride, dilation = small
    size = draw(st.lists(st.integers(1, 6 if axes < 3 else 3), min_size=axes, max_size=axes))
    before, after = (draw(st.lists(st.integers(0, 2), min_size=axes, max_size=axes)) for _ in range(2))
    reach = [n + a + b - d * (k - 1) - 1 for n, a, b, d, k in zip(size, before, after, dilation, kernel, strict=True)]
    if min(reach) < 0:
        kernel = [1] * axes
        reach = [n + a + b - 1 for n, a, b in zip(size, before, after, strict=True)]
    out = tuple(r // s + 1 for r, s in zip(reach, stride, strict=True))
    groups, inner, columns = (draw(st.integers(1, 2)) for _ in range(3))
    channels = groups * inner
    place = Convolution(channels, tuple(size), out, *map(tuple, (kernel, stride, before, dilation)))
    product = Product(groups, math.prod(out), inner * math.prod(kernel), columns, place)
    return work_of(product, count=channels * math.prod(size))


@st.composite
def other_products(draw):
    """Return a linear layer or a product of activations."""
    groups, rows, depth, columns = (draw(st.integers(1, n)) for n in (3, 4, 5, 4))
    return work_of(Product(groups, rows, depth, columns, transposed=draw(st.booleans())))


WIDTHS = (2, 1, 3)
LAYERS = st.lists(convolutions() | other_products(), min_size=1, max_size=2)


def table(space):
    """Return every number's upset with its probability, and how many numbers there are per upset."""
    index = np.arange(len(space))
    measure, cell, place = UpsetMeasure(), space.cell_of(index), space.place_of(index)
    assert (space.number_of(cell, place) == index).all()
    p = measure.mass(space)[cell] * measure.within(space, cell, place)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    found = space.locate(index)
    assert (found.row[p == 0] == -1).all(), "only a use that is none is never struck"
    keys = np.stack(found, axis=1)[p > 0].tolist()
    return dict(zip(map(tuple, keys), p[p > 0], strict=True)), len(keys)


def check(chip, works, widths):
    """Hold the space to the enumeration: the same upsets, each with one number, and the same probabilities."""
    space = UpsetSpace(chip, tuple(works), tuple(widths))
    numbered, count = table(space)
    listed = all_upsets(chip, works, widths)
    assert numbered.keys() == listed.keys()
    assert len(numbered) == count
    np.testing.assert_allclose([numbered[key] for key in listed], list(listed.values()), rtol=1e-12, atol=1e-18)


@settings(max_examples=40)
@given(works=LAYERS, chip=st.sampled_from(list(CHIPS.values())))
def test_numbers_are_the_upsets_that_loops_write_down(works, chip):
    check(chip, works, [WIDTHS] * len(works))


MODULES = {
    "padded": (nn.Conv2d(2, 3, 3, padding=1), (2, 3, 4)),
    "with inputs that nothing uses": (nn.Conv2d(1, 2, 1, stride=2), (1, 4, 3)),
    "grouped": (nn.Conv1d(4, 4, 2, groups=2, padding=1, stride=2), (4, 3)),
    "linear": (nn.Linear(5, 3), (5,)),
    "recurrent": (nn.GRU(3, 2, batch_first=True), (4, 3)),
    "transposed": (nn.ConvTranspose2d(2, 1, 2, stride=2), (2, 2, 2)),
    "two": (nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2)), (1, 3, 3)),
}


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("name", MODULES)
def test_the_space_of_a_model_is_what_loops_write_down(name, chip):
    module, shape = MODULES[name]
    layers = layers_of(module.eval(), Data(torch.randn(2, *shape)))
    space = upset_space(chip, layers.works, layers.space)
    assert space.widths == ((32, 32, 32),) * len(layers.works)
    check(chip, list(layers.works), list(space.widths))


PADDED = Convolution(2, (3, 4), (2, 2), (3, 2), (2, 3), (1, 1), (1, 1))
SKIPPING = Convolution(1, (4, 3), (2, 1), (1, 1), (2, 3), (0, 0), (1, 1))
DRAWN = {
    "padded": work_of(Product(1, 4, 12, 3, PADDED), count=24),
    "skipping": work_of(Product(1, 2, 1, 2, SKIPPING), count=12),
    "linear": work_of(Product(1, 2, 5, 3, transposed=True)),
    "recurrent": Work("rnn", "gru", 40, (), (), (), (4, 8, 5)),
}


@pytest.mark.parametrize("in_use", [False, True])
@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("name", DRAWN)
def test_places_are_drawn_by_their_probabilities(name, chip, in_use, rng):
    space = UpsetSpace(chip, (DRAWN[name],), (WIDTHS,))
    measure, n = UpsetMeasure(in_use=in_use), 30_000
    mass = measure.mass(space)
    cell = rng.choice(len(mass), size=n, p=mass)
    number = space.number_of(cell, measure.draw_places(space, cell, rng=rng))
    assert (space.cell_of(number) == cell).all()
    index = np.arange(len(space))
    p = mass[space.cell_of(index)] * measure.within(space, space.cell_of(index), space.place_of(index))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    counts = np.bincount(number, minlength=len(space))
    assert (counts[p == 0] == 0).all()
    often = n * p >= 5  # the others together, so that the statistic is that of chi-square
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(n * p[often], n * p[~often].sum())
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1] * observed[:-1].sum() / expected[:-1].sum()
    assert stats.chisquare(observed, expected).pvalue > 1e-6


@pytest.mark.parametrize("name", ["small array", "nvdla-like", "flat"])
def test_what_needs_no_trial_is_known(name):
    chip = replace(CHIPS[name], utilisation="tile")
    works = (DRAWN["padded"], replace(DRAWN["linear"], layer="fc"))
    space = UpsetSpace(chip, works, (WIDTHS, WIDTHS))
    found, p, used = known(space), UpsetMeasure().mass(space), UpsetMeasure(in_use=True).mass(space)
    assert sum(found) == pytest.approx(1, abs=1e-12)
    assert found.control == pytest.approx(chip.weight_of("control"), abs=1e-12)
    control = np.array([one.holds == "control" for one in chip.types])[space.type]
    assert p[control].sum() == pytest.approx(found.control, abs=1e-12)
    assert (used[control] == 0).all()
    assert used.sum() == pytest.approx(1, abs=1e-12)
    assert (found.in_use * used <= p + 1e-15).all()
    with pytest.raises(HardwareError, match="in use"):
        UpsetMeasure(in_use=True).mass(replace(space, accelerator=replace(chip, utilisation=0.0)))


def resnet50():
    """Return the works of ResNet-50 on one image of 224 x 224."""
    works = []

    def conv(name, channels, size, filters, kernel, stride):
        out = -(-size // stride)
        before = (kernel // 2,) * 2
        place = Convolution(channels, (size,) * 2, (out,) * 2, (kernel,) * 2, (stride,) * 2, before, (1, 1))
        product = Product(1, out * out, channels * kernel**2, filters, place)
        works.append(work_of(product, count=channels * size**2, layer=name))
        return out

    size, channels = conv("conv1", 3, 224, 64, 7, 2) // 2, 64
    for stage, (blocks, inner) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            stride, name = 2 if stage and not block else 1, f"layer{stage + 1}.{block}"
            conv(f"{name}.conv1", channels, size, inner, 1, 1)
            after = conv(f"{name}.conv2", inner, size, inner, 3, stride)
            conv(f"{name}.conv3", inner, after, 4 * inner, 1, 1)
            if not block:
                conv(f"{name}.downsample", channels, size, 4 * inner, 1, stride)
            size, channels = after, 4 * inner
    works.append(work_of(Product(1, 1, 2048, 1000, transposed=True), layer="fc"))
    return tuple(works)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_nothing_is_listed_of_a_large_network(chip, rng):
    works = resnet50()
    assert sum(work.macs for work in works) == 4_089_184_256
    space = UpsetSpace(chip, works, ((32, 32, 32),) * len(works))
    assert 10**8 < len(space) < 10**14
    index = rng.integers(0, len(space), 20_000)
    found = space.locate(index)
    assert (space.number_of(space.cell_of(index), space.place_of(index)) == index).all()
    product = [works[at].product for at in found.layer]
    assert (found.row < [one.rows for one in product]).all()
    assert (found.step < [one.depth for one in product]).all()
    assert (found.column < [one.columns for one in product]).all()
    last = space.locate([len(space) - 1])
    assert (last.layer[0], chip.types[int(last.type[0])]) == (len(works) - 1, chip.types[-1])
    measure = UpsetMeasure(in_use=True)
    cell = rng.choice(len(space.cells), size=5000, p=measure.mass(space))
    place = measure.draw_places(space, cell, rng=rng)
    assert (measure.within(space, cell, place) > 0).all()
    for by in ("model", "layer", "type", "bit", "kind"):
        assert space.axis(by).faults.sum() == len(space)


def test_tables_go_by_what_upsets_have():
    works = (DRAWN["linear"], replace(DRAWN["recurrent"], layer="rnn"), replace(DRAWN["linear"]))
    space = UpsetSpace(NVDLA_LIKE, works, (WIDTHS,) * 3)
    index = np.arange(len(space))
    found = space.locate(index)
    names = np.array(["layer", "rnn", "layer"])[found.layer]
    types = np.array([one.name for one in NVDLA_LIKE.types])[found.type]
    holds = np.array([one.holds for one in NVDLA_LIKE.types])[found.type]
    for by, each in (("layer", names), ("type", types), ("bit", found.bit), ("kind", holds)):
        axis = space.axis(by)
        assert (np.array(axis.keys)[axis.code(index)] == each).all(), by
        assert axis.faults.tolist() == [(each == key).sum() for key in axis.keys], by
        assert (axis.of_cell[space.cell_of(index)] == axis.code(index)).all(), by
    assert space.axis("layer").keys == ["layer", "rnn"]
    assert space.axis("bit").keys == [-1, 0, 1, 2]
    assert (space.cells.group == space.axis("layer").of_cell).all()
    with pytest.raises(SpaceError, match="did you mean 'layer'"):
        space.axis("layers")


def test_exports_show_what_means_something():
    space = UpsetSpace(NVDLA_LIKE, (DRAWN["padded"], DRAWN["recurrent"]), (WIDTHS, WIDTHS))
    shown = space.columns(np.arange(len(space)))
    assert list(shown) == ["layer", "type", "holds", "bit", "element", "group", "row", "step", "column"]
    control, random = shown["holds"] == "control", shown["type"] == "local control"
    assert control.sum() == 2
    for name in ("bit", "element", "group", "row", "step", "column"):
        assert (shown[name][control] == -1).all()
    assert (shown["bit"][random] == -1).all()
    assert (shown["element"][~control] >= 0).all()
    for name in ("group", "row", "step", "column"):
        assert (shown[name][shown["layer"] == "rnn"] == -1).all()
        assert (shown[name][shown["type"] == "weight fetch"] == -1).all()
    served = (shown["type"] == "weight") & (shown["layer"] == "layer")
    assert sorted(set(shown["row"][served].tolist())) == [0, 1, 2, 3]


def test_a_space_is_restored_from_json():
    for chip in CHIPS.values():
        space = UpsetSpace(chip, tuple(DRAWN.values()), (WIDTHS,) * 4)
        again = read_upset_space(json.loads(json.dumps(space.plain())))
        assert again == space
        assert again.plain() == space.plain() == json.loads(json.dumps(space.plain())), "as a store gives it back"
        assert again.digest() == space.digest()
        assert len(again) == len(space)


def test_what_decides_an_upset_is_in_the_digest():
    space = UpsetSpace(FLAT, (DRAWN["padded"], DRAWN["linear"]), (WIDTHS, WIDTHS))
    same = replace(space, works=tuple(replace(work, node=7) for work in space.works))
    assert same == space
    assert same.digest() == space.digest()
    moved = replace(DRAWN["padded"].product, convolution=replace(PADDED, before=(0, 1)))
    others = (
        replace(space, accelerator=replace(FLAT, height=2)),
        replace(space, accelerator=replace(FLAT, types=FLAT.types[1:])),
        replace(space, widths=(WIDTHS, (2, 2, 3))),
        replace(space, works=space.works[::-1]),
        replace(space, works=(replace(DRAWN["padded"], product=moved), DRAWN["linear"])),
    )
    assert len({space.digest(), *(other.digest() for other in others)}) == 6


def first_of_row(row, column, grid):
    """Reach the struck output alone."""
    del grid
    return Reach(row, row + 1, column, column + 1)


def test_a_pattern_that_is_a_function_is_shown_but_not_run():
    own = Accelerator(
        name="own",
        types=(FlipFlops(name="i", holds="input", share=1.0, pattern=Pattern("operand", first_of_row)),),
        height=4,
        width=4,
    )
    space = UpsetSpace(own, (DRAWN["padded"],), (WIDTHS,))
    again = read_upset_space(json.loads(json.dumps(space.plain())))
    assert again.digest() == space.digest()
    assert again.plain() == space.plain()
    index = np.arange(len(space))
    assert all((one == two).all() for one, two in zip(again.locate(index), space.locate(index), strict=True))
    with pytest.raises(HardwareError, match=r"first_of_row' is not stored, only its name; pass the accelerator"):
        again.accelerator.types[0].pattern.reach(index, index, None)
    reaches = (first_of_row, along_row, lambda row, column, grid: along_row(row, column, grid))
    chips = [replace(own, types=(replace(own.types[0], pattern=Pattern("operand", one)),)) for one in reaches]
    digests = {replace(space, accelerator=chip).digest() for chip in chips}
    assert len(digests) == 3
    both = [
        lambda row, column, grid: along_row(row, column, grid),
        lambda row, column, grid: first_of_row(row, column, grid),
    ]
    chips = [replace(own, types=(replace(own.types[0], pattern=Pattern("operand", one)),)) for one in both]
    one, two = (replace(space, accelerator=chip) for chip in chips)
    assert one.digest() != two.digest(), "two functions without a name are told apart by what they reach"


def test_what_is_damaged_is_refused():
    plain = UpsetSpace(FLAT, (DRAWN["padded"],), (WIDTHS,)).plain()
    damaged = (
        {},
        plain | {"works": [{}]},
        plain | {"works": [[]]},
        plain | {"works": None},
        plain | {"widths": [[1, 2]]},
        plain | {"widths": [["a", 2, 3]]},
        plain | {"accelerator": plain["accelerator"] | {"types": [3]}},
        plain | {"accelerator": plain["accelerator"] | {"dataflow": []}},
        plain | {"works": [plain["works"][0] | {"product": {"groups": 1}}]},
        plain | {"works": [plain["works"][0] | {"product": 3}]},
    )
    for one in damaged:
        with pytest.raises(HardwareError):
            read_upset_space(one)


def entries(held, path=()):
    """Yield the path of every value within *held*."""
    for key, value in held.items() if isinstance(held, dict) else enumerate(held):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from entries(value, (*path, key))


STRANGE = (
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    "x",
    "",
    [],
    [1],
    {},
    {"a": 1},
    [[]],
    "tile",
)


@pytest.mark.parametrize("seed", range(4))
def test_any_damage_is_an_error_of_ours_or_harmless(seed):
    """A stored space, or an accelerator's file, with entries replaced, removed or added: used, or refused in a line."""
    random = np.random.default_rng(seed)
    chip = replace(NVDLA_LIKE, utilisation=(("input", 0.5), ("weight", 1.0)))
    plain = json.dumps(UpsetSpace(chip, (DRAWN["padded"], DRAWN["recurrent"]), (WIDTHS, WIDTHS)).plain())
    refused = 0
    for number in range(300):
        held = json.loads(plain)
        for _ in range(random.integers(1, 3)):
            *path, last = list(entries(held))[random.integers(len(list(entries(held))))]
            inner = held
            for key in path:
                inner = inner[key]
            what = random.integers(3)
            if what == 0:
                inner[last] = STRANGE[random.integers(len(STRANGE))]
            elif what == 1:
                del inner[last]
            elif isinstance(inner, dict):
                inner[("count", "share", "more")[random.integers(3)]] = STRANGE[random.integers(len(STRANGE))]
        try:
            if number % 2:
                accelerator_of(held.get("accelerator"), "a file")
                continue
            space = read_upset_space(held)
            space.locate([0, len(space) - 1])
            space.columns([0, len(space) - 1])
            assert UpsetMeasure().mass(space).sum() == pytest.approx(1)
            assert len(space.digest()) == 64
        except (HardwareError, SpaceError):
            refused += 1
    assert refused > 100


def test_numbers_outside_are_refused():
    space = UpsetSpace(FLAT, (DRAWN["linear"],), (WIDTHS,))
    for wrong in ([-1], [len(space)], [0.5], [True]):
        with pytest.raises(SpaceError):
            space.locate(wrong)
    with pytest.raises(SpaceError, match="cells run from 0 to"):
        space.number_of([len(space.cells)], [0])
    with pytest.raises(SpaceError, match=r"places of this cell run from 0 to 29, got 30"):
        space.number_of([0, 0], [1, 30])
    huge = Product(1, 2**31, 2**31, 2**31)
    with pytest.raises(SpaceError, match=r"2\^63"):
        UpsetSpace(FLAT, (work_of(huge),), (WIDTHS,))
    with pytest.raises(HardwareError, match="each of 1 layers has words"):
        UpsetSpace(FLAT, (DRAWN["linear"],), ())
    assert repr(space) == "<UpsetSpace: 109 upsets of 'flat' in 1 layers>"
    assert len(space.locate(np.array([], dtype=np.int64)).layer) == 0


def test_variables_that_are_no_sites_are_refused():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))).eval()
    layers = layers_of(model, Data(torch.randn(2, 3)))
    with pytest.raises(HardwareError, match=r"6 weight variables of '0.*' need sites with words of one width, got 0"):
        upset_space(FLAT, layers.works, layers.space)


def test_the_space_needs_no_torch():
    program = (
        "import sys, torchfault.hardware.upset_space, torchfault.hardware.measure;"
        "print({'torch', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
