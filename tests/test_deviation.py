"""Sampling by deviation: strata of how far flips move their words and of how sure inputs are, and what is drawn."""

import numpy as np
import pytest
import torch
from torch import nn
from torchfault.sampling.deviation import LABELS

from torchfault.campaign import Campaign, Shortcuts, run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import SamplingError
from torchfault.model.golden_words import golden_words
from torchfault.sampling import Deviation
from torchfault.sensitivity import margins
from torchfault.space import FaultSpace
from torchfault.store.columns import POOLED
from torchfault.testing import check_sampler

INPUTS = 20
EDGES = 3


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    engine = Engine(model, Data(torch.randn(INPUTS, 4)))
    space = engine.space.select(["0.weight", "2:input"])
    return engine, space, golden_words(model, engine.data, space), margins(engine.golden())


def test_margins_part_the_inputs_of_small_flips_alone(small):
    _, space, words, lead = small
    sampler = Deviation(words, site=0.1, block=512, margins=lead, unsure=(0.1, 0.3))
    draws = sampler.draw(space, 512, rng=np.random.default_rng(0))
    label, rank = draws.stratum % LABELS, np.argsort(np.argsort(lead))[draws.inputs]
    group = np.where(label < EDGES * 3, label // EDGES, 3)
    assert set(rank[group == 0]) == set(range(6, 20))
    assert set(rank[group == 1]) == set(range(2, 6))
    assert set(rank[group == 2]) == {0, 1}
    assert len(set(rank[group == 3])) > 12


@pytest.mark.parametrize("width", [{"site": 0.1}, {"model": 0.05}, {"site": 0.2, "model": 0.05}])
def test_every_fault_on_every_input_counts_as_much_as_any_other(small, width):
    _, space, words, lead = small
    sampler = Deviation(words, block=512, margins=lead, unsure=(0.1, 0.3), **width)
    check_sampler(sampler, space)
    total = np.zeros((len(space.sites), INPUTS))
    for seed in range(60):
        draws = sampler.draw(space, 512, rng=np.random.default_rng(seed))
        np.add.at(total, (space.locate(draws.index).site, draws.inputs), draws.weight / 512 / 60)
    share = space.sizes / len(space) / INPUTS
    np.testing.assert_allclose(total / share[:, None], 1.0, atol=0.25)  # of about 700 draws a cell


def test_parameters_alone_are_drawn_with_an_input_too(small):
    _, space, words, lead = small
    weights = space.select(kinds="weight")
    draws = Deviation(words, site=0.1, block=256, margins=lead).draw(weights, 256, rng=np.random.default_rng(1))
    assert len(set(draws.inputs)) == INPUTS


def test_sites_of_a_kind_share_their_strata_where_the_model_alone_is_asked_for():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    engine = Engine(model, Data(torch.randn(5, 4)))
    space = engine.space.select(kinds="weight")
    words = golden_words(model, engine.data, space)
    shared, own = (Deviation(words, block=256, **width).strata(space) for width in ({"model": 0.05}, {"site": 0.05}))
    assert len(shared.sites) == 1
    assert len(own.sites) == 3
    np.testing.assert_allclose(shared.shares[:LABELS], own.shares.reshape(3, LABELS).sum(axis=0))


@pytest.mark.parametrize("width", [{"site": 0.1}, {"model": 0.05}])
def test_a_campaign_ends_with_intervals_as_narrow_as_asked_for(small, width):
    engine, space, words, lead = small
    results = run(Campaign(engine, space, sampler=Deviation(words, block=512, margins=lead, **width), seed=3))
    assert "every interval is narrow enough" in results.record.reason
    table = results.table(next(iter(width)))
    assert (table["high"] - table["low"]).max() <= 2 * next(iter(width.values()))
    assert table["value"].between(table["low"], table["high"]).all()
    assert results.table("site")["value"].notna().all()


def test_a_layer_is_known_as_well_as_its_sites(small):
    engine, _, _, lead = small
    space = engine.space.select(["0.weight", "0:input", "2:input"])
    words = golden_words(engine.model, engine.data, space)
    sampler = Deviation(words, block=512, margins=lead, site=0.1)
    results = run(Campaign(engine, space, sampler=sampler, seed=3))
    sites, layers = (results.table(by).set_index("key") for by in ("site", "layer"))
    assert layers.loc["2", ["value", "low", "high"]].equals(sites.loc["2:input", ["value", "low", "high"]])
    share = np.array([space.site(name).size for name in ("0.weight", "0:input")])
    value = share @ sites.loc[["0.weight", "0:input"], "value"] / share.sum()
    assert layers.loc["0", "value"] == pytest.approx(value)
    assert layers.loc["0", "high"] - layers.loc["0", "low"] < 2 * 0.13


def test_large_errors_and_most_flips_on_unsure_inputs_stay_out_of_pools(small):
    engine, space, words, lead = small
    sampler = Deviation(words, site=0.1, block=512, pool=16, margins=lead, unsure=(0.2,))
    results = run(Campaign(engine, space, sampler=sampler, shortcuts=Shortcuts(16), seed=3))
    label, pooled = results.columns.strata % LABELS, results.columns.marks & POOLED > 0
    assert set(label[pooled]) == {0, 1, 2, EDGES}
    assert pooled[label == 0].all()


def test_margins_that_do_not_fit_are_refused(small):
    _, space, words, lead = small
    with pytest.raises(SamplingError, match=r"shape \(20,\), one for each input, got \(19,\)"):
        Deviation(words, site=0.1, margins=lead[1:]).strata(space)
    for unsure in ((0.0,), (0.3, 0.1), (1.0,), (0.1, 0.2, 0.3, 0.4)):
        with pytest.raises(SamplingError, match="unsure are shares"):
            Deviation(words, site=0.1, margins=lead, unsure=unsure)


def test_an_input_without_a_margin_counts_as_unsure(small):
    _, space, words, lead = small
    broken = lead.copy()
    broken[7] = np.nan
    draws = Deviation(words, site=0.1, block=512, margins=broken).draw(space, 512, rng=np.random.default_rng(0))
    label = draws.stratum % LABELS
    assert set(draws.inputs[(label >= EDGES) & (label < 2 * EDGES)]) == {7}


def test_a_space_of_one_site_is_cut_as_well(small):
    _, space, words, _ = small
    one = FaultSpace((space.sites[0],))
    assert Deviation(words, model=0.1, block=64).draw(one, 64, rng=np.random.default_rng(0)).weight.mean() > 0
