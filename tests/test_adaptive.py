"""Adaptive campaigns: unbiased, intervals that hold at every look, blocks that follow from earlier outcomes alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
from doubles import SPACE, Double, outcomes

from torchfault.campaign import Campaign, Results, load, run
from torchfault.errors import CampaignError, SamplingError
from torchfault.faults import BitFlip
from torchfault.sampling import Adaptive, AdaptiveSampler, History, Uniform, stream
from torchfault.space import FaultSpace, Site
from torchfault.statistics import HalfWidth, MaxTrials, proportion
from torchfault.store import Columns, Record, Store
from torchfault.testing import check_sampler
from torchfault.trials import strike

INPUTS = 10


def truth_table():
    """Return whether each fault fails on each input, shape (faults, inputs)."""
    index = np.arange(len(SPACE))
    struck = strike(SPACE, SPACE.locate(index), model=BitFlip(), rng=stream(0))
    return np.stack([outcomes(replace(struck, inputs=np.full(len(index), i))) > 0 for i in range(INPUTS)], axis=1)


TRUTH = truth_table()
WHERE = SPACE.locate(np.arange(len(SPACE)))
BY_SITE = np.array([TRUTH[WHERE.site == s].mean() for s in range(len(SPACE.sites))])
BY_BIT = np.array([TRUTH[WHERE.bit == b].mean() for b in range(32)])


def repeated(sampler, seed, blocks=None):
    """Return the results of an adaptive campaign judged by the table, of *blocks* blocks or as many as it wants."""
    rng = np.random.default_rng(seed)
    parts, history = [], History(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, bool))
    while blocks is None or len(history) < blocks * sampler.block:
        if blocks is None and len(history) and sampler.finished(SPACE, history):
            break
        draws = sampler.replan(SPACE, history).draw(SPACE, sampler.block, rng=rng, start=len(history))
        failed = TRUTH[draws.index, rng.integers(INPUTS, size=len(draws))]
        parts.append((draws.index, draws.stratum, failed, draws.weight))
        history = History(*(np.concatenate(column) for column in list(zip(*parts, strict=True))[:3]))
    weights = np.concatenate([part[3] for part in parts])
    n = len(history)
    columns = Columns(
        history.faults,
        np.zeros(n, np.int64),
        history.failed,
        np.zeros(n, bool),
        weights=weights,
        strata=history.stratum,
    )
    names = ("model", "site", "bit", "level", "block", "groups")
    fields = {name: getattr(sampler, name) for name in names}
    configuration = {"sampler": {"class": "Adaptive", "fields": fields}}
    return Results(Record("repeated", space=SPACE, inputs=INPUTS, configuration=configuration), columns)


def coverage(sampler, repetitions):
    """Return coverage by model, sites and bits of campaigns that stop themselves, their values and trials."""
    values, model, sites, bits, trials = [], [], [], [], []
    for seed in range(repetitions):
        results = repeated(sampler, seed)
        one = results.estimate()
        values.append(one.value)
        trials.append(len(results))
        model.append(one.low <= TRUTH.mean() <= one.high)
        for by, truth, kept in (("site", BY_SITE, sites), ("bit", BY_BIT, bits)):
            table = results.table(by)
            kept.append((table["low"] <= truth) & (truth <= table["high"]))
            asked = sampler.targets.get(by)
            assert asked is None or ((table["high"] - table["low"]) / 2 <= asked).all()
        assert sampler.model is None or one.half_width <= sampler.model
    return np.mean(model), np.mean(sites), np.mean(bits), np.array(values), np.mean(trials)


def test_estimates_are_unbiased_after_a_fixed_number_of_blocks():
    sampler, values, by_site = Adaptive(site=0.05, model=0.01, block=128), [], []
    for seed in range(300):
        results = repeated(sampler, seed, blocks=4)
        values.append(results.estimate().value)
        by_site.append(results.table("site")["value"].to_numpy())
    assert abs(np.mean(values) - TRUTH.mean()) < 3.5 * np.std(values) / math.sqrt(300)
    assert (np.abs(np.mean(by_site, axis=0) - BY_SITE) <= 3.5 * np.std(by_site, axis=0) / math.sqrt(300)).all()


def test_campaigns_that_stop_themselves_keep_their_level():
    model, sites, bits, values, _ = coverage(Adaptive(model=0.03, site=0.08, block=256), 200)
    assert min(model, sites, bits) >= 0.94
    assert abs(values.mean() - TRUTH.mean()) < 3.5 * values.std() / math.sqrt(200)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [Adaptive(model=0.02, block=256), Adaptive(site=0.06, block=512), Adaptive(model=0.03, bit=0.15, block=512)],
    ids=["model", "site", "bit"],
)
def test_campaigns_that_stop_themselves_keep_their_level_in_a_thousand(sampler):
    model, sites, bits, values, trials = coverage(sampler, 1000)
    off = (values.mean() - TRUTH.mean()) / (values.std() / math.sqrt(1000))
    print(
        f"{sampler.targets}: covers {model:.3f} model, {sites:.4f} sites, {bits:.4f} bits; {off:+.2f} se; {trials:.0f}"
    )
    assert min(model, sites, bits) >= 0.94
    if sampler.model:  # the value that was asked for
        assert abs(off) < 3.5


def test_blocks_go_where_they_are_needed():
    space = FaultSpace((Site("dull", (1000,)), Site("lively", (1000,))))
    sampler = Adaptive(site=0.01, block=400)
    pilot = sampler.draw(space, 400, rng=stream(1))
    site, _, bit = space.locate(pilot.index)
    history = History(pilot.index, pilot.stratum, (site == 1) & (bit >= 23) & (np.arange(400) % 2 == 0))
    draws = np.array(sampler.replan(space, history).draws)
    assert draws.sum() == 400
    assert (draws >= 1).all()
    assert draws[5:].sum() > 2 * draws[:5].sum()
    assert draws[9] > draws[4] / 4  # the mantissa of the lively site has few failures, but is large


def test_strata_are_sites_by_groups_of_bits():
    sampler = Adaptive(site=0.01, groups=(1, 2))
    space = FaultSpace((Site("a", (3,), word="int8"), Site("none", (0,)), Site("b", (2,), bits=(3, 30, 31))))
    assert sampler.strata(space).sizes.tolist() == [3, 6, 15, 2, 2, 2]
    draws = sampler.draw(space, 500, rng=stream(2))
    site, _, bit = space.locate(draws.index)
    expected = {(0, 7): 0, (0, 6): 1, (0, 5): 1, (2, 31): 3, (2, 30): 4, (2, 3): 5}
    pairs = zip(site.tolist(), bit.tolist(), draws.stratum.tolist(), strict=True)
    assert all(stratum == expected.get((s, b), 2) for s, b, stratum in pairs)


def test_blocks_planned_from_outcomes_are_samplers_with_the_right_weights():
    space = FaultSpace((Site("a", (4, 2, 3)), Site("b", (30,), word="int8"), Site("c", (9,), bits=(3, 30))))
    sampler = Adaptive(site=0.02, model=0.01, block=400)
    pilot = sampler.draw(space, 400, rng=stream(1))
    site, _, bit = space.locate(pilot.index)
    planned = sampler.replan(space, History(pilot.index, pilot.stratum, (site < 2) & (bit % 8 == 6)))
    assert planned != sampler
    assert planned == sampler.replan(space, History(pilot.index, pilot.stratum, (site < 2) & (bit % 8 == 6)))
    check_sampler(planned, space)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Adaptive, "got none"),
        (lambda: Adaptive(site=0.0), r"got \[0.0\]"),
        (lambda: Adaptive(model=0.6), r"got \[0.6\]"),
        (lambda: Adaptive(model=0.1, block=1), "two trials or more"),
        (lambda: Adaptive(model=0.1, groups=(0,)), "groups one bit"),
        (lambda: Adaptive(model=0.1, block=20).draw(SPACE, 20, rng=stream(0)), "use block=64"),
        (lambda: Adaptive(model=0.1, block=64).draw(SPACE, 65, rng=stream(0)), "draw block after block"),
    ],
)
def test_impossible_samplers_are_refused(make, message):
    with pytest.raises(SamplingError, match=message):
        make()


# Campaigns.

SAMPLER = Adaptive(model=0.03, site=0.09, block=128)


def equal(one, other):
    """Tell whether two results hold the same trials and outcomes."""
    names = ("faults", "inputs", "failed", "due", "weights", "strata")
    return all(getattr(one.columns, name).tobytes() == getattr(other.columns, name).tobytes() for name in names)


def test_a_campaign_ends_by_itself_and_says_why():
    results = run(Campaign(Double(inputs=INPUTS), SPACE, sampler=SAMPLER, seed=1))
    assert results.record.reason == "every interval is narrow enough: model ±0.03, site ±0.09 (95 %, at any time)"
    assert len(results) % 128 == 0
    table = results.table("site")
    assert ((table["high"] - table["low"]) / 2 <= 0.09).all()
    assert results.estimate().half_width <= 0.03
    assert results.estimate().method == "anytime"
    earlier = results.columns.take(0, len(results) - 128)
    before = Results(results.record, earlier)
    sites = before.table("site")
    assert before.estimate().half_width > 0.03 or ((sites["high"] - sites["low"]) / 2 > 0.09).any()
    assert isinstance(SAMPLER, AdaptiveSampler)
    assert not isinstance(Uniform(), AdaptiveSampler)


@pytest.mark.parametrize("batch", [1, 50, 128, 4096])
def test_resuming_anywhere_goes_on_as_if_it_had_never_stopped(tmp_path, batch):
    campaign = Campaign(Double(inputs=INPUTS), SPACE, sampler=SAMPLER, seed=2)
    whole = run(replace(campaign, stop=MaxTrials(700)))
    path = tmp_path / "results.sqlite"
    stops = (60, 128, 300, 301, 512, 700) if batch > 1 else (140,)
    for stop in stops:
        resumed = run(replace(campaign, engine=Double(inputs=INPUTS), stop=MaxTrials(stop)), store=path, batch=batch)
        assert len(resumed) == stop
    with Store(path) as store:
        held = load(store, "campaign")
    expected = Results(whole.record, whole.columns.take(0, stops[-1]))
    assert equal(held, expected)
    assert held.estimate() == expected.estimate()


def test_another_target_is_another_campaign(tmp_path):
    campaign = Campaign(Double(), SPACE, sampler=SAMPLER, stop=MaxTrials(128))
    run(campaign, store=tmp_path / "results.sqlite")
    with pytest.raises(CampaignError, match="begun with another sampler"):
        run(replace(campaign, sampler=replace(SAMPLER, site=0.01)), store=tmp_path / "results.sqlite")


def test_before_the_first_block_nothing_is_known():
    results = run(Campaign(Double(), SPACE, sampler=SAMPLER, stop=MaxTrials(100)))
    estimate = results.estimate()
    assert math.isnan(estimate.value)
    assert (estimate.low, estimate.high, estimate.trials) == (0, 1, 100)
    assert len(results.table("channel")) > 5


def test_rules_and_metrics_that_do_not_fit_are_refused():
    campaign = Campaign(Double(), SPACE, sampler=SAMPLER, stop=HalfWidth(0.01))
    with pytest.raises(CampaignError, match="give the half-widths to the adaptive sampler"):
        run(campaign)
    with pytest.raises(CampaignError, match="learns from failures"):
        run(replace(campaign, metric=lambda golden, labels: 1.0, stop=None))  # noqa: ARG005


def test_fewer_trials_than_uniform_where_failures_crowd():
    """Half a point for each of four sites, where one bit of 32 fails: less than half of what Wilson's takes."""
    space = FaultSpace(tuple(Site(f"s{i}", (10_000,)) for i in range(4)))
    sampler, rng = Adaptive(site=0.005, block=512), stream(3)
    history = History(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, bool))
    while not (len(history) and sampler.finished(space, history)):
        draws = sampler.replan(space, history).draw(space, 512, rng=rng)
        failed = (space.locate(draws.index).bit == 30) & (rng.random(512) < 0.7)
        parts = ((history.faults, draws.index), (history.stratum, draws.stratum), (history.failed, failed))
        history = History(*map(np.concatenate, parts))
    uniform = 4 * 3270
    assert proportion(3270 * 0.7 / 32, 3270).half_width == pytest.approx(0.005, rel=0.02)
    assert len(history) < uniform / 2
