"""Faults in blocks of images go on in boxes: rounded block by block, with the outcomes that whole values have."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import collect, random_trials
from tests.support.torch_types import skip_without
from torchfault.adapters.represent import represent
from torchfault.campaign import run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.engine.graph.boxes import Local, LocalLanes
from torchfault.engine.graph.scheduler import ChunkRun
from torchfault.faults import BitFlip
from torchfault.hardware.accelerator import FLAT, OUTPUT_STATIONARY, FlipFlops
from torchfault.hardware.layers import layers_of
from torchfault.recipes import upsets, vulnerability
from torchfault.results import factors, resiliency
from torchfault.space import Fault
from torchfault.statistics import MaxTrials
from torchfault.trials import strike
from torchfault.words import rounded, word


def network(height: int, width: int) -> tuple[nn.Module, Data]:
    """Return two convolutions on images of a size, whose sums float32 holds exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
        inputs = torch.randn(6, 3, height, width)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(rounded(parameter, word("q1.6")))
    return model, Data(rounded(inputs, word("q3.4")))


@pytest.fixture
def boxes(monkeypatch):
    """Count the boxes that were rounded in blocks, and those that began at a scale."""
    counts = {"rounded": 0, "scales": 0}
    rounding, starting = LocalLanes._in_blocks, ChunkRun._struck_box

    def in_blocks(self, node, image):
        found = rounding(self, node, image)
        counts["rounded"] += found is not None
        return found

    def struck_box(self, lanes, node, group):
        found = starting(self, lanes, node, group)
        counts["scales"] += isinstance(found, Local) and bool(group.place.part)
        return found

    monkeypatch.setattr(LocalLanes, "_in_blocks", in_blocks)
    monkeypatch.setattr(ChunkRun, "_struck_box", struck_box)
    return counts


@pytest.mark.parametrize(
    ("how", "size", "whole"),
    [
        ("mxfp8_e4m3", (16, 32), True),  # a block is a line of the image
        ("nvfp4[0.0078125]", (12, 32), True),  # half a line
        ("mxint8", (16, 16), True),  # two lines
        ("bfp6:8", (16, 24), True),
        ("mxfp8_e4m3:3@1", (13, 16), True),  # of channels, the last one short
        ("mxfp4:4@2", (16, 13), True),  # down the lines
        ("nvfp4:32@2[0.0078125]", (13, 16), True),  # a column is a block
        ("mxint8:5@3", (16, 16), False),  # the last block is short
        ("mxfp4:5", (16, 16), False),  # blocks end in the middle of lines
        ("mxfp6_e3m2", (15, 16), False),  # the last block is short
    ],
)
def test_struck_blocks_are_followed_in_boxes_to_what_whole_values_give(how, size, whole, boxes):
    skip_without(how)
    model, data = network(*size)
    twin = represent(model, activations={"0:*": how, "2:*": how})
    graph, hooks = (Engine(twin, data, executor=kind) for kind in ("graph", "hooks"))
    # Sums with a struck value may round by their order, and blocks make a step of that: in one lane of a hundred.
    names, lanes, steps = [name for name in graph.space.names if name.startswith(("0:", "2:"))], 24, 0
    assert len(names) == 4 * (3 if how.startswith("nv") else 2)
    for name in names:
        trials = random_trials(graph.space.select(name), len(data), lanes, seed=3)
        mine, theirs = (collect(engine._executor, trials)[0] for engine in (graph, hooks))
        steps += int((~torch.isclose(mine, theirs, rtol=1e-5, atol=1e-6, equal_nan=True).all(1)).sum())
    assert steps <= len(names) * lanes // 100
    assert bool(boxes["rounded"]) == whole
    assert boxes["scales"]


def test_a_fault_in_the_scale_of_a_tensor_concerns_all_of_its_input_and_no_other():
    model, data = network(8, 8)
    twin = represent(model, activations={"0:output": "nvfp4[0.0078125]"})
    engine = Engine(twin, data)
    site = engine.space.site("0:output.per_tensor_scale")
    assert (site.word, site.shape, site.size) == ("float32", (), 32)
    index = [engine.space.index(Fault(site.name, 0, bit)) for bit in (23, 31)]
    trials = strike(
        engine.space, engine.space.locate(index), model=BitFlip(), rng=np.random.default_rng(0), inputs=np.array([1, 4])
    )
    found = collect(engine._executor, trials)[0]
    with torch.no_grad():
        golden = twin[0](data.inputs)
        expected = torch.cat([twin[1:](golden[1:2] * 2.0), twin[1:](-golden[4:5])])
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("how", ["bfp6:8", "mxfp4", "nvfp4[0.0078125]", "mxfp4:3@1", "mxint8:4@2"])
def test_factors_of_blocks_are_those_of_every_fault(how):
    skip_without(how)
    model, data = network(6, 6)
    twin = represent(model, activations={"2:input": how})
    engine = Engine(twin, data.take(slice(0, 3)))
    names = [site.name for site in engine.space.sites if site.name.startswith("2:input")]
    space = engine.space.select(names)
    results = run(vulnerability(engine, space, weights=None, neurons=None, fresh=False, audit=1.0))
    told = factors(results, by="site").set_index("site")["value"]
    golden = engine.golden().argmax(1)
    for name in names:
        part = engine.space.select(name)
        index = np.repeat(np.arange(len(part)), 3)
        trials = strike(
            part, part.locate(index), model=BitFlip(), rng=np.random.default_rng(0), inputs=np.arange(len(index)) % 3
        )
        faulty = collect(engine._executor, trials)[0]
        failed = (faulty.argmax(1) != golden[torch.from_numpy(trials.inputs)]) | faulty.isnan().any(1)
        assert told[name] == pytest.approx(float(failed.double().mean()), abs=1e-9)


@pytest.mark.parametrize(
    ("weights", "activations"), [("mxfp4", "mxfp8_e4m3"), ("nvfp4", None), (None, "bfp8:16"), (None, "mxfp4:3@1")]
)
def test_upsets_of_accelerators_strike_words_of_blocks_and_their_products(weights, activations):
    skip_without(weights or "", activations or "")
    model, data = network(6, 6)
    data = Data(data.inputs, torch.zeros(6, dtype=torch.int64))
    twin = represent(model, weights, activations=activations)
    engine = Engine(twin, data)
    holders = (("input", "every use"), ("weight", "every use"), ("output", "one output"), ("control", "crash"))
    types = tuple(FlipFlops(name=held, holds=held, share=1, pattern=pattern) for held, pattern in holders)
    for chip in (replace(FLAT, types=types), OUTPUT_STATIONARY):
        found = resiliency(run(upsets(engine, chip, proposal="MAC", stop=MaxTrials(200))))
        assert 0 <= found.ra.low <= found.ra.value <= found.ra.high <= 1
    layers = layers_of(twin, data)
    names = [name for work in layers.works for held in ("input", "weight", "output") for name in work.sites(held)]
    assert set(names) <= set(engine.space.names)
    assert not any(name.endswith("scale") or name.endswith("exponent") for name in names)
