"""Model-assisted estimates: good predictions narrow, useless ones cost next to nothing, wrong ones never bias."""

import numpy as np
import pytest

from tests.sampling.test_importance import POPULATION, SCORES, Heavy, as_table, estimates, scores_for
from tests.support.doubles import SPACE, Double
from tests.support.enumerated import enumerated
from torchfault.campaign import Campaign, run
from torchfault.criteria import accuracy
from torchfault.errors import CampaignError, SamplingError, StatisticsError
from torchfault.resolve import Pooled
from torchfault.results import assisted
from torchfault.sampling import (
    Adaptive,
    Exhaustive,
    Importance,
    Learned,
    Population,
    Search,
    Statistical,
    Table,
    Tally,
    Uniform,
    WholeWords,
    stream,
)
from torchfault.sampling.learned import Fitted, fit
from torchfault.sensitivity import effect
from torchfault.statistics import HalfWidth, MaxTrials, assisted_mean, weighted_mean
from torchfault.store import Columns, Store
from torchfault.testing import check_sampler


def predictions(known):
    """Return useless, good and wrong predictions of every fault."""
    count, rng = len(known.by_fault), np.random.default_rng(3)
    return {
        "useless": rng.random(count),
        "useless and rare": np.where(rng.random(count) < 1e-3, 1e3, 1.0),
        "good": known.by_fault,
        "opposite": 1 - known.by_fault,
        "high where nothing fails": (known.by_fault == 0) * rng.random(count) ** 4,
    }


def repeated(known, scores, sampler, *, n, repetitions):
    """Return (value, low, high) of assisted and of plain estimates, each (repetitions, 3)."""
    both, population = [], Population(known.space)
    heaviest = sampler.design(population).largest_weight
    for repetition in range(repetitions):
        rng = stream(9, repetition)
        draws = sampler.draw(population, n, rng=rng, start=0)
        failed = known.outcomes[draws.index, rng.integers(known.outcomes.shape[1], size=n)]
        found = assisted_mean(failed, scores[draws.index], scores.mean(), weights=draws.weight, largest_weight=heaviest)
        plain = weighted_mean(failed, draws.weight, largest_weight=heaviest)
        both.append(((found.value, found.low, found.high), (plain.value, plain.low, plain.high)))
    return np.array(both).transpose(1, 0, 2)


def check(found, truth):
    """Hold repeated estimates to their promise; return their mean width."""
    error = found[:, 0].std() / np.sqrt(len(found))
    assert abs(found[:, 0].mean() - truth) < 4 * error
    covered = np.mean((found[:, 1] <= truth) & (truth <= found[:, 2]))
    assert covered >= 0.94 - 2 * np.sqrt(0.94 * 0.06 / len(found))
    return np.mean(found[:, 2] - found[:, 1])


@pytest.mark.parametrize("n", [pytest.param(400, marks=pytest.mark.slow), 3000])
def test_predictions_narrow_or_cost_next_to_nothing_and_never_bias(n):
    known = enumerated()
    truth = known.by_fault.mean()
    for name, scores in predictions(known).items():
        found, plain = repeated(known, scores, Uniform(), n=n, repetitions=100)
        ratio = check(found, truth) / np.mean(plain[:, 2] - plain[:, 1])
        assert ratio < 1.05, name
        if name in ("good", "opposite"):
            assert ratio < (0.7 if n == 3000 else 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("proposal", ["useless", "good", "wrong"])
def test_a_thousand_repetitions_cover_whatever_proposal_and_prediction_are(proposal):
    known = enumerated()
    truth = known.by_fault.mean()
    sampler = Importance(scores_for(known)[proposal])
    for name, scores in predictions(known).items():
        found, plain = repeated(known, scores, sampler, n=2000, repetitions=1000)
        covered = np.mean((found[:, 1] <= truth) & (truth <= found[:, 2]))
        assert covered >= 0.94, name
        assert check(found, truth) < 1.1 * np.mean(plain[:, 2] - plain[:, 1]), name


def test_the_first_order_effect_predicts_enough_to_narrow():
    known = enumerated()
    score = effect(known.engine.model, known.data, known.space, images=20)
    campaign = Campaign(known.table, known.space, sampler=Uniform(), stop=MaxTrials(4096))
    results = run(campaign)
    found, plain = assisted(results, score), results.estimate()
    assert found.low <= known.by_fault.mean() <= found.high
    assert found.half_width < 0.9 * plain.half_width


def test_scores_without_a_difference_give_the_plain_estimate():
    failed, weights = np.arange(100) % 7 == 0, np.tile([0.5, 1.5], 50)
    assert assisted_mean(failed, np.ones(100), 1.0, weights=weights) == weighted_mean(failed, weights)
    assert assisted_mean(failed[:5], np.arange(5.0), 2.0) == weighted_mean(failed[:5], np.ones(5))


def test_bounds_stay_open_without_failures():
    found = assisted_mean(np.zeros(200), np.arange(200.0), 99.5)
    assert (found.value, found.low) == (0, 0)
    assert 0.01 < found.high < 0.03


def test_several_scores_are_used_together():
    rng = np.random.default_rng(4)
    one, two = rng.random((2, 3000)) ** 4
    failed = rng.random(3000) < (one + two) / 2
    alone = assisted_mean(failed, one, 0.2)
    both = assisted_mean(failed, np.column_stack((one, two)), [0.2, 0.2])
    assert both.half_width < alone.half_width < weighted_mean(failed, np.ones(3000)).half_width


@pytest.mark.parametrize(
    "given",
    [
        ([0, 1], [1.0], 1.0, {}),
        ([0, 1], [1.0, 2.0], [1.0, 2.0], {}),
        ([0, 1], [1.0, np.nan], 1.0, {}),
        ([0, 2], [1.0, 2.0], 1.0, {}),
        ([0, 1], [1.0, 2.0], 1.0, {"weights": [-1, 1]}),
        ([0, 1], [1.0, 2.0], 1.0, {"weights": [1]}),
    ],
)
def test_numbers_that_do_not_fit_are_refused(given):
    *columns, options = given
    with pytest.raises(StatisticsError):
        assisted_mean(*columns, **options)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"sampler": Uniform(2), "stop": MaxTrials(50)}, "several faults in a trial"),
        ({"sampler": Adaptive(), "stop": HalfWidth(0.05)}, "strata"),
        ({"sampler": Adaptive(WholeWords(), block=64), "stop": HalfWidth(0.2)}, "whole words"),
        ({"sampler": Search(side=64, block=64), "stop": MaxTrials(128)}, "strata"),
        ({"inputs_per_fault": 3, "stop": MaxTrials(60)}, "several inputs for each fault"),
        ({"resolver": Pooled(8), "stop": MaxTrials(60)}, "outcomes that were not seen"),
        ({"sampler": Statistical(margin=0.1)}, "strata"),
        ({"sampler": Exhaustive(), "stop": MaxTrials(50)}, "every fault"),
        ({"sampler": Uniform(), "stop": MaxTrials(50), "metric": accuracy}, "a metric"),
    ],
)
def test_campaigns_of_other_kinds_are_refused(options, what):
    results = run(Campaign(Double(), SPACE, **options))
    with pytest.raises(CampaignError, match=f"got {what}"):
        assisted(results, Heavy())
    with pytest.raises(CampaignError, match="got no score"):
        assisted(run(Campaign(Double(), SPACE, stop=MaxTrials(50))))


# Learning from the outcomes.


def test_the_regression_finds_the_bits_that_fail():
    known = enumerated()
    rng = np.random.default_rng(0)
    index = rng.integers(0, len(known.space), size=6000)
    failed = known.outcomes[index, rng.integers(known.outcomes.shape[1], size=6000)]
    flat = as_table(known.space, np.ones(len(known.space)))
    fitted = fit(flat, known.space, Columns(index, index * 0, {"failed": failed}))
    rows = fitted.rows(known.space.sites[0], np.array([0]))[0]
    where = known.space.locate(np.arange(len(known.space)))
    here = where.site == 0
    actual = [known.by_fault[here & (where.bit == bit)].mean() for bit in range(32)]
    assert rows[30] == pytest.approx(actual[30], abs=0.25)
    assert rows[:20].max() < 0.02
    assert fit(flat, known.space, Columns(index, index * 0)) is None


def learned(known, score, repetitions, blocks):
    """Return estimates of repeated campaigns of a learned sampler, one (value, low, high) each."""
    sampler, found, population = Learned(score, block=512), [], Population(known.space)
    for repetition in range(repetitions):
        tally = Tally(known.space, sampler.design(population))
        for start in range(0, blocks * 512, 512):
            rng = stream(3, repetition, start // 512)
            draws = sampler.draw(population, 512, rng=rng, start=start, tally=tally)
            failed = known.outcomes[draws.index, rng.integers(known.outcomes.shape[1], size=512)]
            tally.add(Columns(draws.index, draws.index * 0, {"failed": failed}, weights=draws.weight))
        columns = tally.columns()
        estimate = weighted_mean(columns.failed, columns.weight, largest_weight=2.0)
        found.append((estimate.value, estimate.low, estimate.high))
    return np.array(found)


def test_what_was_learnt_narrows_and_does_not_bias():
    known = enumerated()
    scores = scores_for(known)
    wrong = check(learned(known, scores["wrong"], 40, 8), known.by_fault.mean())
    fixed = estimates(known, Importance(scores["wrong"]), repetitions=40, n=4096)
    assert wrong < 0.75 * np.mean(fixed[:, 2] - fixed[:, 1])


def test_learned_sampling_keeps_the_rules_of_samplers():
    check_sampler(Learned(SCORES["effect"], block=256), POPULATION)
    design = Learned(SCORES["effect"]).design(POPULATION)
    assert (design.largest_weight, design.total, design.adapts) == (2, None, True)
    for wrong in ({"floor": 0.0}, {"block": 0}):
        with pytest.raises(SamplingError, match="a floor is above 0"):
            Learned(Table({}), **wrong)


def test_a_learned_campaign_resumes_byte_by_byte(tmp_path):
    def campaign(trials):
        return Campaign(Double(), SPACE, sampler=Learned(Heavy(), block=256), seed=4, stop=MaxTrials(trials))

    whole = run(campaign(2000))
    with Store(tmp_path / "a.sqlite") as store:
        run(campaign(700), store=store)
        resumed = run(campaign(2000), store=store)
    for name in ("faults", "weights", "failed", "inputs"):
        np.testing.assert_array_equal(getattr(resumed.columns, name), getattr(whole.columns, name))
    assert whole.columns.weights.max() <= 2
    assert whole.estimate().method.startswith("weighted")


def test_the_whole_space_is_scored_once_for_each_fit(monkeypatch):
    scored, totals = [], Fitted.totals
    monkeypatch.setattr(Fitted, "totals", lambda self, site: scored.append((id(self), site.name)) or totals(self, site))
    run(Campaign(Double(), SPACE, sampler=Learned(Heavy(), block=64), stop=MaxTrials(64 * 20)))
    assert len(scored) == 5 * len(SPACE.sites), "after 1, 2, 4, 8 and 16 blocks"


def test_a_learned_campaign_needs_a_rule():
    with pytest.raises(CampaignError, match="Learned never ends by itself"):
        run(Campaign(Double(), SPACE, sampler=Learned(Heavy())))


def test_a_score_that_the_draws_never_saw_vary_has_no_slope():
    """Beside weights that vary, a constant score would share their slope, and one rare fault throw the estimate off."""
    known = enumerated()
    sampler = Importance(scores_for(known)["wrong"])
    found, plain = repeated(known, predictions(known)["useless and rare"], sampler, n=2000, repetitions=80)
    assert check(found, known.by_fault.mean()) < np.mean(plain[:, 2] - plain[:, 1])
