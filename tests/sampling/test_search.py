"""The search for critical faults: better than chance, no fault twice, all of them in the end, recall with bounds."""

from dataclasses import replace

import numpy as np
import pytest

from torchfault.campaign import Campaign, run
from torchfault.errors import CampaignError, SamplingError
from torchfault.model.golden_words import golden_words
from torchfault.results import load, recall
from torchfault.sampling import Population, Search, Uniform
from torchfault.space import FaultSpace, Site
from torchfault.statistics import MaxTrials
from torchfault.store import Store

SMALL = FaultSpace((Site("a", (4, 5), channel=0), Site("b", (7,), word="int8")))


@pytest.fixture(scope="module")
def searched(known):
    """Return a campaign that searches for a third of the space, and its results."""
    words = golden_words(known.engine.model, known.data, known.space)
    campaign = Campaign(
        known.table, known.space, sampler=Search(side=1024, block=256, words=words), seed=5, stop=MaxTrials(6144)
    )
    return campaign, run(campaign)


def test_no_fault_is_struck_twice(searched):
    _, results = searched
    assert len(np.unique(results.columns.faults)) == len(results) == 6144


def test_a_search_finds_far_more_than_chance(searched, known):
    _, results = searched
    found = recall(results)
    chance = known.truth()[0]
    assert len(found.faults) > 0.7 * known.by_fault.sum()
    assert results.columns.failed[1024:1536].mean() > 10 * chance
    assert found.hits[-1] == results.failures == len(found.faults)
    assert known.outcomes[found.faults].any(axis=1).all()


def test_recall_has_bounds_that_hold_the_truth(searched, known):
    _, results = searched
    found = recall(results)
    # each fault meets one input by chance, so that the number that fail varies a little about its mean
    assert found.total.low <= 1.05 * known.by_fault.sum()
    assert known.by_fault.sum() <= found.total.high
    table = found.table([1024, 6144])
    assert table["precision"].tolist() == [found.hits[1023] / 1024, found.hits[-1] / 6144]
    assert (table["recall_low"] <= table["recall"]).all()
    assert (table["recall"] <= table["recall_high"]).all()
    assert table["recall"].iloc[1] > 0.5
    assert len(found.table()) >= 5


def test_estimates_of_a_search_come_from_its_side_sample_alone(searched, known):
    _, results = searched
    assert results.estimate().trials == 1024
    assert results.estimate().low <= known.truth()[0] <= results.estimate().high
    assert results.table("bit")["trials"].sum() == 1024


def test_a_search_goes_on_as_if_it_had_never_stopped(searched, tmp_path):
    campaign, whole = searched
    with Store(tmp_path / "a.sqlite") as store:
        for trials in (300, 1500, 1700, 2500):
            run(replace(campaign, stop=MaxTrials(trials)), store=store, name="a")
        pieces = load(store, "a")
    assert pieces.columns.faults.tolist() == whole.columns.faults[:2500].tolist()
    assert pieces.columns.inputs.tolist() == whole.columns.inputs[:2500].tolist()


def test_a_search_covers_the_space_and_ends(known):
    space = known.space.select("conv1.weight")
    known_benign = tuple(np.flatnonzero(space.locate(np.arange(len(space))).bit < 8).tolist())
    results = run(Campaign(known.table, space, sampler=Search(side=64, block=64, known=known_benign), seed=1))
    left = np.setdiff1d(np.arange(len(space)), known_benign)
    assert np.sort(results.columns.faults).tolist() == left.tolist()
    assert results.record.reason == f"all {len(left)} trials run"


def test_cells_take_every_fault_apart_and_together():
    sampler = Search(side=4, block=4)
    cells = sampler.cells(SMALL)
    assert cells.size.sum() == len(SMALL)
    every = np.arange(len(SMALL))
    cell, rank = cells.of(every), cells.rank(every)
    assert np.bincount(cell).tolist() == cells.size.tolist()
    for one in range(len(cells.size)):
        mine = every[cell == one]
        assert np.sort(cells.fault(one, rank[mine])).tolist() == mine.tolist()
        assert len({int(SMALL.locate([fault]).bit[0]) for fault in mine}) == 1


def test_impossible_searches_are_refused(known):
    with pytest.raises(SamplingError, match="whole blocks"):
        Search(side=100, block=64)
    with pytest.raises(SamplingError, match="numbers below 864"):
        Search(known=(5, 900)).design(Population(known.space.select("conv1.weight")))
    with pytest.raises(CampaignError, match="was no search"):
        recall(run(Campaign(known.table, known.space, sampler=Uniform(), stop=MaxTrials(10))))
