"""Sampling by deviation: strata of how far flips move their words and of how sure inputs are, and what is drawn."""

import numpy as np
import pytest
import torch
from torch import nn

from torchfault.campaign import Campaign, run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import SamplingError
from torchfault.measures import ProductMeasure
from torchfault.model.golden_words import golden_words
from torchfault.resolve import Pooled
from torchfault.sampling import Adaptive, Deviations, Population
from torchfault.sampling.deviations import LABELS
from torchfault.sensitivity import margins
from torchfault.space import FaultSpace
from torchfault.statistics import AllOf, HalfWidth
from torchfault.testing import check_sampler

INPUTS = 20
EDGES = 3
SITE = {"site": 0.1}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    engine = Engine(model, Data(torch.randn(INPUTS, 4)))
    space = engine.space.select(["0.weight", "2:input"])
    return engine, space, golden_words(model, engine.data, space), margins(engine.golden())


def drawn(cut, space, n, *, seed=0, goals=SITE, inputs=INPUTS):
    """Return the first block of *n* draws, and the label of each."""
    sampler, population = Adaptive(cut, block=n), Population(space, inputs=inputs, goals=goals)
    draws = sampler.draw(population, n, rng=np.random.default_rng(seed), start=0)
    return draws, sampler.design(population).strata.kind[draws.stratum]


def until(goals):
    """Return the rule that asks for all half-widths of *goals*."""
    return AllOf(tuple(HalfWidth(h, by=by) for by, h in goals.items()))


def test_margins_part_the_inputs_of_small_flips_alone(small):
    _, space, words, lead = small
    draws, label = drawn(Deviations(words, margins=lead, unsure=(0.1, 0.3)), space, 1024)
    rank = np.argsort(np.argsort(lead))[draws.inputs]
    group = np.where(label < EDGES * 3, label // EDGES, 3)
    assert set(rank[group == 0]) == set(range(6, 20))
    assert set(rank[group == 1]) == set(range(2, 6))
    assert set(rank[group == 2]) == {0, 1}
    assert len(set(rank[group == 3])) > 12


@pytest.mark.parametrize("goals", [{"site": 0.1}, {"model": 0.05}, {"site": 0.2, "model": 0.05}], ids=str)
def test_every_fault_on_every_input_counts_as_much_as_any_other(small, goals):
    _, space, words, lead = small
    cut = Deviations(words, margins=lead, unsure=(0.1, 0.3))
    check_sampler(Adaptive(cut, block=512), Population(space, inputs=INPUTS, goals=goals))
    total = np.zeros((len(space.sites), INPUTS))
    for seed in range(60):
        draws, _ = drawn(cut, space, 512, seed=seed, goals=goals)
        np.add.at(total, (space.locate(draws.index).site, draws.inputs), draws.weight / 512 / 60)
    share = space.sizes / len(space) / INPUTS
    np.testing.assert_allclose(total / share[:, None], 1.0, atol=0.25)  # of about 700 draws a cell


def test_parameters_alone_are_drawn_with_an_input_too(small):
    _, space, words, lead = small
    draws, _ = drawn(Deviations(words, margins=lead), space.select(kinds="weight"), 256, seed=1)
    assert len(set(draws.inputs)) == INPUTS


def test_sites_of_a_kind_share_their_strata_where_the_model_alone_is_asked_for():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    engine = Engine(model, Data(torch.randn(5, 4)))
    space = engine.space.select(kinds="weight")
    cut = Deviations(golden_words(model, engine.data, space))
    shared, own = (cut.cut(Population(space, goals={by: 0.05})).strata for by in ("model", "site"))
    assert all(len(set(own.group[own.stratum == one])) == 1 for one in range(len(own)))
    assert len(shared) == len(set(own.kind)) < len(own)
    assert set(shared.group[shared.stratum == 0]) == {0, 1, 2}
    by_label = [np.bincount(strata.kind, strata.masses, LABELS) for strata in (shared, own)]
    np.testing.assert_allclose(*by_label)
    np.testing.assert_allclose(np.bincount(own.group, own.mass), space.sizes / len(space))


@pytest.mark.parametrize("goals", [{"site": 0.1}, {"model": 0.05}, {"site": 0.2, "model": 0.05}], ids=str)
def test_a_campaign_ends_with_intervals_as_narrow_as_asked_for(small, goals):
    engine, space, words, lead = small
    sampler = Adaptive(Deviations(words, margins=lead), block=512)
    results = run(Campaign(engine, space, sampler=sampler, seed=3, stop=until(goals)))
    for by, h in goals.items():
        assert f"of at most {h:g} reached by {by}" in results.record.reason
        table = results.table(by)
        assert (table["high"] - table["low"]).max() <= 2 * h
        assert table["value"].between(table["low"], table["high"]).all()
    assert results.table("site")["value"].notna().all()


def test_a_layer_is_known_as_well_as_its_sites(small):
    engine, _, _, lead = small
    space = engine.space.select(["0.weight", "0:input", "2:input"])
    words = golden_words(engine.model, engine.data, space)
    sampler = Adaptive(Deviations(words, margins=lead), block=512)
    results = run(Campaign(engine, space, sampler=sampler, seed=3, stop=until(SITE)))
    sites, layers = (results.table(by).set_index("key") for by in ("site", "layer"))
    assert layers.loc["2", ["value", "low", "high"]].equals(sites.loc["2:input", ["value", "low", "high"]])
    share = np.array([space.site(name).size for name in ("0.weight", "0:input")])
    value = share @ sites.loc[["0.weight", "0:input"], "value"] / share.sum()
    assert layers.loc["0", "value"] == pytest.approx(value)
    assert layers.loc["0", "high"] - layers.loc["0", "low"] < 2 * 0.13


def test_large_errors_and_most_flips_on_unsure_inputs_stay_out_of_pools(small):
    engine, space, words, lead = small
    sampler = Adaptive(Deviations(words, margins=lead, unsure=(0.2,)), block=512, pool=16)
    results = run(Campaign(engine, space, sampler=sampler, resolver=Pooled(16), seed=3, stop=until(SITE)))
    label, pooled = results.design.strata.kind[results.columns.stratum], results.columns.flag("pooled")
    assert set(label[pooled]) == {0, 1, 2, EDGES}
    assert pooled[label == 0].all()


def test_margins_that_do_not_fit_are_refused(small):
    _, space, words, lead = small
    with pytest.raises(SamplingError, match=r"shape \(20,\), one for each input, got \(19,\)"):
        Deviations(words, margins=lead[1:]).cut(Population(space, goals=SITE))
    for unsure in ((0.0,), (0.3, 0.1), (1.0,), (0.1, 0.2, 0.3, 0.4)):
        with pytest.raises(SamplingError, match="unsure are shares"):
            Deviations(words, margins=lead, unsure=unsure)


def test_edges_words_and_measures_that_do_not_fit_are_refused(small):
    _, space, words, _ = small
    for edges in ((), (2.0, 0.5), (0.0, 1.0), (1.0, 1.0), tuple(range(1, LABELS))):
        with pytest.raises(SamplingError, match="edges are 1 to 13 numbers above 0 that rise"):
            Deviations(words, edges=edges)
    with pytest.raises(SamplingError, match="need the words of '2:input', got none"):
        Deviations({"0.weight": words["0.weight"]}).cut(Population(space, goals=SITE))
    with pytest.raises(SamplingError, match=r"'2:input' needs words of shape \(inputs, 6\), got \(20, 5\)"):
        Deviations(words | {"2:input": words["2:input"][:, 1:]}).cut(Population(space, goals=SITE))
    with pytest.raises(SamplingError, match=r"got another space or a measure; use Adaptive\(BitFields\(\)\)"):
        Deviations(words).cut(Population(space, ProductMeasure([0.5, 0.5]), goals=SITE))


def test_an_input_without_a_margin_counts_as_unsure(small):
    _, space, words, lead = small
    broken = lead.copy()
    broken[7] = np.nan
    draws, label = drawn(Deviations(words, margins=broken), space, 512)
    assert set(draws.inputs[(label >= EDGES) & (label < 2 * EDGES)]) == {7}


def test_a_space_of_one_site_is_cut_as_well(small):
    _, space, words, _ = small
    one = FaultSpace((space.sites[0],))
    draws, _ = drawn(Deviations(words), one, 64, goals={"model": 0.1}, inputs=1)
    assert draws.weight.mean() == pytest.approx(1)
