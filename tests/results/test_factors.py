"""Vulnerability factors from flips that were drawn one by one: against enumeration, and what they refuse."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.recipes.test_vulnerability import engine_of, enumerated
from torchfault import BitFlip, Data, Engine, StuckAt, run
from torchfault.campaign import Campaign
from torchfault.errors import VulnerabilityError
from torchfault.measures import ProductMeasure
from torchfault.recipes import economy, layer_space
from torchfault.results import Results, factors
from torchfault.results.vulnerability import _mean
from torchfault.sampling import Exhaustive
from torchfault.statistics import Estimate, MaxTrials

NAMES = ("linear", "conv2d-depthwise")


def every_flip(name: str) -> Results:
    engine = engine_of(name)
    return run(Campaign(engine, layer_space(engine.space), sampler=Exhaustive()))


@pytest.mark.parametrize("name", NAMES)
def test_factors_of_every_flip_are_the_truth(name):
    results, truth = every_flip(name), enumerated(name)
    shares = np.array([flips.mean() for flips in truth.values()])
    sites = factors(results)
    assert sites["value"].to_numpy() == pytest.approx(shares)
    assert sites["trials"].tolist() == [flips.size for flips in truth.values()]
    assert "channels" not in sites, "no channels were drawn"
    model = factors(results, "model").set_index(["factor", "kind"])["value"]
    assert model["MVF", "both"] == pytest.approx(shares.mean())
    sizes = np.array([flips.size for flips in truth.values()])
    assert model["total MVF", "both"] == pytest.approx(shares @ sizes / sizes.sum())
    weights = np.array([site.kind == "weight" for site in results.space.sites])
    assert model["total MVF", "weight"] == pytest.approx(np.average(shares[weights], weights=sizes[weights]))
    bits = factors(results, "bit").groupby("site", sort=False)["value"].apply(list)
    for site, flips in truth.items():
        assert bits[site] == pytest.approx(flips.mean(axis=(0, 2)).tolist())
    one = results.space.sites[0]
    of_channel = factors(results, "channel").query("site == @one.name").set_index("channel")["value"]
    for channel in range(one.channels):
        mine = one.channel_of(np.arange(one.elements)) == channel
        assert of_channel[channel] == pytest.approx(truth[one.name][mine].mean())


@pytest.mark.parametrize("name", [pytest.param("linear", marks=pytest.mark.slow), "conv2d-depthwise"])
def test_factors_of_pooled_flips_hold_the_truth(name):
    engine = engine_of(name)
    results = run(economy(engine, layer_space(engine.space), half_width=0.15, stop=MaxTrials(30_000)))
    truth = np.array([flips.mean() for flips in enumerated(name).values()])
    sites, model = factors(results), factors(results, "model")
    assert ((sites["low"] <= truth) & (truth <= sites["high"])).all()
    assert (sites["high"] - sites["low"] <= 0.3).all()
    row = model.query("factor == 'MVF' and kind == 'both'").iloc[0]
    assert row["low"] <= truth.mean() <= row["high"]
    assert row["high"] - row["low"] < (sites["high"] - sites["low"]).mean(), "a mean is known better than its parts"
    total, whole = model.iloc[-1], results.estimate()
    assert (total["value"], total["low"], total["high"]) == (whole.value, whole.low, whole.high)


def test_a_mean_has_the_bounds_of_its_source():
    one, two = (Estimate(value, value - 0.03, value + 0.04, 10, "wilson", 0.95) for value in (0.1, 0.2))
    found = _mean([one, two], np.array([1.0, 3.0]), 0.95)
    assert found.value == pytest.approx(0.175)
    assert found.low == pytest.approx(0.175 - 0.03 * np.sqrt(1 + 9) / 4)
    assert found.high == pytest.approx(0.175 + 0.04 * np.sqrt(1 + 9) / 4)
    nothing = Estimate(float("nan"), 0.0, 1.0, 0, "wilson", 0.95)
    some = _mean([one, nothing], np.array([3.0, 1.0]), 0.95)
    assert (some.value, some.trials) == (pytest.approx(0.1), 10)
    assert some.low == pytest.approx(0.75 * 0.07), "what was never drawn may be harmless"
    assert some.high == pytest.approx(0.75 * 0.14 + 0.25), "or fail always"
    assert np.isnan(_mean([nothing], np.ones(1), 0.95).value)


@pytest.mark.parametrize(
    "options", [{"fault": StuckAt(1)}, {"measure": ProductMeasure(elements={"0.weight": np.arange(6) / 15})}]
)
def test_other_faults_have_no_factors(options):
    engine = Engine(nn.Sequential(nn.Linear(3, 2)).eval(), Data(torch.randn(4, 3)))
    results = run(Campaign(engine, engine.space.select("0.weight"), stop=MaxTrials(50), **options))
    with pytest.raises(VulnerabilityError, match=r"single bit flips, all alike likely.*results\.table"):
        factors(results)
    assert len(factors(run(Campaign(engine, engine.space, fault=BitFlip(), stop=MaxTrials(50)))))
