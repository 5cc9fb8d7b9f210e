"""Importance sampling: bits in closed form against the words, exact weights, estimates that hold for any score."""

import gc
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.support.doubles import SPACE, Double
from tests.support.enumerated import enumerated
from torchfault.campaign import Campaign, run
from torchfault.errors import CampaignError, SamplingError
from torchfault.measures import ProductMeasure, probability
from torchfault.results import Results
from torchfault.sampling import (
    Effect,
    Importance,
    Population,
    Score,
    Sensitivity,
    Table,
    score_mean,
    score_of,
    stream,
)
from torchfault.sampling.bits import BIT_RULES, bit_changes, bit_derivatives, bit_scores
from torchfault.space import FaultSpace, Site
from torchfault.statistics import HalfWidth, MaxTrials
from torchfault.store import Store
from torchfault.testing import check_sampler
from torchfault.words import WORDS, decode, encode

FLOATS = [name for name, fmt in WORDS.items() if "exponent" in fmt.fields and name != "float4_e2m1fn_x2"]  # two numbers


def flipped(values, fmt):
    """Return |v' - v| by editing the words, infinite where either is not finite."""
    words = encode(values, fmt)
    full = torch.iinfo(fmt.integer).bits - 1
    gaps = []
    for bit in range(fmt.width):
        mask = -(1 << full) if bit == full and fmt.integer.is_signed else 1 << bit
        moved = decode(words ^ torch.tensor(mask, dtype=fmt.integer), fmt).double()
        gaps.append((moved - values.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf))
    return torch.stack(gaps, 1).numpy()


@pytest.mark.parametrize("name", FLOATS)
def test_changes_are_what_editing_the_word_does(name):
    fmt = WORDS[name]
    size = torch.iinfo(fmt.integer).bits
    if fmt.width <= 16:
        integers = torch.arange(1 << fmt.width).to(torch.int64)
        integers = torch.where(integers >= 1 << (size - 1), integers - (1 << size), integers)
        words = (integers if fmt.integer.is_signed else integers % (1 << size)).to(fmt.integer)
    else:
        random = torch.randint(-(2**31), 2**31, (4000,), generator=torch.Generator().manual_seed(1))
        words = (random if fmt.width == 32 else random * 2**32 + random).to(fmt.integer)
        words[:4] = torch.tensor([0, 1, 3, 1 << (fmt.width - 2)])
    values = decode(words, fmt)
    values = values[values.double().isfinite()]
    with np.errstate(all="raise", over="ignore", invalid="ignore", under="ignore"):
        found = bit_changes(values.double().numpy(), name, fmt.width)
    np.testing.assert_allclose(found, flipped(values, fmt), rtol=1e-12)


def test_changes_of_integers_are_powers_of_two():
    values = torch.arange(-128, 128).to(torch.int8)
    np.testing.assert_array_equal(bit_changes(values.numpy(), "int8", 8), flipped(values, WORDS["int8"]))


def test_what_is_not_finite_changes_without_bound():
    assert np.isinf(bit_changes([np.inf, np.nan], "float32", 32)).all()


def test_derivatives_are_those_of_the_published_formula():
    """The formula of ISimDL's authors, its bits as real numbers, differentiated by autograd."""
    for value in (0.3, -1.75, 40.0, 2.0**-126, 1e-40, -3e-42):
        word = int(np.float32(value).view(np.uint32))
        bits = torch.tensor([float(word >> i & 1) for i in range(32)], dtype=torch.float64, requires_grad=True)
        subnormal = bool((bits[23:31] == 0).all())
        exponent = (bits[23:31] * 2.0 ** torch.arange(8)).sum() - 127 + subnormal
        mantissa = (bits[:23] * 2.0 ** (torch.arange(23) - 23.0)).sum()
        result = (1 - 2 * bits[31]) * 2**exponent * ((not subnormal) + mantissa)
        assert float(result.detach()) == pytest.approx(float(np.float32(value)), rel=1e-12)
        torch.autograd.backward(result)
        np.testing.assert_allclose(bit_derivatives([np.float32(value)], "float32", 32)[0], bits.grad.abs(), rtol=1e-9)


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_derivatives_that_say_nothing_become_powers(value):
    np.testing.assert_array_equal(bit_derivatives([value], "float32", 32)[0], 2.0 ** np.arange(32))


@pytest.mark.parametrize("rule", BIT_RULES)
def test_every_rule_scores_every_bit(rule):
    assert bit_scores(rule, [0.5, 1.5], "float16", 16).shape == (2, 16)
    assert bit_scores(rule, [], "float16", 16).shape == (0, 16)


def test_unknown_rules_are_refused():
    with pytest.raises(SamplingError, match="got 'expotential'; did you mean 'exponential'"):
        Sensitivity({}, bits="expotential")


# Scores and draws.

A, B = Site("a", (40,), bits=(23, 28, 29, 30, 31)), Site("b", (6, 2), word="int8")
SMALL = FaultSpace((A, B))
VALUES = {"a": np.linspace(-2, 2, 40), "b": np.arange(12.0)}
SLOPES = {"a": np.arange(40.0), "b": np.tile([0.0, 1.0], 6)}
SCORES = {
    "random": Sensitivity(SLOPES),
    "exponential": Sensitivity({"a": SLOPES["a"]}, bits="exponential"),
    "gradient": Sensitivity(SLOPES, bits="derivative", values=VALUES),
    "joint": Sensitivity(SLOPES, bits="derivative", values=VALUES, joint=True),
    "change": Sensitivity({}, bits="change", values=VALUES),
    "effect": Effect(SLOPES, {**VALUES, "a": np.stack([VALUES["a"]] * 3, 1)}, margins=[3.0, 1e3, 0.5]),
    "table": Table({"a": np.ones((40, 5)), "b": np.eye(12, 8)}),
}
EVERY = np.arange(len(SMALL))
POPULATION = Population(SMALL)


def drawn(sampler, n, *, seed, space=SMALL):
    """Return *n* trials from equally likely faults of *space*."""
    return sampler.draw(Population(space), n, rng=np.random.default_rng(seed), start=0)


@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize("shares", ["score", "size", "equal"])
@pytest.mark.parametrize("name", SCORES)
def test_draws_have_the_probabilities_that_their_weights_say(name, shares, floor):
    for threshold in (0.0, 0.25):
        sampler = Importance(SCORES[name], floor=floor, shares=shares, threshold=threshold)
        q = sampler.density(POPULATION, EVERY)
        assert q.sum() == pytest.approx(1, abs=1e-9)
        draws = drawn(sampler, 6000, seed=5)
        np.testing.assert_allclose(draws.weight, 1 / (len(SMALL) * q[draws.index]), rtol=1e-9)
        counts = np.bincount(draws.index, minlength=len(SMALL))
        assert not counts[q == 0].any()
        common = q * len(draws) >= 5
        seen, due = (np.append(x[common], x[~common].sum()) for x in (counts, q * len(draws)))
        assert chisquare(seen[due > 0], due[due > 0] * seen.sum() / due.sum()).pvalue > 1e-4
        assert sampler.support(SMALL) == pytest.approx(np.mean(q > 0))
        design = sampler.design(POPULATION)
        assert design.reach == sampler.support(SMALL)
        heaviest = design.largest_weight
        assert draws.weight.max() <= heaviest * (1 + 1e-9)
        assert floor or heaviest == pytest.approx(1 / (len(SMALL) * q[q > 0].min()))


def test_a_score_by_any_other_way_is_the_same():
    for score in SCORES.values():
        rows = np.concatenate([score.rows(site, np.arange(site.elements)).ravel() for site in SMALL.sites])
        np.testing.assert_allclose(score_of(score, SMALL, EVERY), rows)
        assert score_mean(score, SMALL) == pytest.approx(rows.mean())


def test_the_published_scheme_keeps_the_sensitivity_from_the_bit_and_the_corrected_one_does_not():
    apart, together = SCORES["gradient"].rows(A, np.array([3, 30])), SCORES["joint"].rows(A, np.array([3, 30]))
    np.testing.assert_allclose(apart.sum(1), [3, 30])
    by = bit_derivatives(VALUES["a"][[3, 30]], "float32", 32)[:, list(A.bits)]
    np.testing.assert_allclose(together, by * np.array([[3], [30]]), rtol=1e-6)


def test_a_floor_bounds_the_weights_and_reaches_everything():
    sampler = Importance(SCORES["exponential"], floor=0.25)
    draws = drawn(sampler, 4096, seed=0)
    assert draws.weight.max() <= 4
    assert sampler.support(SMALL) == 1
    assert drawn(Importance(SCORES["table"], floor=1), 9, seed=0).weight.tolist() == [1] * 9


@pytest.mark.parametrize("name", SCORES)
def test_importance_keeps_the_rules_of_samplers(name):
    check_sampler(Importance(SCORES[name], floor=0.2), POPULATION)


def test_what_is_known_of_a_space_ends_with_its_sampler():
    sampler = Importance(SCORES["gradient"])
    drawn(sampler, 10, seed=0)
    ended = weakref.ref(sampler)
    del sampler
    gc.collect()
    assert ended() is None


def test_a_space_of_a_billion_faults_is_never_listed():
    site = Site("big", (1 << 25,))
    elements = np.zeros(1 << 25, dtype=np.float32)
    elements[[5, 1 << 24]] = 1, 3
    sampler = Importance(Sensitivity({"big": elements}, bits="exponential"), floor=0.5)
    space = FaultSpace((site,))
    draws = drawn(sampler, 4096, seed=1, space=space)
    where = space.locate(draws.index)
    hit = where.element == 1 << 24
    assert hit.mean() == pytest.approx(0.375, abs=0.04)
    assert np.mean(where.bit[hit] == 31) == pytest.approx(0.5, abs=0.06)
    q = 0.5 / len(space) + 0.375 * 2.0**31 / (2.0**32 - 1)
    np.testing.assert_allclose(draws.weight[hit & (where.bit == 31)], 1 / (len(space) * q))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Importance(SCORES["table"], shares="sizes"), "got 'sizes'; did you mean 'size'"),
        (lambda: Importance(SCORES["table"], floor=1.5), "shares from 0 to 1"),
        (lambda: Sensitivity({"a": [-1.0]}), "the sensitivities of 'a' are finite numbers from 0 up"),
        (lambda: Sensitivity({"a": [np.nan]}), "the sensitivities of 'a' are finite numbers from 0 up"),
        (lambda: Sensitivity({}, bits="change"), "bits by their change need the values"),
        (lambda: Effect({}, {}, margins=0.0), "margins are finite numbers above 0"),
        (lambda: Table({"a": np.ones(3)}), r"of shape \(elements, bits\), got shape \(3,\)"),
        (lambda: score_mean(Table({"a": np.ones((40, 5))}), SMALL), "got none for 'b'"),
        (lambda: score_mean(Table({"a": np.ones((4, 5)), "b": np.ones((12, 8))}), SMALL), "got scores of shape"),
        (lambda: score_mean(Sensitivity({"a": np.ones(3)}), SMALL), "'a' has 40 elements, got 3 numbers"),
        (lambda: Importance(Sensitivity({"a": np.zeros(40), "b": np.zeros(12)})).support(SMALL), None),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    if message is None:
        assert make() == 1
        return
    with pytest.raises(SamplingError, match=message):
        make()


def test_a_score_that_is_nowhere_is_refused_when_drawn():
    sampler = Importance(Sensitivity({"a": np.zeros(40), "b": np.zeros(12)}))
    with pytest.raises(SamplingError, match="above 0 for some fault, got a sum of 0"):
        drawn(sampler, 5, seed=0)


MEASURE = ProductMeasure([0.8, 0.2], elements={"b": np.arange(12.0) / 66}, bits={"a": [0.1, 0.1, 0.2, 0.3, 0.3]})


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_weights_are_exact_under_a_measure_too(floor):
    """Faults without a probability weigh nothing where the score draws them, and the weighted mean is p's."""
    population = Population(SMALL, MEASURE)
    sampler = Importance(Sensitivity({"a": 1 + SLOPES["a"]}, bits="linear"), floor=floor)
    p, q = probability(MEASURE, SMALL, EVERY), sampler.density(population, EVERY)
    assert q.sum() == pytest.approx(1, abs=1e-9)
    draws = sampler.draw(population, 6000, rng=np.random.default_rng(2), start=0)
    np.testing.assert_allclose(draws.weight, p[draws.index] / q[draws.index], rtol=1e-9)
    assert (draws.weight == 0).any()
    check_sampler(sampler, population)
    assert sampler.design(population).largest_weight == (1 / floor if floor else None)


def test_what_a_measure_gives_faults_out_of_reach_is_not_known():
    with pytest.raises(SamplingError, match="that a score never draws stays unknown"):
        Importance(SCORES["table"], floor=0.0).design(Population(SMALL, MEASURE))


# Campaigns.


@dataclass(frozen=True)
class Heavy(Score):
    """A score of one's own, in five lines: higher bits, and elements with odd numbers."""

    odd: float = 3.0

    def rows(self, site, elements):
        """Return the scores of some elements."""
        return np.outer(np.where(elements % 2, self.odd, 1.0), 1.0 + np.arange(len(site.bits)))


def test_a_campaign_resumes_byte_by_byte_and_keeps_the_weights(tmp_path):
    campaign = Campaign(Double(), SPACE, sampler=Importance(Heavy(), floor=0.2), seed=4, stop=MaxTrials(9000))
    whole = run(campaign)
    with Store(tmp_path / "a.sqlite") as store:
        run(Campaign(Double(), SPACE, sampler=Importance(Heavy(), floor=0.2), seed=4, stop=MaxTrials(700)), store=store)
        resumed = run(campaign, store=store)
        for name in ("faults", "weights", "failed", "inputs"):
            np.testing.assert_array_equal(getattr(resumed.columns, name), getattr(whole.columns, name))
        other = Campaign(Double(), SPACE, sampler=Importance(Heavy(2.0), floor=0.2), seed=4, stop=MaxTrials(9500))
        with pytest.raises(CampaignError, match="another sampler"):
            run(other, store=store)


@pytest.mark.parametrize(("by", "h"), [("model", 0.03), ("site", 0.15), ("layer", 0.12)])
def test_a_half_width_ends_weighted_trials_with_intervals_as_narrow(by, h):
    results = run(Campaign(Double(), SPACE, sampler=Importance(Heavy()), stop=HalfWidth(h, by=by)), batch=256)
    assert results.columns.weights is not None
    table = results.table(by)
    assert ((table["high"] - table["low"]) / 2 <= h).all()
    before = Results(results.record, results.columns.take(0, len(results) - 256)).table(by)
    assert ((before["high"] - before["low"]) / 2 > h).any()


def test_what_is_out_of_reach_counts_as_unknown():
    space = SPACE.select("conv.weight")
    score = Table({"conv.weight": np.tile([0.0, 0, 0, 0, 1, 1, 1, 1], (24, 1))})
    campaign = Campaign(Double(), space, sampler=Importance(score, floor=0.0), stop=MaxTrials(2000))
    with pytest.warns(UserWarning, match=r"can draw 50 % of the faults.*floor=0.5"):
        results = run(campaign)
    estimate = results.estimate()
    assert estimate.method.endswith(", 50 % in reach")
    assert estimate.high - estimate.value > 0.5
    assert estimate.value <= 0.5
    assert run(Campaign(Double(), space, sampler=Importance(score), stop=MaxTrials(2000))).estimate().half_width < 0.1


def test_each_site_may_hold_all_that_is_out_of_reach():
    space = SPACE.select(["conv.weight", "conv:input"])
    scores = {site.name: np.ones((site.elements, len(site.bits))) for site in space.sites}
    scores["conv.weight"][:3] = 0  # three elements out of 24
    campaign = Campaign(Double(), space, sampler=Importance(Table(scores), floor=0.0), stop=MaxTrials(2000))
    with pytest.warns(UserWarning, match="of the faults"):
        results = run(campaign)
    reached = replace(results.record, design=replace(results.design, reach=1.0).plain())
    known = Results(reached, results.columns).table("site")
    unknown = 3 * len(space.sites[0].bits) / space.sizes
    np.testing.assert_allclose(results.table("site")["high"], np.minimum(known["high"] + unknown, 1))


# Against the truth.


def estimates(known, sampler, *, repetitions, n, seed=0):
    """Return the estimates of repeated campaigns on a known network, one (value, low, high) each."""
    from torchfault.statistics import weighted_mean

    rows, population = [], Population(known.space)
    heaviest = sampler.design(population).largest_weight
    for repetition in range(repetitions):
        rng = stream(seed, repetition)
        draws = sampler.draw(population, n, rng=rng, start=0)
        failed = known.outcomes[draws.index, rng.integers(known.outcomes.shape[1], size=n)]
        found = weighted_mean(failed, draws.weight, largest_weight=heaviest)
        rows.append((found.value, found.low, found.high))
    return np.array(rows)


def scores_for(known):
    """Return a useless, a good and an adversarial score of the enumerated network."""
    truth = known.by_fault
    tables = {"useless": np.random.default_rng(3).random(len(truth)), "good": truth + 0.003, "wrong": 1.001 - truth}
    return {name: as_table(known.space, column) for name, column in tables.items()}


def as_table(space, column):
    """Return numbers per fault as a score."""
    parts = np.split(column, np.cumsum(space.sizes)[:-1])
    return Table({s.name: part.reshape(s.elements, -1) for s, part in zip(space.sites, parts, strict=True)})


@pytest.mark.slow
def test_a_good_score_narrows_and_a_wrong_one_never_biases():
    known = enumerated()
    truth, n = known.by_fault.mean(), 4000
    width = {}
    for name, score in scores_for(known).items():
        found = estimates(known, Importance(score), repetitions=200, n=n)
        covered = np.mean((found[:, 1] <= truth) & (truth <= found[:, 2]))
        error = found[:, 0].std() / np.sqrt(len(found))
        assert abs(found[:, 0].mean() - truth) < 4 * error, name
        assert covered >= 0.92, name  # 0.95 less two standard errors of 200 repetitions
        width[name] = np.mean(found[:, 2] - found[:, 1])
    uniform = estimates(known, Importance(scores_for(known)["good"], floor=1.0), repetitions=200, n=n)
    plain = np.mean(uniform[:, 2] - uniform[:, 1])
    assert width["good"] < 0.6 * plain
    assert width["useless"] < 1.2 * plain
    assert width["wrong"] < 1.5 * plain
