"""Adaptive campaigns: unbiased, intervals that hold at every look, blocks that follow from earlier outcomes alone."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.support.doubles import SPACE, Double, truth_table
from torchfault.campaign import Campaign, run
from torchfault.errors import CampaignError, SamplingError, StatisticsError
from torchfault.measures import ProductMeasure, probability
from torchfault.results import Results, load
from torchfault.sampling import Adaptive, BitFields, Population, Tally, Uniform, WholeWords, stream
from torchfault.space import FaultSpace, Site
from torchfault.statistics import HalfWidth, MaxTrials, proportion
from torchfault.store import Columns, Record, Store
from torchfault.testing import check_sampler

INPUTS = 10
TRUTH = truth_table(INPUTS)
EVERY = np.arange(len(SPACE))
BY = ("model", "site", "layer", "kind", "bit", "channel")


def truth(by, measure=None):
    """Return the failure probability of every group of *by*, by the enumeration."""
    p = np.ones(len(SPACE)) if measure is None else probability(measure, SPACE, EVERY)
    axis = SPACE.axis(by)
    code = axis.code(EVERY)
    with np.errstate(invalid="ignore"):
        return np.bincount(code, p * TRUTH.mean(axis=1), len(axis)) / np.bincount(code, p, len(axis))


BY_GROUP = {by: truth(by) for by in BY}


def struck(design, draws, rng):
    """Return the trials that draws become, on their inputs, with the outcomes of the table."""
    inputs = rng.integers(INPUTS, size=len(draws)) if draws.inputs is None else draws.inputs
    failed = TRUTH[draws.index, inputs]
    if design.unit == "word":
        row, faults, bit = SPACE.flips(draws.index)
        failed, hit = np.zeros(len(draws), dtype=np.uint64), TRUTH[faults, inputs[row]]
        np.bitwise_or.at(failed, row[hit], np.left_shift(np.uint64(1), bit[hit].astype(np.uint64)))
    flags = {"failed": failed}
    return Columns(draws.index, inputs, flags, weights=draws.weight, strata=draws.stratum, unit=design.unit)


def repeated(sampler, goals, seed, blocks=None, *, measure=None):
    """Return the results of an adaptive campaign judged by the table, of *blocks* blocks or as many as it wants."""
    given = {} if measure is None else {"measure": measure}
    population = Population(SPACE, inputs=INPUTS, goals=goals, **given)
    design, rng = sampler.design(population), np.random.default_rng(seed)
    tally = Tally(SPACE, design)
    while blocks is None or tally.trials < blocks * sampler.block:
        open_ = [tally.unfinished(by, h, level=0.95).any() for by, h in goals.items()] if tally.trials else [True]
        if blocks is None and not any(open_):
            break
        draws = sampler.draw(population, sampler.block, rng=rng, start=tally.trials, tally=tally)
        tally.add(struck(design, draws, rng))
    record = Record("repeated", space=SPACE.plain(), faults=len(SPACE), inputs=INPUTS, design=design.plain())
    return Results(record, tally.columns())


def coverage(sampler, goals, repetitions, *, by=("model", "site", "bit")):
    """Return the coverage of campaigns that stop themselves, their values, both by grouping, and their mean trials."""
    held, values, trials = {one: [] for one in by}, {one: [] for one in by}, []
    for seed in range(repetitions):
        results = repeated(sampler, goals, seed)
        trials.append(len(results))
        for one in by:
            table = results.table(one)
            held[one].append((table["low"] <= BY_GROUP[one]) & (BY_GROUP[one] <= table["high"]))
            values[one].append(table["value"].to_numpy())
            if one in goals:
                assert ((table["high"] - table["low"]) / 2 <= goals[one]).all()
    return {one: np.mean(held[one]) for one in by}, {one: np.array(values[one]) for one in by}, np.mean(trials)


def check_unbiased(values, expected, *, sigmas=3.8):
    """Hold the mean of *values*, (repetitions, groups), against the truth."""
    known = ~np.isnan(values)  # a small group may be without a trial
    error = np.nanstd(values, axis=0) / np.sqrt(known.sum(axis=0))
    off = np.abs(np.nanmean(values, axis=0) - expected)
    assert known.mean() > 0.9
    assert (off <= sigmas * error + 1e-12).all(), (off / np.maximum(error, 1e-12)).max()


def test_estimates_are_unbiased_after_a_fixed_number_of_blocks():
    results = [repeated(Adaptive(block=128), {"site": 0.05, "model": 0.01}, seed, blocks=4) for seed in range(150)]
    for by in ("model", "site"):
        check_unbiased(np.array([one.table(by)["value"].to_numpy() for one in results]), BY_GROUP[by])


GOALS = [{"site": 0.08}, {"bit": 0.12}, {"model": 0.03}, {"model": 0.03, "site": 0.1}, {"layer": 0.06}, {"kind": 0.06}]


def check_tables_unbiased(goals, *, repetitions):
    values = {by: [] for by in BY}
    for seed in range(repetitions):
        results = repeated(Adaptive(block=256), goals, seed)
        for by in BY:
            values[by].append(results.table(by)["value"].to_numpy())
    for by in BY:
        check_unbiased(np.array(values[by]), BY_GROUP[by], sigmas=4.2)


@pytest.mark.parametrize("goals", GOALS, ids=str)
def test_every_table_is_unbiased_though_groups_are_finished_at_different_times(goals):
    """Where few failed fewer were drawn later: trials counted alike would be too low."""
    check_tables_unbiased(goals, repetitions=50)


@pytest.mark.slow
@pytest.mark.parametrize("goals", GOALS, ids=str)
def test_every_table_is_unbiased_over_six_hundred_campaigns(goals):
    check_tables_unbiased(goals, repetitions=600)


def test_trials_counted_alike_would_be_biased():
    """The test of the tests above: strata of few trials that showed few failures were left sooner."""
    naive = []
    for seed in range(150):
        results = repeated(Adaptive(block=64), {"site": 0.12}, seed)
        shares = np.bincount(results.columns.stratum, results.columns.failed) / np.bincount(results.columns.stratum)
        naive.append(results.design.strata.masses @ shares)
    error = np.std(naive) / math.sqrt(len(naive))
    assert np.mean(naive) < BY_GROUP["model"][0] - 2 * error


@pytest.mark.parametrize("goals", [{"site": 0.08}, {"bit": 0.12}], ids=str)
def test_tables_of_adaptive_campaigns_by_other_groups_hold_the_truth(goals):
    held, _, _ = coverage(Adaptive(block=256), goals, 40, by=BY)
    for by, share in held.items():
        assert share >= 0.93, by  # of 60 and more


def test_campaigns_that_stop_themselves_keep_their_level():
    held, values, _ = coverage(Adaptive(block=256), {"model": 0.03, "site": 0.08}, 120)
    assert min(held.values()) >= 0.94
    check_unbiased(values["model"], BY_GROUP["model"], sigmas=3.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "goals"),
    [
        (Adaptive(block=256), {"model": 0.02}),
        (Adaptive(block=512), {"site": 0.06}),
        (Adaptive(block=512), {"model": 0.03, "bit": 0.15}),
        (Adaptive(WholeWords(), block=64), {"site": 0.1}),
        (Adaptive(WholeWords(), block=64), {"bit": 0.1}),
    ],
    ids=str,
)
def test_campaigns_that_stop_themselves_keep_their_level_in_a_thousand(sampler, goals):
    held, values, trials = coverage(sampler, goals, 1000)
    print(f"{goals}: covers {held}; {trials:.0f} draws")
    assert min(held.values()) >= 0.94
    for by in ("model", "site", "bit"):
        check_unbiased(values[by], BY_GROUP[by], sigmas=4.2)


def lanes_of(free, stratum):
    """Return the lanes of trials: none in the strata *free*, one in the others."""
    return np.where(np.isin(stratum, free), 0, 1)


@pytest.mark.parametrize("free", [(0,), (1, 2)], ids=str)
def test_what_a_block_leaves_goes_where_trials_take_no_lanes(free):
    """Near the end two sites are all that is open, of which a block of 8,192 draws would be many times the need."""
    sampler, population = Adaptive(block=8192), Population(SPACE, inputs=INPUTS, goals={"site": 0.05})
    tally, counts = Tally(SPACE, sampler.design(population)), []
    for seed in range(3):
        draws = sampler.draw(population, 8192, rng=np.random.default_rng(seed), start=tally.trials, tally=tally)
        trials = struck(tally.design, draws, np.random.default_rng(seed))
        tally.add(replace(trials, lanes=lanes_of(free, trials.stratum)))
        counts.append(np.bincount(draws.stratum, minlength=len(tally.design.strata)))
    cost = tally.blocks().cost[-1]
    assert (cost[list(free)] < 0.01).all()
    assert np.delete(cost, free).min() == 1
    assert counts[-1][list(free)].max() > 0.9 * 8192
    assert counts[-1].sum() == 8192
    assert np.delete(counts[-1], free).sum() < 0.2 * np.delete(counts[0], free).sum()


@pytest.mark.parametrize("step", [100, 256, 1300], ids=str)
def test_what_draws_cost_counts_by_blocks_however_trials_come_and_whenever_goals_are_asked_for(step):
    """What a block cost prices the next one, not those before it that a goal asked for late looks at again."""
    sampler, goals = Adaptive(block=256), {"model": 0.01, "site": 0.05}
    population = Population(SPACE, inputs=INPUTS, goals=goals)
    tally, free = Tally(SPACE, sampler.design(population)), (0, 1)
    for seed in range(5):
        draws = sampler.draw(population, 256, rng=np.random.default_rng(seed), start=tally.trials, tally=tally)
        trials = struck(tally.design, draws, np.random.default_rng(seed))
        tally.add(replace(trials, lanes=lanes_of(free, trials.stratum)))
    again = Tally(SPACE, tally.design)
    for first in range(0, 5 * 256, step):
        again.add(tally.columns().take(first, min(first + step, 5 * 256)))
        if first < 2 * step:
            again.rounds("model", level=0.95)  # the site's is asked for at the end
    for by in goals:
        one, other = (of.rounds(by, level=0.95).sequences for of in (tally, again))
        for part in ("low", "high", "value", "needed"):
            assert np.array_equal(getattr(one, part), getattr(other, part))
    drawn = np.bincount(tally.columns().stratum)
    assert np.array_equal(sum(again.blocks().trials), drawn)
    assert np.array_equal(
        again.blocks().cost[-1], np.where(np.isin(np.arange(len(drawn)), free), 1, 1 + drawn) / (1 + drawn)
    )


def test_strata_whose_trials_take_fewer_lanes_get_more_draws():
    shares = {}
    for name, free in (("alike", ()), ("cheap", (0, 1, 2))):
        sampler, population = Adaptive(block=512), Population(SPACE, inputs=INPUTS, goals={"model": 0.01})
        tally = Tally(SPACE, sampler.design(population))
        for seed in range(2):
            draws = sampler.draw(population, 512, rng=np.random.default_rng(seed), start=tally.trials, tally=tally)
            trials = struck(tally.design, draws, np.random.default_rng(seed))
            lanes = np.where(np.isin(trials.stratum, free), np.arange(512) % 4 == 0, 1)
            tally.add(replace(trials, lanes=lanes.astype(np.int64)))
        needed = tally.rounds("model", level=0.95).sequences.needed[0]
        shares[name] = needed[:3].sum() / needed.sum()
    assert shares["cheap"] > 1.2 * shares["alike"]


def test_a_measure_shifts_the_draws_and_the_truth():
    measure = ProductMeasure(
        [0.2, 0.3, 0.1, 0.3, 0.1],
        elements={"conv:input": np.arange(12.0) / 66},
        bits={"conv.weight": np.arange(1.0, 9.0) / 36},
    )
    values = {by: [] for by in BY}
    for seed in range(50):
        results = repeated(Adaptive(block=256), {"site": 0.1}, seed, measure=measure)
        for by in BY:
            values[by].append(results.table(by)["value"].to_numpy())
    for by in BY:
        expected = truth(by, measure)
        known = ~np.isnan(expected)
        check_unbiased(np.array(values[by])[:, known], expected[known], sigmas=4.2)


def drawn(sampler, population, n, *, seed, start=0, tally=None):
    """Return *n* draws of a sampler."""
    return sampler.draw(population, n, rng=stream(seed), start=start, tally=tally)


def after(sampler, population, fails, *, blocks=1):
    """Return the tally of so many blocks, in which the faults fail for which *fails* (their places) says so."""
    tally = Tally(population.space, sampler.design(population))
    for number in range(blocks):
        draws = drawn(sampler, population, sampler.block, seed=number + 1, start=tally.trials, tally=tally)
        failed = fails(population.space.locate(draws.index))
        tally.add(Columns(draws.index, draws.index * 0, {"failed": failed}, draws.weight, draws.stratum))
    return tally


def test_blocks_go_where_they_are_needed():
    space = FaultSpace((Site("dull", (1000,)), Site("lively", (1000,))))
    sampler, population = Adaptive(block=400), Population(space, goals={"site": 0.01})
    tally = after(sampler, population, lambda w: (w.site == 1) & (w.bit >= 23) & (np.arange(400) % 2 == 0))
    draws = np.bincount(drawn(sampler, population, 400, seed=9, start=400, tally=tally).stratum, minlength=10)
    assert draws.sum() == 400
    assert (draws >= 1).all()
    assert draws[5:].sum() > 2 * draws[:5].sum()
    assert draws[9] > draws[4] / 4  # the mantissa of the lively site has few failures, but is large


def test_no_draws_go_to_what_is_finished():
    space = FaultSpace((Site("dull", (1000,)), Site("lively", (1000,))))
    sampler, population = Adaptive(block=512), Population(space, goals={"site": 0.05})
    noise = np.random.default_rng(0)
    tally = after(sampler, population, lambda w: (w.site == 1) & (noise.random(len(w.bit)) < 0.5), blocks=2)
    assert tally.unfinished("site", 0.05, level=0.95).tolist() == [False, True]
    draws = drawn(sampler, population, 512, seed=9, start=tally.trials, tally=tally)
    assert set(space.locate(draws.index).site) == {1}


def test_strata_are_sites_by_groups_of_bits():
    sampler = Adaptive(BitFields((1, 2)), block=500)
    space = FaultSpace((Site("a", (3,), word="int8"), Site("none", (0,)), Site("b", (2,), bits=(3, 30, 31))))
    population = Population(space, goals={"site": 0.01})
    assert sampler.design(population).strata.sizes.tolist() == [3, 6, 15, 2, 2, 2]
    draws = drawn(sampler, population, 500, seed=2)
    site, _, bit = space.locate(draws.index)
    expected = {(0, 7): 0, (0, 6): 1, (0, 5): 1, (2, 31): 3, (2, 30): 4, (2, 3): 5}
    pairs = zip(site.tolist(), bit.tolist(), draws.stratum.tolist(), strict=True)
    assert all(stratum == expected.get((s, b), 2) for s, b, stratum in pairs)


def test_blocks_planned_from_outcomes_are_drawn_with_the_right_weights():
    space = FaultSpace((Site("a", (4, 2, 3)), Site("b", (30,), word="int8"), Site("c", (9,), bits=(3, 30))))
    sampler, population = Adaptive(block=400), Population(space, goals={"site": 0.02, "model": 0.01})
    one, two = (after(sampler, population, lambda w: (w.site < 2) & (w.bit % 8 == 6)) for _ in range(2))
    first, same = (drawn(sampler, population, 400, seed=5, start=400, tally=tally) for tally in (one, two))
    assert first.index.tolist() == same.index.tolist()
    other = drawn(sampler, population, 400, seed=5, start=400, tally=after(sampler, population, lambda w: w.site < 0))
    assert first.stratum.tolist() != other.stratum.tolist()
    check_sampler(sampler, population)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Adaptive().design(Population(SPACE)), SamplingError, "got none to reach; give stop=HalfWidth"),
        (lambda: HalfWidth(0.0), StatisticsError, "got h=0.0"),
        (lambda: HalfWidth(0.6), StatisticsError, "got h=0.6"),
        (lambda: Adaptive(block=1), SamplingError, "two draws or more"),
        (lambda: Adaptive(reserve=1.0), SamplingError, "a share below 1"),
        (lambda: Adaptive(pool=-1), SamplingError, "none or more faults"),
        (lambda: BitFields((0,)), SamplingError, "a group has one bit"),
        (
            lambda: drawn(Adaptive(block=20), Population(SPACE, goals={"model": 0.1}), 20, seed=0),
            SamplingError,
            "use block=64",
        ),
        (
            lambda: drawn(Adaptive(block=64), Population(SPACE, goals={"channel": 0.1}), 64, seed=0),
            SamplingError,
            "strata are known by site and bit, got smaller groups",
        ),
        (
            lambda: drawn(
                Adaptive(WholeWords()), Population(SPACE, ProductMeasure(np.eye(5)[0]), goals={"site": 0.1}), 64, seed=0
            ),
            SamplingError,
            "whole words are drawn from equally likely ones",
        ),
    ],
)
def test_impossible_samplers_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Campaigns.

STOP = HalfWidth(0.03) & HalfWidth(0.09, by="site")


def adaptive(**options):
    """Return an adaptive campaign of the doubles."""
    given = {"sampler": Adaptive(block=128), "stop": STOP} | options
    return Campaign(Double(inputs=INPUTS), SPACE, **given)


def equal(one, other):
    """Tell whether two results hold the same trials and outcomes."""
    names = ("faults", "inputs", "failed", "due", "weights", "strata")
    return all(getattr(one.columns, name).tobytes() == getattr(other.columns, name).tobytes() for name in names)


def test_a_campaign_ends_by_itself_and_says_why():
    results = run(adaptive(seed=1))
    reasons = results.record.reason.split(" and ")
    assert [reason.partition(" of at most ")[2] for reason in reasons] == [
        "0.03 reached by model (95 %)",
        "0.09 reached by site (95 %)",
    ]
    assert len(results) % 128 == 0
    table = results.table("site")
    assert ((table["high"] - table["low"]) / 2 <= 0.09).all()
    assert results.estimate().half_width <= 0.03
    assert results.estimate().method == "anytime"
    before = Results(results.record, results.columns.take(0, len(results) - 128))
    sites = before.table("site")
    assert before.estimate().half_width > 0.03 or ((sites["high"] - sites["low"]) / 2 > 0.09).any()
    assert results.design.adapts
    assert not Uniform().design(Population(SPACE)).adapts


@pytest.mark.parametrize("by", ["model", "site", "layer", "kind", "bit"])
@pytest.mark.parametrize("strata", [BitFields(), WholeWords()], ids=["fields", "words"])
def test_draws_go_towards_the_half_widths_of_the_rule_by_whatever_grouping(by, strata):
    stop = HalfWidth(0.12, by=by)
    results = run(adaptive(seed=2, stop=stop, sampler=Adaptive(strata, block=128)))
    assert f"of at most 0.12 reached by {by}" in results.record.reason
    table = results.table(by)
    assert ((table["high"] - table["low"]) / 2 <= 0.12).all()
    assert ((table["low"] <= BY_GROUP[by]) & (BY_GROUP[by] <= table["high"])).mean() >= 0.9
    earlier = Results(results.record, results.columns.take(0, len(results) - 128)).table(by)
    assert ((earlier["high"] - earlier["low"]) / 2 > 0.12).any() or (earlier["trials"] == 0).any()


@pytest.mark.parametrize("batch", [1, 50, 128, 4096])
def test_resuming_anywhere_goes_on_as_if_it_had_never_stopped(tmp_path, batch):
    whole = run(adaptive(seed=2, stop=STOP | MaxTrials(700)))
    path = tmp_path / "results.sqlite"
    stops = (60, 128, 300, 301, 512, 700) if batch > 1 else (140,)
    for stop in stops:
        resumed = run(adaptive(seed=2, stop=STOP | MaxTrials(stop)), store=path, batch=batch)
        assert len(resumed) == stop
    with Store(path) as store:
        held = load(store, "campaign")
    expected = Results(whole.record, whole.columns.take(0, stops[-1]))
    assert equal(held, expected)
    assert held.estimate() == expected.estimate()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"stop": HalfWidth(0.03) & HalfWidth(0.01, by="site")},
            r"half-widths \(was {model: 0.03, site: 0.09}, is now",
        ),
        ({"stop": HalfWidth(0.03)}, "half-widths"),
        ({"stop": HalfWidth(0.03) & HalfWidth(0.09, by="bit")}, "half-widths"),
        ({"stop": HalfWidth(0.03, level=0.99) & HalfWidth(0.09, by="site")}, r"level \(was 0.95, is now 0.99\)"),
        ({"sampler": Adaptive(block=256)}, "sampler"),
        ({"sampler": Adaptive(BitFields((1,)), block=128)}, "sampler"),
    ],
)
def test_another_target_is_another_campaign(tmp_path, other, message):
    """Its draws and its intervals are made for it beforehand."""
    store = tmp_path / "results.sqlite"
    run(adaptive(stop=STOP | MaxTrials(128)), store=store)
    with pytest.raises(CampaignError, match=f"begun with another {message}"):
        run(adaptive(**other), store=store)
    assert len(run(adaptive(stop=STOP | MaxTrials(200)), store=store)) == 200


def test_before_the_first_block_nothing_is_known():
    for sampler in (Adaptive(block=128), Adaptive(WholeWords(), block=128)):
        results = run(adaptive(sampler=sampler, stop=STOP | MaxTrials(100)))
        estimate = results.estimate()
        assert math.isnan(estimate.value)
        assert (estimate.low, estimate.high, len(results)) == (0, 1, 100)
        for by in BY:
            table = results.table(by)
            assert table["value"].isna().all()
            assert (table["trials"] > 0).any()
        assert len(results.table("channel")) > 5


def test_rules_and_metrics_that_do_not_fit_are_refused():
    with pytest.raises(SamplingError, match="got none to reach; give stop=HalfWidth"):
        run(adaptive(stop=MaxTrials(100)))
    with pytest.raises(CampaignError, match="a sampler that learns goes by failures, not by a metric"):
        run(adaptive(metric=lambda golden, labels: 1.0))  # noqa: ARG005


def test_fewer_trials_than_uniform_where_failures_crowd():
    """Half a point for each of four sites, where one bit of 32 fails: less than half of what Wilson's takes."""
    space = FaultSpace(tuple(Site(f"s{i}", (10_000,)) for i in range(4)))
    sampler, rng = Adaptive(block=512), stream(3)
    population = Population(space, goals={"site": 0.005})
    tally = Tally(space, sampler.design(population))
    while not tally.trials or tally.unfinished("site", 0.005, level=0.95).any():
        draws = sampler.draw(population, 512, rng=rng, start=tally.trials, tally=tally)
        failed = (space.locate(draws.index).bit == 30) & (rng.random(512) < 0.7)
        tally.add(Columns(draws.index, draws.index * 0, {"failed": failed}, draws.weight, draws.stratum))
    uniform = 4 * 3270
    assert proportion(3270 * 0.7 / 32, 3270).half_width == pytest.approx(0.005, rel=0.02)
    assert tally.trials < uniform / 2
