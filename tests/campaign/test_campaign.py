"""Campaigns: the n-th trial, stopping, estimates and tables, checked against enumeration and against pandas."""

import functools
import gc
import math
import weakref
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.crews import Threads
from tests.support.doubles import SPACE, Double, outcomes
from torchfault.campaign import Campaign, check_resumable, run
from torchfault.campaign.description import describe, differences, show
from torchfault.campaign.drawing import Drawn, Source
from torchfault.criteria import NonFinite, Top1Change, accuracy
from torchfault.errors import CampaignError, CriterionError, EngineError, SamplingError, SpaceError, StatisticsError
from torchfault.faults import BitFlip, RandomWord, StuckAt
from torchfault.results import Results, load
from torchfault.sampling import Adaptive, BitErrorRate, Design, Draws, Exhaustive, Population, Strata, Uniform
from torchfault.space import FaultSpace, Site
from torchfault.statistics import HalfWidth, MaxTrials, TimeBudget, proportion, weighted_mean, wilson
from torchfault.store import Columns, Record, Store
from torchfault.testing import example_campaign
from torchfault.trials import strike

FAULTS = len(SPACE)


def everything(inputs: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return the outcome of every fault on every input, shape (faults, inputs), and the failure probability."""
    trials = strike(SPACE, SPACE.locate(np.arange(FAULTS)), model=BitFlip(), rng=np.random.default_rng(0))
    outcome = outcomes(trials.on(np.arange(inputs))).reshape(FAULTS, inputs)
    return outcome, (outcome > 0).mean()


def drawn(campaign: Campaign, first: int, last: int) -> Drawn:
    """Return the trials *first* to *last* of a campaign that does not follow its outcomes."""
    design = campaign.sampler.design(Population(campaign.space, inputs=campaign.inputs))
    return Source(campaign, design).take(first, last, None)


@dataclass(frozen=True)
class Skewed:
    """Prefer high bits, and the first sites; weights undo it."""

    block: int = 500

    def design(self, population):
        return Design(Strata.one(len(population.space)), block=self.block)

    def draw(self, population, n, *, rng, start, tally=None):
        del start, tally
        space = population.space
        site, _, bit = space.locate(np.arange(len(space)))
        q = (8.0 + bit) * np.where(site < 2, 3.0, 1.0)
        q /= q.sum()
        index = rng.choice(len(space), size=n, p=q)
        return Draws(index, 1 / len(space) / q[index], np.zeros(n, dtype=np.int32))


@dataclass(frozen=True)
class Layered:
    """Draw a tenth of every block from each site, whatever its size."""

    block: int = 500

    def design(self, population):
        space = population.space
        strata = Strata.of_cells(space, space.cells.group, population.measure.mass(space))
        return Design(strata, block=self.block)

    def draw(self, population, n, *, rng, start, tally=None):
        del start, tally
        space = population.space
        site = np.arange(n) % len(space.sites)
        begin = np.cumsum(space.sizes) - space.sizes
        index = begin[site] + (rng.random(n) * space.sizes[site]).astype(np.int64)
        share = np.bincount(site, minlength=len(space.sites)) / n
        weight = space.sizes / len(space) / share
        return Draws(index, weight[site], site.astype(np.int32))


SAMPLERS = [Uniform(), Uniform(faults=3), BitErrorRate(0.003), Exhaustive(block=100), Skewed(), Layered()]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: repr(sampler).split("(")[0])
@pytest.mark.parametrize("metric", [None, accuracy], ids=["lanes", "metric"])
def test_the_nth_trial_depends_on_seed_and_n_alone(sampler, metric):
    campaign = Campaign(Double(), SPACE, sampler=sampler, fault=RandomWord(), seed=5, metric=metric)
    end = min(2000, sampler.design(Population(SPACE)).total or 2000)
    whole = drawn(campaign, 0, end)
    assert len(whole.columns) == len(whole.trials) == end

    @given(st.integers(0, end - 1), st.integers(1, 700))
    @settings(max_examples=25, deadline=None)
    def check(first, length):
        last = min(first + length, end)
        part = drawn(campaign, first, last)
        expected = whole.columns.take(first, last)
        for name in ("faults", "inputs", "weights", "strata", "counts"):
            one, two = getattr(part.columns, name), getattr(expected, name)
            assert (one is None) == (two is None)
            assert one is None or np.array_equal(one, two)
        trials = whole.trials.take(np.arange(first, last))
        for name in ("offsets", "inputs", "site", "element", "keep", "toggle"):
            assert np.array_equal(getattr(part.trials, name), getattr(trials, name)), name

    check()
    other = drawn(replace(campaign, seed=6), 0, end)
    assert not np.array_equal(other.trials.toggle, whole.trials.toggle)


def test_the_trials_that_run_are_those_recorded():
    campaign = Campaign(Double(), SPACE, sampler=Uniform(faults=2), seed=3)
    plan = drawn(campaign, 100, 400)
    again = strike(
        SPACE,
        SPACE.locate(plan.columns.faults),
        model=BitFlip(),
        rng=np.random.default_rng(0),
        counts=plan.columns.counts,
        inputs=plan.columns.inputs,
    )
    for name in ("offsets", "inputs", "site", "element", "keep", "toggle"):
        assert np.array_equal(getattr(plan.trials, name), getattr(again, name)), name


def test_inputs_are_drawn_evenly():
    plan = drawn(Campaign(Double(inputs=7), SPACE, seed=1), 0, 7000)
    counts = np.bincount(plan.columns.inputs, minlength=7)
    assert (abs(counts - 1000) < 5 * math.sqrt(1000)).all()


def test_large_trials_are_taken_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("torchfault.campaign.drawing._MOST_FAULTS", 10_000)
    campaign = Campaign(Double(), SPACE, sampler=Uniform(4096, distinct=False), seed=0, stop=MaxTrials(20))
    plan = drawn(campaign, 0, 256)
    assert len(plan.trials) == 3
    assert len(plan.columns.faults) == 3 * 4096
    assert len(run(campaign)) == 20


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: repr(sampler).split("(")[0])
def test_batches_and_chunks_change_nothing(sampler):
    campaign = Campaign(Double(), SPACE, sampler=sampler, seed=2, stop=MaxTrials(1500))
    tables = [run(campaign, batch=batch).faults() for batch in (4096, 333, 64)]
    assert len(tables[0]["trial"].unique()) == 1500
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_a_campaign_finds_what_its_trials_do():
    results = run(Campaign(Double(), SPACE, seed=2, stop=MaxTrials(3000)))
    outcome = everything()[0][results.columns.faults, results.columns.inputs]
    assert np.array_equal(results.columns.failed, outcome > 0)
    assert np.array_equal(results.columns.due, outcome == 2)
    assert results.failures == (outcome > 0).sum() > 100
    assert results.columns.due.sum() > 20
    assert results.record.status == "finished"
    assert results.record.reason == "3000 of 3000 trials run"


def test_estimates_hold_the_truth():
    _, truth = everything()
    hits = 0
    for seed in range(60):
        estimate = run(Campaign(Double(), SPACE, seed=seed, stop=MaxTrials(400))).estimate()
        assert estimate.method == "wilson"
        hits += estimate.low <= truth <= estimate.high
    assert hits >= 51  # 57 expected; fewer than 51 of 60 at 95 % has probability 0.003


@pytest.mark.parametrize("sampler", [Skewed(), Layered()], ids=["skewed", "layered"])
def test_weighted_estimates_hold_the_truth_in_every_group(sampler):
    outcome, truth = everything()
    site = SPACE.locate(np.arange(FAULTS)).site
    truths = [(outcome[site == s] > 0).mean() for s in range(len(SPACE.sites))]
    hits, values, inside = 0, [], np.zeros(len(truths))
    for seed in range(60):
        results = run(Campaign(Double(), SPACE, sampler=sampler, seed=seed, stop=MaxTrials(600)))
        estimate = results.estimate()
        values.append(estimate.value)
        hits += estimate.low <= truth <= estimate.high
        table = results.table("site")
        inside += (table["low"] <= truths) & (truths <= table["high"])
    assert hits >= 51
    assert (inside >= 51).all()
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(60)
    plain = np.mean(
        [
            run(Campaign(Double(), SPACE, sampler=sampler, seed=s, stop=MaxTrials(600))).columns.failed.mean()
            for s in range(5)
        ]
    )
    assert abs(plain - truth) > 0.02  # without the weights it would be wrong


@dataclass(frozen=True)
class Bounded(Skewed):
    """Tells of a weight that it never drew."""

    def design(self, population):
        """Return a design with a larger weight than is drawn."""
        return replace(super().design(population), largest_weight=40.0)


def test_a_sampler_that_tells_its_largest_weight_gets_the_interval_for_it(tmp_path):
    campaign = Campaign(Double(), SPACE, sampler=Skewed(), seed=1, stop=MaxTrials(300))
    plain = run(campaign)
    told = run(replace(campaign, sampler=Bounded()), store=tmp_path / "results.sqlite")
    assert told.columns.faults.tolist() == plain.columns.faults.tolist()
    columns = told.columns
    expected = weighted_mean(columns.failed, columns.weights, largest_weight=40.0)
    with Store(tmp_path / "results.sqlite") as store:
        for results in (told, load(store, "campaign")):
            assert results.estimate() == expected
            assert (results.table("site")["high"] >= plain.table("site")["high"]).all()
    assert expected.high > plain.estimate().high


def test_strata_that_are_groups_narrow_the_interval():
    results = run(Campaign(Double(), SPACE, sampler=Layered(), seed=1, stop=MaxTrials(1000)))
    columns = replace(results.columns, strata=None)
    without = Results(results.record, columns)
    assert results.estimate().half_width < without.estimate().half_width
    one, two = results.table("site"), without.table("site")
    pd.testing.assert_frame_equal(one, two)  # one stratum in each group: nothing to gain there


def test_exhaustive_campaigns_end_without_uncertainty():
    outcome, truth = everything(inputs=4)
    results = run(Campaign(Double(inputs=4), SPACE, sampler=Exhaustive()))
    assert len(results) == FAULTS * 4
    assert results.record.reason == f"all {FAULTS * 4} trials run"
    estimate = results.estimate()
    assert estimate.method == "exhaustive"
    assert estimate.low == estimate.value == estimate.high == pytest.approx(truth, abs=1e-15)
    assert np.array_equal(results.columns.failed.reshape(FAULTS, 4), outcome > 0)
    for by in ("model", "site", "layer", "channel", "bit", "kind"):
        table = results.table(by)
        assert (table["low"] == table["value"]).all()
        assert (table["high"] == table["value"]).all()
        assert table["trials"].sum() == FAULTS * 4


@pytest.mark.parametrize("n", [1, 1000, 2999])
def test_an_unfinished_enumeration_says_what_is_certain(n):
    outcome, truth = everything(inputs=4)
    results = run(Campaign(Double(inputs=4), SPACE, sampler=Exhaustive(), stop=MaxTrials(n)))
    assert len(results) == n
    estimate = results.estimate()
    assert estimate.low <= truth <= estimate.high
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.half_width == pytest.approx((1 - n / (FAULTS * 4)) / 2)
    site = SPACE.locate(np.arange(FAULTS)).site
    for code, row in results.table("site").iterrows():
        assert row["low"] - 1e-12 <= (outcome[site == code] > 0).mean() <= row["high"] + 1e-12


class _Far(NamedTuple):
    least: float = 0.5

    def __call__(self, golden, faulty, labels):
        del labels
        return (golden - faulty).abs().amax(-1) > self.least


class _Near(NamedTuple):
    least: float = 0.5

    def __call__(self, golden, faulty, labels):
        del labels
        return (golden - faulty).abs().amax(-1) < self.least


class _Steps(list):
    def __call__(self, golden, faulty, labels):
        del labels
        return (golden - faulty).abs().amax(-1) > self[0]


@pytest.mark.parametrize(("mine", "other"), [(_Far(), _Near()), (_Far(), _Far(0.25)), (_Steps([1.0]), _Steps([2.0]))])
def test_a_criterion_that_holds_what_it_is_made_of_is_kept_with_its_class(tmp_path, mine, other):
    told = describe(mine)
    assert told["class"].endswith(type(mine).__name__)
    assert told != describe(other)
    campaign = replace(example_campaign(trials=50), criterion=mine)
    with Store(tmp_path / "s.sqlite") as store:
        found = run(campaign, store=store, name="a")
        assert load(store, "a").failures == found.failures
        with pytest.raises(CampaignError, match="criterion"):
            run(replace(campaign, criterion=other), store=store, name="a")


def test_max_trials_is_exact():
    for n in (1, 255, 256, 257, 4095, 4096, 5000):
        assert len(run(Campaign(Double(), SPACE, stop=MaxTrials(n)))) == n
    assert len(run(Campaign(Double(), SPACE, stop=MaxTrials(700) | MaxTrials(300)))) == 300
    assert len(run(Campaign(Double(), SPACE, stop=MaxTrials(700) & MaxTrials(300)))) == 700


def test_half_width_stops_at_the_same_trial_however_it_is_batched():
    rule = HalfWidth(0.02)
    ends = {batch: run(Campaign(Double(), SPACE, seed=4, stop=rule), batch=batch) for batch in (4096, 1000, 128, 77)}
    lengths = {len(results) for batch, results in ends.items() if batch != 77}
    assert len({len(ends[4096]), len(ends[128])}) == 1, lengths
    done = ends[4096]
    assert len(done) % 128 == 0
    assert done.estimate().half_width <= 0.02
    before = done.columns.take(0, len(done) - 128)
    assert proportion(int(before.failed.sum()), len(before)).half_width > 0.02
    assert "half-width" in done.record.reason
    assert ends[77].estimate().half_width <= 0.02


def test_a_time_budget_ends_soon_after_it_is_spent():
    engine = Double(seconds=0.01)
    results = run(Campaign(engine, SPACE, stop=TimeBudget(0.3)))
    assert 0.3 <= results.record.seconds < 0.6
    assert results.record.reason == "time budget of 0.3 s spent"


def test_a_rule_may_be_any_function():
    results = run(Campaign(Double(), SPACE, stop=lambda progress: "enough" if progress.failures >= 50 else None))
    assert results.failures >= 50
    assert results.record.reason == "enough"


def oracle(results: Results, key: pd.Series) -> pd.DataFrame:
    """Return the table that pandas makes of the single trials, with Wilson's interval."""
    faults = results.faults().assign(key=key).drop_duplicates(["trial", "key"])
    grouped = faults.groupby("key").agg(trials=("failed", "size"), failures=("failed", "sum"), due=("due", "mean"))
    grouped["value"] = grouped["failures"] / grouped["trials"]
    grouped["low"], grouped["high"] = wilson(grouped["failures"], grouped["trials"])
    return grouped


@pytest.mark.parametrize("sampler", [Uniform(), Uniform(faults=3), BitErrorRate(0.003)])
def test_tables_are_those_of_pandas(sampler):
    results = run(Campaign(Double(), SPACE, sampler=sampler, seed=9, stop=MaxTrials(2000)))
    faults = results.faults()
    keys = {
        "model": pd.Series("model", index=faults.index),
        "site": faults["site"],
        "layer": faults["layer"].replace("", "(model)"),
        "kind": faults["kind"],
        "bit": faults["bit"],
        "channel": faults["site"] + np.where(faults["channel"] < 0, "", "[" + faults["channel"].astype(str) + "]"),
    }
    for by, key in keys.items():
        table = results.table(by)
        assert list(table.columns) == ["key", "trials", "failures", "due", "value", "low", "high"]
        expected = oracle(results, key).reindex(table["key"])
        assert table["trials"].to_numpy().min() > 0
        for name in expected:
            np.testing.assert_allclose(table[name], expected[name].astype(float), rtol=1e-12, err_msg=f"{by} {name}")
        assert set(table["key"]) == set(key)


def test_groups_come_in_the_order_of_the_space_even_without_trials():
    design = Uniform().design(Population(SPACE)).plain()
    record = Record("none", space=SPACE.plain(), faults=len(SPACE), inputs=10, design=design)
    empty = Results(record, Columns.empty())
    assert empty.table("site")["key"].tolist() == list(SPACE.names)
    assert empty.table("layer")["key"].tolist() == ["conv", "norm", "(model)", "fc"]
    assert empty.table("kind")["key"].tolist() == ["weight", "input", "norm", "output", "bias"]
    assert empty.table("bit")["key"].tolist() == list(range(32))
    channels = [f"conv.weight[{i}]" for i in range(4)] + ["conv:input[0]", "conv:input[1]"]
    channels += [f"norm.weight[{i}]" for i in range(4)] + ["add:output", "fc.bias"]
    assert empty.table("channel")["key"].tolist() == channels
    for by in ("model", "site", "layer", "channel", "bit", "kind"):
        table = empty.table(by)
        assert table["value"].isna().all()
        assert table["due"].isna().all()
        assert (table["low"] == 0).all()
        assert (table["high"] == 1).all()
    assert math.isnan(empty.estimate().value)


def test_tables_take_level_and_method():
    results = run(Campaign(Double(), SPACE, stop=MaxTrials(500)))
    wide = results.table("model", level=0.999, method="clopper-pearson").iloc[0]
    narrow = results.table("model").iloc[0]
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]
    estimate = results.estimate(level=0.999, method="clopper-pearson")
    assert (estimate.low, estimate.high) == (wide["low"], wide["high"])
    with pytest.raises(SpaceError, match=r"faults are grouped by model, .*, got 'sites'; did you mean 'site'"):
        results.table("sites")
    with pytest.raises(StatisticsError, match="interval method"):
        results.table("site", method="wald")
    with pytest.raises(StatisticsError, match="interval method"):
        results.estimate(method="wald")


def share_of_zero(outputs, labels) -> float:
    """Return the share of inputs whose first score is higher, 1 for the golden double."""
    del labels
    return (outputs[:, 0] > outputs[:, 1]).double().mean()


share_of_zero.bounds = (0.0, 1.0)


@pytest.mark.parametrize("batch", [4096, 25])
def test_a_metric_is_measured_over_the_whole_data_set(batch):
    campaign = Campaign(Double(), SPACE, metric=share_of_zero, seed=8, stop=MaxTrials(300))
    results = run(campaign, batch=batch)
    outcome = everything()[0][results.columns.faults]
    expected = (outcome == 0).mean(axis=1)  # NaN compares as not higher
    np.testing.assert_allclose(results.columns.metric, expected)
    np.testing.assert_allclose(results.columns.values, 1 - expected)
    assert np.array_equal(results.columns.failed, (outcome > 0).any(axis=1))
    assert np.array_equal(results.columns.due, (outcome == 2).any(axis=1))
    assert set(results.columns.inputs) == {-1}
    estimate = results.estimate()
    assert estimate.method == "gaffke"
    assert 0 < estimate.low < estimate.value < estimate.high < 1
    assert estimate.value == pytest.approx((outcome > 0).mean())
    table = results.table("site")
    for code, members in enumerate(SPACE.names):
        mine = results.faults()["site"] == members
        assert table["value"][code] == pytest.approx(1 - expected[mine].mean())
    assert results.table("model")["value"][0] == pytest.approx(estimate.value)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"criterion": Top1Change()}, "criterion"),  # equal to the one that is taken, but asked for
        ({"verdicts": {"second": Top1Change()}}, "verdicts"),
        ({"inputs_per_fault": 2}, "inputs_per_fault"),
    ],
)
def test_what_a_metric_would_leave_without_a_say_is_refused(beside, named):
    with pytest.raises(CampaignError, match=f"the whole data set, and {named} beside it would have no say"):
        Campaign(Double(), SPACE, metric=share_of_zero, **beside)
    assert replace(Campaign(Double(), SPACE), metric=share_of_zero, inputs_per_fault=None).metric is share_of_zero


def test_an_enumerated_metric_is_exact():
    results = run(Campaign(Double(), SPACE, metric=share_of_zero, sampler=Exhaustive()))
    truth = everything()[1]
    estimate = results.estimate()
    assert len(results) == FAULTS
    assert estimate.low == estimate.value == estimate.high == pytest.approx(truth)
    part = run(Campaign(Double(), SPACE, metric=share_of_zero, sampler=Exhaustive(), stop=MaxTrials(10))).estimate()
    assert (part.low, part.high) == (-math.inf, math.inf)


def test_a_weighted_metric_is_unbiased():
    truth = everything()[1]
    values = [
        run(Campaign(Double(), SPACE, metric=share_of_zero, sampler=Skewed(), seed=s, stop=MaxTrials(300))).estimate()
        for s in range(20)
    ]
    assert sum(e.low <= truth <= e.high for e in values) >= 16
    assert abs(np.mean([e.value for e in values]) - truth) < 0.02


def test_a_metric_that_is_no_finite_number():
    def undefined(outputs, labels):
        return float(outputs.sum()) + 0 * float(labels.sum())  # NaN where an output is

    results = run(Campaign(Double(), SPACE, metric=undefined, seed=8, stop=MaxTrials(200)))
    assert np.isnan(results.columns.values[results.columns.due]).all()
    assert results.columns.failed[results.columns.due].all()
    median = results.estimate()  # nothing tells how large such a number can get
    assert median.method == "quantile 0.5"
    assert median.value == np.sort(np.nan_to_num(results.columns.values, nan=np.inf))[99]
    assert median.low <= median.value <= median.high < math.inf
    for wrong in (math.nan, -math.inf):
        with pytest.raises(CriterionError, match=f"metric of the golden outputs is a finite number, got {wrong}"):
            run(Campaign(Double(), SPACE, metric=lambda *_, wrong=wrong: wrong, stop=MaxTrials(10)))
    with pytest.raises(CriterionError, match="a metric returns one number, got Tensor"):
        run(Campaign(Double(), SPACE, metric=lambda outputs, _: outputs, stop=MaxTrials(10)))


def test_a_metric_with_a_span_has_an_interval_within_what_its_drop_can_be():
    def right(outputs, labels):
        del labels
        return (outputs[:, 0] > outputs[:, 1]).double().mean() / 2 + 0.25

    right.bounds = (0.2, 0.75)
    for trials, least in ((1, 0.3), (300, 0.01)):
        found = run(Campaign(Double(), SPACE, metric=right, seed=3, stop=MaxTrials(trials))).estimate()
        assert 0 <= found.low <= found.value <= found.high <= 0.55
        assert found.high - found.low > least
    bits = run(Campaign(Double(), SPACE, metric=right, seed=3, stop=MaxTrials(300))).table("bit")
    assert ((bits["low"] >= 0) & (bits["high"] <= 0.55) & (bits["high"] > bits["low"])).all()
    with pytest.raises(CampaignError, match="begun with another"):
        check_resumable(
            Campaign(Double(), SPACE, metric=share_of_zero, seed=3, stop=MaxTrials(1)),
            run(Campaign(Double(), SPACE, metric=right, seed=3, stop=MaxTrials(1))).record,
        )


def test_large_outputs_are_gathered_a_few_trials_at_a_time(monkeypatch):
    from torchfault.campaign import judging

    monkeypatch.setattr(judging, "_MOST_BYTES", 10 * 2 * 4 * 3)  # three trials' worth
    engine, most = Double(), 0
    whole = engine.run

    def watched(trials):
        nonlocal most
        most = max(most, len(trials))
        return whole(trials)

    monkeypatch.setattr(engine, "run", watched)
    assert len(run(Campaign(engine, SPACE, metric=share_of_zero, stop=MaxTrials(20)))) == 20
    assert most == 30


def test_progress_tells_where_a_campaign_stands():
    seen = []
    results = run(Campaign(Double(), SPACE, stop=MaxTrials(6000)), progress=seen.append)
    assert seen[-1].done == seen[-1].total == 6000
    assert seen[-1].left == 0
    assert seen[-1].estimate == results.estimate()
    assert all(one.done <= two.done for one, two in pairwise(seen))
    assert all(standing.rate > 0 for standing in seen)

    slow = []
    run(Campaign(Double(seconds=0.06), SPACE, stop=MaxTrials(500)), progress=slow.append, batch=500)
    assert {standing.done for standing in slow} > {256, 500}  # also within a batch

    wide = []
    results = run(Campaign(Double(), SPACE, seed=4, stop=HalfWidth(0.02)), progress=wide.append)
    assert wide[0].total is None  # nothing is known yet
    assert wide[1].total == pytest.approx(len(results), rel=0.5)

    ends = []
    run(Campaign(Double(), SPACE, sampler=Exhaustive()), progress=ends.append)
    assert ends[0].total == FAULTS * 10
    assert ends[0].estimate.method == "exhaustive"

    timed = []
    run(Campaign(Double(seconds=0.01), SPACE, stop=TimeBudget(0.3)), progress=timed.append)
    assert 0 < timed[1].left < 0.3

    free = []
    rule = lambda progress: "enough" if progress.trials >= 300 else None  # noqa: E731
    run(Campaign(Double(), SPACE, stop=rule), progress=free.append)
    assert free[0].total is free[0].left is None


def test_an_engine_that_loses_or_repeats_a_trial_is_found_out(monkeypatch):
    engine = Double()
    whole = engine.run
    monkeypatch.setattr(engine, "run", lambda trials: list(whole(trials))[1:])
    with pytest.raises(EngineError, match="every trial once, got 0 runs of trial"):
        run(Campaign(engine, SPACE, stop=MaxTrials(300)))
    monkeypatch.setattr(engine, "run", lambda trials: list(whole(trials)) * 2)
    with pytest.raises(EngineError, match="every trial once, got 2 runs of trial"):
        run(Campaign(engine, SPACE, stop=MaxTrials(300)))


def test_a_sampler_that_draws_too_few_is_found_out():
    class Short(Uniform):
        def draw(self, population, n, *, rng, start, tally=None):
            return super().draw(population, n - 1, rng=rng, start=start, tally=tally)

    with pytest.raises(SamplingError, match="Short was asked for 4096 trials, got 4095"):
        run(Campaign(Double(), SPACE, sampler=Short(), stop=MaxTrials(300)))


def test_campaigns_that_cannot_run_say_why():
    engine = Double()
    with pytest.raises(CampaignError, match=r"Uniform never ends by itself.*give stop=MaxTrials"):
        run(Campaign(engine, SPACE))
    with pytest.raises(SpaceError, match=r"no site is called 'conv.wieght'; did you mean 'conv.weight'"):
        run(Campaign(engine, FaultSpace((Site("conv.wieght", (4,)),)), stop=MaxTrials(10)))
    other = FaultSpace((Site("fc.bias", (4,), word="int8", kind="bias"),))
    with pytest.raises(CampaignError, match=r"holds 'fc.bias' as int8 \(4,\), the model as int8 \(3,\); take"):
        run(Campaign(engine, other, stop=MaxTrials(10)))
    with pytest.raises(SpaceError, match=r"faults are grouped by model, .*, got 'sites'; did you mean 'site'"):
        run(Campaign(engine, SPACE, stop=HalfWidth(0.1, by="sites")))
    with pytest.raises(CampaignError, match="a fault runs on 1 to 10 inputs, as many as there are, got 11; None takes"):
        Campaign(engine, SPACE, inputs_per_fault=11)
    for name in ("failed", "vouched"):
        with pytest.raises(
            CampaignError, match=f"every campaign has a verdict '{name}' of its own; give yours another"
        ):
            run(Campaign(engine, SPACE, verdicts={name: NonFinite()}, stop=MaxTrials(10)))
    with pytest.raises(CampaignError, match="at least one lane, got 0"):
        run(Campaign(engine, SPACE, stop=MaxTrials(10)), batch=0)
    with pytest.raises(CampaignError, match="progress is a function that takes a Standing, got True"):
        run(Campaign(engine, SPACE, stop=MaxTrials(10)), progress=True)
    assert engine.lanes == 0


@pytest.mark.parametrize(
    ("name", "value", "example"),
    [
        ("space", "conv", "engine.space.select"),
        ("sampler", "uniform", r"Uniform\(\)"),
        ("sampler", Uniform, r"Uniform\(\), got the class Uniform itself"),
        ("measure", "uniform", "ProductMeasure"),
        ("fault", "flip", r"BitFlip\(\)"),
        ("criterion", "top1", r"Top1Change\(\)"),
        ("criterion", Top1Change, "got the class Top1Change itself"),
        ("metric", "accuracy", "accuracy"),
        ("resolver", "direct", r"Direct\(\)"),
        ("stop", 500, r"MaxTrials\(1000\), got '500'"),
        ("seed", "0", "0"),
    ],
)
def test_a_campaign_of_the_wrong_parts_says_what_is_wanted(name, value, example):
    given = {"engine": Double(), "space": SPACE, name: value}
    with pytest.raises(CampaignError, match=f"{name} of a campaign is a value such as .*{example}"):
        Campaign(**given)


def middling(outputs, labels) -> float:
    """Return the share of inputs whose first score is higher, halved and raised by a quarter."""
    return share_of_zero(outputs, labels) / 2 + 0.25


middling.bounds = (0.2, 0.75)


@pytest.mark.parametrize(
    ("options", "by", "h"),
    [
        ({"sampler": Skewed()}, "model", 0.03),
        ({"sampler": Skewed()}, "site", 0.15),
        ({"sampler": Layered()}, "site", 0.1),
        ({"sampler": Uniform(faults=3)}, "site", 0.12),
        ({"sampler": Uniform()}, "bit", 0.2),
        ({"sampler": Uniform()}, "channel", 0.2),
        ({"sampler": Uniform(), "inputs_per_fault": 4}, "site", 0.2),
        ({"sampler": Uniform(), "inputs_per_fault": None}, "model", 0.06),
        ({"sampler": BitErrorRate(0.003)}, "layer", 0.1),
        ({"metric": middling}, "model", 0.012),
        ({"metric": middling}, "site", 0.1),
        ({"sampler": Exhaustive()}, "model", 0.2),
        ({"sampler": Exhaustive()}, "site", 0.3),
    ],
    ids=lambda value: str(value).partition(" at 0x")[0],
)
def test_a_half_width_ends_any_sampler_with_the_intervals_of_its_table_as_narrow(options, by, h):
    results = run(Campaign(Double(), SPACE, seed=3, stop=HalfWidth(h, by=by), **options), batch=128)
    assert f"of at most {h:g} reached by {by}" in results.record.reason
    table = results.table(by)
    reached = (table["high"] - table["low"]) / 2
    assert reached.max() <= h
    assert results.record.reason.startswith(f"half-width {reached.max():.2g} of at most")
    one = 12 if "metric" in options else 128  # a batch
    earlier = Results(results.record, results.columns.take(0, max(len(results) - one, 0))).table(by)
    assert ((earlier["high"] - earlier["low"]) / 2 > h).any()


def test_a_part_of_the_bits_is_a_space_too():
    results = run(Campaign(Double(), SPACE.select(bits=[6, 7]), stop=MaxTrials(500)))
    assert results.table("bit")["key"].tolist() == [6, 7]


def test_equal_values_have_equal_descriptions():
    assert describe(Uniform(faults=2)) == describe(Uniform(faults=2)) != describe(Uniform(faults=3))
    assert describe(StuckAt(0)) != describe(StuckAt(1))
    assert describe(Top1Change() & NonFinite()) != describe(Top1Change() | NonFinite())
    assert describe(np.arange(3)) == describe(np.arange(3)) != describe(np.arange(3.0))
    assert describe(torch.ones(2, requires_grad=True)) == describe(torch.ones(2))
    assert describe({"a": (1, 2.5, math.inf, None)}) == {"a": [1, 2.5, "inf", None]}
    assert describe({3, 1, 2}) == [1, 2, 3]
    assert describe(functools.partial(accuracy, axis=1)) != describe(functools.partial(accuracy, axis=2))
    assert describe(BitFlip) == {"class": "BitFlip"}


def closing_over(threshold, default=0):
    def criterion(golden, faulty, labels, extra=default):
        return threshold, golden, faulty, labels, extra

    return criterion


def test_functions_are_told_apart_by_source_and_surroundings():
    def one(golden, faulty, _):
        return faulty > golden  # a comment

    first = describe(one)

    def one(golden, faulty, _):
        # another comment
        return faulty > golden

    assert describe(one) == first
    assert first["function"].endswith("one")

    def one(golden, faulty, _):
        return faulty >= golden

    changed = differences({"criterion": first}, {"criterion": describe(one)})
    assert len(changed) == 1
    assert "its source or what it holds" in changed[0]
    assert describe(closing_over(1)) == describe(closing_over(1)) != describe(closing_over(2))
    assert describe(closing_over(1, 2)) != describe(closing_over(1, 3))
    assert describe(len)["source"] is None


def test_any_object_can_be_described():
    class Holder:
        def __init__(self, inner):
            self.inner = inner

        def method(self):
            return self.inner

    assert describe(Holder(1)) == describe(Holder(1)) != describe(Holder(2))
    assert describe(Holder(1).method) != describe(Holder(2).method)
    loop = Holder(None)
    loop.inner = loop
    assert describe(loop) == describe(loop)
    assert show(describe(Holder(np.arange(2)))).startswith("Holder(inner=array ")
    assert show(describe([1, {"a": b"x"}])).startswith("[1, {a: {bytes: ")


@pytest.mark.parametrize("workers", [None, Threads(2)], ids=["alone", "workers"])
@pytest.mark.parametrize(
    "options",
    [{"stop": MaxTrials(600)}, {"sampler": Adaptive(block=128), "stop": HalfWidth(0.1, by="site")}],
    ids=["uniform", "adaptive"],
)
def test_what_a_campaign_holds_is_gone_with_its_results(options, workers):
    gc.disable()  # which would hide a cycle
    try:
        results = run(Campaign(Double(), SPACE, **options), workers=workers)
        results.table("site")
        columns = weakref.ref(results.columns)
        del results
        assert columns() is None
    finally:
        gc.enable()
