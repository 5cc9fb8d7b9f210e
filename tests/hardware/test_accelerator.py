"""Accelerators as values and in YAML, and the probabilities they give the variables of a model."""

import re
import runpy
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from benchmarks.thales.networks import lenet5, mnist
from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import (
    ACCELERATORS,
    FLAT,
    NVDLA_LIKE,
    OUTPUT_STATIONARY,
    WEIGHT_STATIONARY,
    Accelerator,
    FlipFlops,
    find_accelerator,
    hardened,
    read_accelerator,
    with_buffer,
)
from torchfault.hardware.layers import layers_of
from torchfault.hardware.measure import hardware_measure, layer_table, utilisation
from torchfault.hardware.patterns import Grid, Pattern, Reach, along_row, one_output
from torchfault.measures import draw
from torchfault.testing import check_accelerator

ROOT = Path(__file__).resolve().parents[2]

MACS = {"mnist": (144_000, 320_000, 16_000, 500), "lenet5": (117_600, 240_000, 48_000, 10_080, 840)}
NETWORKS = {"mnist": mnist, "lenet5": lenet5}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return request.param, layers_of(*NETWORKS[request.param]())


@pytest.mark.parametrize("name", ACCELERATORS)
def test_conformance(name):
    check_accelerator(ACCELERATORS[name])
    check_accelerator(replace(ACCELERATORS[name], utilisation="tile"))
    check_accelerator(with_buffer(ACCELERATORS[name], "buffer", holds="weight", share=10.0))


def escape(row, column, grid):
    """Reach one row too far."""
    found = one_output(row, column, grid)
    return found._replace(row_end=found.row_end + 1)


def elsewhere(row, column, grid):
    """Reach the first output, whatever was struck."""
    return one_output(np.zeros_like(row), np.zeros_like(column), grid)


def nothing(row, column, grid):
    """Reach no output."""
    del grid
    return Reach(row, row, column, column)


def too_few(row, column, grid):
    """Answer for the first upset alone."""
    return one_output(row[:1], column[:1], grid)


BROKEN = {
    "escape": (Pattern("operand", escape), "stays within"),
    "nothing": (Pattern("operand", nothing), "stays within"),
    "too few": (Pattern("operand", too_few), "stays within"),
    "elsewhere": (Pattern("operand", elsewhere), "whose product is struck"),
}


@pytest.mark.parametrize("flaw", BROKEN)
def test_conformance_catches_patterns_that_go_wrong(flaw):
    pattern, rule = BROKEN[flaw]
    types = (replace(FLAT.types[0], pattern=pattern), *FLAT.types[1:])
    with pytest.raises(AssertionError, match=rule):
        check_accelerator(replace(FLAT, types=types))


def test_conformance_catches_a_sum_that_reaches_many_outputs():
    types = (*FLAT.types[:2], replace(FLAT.types[2], pattern=Pattern("partial", along_row)), FLAT.types[3])
    with pytest.raises(AssertionError, match="reaches it alone"):
        check_accelerator(replace(FLAT, types=types, width=4))


def test_conformance_catches_shares_that_do_not_sum_to_one():
    class Doubled(Accelerator):
        def weight_of(self, name):
            return 2 * super().weight_of(name)

    broken = Doubled(name="doubled", types=FLAT.types)
    with pytest.raises(AssertionError, match="sum to 1"):
        check_accelerator(broken)


@pytest.mark.parametrize("accelerator", ACCELERATORS.values(), ids=ACCELERATORS)
def test_p_is_the_closed_form_and_sums_to_one(network, accelerator):
    name, layers = network
    found = hardware_measure(accelerator, layers.works, layers.space)
    index = np.arange(len(found.space))
    p = found.probability(index)
    assert p.sum() + found.control == pytest.approx(1, abs=1e-12)
    where = found.space.locate(index)
    # By hand: LP from the paper's MACs, w from shares times FIT, V from the sites' own shapes.
    total = sum(one.share * one.fit for one in accelerator.types)
    w = dict.fromkeys(("input", "weight", "output", "control"), 0.0)
    for one in accelerator.types:
        w[one.holds] += one.share * one.fit / total
    assert found.control == pytest.approx(w["control"], abs=1e-12)
    for macs, work in zip(MACS[name], layers.works, strict=True):
        for holds, names in (("input", work.inputs), ("weight", work.weights), ("output", work.outputs)):
            (site,) = (found.space.site(one) for one in names)
            expected = macs / sum(MACS[name]) * w[holds] / (site.elements * 32)
            mine = p[where.site == found.space.position(site.name)]
            assert len(mine) == site.elements * 32
            assert np.allclose(mine, expected, rtol=1e-12, atol=0)


def test_drawn_frequencies_follow_p(network, rng):
    _, layers = network
    found = hardware_measure(NVDLA_LIKE, layers.works, layers.space)
    n = 60_000
    index = draw(found.measure, found.space, n, rng=rng)
    where = found.space.locate(index)
    assert chisquare(np.bincount(where.site, minlength=len(found.space.sites)), found.measure.sites * n).pvalue > 1e-3
    assert chisquare(np.bincount(where.bit, minlength=32)).pvalue > 1e-3
    largest = int(np.argmax(found.measure.sites))
    part = where.element[where.site == largest] * 16 // found.space.sites[largest].elements
    sizes = np.bincount(np.arange(found.space.sites[largest].elements) * 16 // found.space.sites[largest].elements)
    assert chisquare(np.bincount(part, minlength=16), sizes / sizes.sum() * len(part)).pvalue > 1e-3


def test_the_table_by_layer_and_type(network):
    name, layers = network
    table = layer_table(OUTPUT_STATIONARY, layers.works)
    print(table.pivot(index="layer", columns="type", values="p"))
    grid = table.pivot(index="layer", columns="type", values="p").loc[[work.layer for work in layers.works]]
    shares = np.array(MACS[name]) / sum(MACS[name])
    types = {"input": 30.56 / 99.99, "weight": 30.56 / 99.99, "output": 21.87 / 99.99, "control": 17.0 / 99.99}
    for kind, share in types.items():
        assert grid[kind].to_numpy() == pytest.approx(shares * share, rel=1e-12)
    assert table["p"].sum() == pytest.approx(1, abs=1e-12)
    assert table["p_variable"].to_numpy() == pytest.approx((table["p"] / table["variables"]).to_numpy())


def test_a_weight_that_two_calls_share_gets_the_sum_of_both():
    import torch
    from torch import nn

    from torchfault.data import Data

    layer = nn.Linear(8, 8)
    layers = layers_of(nn.Sequential(layer, nn.ReLU(), layer).eval(), Data(torch.randn(3, 8)))
    found = hardware_measure(FLAT, layers.works, layers.space)
    sites = dict(zip(found.space.names, found.measure.sites, strict=True))
    assert sites["0.weight"] == pytest.approx(sites["0:input"] + sites["0@1:input"])


def test_weights_computed_from_others_are_refused():
    import torch
    from torch import nn

    from torchfault.data import Data

    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)).eval()
    layers = layers_of(model, Data(torch.randn(3, 4)))
    with pytest.raises(HardwareError, match="fold computed weights first"):
        hardware_measure(FLAT, layers.works, layers.space)


def test_a_space_without_some_bits_is_refused(network):
    _, layers = network
    with pytest.raises(HardwareError, match="keep all bits"):
        hardware_measure(FLAT, layers.works, layers.space.select(bits=[30]))


def test_utilisation_from_tile_fill(network):
    _, layers = network
    last = layers.works[-1]  # one row, 10 columns, depth 50 or 84
    depth, tiles = last.product.depth, -(-last.product.depth // 32)
    array = replace(OUTPUT_STATIONARY, utilisation="tile")
    assert utilisation(array, last, array.types[0]) == pytest.approx(10 / 32 / 32)
    assert utilisation(array, last, array.type_of("control")) == 1
    array = replace(WEIGHT_STATIONARY, utilisation="tile")
    assert utilisation(array, last, array.types[0]) == pytest.approx(10 / 32 * depth / (32 * tiles))
    assert utilisation(array, last, array.type_of("output")) == pytest.approx(10 / 32)
    given = replace(FLAT, utilisation={"input": 0.25})
    assert [utilisation(given, last, one) for one in given.types] == [0.25, 1.0, 1.0, 1.0]
    assert utilisation(replace(FLAT, utilisation=0.5), last, FLAT.types[0]) == 0.5


def test_hardening_a_type_moves_upsets_to_the_others():
    before, after = OUTPUT_STATIONARY, hardened(OUTPUT_STATIONARY, "control")
    assert after.weight_of("control") == pytest.approx(17.0 * 200 / (17.0 * 200 + 82.99 * 600))
    assert after.weight_of("input") / before.weight_of("input") > 1
    with pytest.raises(HardwareError, match="did you mean 'control'"):
        hardened(OUTPUT_STATIONARY, "contrl")


def test_a_buffer_counts_as_more_flip_flops():
    more = with_buffer(FLAT, "cache", holds="weight", share=8 * 1851)
    assert more.flip_flops == 9 * 1851
    assert more.weight_of("cache") == pytest.approx(8 / 9)


YAML = """
    name: mine
    dataflow: output-stationary
    height: 8
    width: 4
    utilisation: {input: 0.5}
    types:
      - {name: input, holds: input, count: 1024, pattern: systolic input}
      - {name: sums, holds: output, count: 1024, pattern: one output, fit: 200}
      - {name: control, holds: control, count: 2048, pattern: crash}
"""


def test_an_accelerator_from_yaml(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(textwrap.dedent(YAML))
    found = find_accelerator(str(file))
    assert found == Accelerator(
        name="mine",
        types=(
            FlipFlops(name="input", holds="input", share=1024, pattern="systolic input"),
            FlipFlops(name="sums", holds="output", share=1024, pattern="one output", fit=200),
            FlipFlops(name="control", holds="control", share=2048, pattern="crash"),
        ),
        dataflow="output-stationary",
        height=8,
        width=4,
        utilisation=(("input", 0.5),),
        flip_flops=4096,
    )
    check_accelerator(found)


WRONG = {
    "dataflow: output-stationary": ("dataflow: output-stationery", "did you mean 'output-stationary'"),
    "height: 8": ("hieght: 8", "no such key 'hieght'; did you mean 'height'"),
    "width: 4": ("width: 0", "whole number from 1 up, got 0"),
    "name: mine": ("", "missing name"),
    "pattern: crash": ("pattern: crush", "did you mean 'crash'"),
    "holds: control": ("holds: output", "goes with control"),
    "count: 2048": ("count: 2048, share: 3", "either a count or a share"),
    "fit: 200": ("fit: -1", "from 0 up"),
    "{input: 0.5}": ("{input: 1.5}", "from 0 to 1"),
    "name: sums": ("name: input", "different names"),
}


@pytest.mark.parametrize("part", WRONG)
def test_bad_yaml_is_told_what_is_wrong(tmp_path, part):
    wrong, message = WRONG[part]
    file = tmp_path / "mine.yaml"
    file.write_text(textwrap.dedent(YAML).replace(part, wrong, 1))
    with pytest.raises(HardwareError, match=message):
        read_accelerator(file)


def test_a_missing_file_and_an_unknown_name(tmp_path):
    with pytest.raises(HardwareError, match="cannot read"):
        read_accelerator(tmp_path / "none.yaml")
    with pytest.raises(HardwareError, match="did you mean 'nvdla-like'"):
        find_accelerator("nvdla")


def test_the_example_of_ones_own_accelerator_keeps_the_rules():
    example = runpy.run_path(str(ROOT / "examples" / "dot_engine.py"))
    example["test_it_keeps_the_rules"]()
    spoilt = example["two_rows"](np.array([0, 1, 4]), np.array([0, 0, 0]), Grid(5, 1, 1))
    assert spoilt.outputs.tolist() == [2, 1, 1]


def test_the_accelerator_of_the_documentation_can_be_read(tmp_path):
    text = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my-array.yaml").write_text(block, encoding="utf-8")
    chip = read_accelerator(tmp_path / "my-array.yaml")
    check_accelerator(chip)
    assert [one.memory for one in chip.types] == [False, False, False, False, True]
    assert chip.flip_flops == sum(int(count) for count in re.findall(r"count: (\d+)", block))


@pytest.mark.slow
def test_the_example_ranks_three_architectures(capsys):
    with torch.random.fork_rng():
        runpy.run_path(str(ROOT / "examples" / "rank_architectures.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    values = [float(re.search(r"RA ([\d.]+) %", line)[1]) for line in lines]
    assert len(lines) == 3
    assert values == sorted(values, reverse=True)
