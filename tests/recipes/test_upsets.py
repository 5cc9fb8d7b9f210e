"""Campaigns of upsets: the same trials however they are cut, and one pass without faults for what runs together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.crews import Threads
from tests.support.small_network import small_network
from torchfault.campaign import run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.engine.graph import executor
from torchfault.hardware.accelerator import ACCELERATORS, NVDLA_LIKE, OUTPUT_STATIONARY
from torchfault.hardware.layers import layers_in, layers_of
from torchfault.recipes import upsets
from torchfault.statistics import HalfWidth, MaxTrials
from torchfault.store import pack

MIB = 1 << 20


@pytest.fixture(scope="module")
def convolutions():
    """Return an engine of which no more than some of 300 images are held at a time."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
                              nn.Linear(8 * 36, 4)).eval()  # fmt: skip
        data = Data(torch.randn(300, 1, 8, 8), torch.arange(300) % 4)
    engine = Engine(model, data, memory=4 * MIB)
    assert 10 < len(engine.graph.chunks(np.arange(300))[0]) < 300
    return engine


@pytest.mark.parametrize(("proposal", "inputs"), [("strata", 1), ("strata", 3), ("IS-B", 1)])
def test_trials_are_the_same_however_a_campaign_is_cut(tmp_path, proposal, inputs):
    engine = Engine(*small_network())
    begun = upsets(engine, NVDLA_LIKE, proposal=proposal, inputs_per_fault=inputs, stop=MaxTrials(2600 * inputs))
    whole = run(begun)
    for cut in (700, 1025, 2048, 2600):
        stored = run(
            replace(begun, stop=MaxTrials(cut * inputs)), store=tmp_path / "c.db", batch=555 if cut % 2 else 4096
        )
    assert outcomes(stored) == outcomes(whole)
    assert outcomes(run(begun, batch=333, workers=Threads(2))) == outcomes(whole)


def outcomes(results):
    """Return all columns but how far outputs moved, of which a batch of another size changes the last bits."""
    return pack(replace(results.columns, changes=None))


def test_a_rule_on_intervals_stops_after_the_same_block():
    engine = Engine(*small_network())
    begun = upsets(engine, NVDLA_LIKE, stop=HalfWidth(0.02))
    assert [len(run(begun, batch=batch)) for batch in (1024, 4096)] == [2048, 2048]


def counted(monkeypatch, engine, campaign):
    """Return the results of a campaign, and on how many inputs, all passes together, golden was computed."""
    passes, plain = [], executor.golden_pass

    def counting(program, data, inputs, **options):
        passes.append(len(inputs))
        return plain(program, data, inputs, **options)

    engine.golden()
    engine.graph.forget()
    with monkeypatch.context() as patched:
        patched.setattr(executor, "golden_pass", counting)
        return run(campaign, batch=4096), sum(passes)


def test_upsets_are_made_from_the_golden_values_of_their_lanes(monkeypatch, convolutions):
    campaign = upsets(convolutions, OUTPUT_STATIONARY, stop=MaxTrials(4096))
    found, passes = counted(monkeypatch, convolutions, campaign)
    pilot = len(np.unique(found.columns.inputs[:1024]))
    assert passes <= 300 + pilot + 300, "a pass for the outputs, one for the pilot, and one for all that follows"


@pytest.mark.parametrize("chip", ACCELERATORS.values(), ids=ACCELERATORS)
def test_outcomes_are_those_of_upsets_made_from_passes_of_their_own(convolutions, chip):
    own = layers_of(convolutions.model, convolutions.data)
    one, two = (
        run(upsets(convolutions, chip, layers=layers, stop=MaxTrials(2048))).columns
        for layers in (layers_in(convolutions), own)
    )
    assert (one.faults == two.faults).all()
    assert one.flag("failed").any()
    assert (one.flag("failed") != two.flag("failed")).sum() <= 2, "another shape of batch may tip a tie, and no more"


def test_lanes_are_the_same_by_hooks(convolutions):
    model, data = convolutions.model, convolutions.data.take(slice(0, 40))
    one, two = (
        run(upsets(Engine(model, data, executor=name), OUTPUT_STATIONARY, stop=MaxTrials(1200)))  # type: ignore[arg-type]
        for name in ("graph", "hooks")
    )
    assert (one.columns.inputs == two.columns.inputs).all()
    assert (one.columns.flag("failed") != two.columns.flag("failed")).sum() <= 2
