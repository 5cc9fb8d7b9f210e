"""Pooled injection and monotone closure: what they find is what injection one by one finds, and the audit says so."""

from dataclasses import replace

import numpy as np
import pytest
from doubles import SPACE, Double
from torchfault.campaign.audit import widening
from torchfault.campaign.closure import chains
from torchfault.campaign.pools import search
from torchfault.campaign.shortcuts import expected

from torchfault.campaign import Campaign, Shortcuts, load, run
from torchfault.criteria import accuracy
from torchfault.errors import CampaignError
from torchfault.faults import StuckAt
from torchfault.model.golden_words import golden_words
from torchfault.sampling import Deviation, Uniform, WholeWords
from torchfault.statistics import HalfWidth, MaxTrials
from torchfault.store import Columns, Store
from torchfault.store.columns import AUDITED, CONTROLLED, HIDDEN, POOLED, VOUCHED, WRONG, pack, unpack


def words_of(known):
    return golden_words(known.engine.model, known.data, known.space)


# Group testing.


def searched(bad, *, rates=None, inputs=None, words=None, pool=32):
    """Search faults of which *bad* fail, errors adding up without cancelling; return what was found, and the lanes."""
    n, lanes = len(bad), []

    def ask(pools):
        lanes.extend(pools)
        return np.array([bool(bad[pool].any()) for pool in pools], dtype=bool)

    zero, own = np.zeros(n, dtype=np.int64), np.arange(n)
    given = (zero if inputs is None else inputs, own if words is None else words)
    found = search(own, *given, np.full(n, 0.01) if rates is None else rates, ask, pool=pool)
    return found, lanes


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("pool", [2, 7, 64])
def test_a_search_finds_every_failing_fault_and_runs_each_of_them_alone(share, pool, rng):
    for n in (0, 1, 2, 3, 65):
        bad, inputs = rng.random(n) < share, rng.integers(0, 3, n)
        words = rng.integers(0, max(n // 2, 1), n)
        found, lanes = searched(bad, rates=rng.random(n) * 0.2 + 1e-4, inputs=inputs, words=words, pool=pool)
        assert found.failing.tolist() == bad.tolist()
        assert found.alone[bad].all()
        for lane in lanes:
            assert len(lane) <= pool
            assert len(set(inputs[lane])) == 1
            assert len(set(words[lane])) == len(lane)


def test_a_search_of_rare_failures_costs_about_the_entropy_of_the_outcomes(rng):
    bad = rng.random(20_000) < 0.005
    _, lanes = searched(bad, rates=np.full(20_000, 0.005), inputs=np.repeat(np.arange(100), 200), pool=256)
    entropy = -(0.005 * np.log2(0.005) + 0.995 * np.log2(0.995)) * 20_000
    assert entropy < len(lanes) < 1.5 * entropy


def test_a_pool_that_fails_though_no_fault_of_it_does_makes_none_fail():
    found = search(
        np.arange(8),
        np.zeros(8, dtype=np.int64),
        np.arange(8),
        np.full(8, 0.01),
        lambda pools: np.array([len(pool) > 5 for pool in pools]),
        pool=8,
    )
    assert not found.failing.any()


# Monotone closure.


@pytest.mark.parametrize("failing", [0, 1, 2, 5, 13, 31, 32])
def test_closure_finds_the_border_between_failing_and_masked_flips(failing):
    from torchfault.space import FaultSpace, Site

    space = FaultSpace((Site("a", (3,), word="uint8"), Site("b", (2,))))
    rng = np.random.default_rng(failing)
    held = {
        "a": rng.integers(0, 256, (1, 3)).astype(np.uint8),
        "b": rng.normal(size=(4, 2)).astype(np.float32).view(np.uint32),
    }
    index, inputs = np.tile(np.arange(len(space)), 2), rng.integers(0, 4, 2 * len(space))
    found = chains(space, space.locate(index), inputs, held)
    borders = np.append(found.first[1:], len(index))
    truth = np.zeros(len(index), dtype=bool)
    for first, last in zip(found.first, borders, strict=True):
        truth[found.order[first : min(first + failing, last)]] = True
    lanes = 0
    while len(probes := found.probes()):
        lanes += len(probes)
        found.settle(probes, truth[probes])
    assert found.failing().tolist() == truth.tolist()
    assert lanes <= len(borders) * 6


def test_chains_go_from_the_largest_flip_down_and_never_mix_words_inputs_or_directions(known):
    index = np.random.default_rng(0).integers(0, len(known.space), 3000)
    inputs = np.random.default_rng(1).integers(0, 50, 3000)
    where, held = known.space.locate(index), words_of(known)
    found = chains(known.space, where, inputs, held)
    for first, last in zip(found.first, np.append(found.first[1:], 3000), strict=True):
        mine = found.order[first:last]
        assert len({(int(where.site[i]), int(where.element[i]), int(inputs[i])) for i in mine}) == 1


# Campaigns.


def test_shortcuts_find_what_a_campaign_finds_lane_by_lane(known):
    plain = run(Campaign(known.table, known.space, seed=3, stop=MaxTrials(6000)))
    for shortcuts in (Shortcuts(24, audit=0.05), Shortcuts(words=words_of(known), audit=0.005)):
        campaign = Campaign(known.table, known.space, seed=3, stop=MaxTrials(6000), shortcuts=shortcuts)
        short = run(campaign)
        assert short.columns.faults.tolist() == plain.columns.faults.tolist()
        marks = short.columns.marks
        alone = (marks & VOUCHED == 0) | (marks & AUDITED > 0)
        assert short.columns.failed[alone].tolist() == plain.columns.failed[alone].tolist()
        assert (short.columns.failed != plain.columns.failed).mean() < 0.003
        assert short.lanes < len(plain)
        estimate = short.estimate()
        assert estimate.assumption == shortcuts.assumption
        assert estimate.low <= plain.estimate().value <= estimate.high
        assert short.table("site")["high"].ge(plain.table("site")["high"] - 1e-12).mean() > 0.8


def test_every_lane_is_counted_and_every_mark_told(known):
    table = known.table
    campaign = Campaign(table, known.space, seed=1, stop=MaxTrials(16384), shortcuts=Shortcuts(32, audit=0.02))
    results = run(campaign)
    audit = results.audit()
    assert results.lanes == audit.lanes == table.lanes < 7000
    assert audit.trials == 16384
    assert 0.01 < audit.audited / audit.vouched < 0.03
    assert audit.controlled > 50
    assert audit.hidden <= 0.3 * audit.controlled
    assert audit.missed >= audit.hidden / audit.controlled
    assert str(audit).startswith("16,384 outcomes from")
    back = unpack(pack(results.columns))
    assert back.marks.tolist() == results.columns.marks.tolist()
    assert back.lanes.tolist() == results.columns.lanes.tolist()
    marks = results.columns.marks
    assert ((marks & WRONG == 0) | (marks & AUDITED > 0)).all()
    assert ((marks & HIDDEN == 0) | (marks & CONTROLLED > 0)).all()
    assert results.columns.failed[(marks & CONTROLLED) > 0].all()
    assert not (marks & POOLED > 0)[known.space.locate(results.columns.faults).bit == 30].any()


def test_wrong_vouchers_move_the_value_and_the_bounds():
    """By hand: 100 trials, 90 vouched for by pools, of 10 audited one fails; of the 80 others a tenth may be wrong."""
    from torchfault.campaign.audit import widened

    from torchfault.statistics import Estimate
    from torchfault.statistics.looks import upper_at_every_look

    failed, marks = np.zeros(100, dtype=bool), np.zeros(100, dtype=np.uint8)
    failed[:5] = True
    marks[10:] = VOUCHED | POOLED
    marks[10:20] |= AUDITED
    marks[10] |= WRONG
    failed[10] = True
    zero = np.zeros(100, dtype=np.int64)
    columns = Columns(zero, zero, failed, np.zeros(100, dtype=bool), marks=marks, lanes=zero + 1)
    one = widened(Estimate(0.06, 0.03, 0.12, 100, "wilson"), columns, np.arange(100), level=0.95)
    most = float(upper_at_every_look(1, 10))
    assert one.value == pytest.approx(0.06 + 0.1 * 0.8)
    assert (one.low, one.high) == pytest.approx((0.03, 0.12 + most * 0.8))
    assert (
        widened(Estimate(0.06, 0.03, 0.12, 100, "wilson"), replace(columns, lanes=None), zero, level=0.95).high == 0.12
    )


def test_what_pools_hide_is_in_proportion_to_what_they_may_show():
    """By hand: 90 of 100 trials vouched for by pools, which showed four failing faults and hid none of them again."""
    from torchfault.campaign.audit import widened

    from torchfault.statistics import Estimate
    from torchfault.statistics.looks import upper_at_every_look

    failed, marks = np.arange(100) < 4, np.full(100, VOUCHED | POOLED, dtype=np.uint8)
    marks[:10] = np.where(failed[:10], POOLED | CONTROLLED, 0)
    marks[10:] |= np.where(np.arange(90) < 60, AUDITED, 0).astype(np.uint8)
    zero = np.zeros(100, dtype=np.int64)
    columns = Columns(zero, zero, failed, np.zeros(100, dtype=bool), marks=marks, lanes=zero + 1)
    missed = float(upper_at_every_look(0, 4))
    odds, audited = missed / (1 - missed), 0.3 * float(upper_at_every_look(0, 60))
    for method, shown in (("wilson", 0.09), ("anytime", 0.04)):
        one = widened(Estimate(0.04, 0.01, 0.09, 100, method), columns, np.arange(100), level=0.95)
        assert one.high == pytest.approx(0.09 + min(odds * shown, audited))


def test_what_failed_so_far_decides_what_is_pooled():
    zero, n = np.zeros(400, dtype=np.int64), np.arange(400)
    space = Double().space.select("conv:input")
    failed = (n % 2 == 0) & (n < 200)
    before = Columns(np.full(400, 5), zero + (n < 200), failed, np.zeros(400, dtype=bool), strata=zero.astype(np.int32))
    now = Columns(np.full(2, 5), np.array([0, 1]), failed[:2], failed[:2], strata=zero[:2].astype(np.int32))
    calm, fragile = expected(space, now, before)
    assert calm < 0.01
    assert fragile > 0.4


@pytest.mark.parametrize("sampler", [Uniform(), None], ids=["uniform", "deviation"])
def test_a_campaign_with_shortcuts_goes_on_as_if_it_had_never_stopped(sampler, known, tmp_path):
    held = words_of(known)
    sampler = sampler or Deviation(held, site=0.04, block=512, pool=16)
    campaign = Campaign(known.table, known.space, sampler=sampler, seed=2, stop=MaxTrials(1024))
    campaign = replace(campaign, shortcuts=Shortcuts(16, held))
    whole = run(campaign)
    with Store(tmp_path / "a.sqlite") as store:
        for trials in (200, 700, 1024):
            run(replace(campaign, stop=MaxTrials(trials)), store=store, name="a")
        pieces = load(store, "a")
    assert len(pieces) == 1024
    for name in ("faults", "inputs", "failed", "marks", "lanes"):
        assert getattr(pieces.columns, name).tolist() == getattr(whole.columns, name).tolist()
    assert str(pieces.estimate()) == str(whole.estimate())


@pytest.mark.parametrize("reserve", [0.0, 0.01])
def test_a_campaign_stops_once_its_intervals_are_narrow_with_all_that_shortcuts_leave_open(reserve, known):
    sampler = Deviation(words_of(known), site=0.08, reserve=reserve, block=512, pool=16)
    shortcuts = Shortcuts(16, words_of(known), audit=0.02)
    results = run(Campaign(known.table, known.space, sampler=sampler, shortcuts=shortcuts, seed=5))
    whole, bare = results.table("site"), replace(results, columns=replace(results.columns, lanes=None)).table("site")
    wide, plain = whole["high"] - whole["low"], bare["high"] - bare["low"]
    assert wide.max() <= 2 * 0.08
    added = widening(results.columns, known.space, "site", 0.95)
    assert (added > 0).any()
    assert (wide <= plain + added + 1e-12).all()
    assert (wide > plain).any()


def test_impossible_shortcuts_are_refused():
    for wrong in ({"pool": 1}, {}, {"pool": 8, "audit": 2.0}, {"pool": 8, "quiet": 0.0}):
        with pytest.raises(CampaignError):
            Shortcuts(**wrong)
    base = Campaign(Double(), SPACE, stop=MaxTrials(10), shortcuts=Shortcuts(8))
    with pytest.raises(CampaignError, match="trials of several"):
        run(replace(base, sampler=Uniform(faults=2)))
    with pytest.raises(CampaignError, match="a metric"):
        run(replace(base, metric=accuracy))
    with pytest.raises(CampaignError, match=r"words of 'conv.weight', got none"):
        run(replace(base, shortcuts=Shortcuts(words={})))
    with pytest.raises(CampaignError, match="single bit flips"):
        run(replace(base, shortcuts=Shortcuts(words={}), fault=StuckAt(1)))


def test_a_rule_may_stop_amid_trials_that_were_found_together():
    results = run(Campaign(Double(), SPACE, stop=HalfWidth(0.2), shortcuts=Shortcuts(8)))
    assert len(results) == 128


def test_whole_words_need_few_lanes_and_count_as_one_draw_each(known):
    space = known.space.select(kinds="weight")
    sampler = WholeWords(len(known.data), site=0.06, block=32 * 96)
    campaign = Campaign(known.table, space, sampler=sampler, seed=1)
    plain = run(campaign)
    short = run(replace(campaign, shortcuts=Shortcuts(words=words_of(known), audit=0.0005)))
    assert short.lanes < len(short) / 6
    assert "every interval is narrow enough" in plain.record.reason
    truth = [known.truth("site")[known.space.position(name)] for name in space.names]
    for results in (plain, short):
        rows = results.table("site")
        assert rows["low"].le(truth).all()
        assert rows["high"].ge(truth).all()
        assert results.estimate().trials == len(results) // 32


def test_sites_are_unbiased_where_the_model_decides_when_it_is_enough(known):
    """All trials together are 5 standard errors too low: the fewer fail, the fewer are drawn later."""
    sampler = Deviation(words_of(known), model=0.005, block=512)
    errors = []
    for seed in range(100):
        results = run(Campaign(known.table, known.space, sampler=sampler, seed=seed))
        errors.append(results.table("site")["value"] - known.truth("site"))
    assert (np.abs(np.mean(errors, axis=0)) < 3.3 * np.std(errors, axis=0) / 10).all()


# Coverage, over many campaigns on the enumerated network.


def covered(known, campaign, seeds):
    """Return by site the share of campaigns whose interval holds the truth, and the mean error of the model's value."""
    truth, whole = known.truth("site"), known.truth()[0]
    holds, errors = np.zeros(len(truth)), []
    for seed in seeds:
        results = run(replace(campaign, seed=seed))
        rows = results.table("site")
        holds += ((rows["low"] <= truth) & (truth <= rows["high"])).to_numpy()
        errors.append(results.estimate().value - whole)
    return holds / len(seeds), np.array(errors)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [0, 16])
def test_intervals_by_deviation_hold_the_truth_pooled_or_not(known, pool):
    held = words_of(known)
    sampler = Deviation(held, site=0.06, reserve=0.003 if pool else 0.0, block=512, pool=pool)
    shortcuts = Shortcuts(pool, audit=0.02) if pool else None
    seeds = range(1000 if pool == 0 else 300)
    share, errors = covered(known, Campaign(known.table, known.space, sampler=sampler, shortcuts=shortcuts), seeds)
    bias = errors.mean() / errors.std() * len(errors) ** 0.5
    print(f"pool {pool}: coverage by site {share.round(3)}, bias {errors.mean():+.5f} of {known.truth()[0]:.4f}")
    assert share.min() >= 0.94
    assert abs(bias) < 3.6


@pytest.mark.slow
def test_intervals_by_closure_hold_the_truth(known):
    shortcuts = Shortcuts(words=words_of(known), audit=0.01)
    campaign = Campaign(known.table, known.space, sampler=Uniform(), shortcuts=shortcuts, stop=MaxTrials(2000))
    share, errors = covered(known, campaign, range(300))
    print(f"closure: coverage by site {share.round(3)}, bias {errors.mean():+.5f}")
    assert share.min() >= 0.93
