"""Adaptive campaigns: unbiased, intervals that hold at every look, blocks that follow from earlier outcomes alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
from doubles import SPACE, Double, outcomes

from torchfault.campaign import Campaign, Results, load, run
from torchfault.errors import CampaignError, SamplingError, StatisticsError
from torchfault.faults import BitFlip, strike
from torchfault.sampling import Adaptive, AdaptiveSampler, History, Uniform, stream
from torchfault.space import FaultSpace, Site
from torchfault.statistics import HalfWidth, MaxTrials, confidence_sequence, proportion
from torchfault.statistics.anytime import _plan, needed_draws
from torchfault.store import Columns, Record, Store
from torchfault.testing import check_sampler

# The confidence sequence.


def test_the_sequence_is_ville_s_bound_by_hand():
    """One stratum, two rounds, with the guesses, stakes and capital written out."""
    sequence = confidence_sequence([[1], [3]], [[20], [40]], [1.0], target=0.05)
    threshold, upper, lower, stakes, stakes_on = math.log(40), 0.0, 0.0, 0.0, 0.0
    weight = 0.0
    for k, n, g in ((1, 20, 0.1), (3, 40, 1.1 / 21)):
        plan = _plan(np.ones(1), np.array([g]), target=0.05, threshold=threshold)
        informs = (plan.lower * 0.05) ** 2 / (2 * threshold) * n / (g * (1 - g))
        stake = min(informs * plan.stake * threshold / 0.05, 0.9 * n)
        stake_on = min(plan.lower * 0.05 * n / (g * (1 - g)), 3 * n, 0.75 * n / g)
        share = min(1.15 * min(informs, n / plan.draws.sum()), 1 - weight)
        weight += share
        r = stake / n
        u = r / (1 + g * r)
        upper += -math.log(1 - u) * k + n * (math.log(1 - g * u) + u * g / (1 - g * u))
        r = stake_on / n
        v = r / (1 - g * r)
        lower += math.log(1 + v) * k - n * (math.log(1 + g * v) - v * g / (1 + g * v))
        stakes += stake
        stakes_on += stake_on
    assert sequence.high[1] == pytest.approx((upper + threshold) / stakes)
    assert sequence.low[1] == pytest.approx(max((lower - threshold) / stakes_on, 0))
    assert 0.1 < weight < 1
    assert sequence.settled[1] == pytest.approx(weight)
    assert sequence.value.tolist() == pytest.approx([0.05, (0.05 + 0.075) / 2])  # not settled: the plain mean


@pytest.mark.parametrize("target", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("p", [(1e-6, 1e-6), (1e-4, 0.5), (0.1, 0.02), (0.5, 0.5)])
def test_no_plan_with_the_same_width_is_much_cheaper(p, target):
    """Rounds of the planned draws with the expected failures reach the target, and with a tenth fewer they do not."""
    shares, p = np.array([0.97, 0.03]), np.array(p)
    draws = needed_draws(shares, p, target=target)

    def width(scale):
        trials = np.tile(draws * scale / 20, (20, 1))
        ends = confidence_sequence(trials * p, trials, shares, target=target)
        return ends.high[-1] - ends.low[-1]

    assert width(1.3) < 2 * target
    if p.max() > 0.01:
        assert width(0.9) > 2 * target


def test_a_price_moves_draws_to_where_they_are_cheap():
    shares, p, target = np.array([0.97, 0.03]), np.array([1e-3, 0.5]), 0.0025

    def price(p):
        return np.where(p < 0.1, 0.02, 1.0)

    equal, priced = needed_draws(shares, p, target=target), needed_draws(shares, p, target=target, price=price)
    assert priced[1] < 0.9 * equal[1]
    assert priced @ price(p) < 0.9 * equal @ price(p)
    trials = np.tile(1.2 * priced / 20, (20, 1))
    ends = confidence_sequence(trials * p, trials, shares, target=target, thought=p, price=price)
    assert ends.high[-1] - ends.low[-1] < 2 * target
    same = needed_draws(shares, p, target=target, price=np.ones_like)
    assert 0.95 * equal.sum() < same.sum() <= equal.sum() * (1 + 1e-9)  # with more stakes to choose from


def test_the_capital_is_never_expected_to_grow():
    """Whatever the truth, guess and stake: the mean of each round's factor is at most 1, summed over all outcomes."""
    for p in (0.0, 1e-4, 0.05, 0.5, 0.93, 1.0):
        for g in (0.001, 0.1, 0.5, 0.99):
            for r in (0.01, 0.3, 0.9):
                upper = math.log((1 + g * r) / (1 - (1 - g) * r))
                grown = p * math.exp(-upper) + (1 - p)
                assert grown * math.exp(math.log1p(g * r) - r * g + r * p) <= 1 + 1e-12
            for r in (0.01, min(0.75 / g, 1), min(0.75 / g, 3)):
                lower = math.log((1 + (1 - g) * r) / (1 - g * r))
                grown = p * math.exp(lower) + (1 - p)
                assert grown * math.exp(-(-math.log1p(-g * r) + r * (p - g))) <= 1 + 1e-12


def test_strata_without_failures_are_bounded_by_what_their_trials_prove():
    sequence = confidence_sequence(np.zeros((50, 2)), np.full((50, 2), 40.0), [0.5, 0.5], target=0.001)
    assert sequence.low[-1] == 0
    assert sequence.value[-1] == 0
    bound = sequence.high * np.arange(1, 51) * 80
    assert (bound > math.log(40)).all()  # the least that any such bound can be is log(1 / 0.025)
    assert bound[-1] < 1.1 * math.log(40) / 0.9


def test_a_round_without_some_stratum_counts_for_nothing():
    k, n = np.array([[2.0, 1.0], [5.0, 0.0], [1.0, 1.0]]), np.array([[30.0, 30.0], [60.0, 0.0], [30.0, 30.0]])
    sequence = confidence_sequence(k, n, [0.5, 0.5], target=0.05)
    assert sequence.high[1] == sequence.high[0]
    assert sequence.value[1] == sequence.value[0]
    empty = confidence_sequence(k[1:2], n[1:2], [0.5, 0.5], target=0.05)
    assert (empty.low[0], empty.high[0]) == (0, 1)
    assert math.isnan(empty.value[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], [2], [1.0]), r"got \(1,\), \(1,\) and \(1,\)"),
        (([[1, 2]], [[2, 2]], [1.0]), "strata"),
        (([[3]], [[2]], [1.0]), "0 <= failures <= trials"),
        (([[1]], [[2]], [-1.0]), "shares from 0 up"),
    ],
)
def test_impossible_counts_are_refused(arguments, message):
    with pytest.raises(StatisticsError, match=message):
        confidence_sequence(*arguments, target=0.1)
    with pytest.raises(StatisticsError, match="target=0"):
        confidence_sequence([[1]], [[2]], [1.0], target=0.0)


def simulate(p, shares, target, repetitions, rounds):
    """Return the share of repetitions in which some round's interval misses; trials follow the outcomes."""
    rng, missed = np.random.default_rng(5), 0
    truth = float(shares @ p)
    for _ in range(repetitions):
        k, n = [], []
        for _ in range(rounds):
            seen = np.sum(k, axis=0) if k else np.zeros(len(p))
            trials = 2 + rng.multinomial(60, (seen + 0.5) / (seen + 0.5).sum())  # chases failures
            n.append(trials)
            k.append(rng.binomial(trials, p))
        sequence = confidence_sequence(k, n, shares, target=target)
        missed += bool(((sequence.low > truth) | (sequence.high < truth)).any())
    return missed / repetitions


POPULATIONS = {
    "rare": ([1e-4, 0.001, 0.3], [0.9, 0.08, 0.02]),
    "alike": ([0.2, 0.2, 0.2], [0.3, 0.3, 0.4]),
    "often": ([0.99, 0.5, 0.9], [0.2, 0.4, 0.4]),
    "none": ([0.0, 0.0], [0.5, 0.5]),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_no_look_spoils_the_sequence(name):
    p, shares = map(np.array, POPULATIONS[name])
    assert simulate(p, shares, 0.03, 200, 40) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.003, 0.02, 0.1])
@pytest.mark.parametrize("name", POPULATIONS)
def test_no_look_spoils_the_sequence_in_a_thousand_repetitions(name, target):
    p, shares = map(np.array, POPULATIONS[name])
    missed = simulate(p, shares, target, 1000, 60)
    print(f"{name} {target}: {missed:.3f} missed at any of 60 looks")
    assert missed <= 0.06


# The sampler.

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


def test_a_value_that_began_far_off_does_not_keep_the_bounds_apart():
    """Three rounds that happen to show next to nothing settle a value which the later ones refute."""
    failures = np.concatenate(([[0, 0], [0, 0], [1, 0], [2, 1], [3, 0], [4, 0]], np.tile([[31, 5]], (30, 1))))
    trials = np.concatenate(
        ([[29, 18], [20, 6], [30, 10], [27, 9], [33, 10], [34, 11]], np.tile([[385, 100]], (30, 1)))
    )
    sequence = confidence_sequence(failures, trials, [3.0, 1.0], target=0.15)
    assert sequence.settled[2] == 1
    assert sequence.high[-1] - sequence.low[-1] < 0.2
    assert 0.05 < sequence.value[2] < sequence.low[-1] <= sequence.value[-1] <= sequence.high[-1]


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
    space = FaultSpace((Site("a", (3,), word="int8", width=8), Site("none", (0,)), Site("b", (2,), bits=(3, 30, 31))))
    assert sampler.strata(space).sizes.tolist() == [3, 6, 15, 2, 2, 2]
    draws = sampler.draw(space, 500, rng=stream(2))
    site, _, bit = space.locate(draws.index)
    expected = {(0, 7): 0, (0, 6): 1, (0, 5): 1, (2, 31): 3, (2, 30): 4, (2, 3): 5}
    pairs = zip(site.tolist(), bit.tolist(), draws.stratum.tolist(), strict=True)
    assert all(stratum == expected.get((s, b), 2) for s, b, stratum in pairs)


def test_blocks_planned_from_outcomes_are_samplers_with_the_right_weights():
    space = FaultSpace((Site("a", (4, 2, 3)), Site("b", (30,), word="int8", width=8), Site("c", (9,), bits=(3, 30))))
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
