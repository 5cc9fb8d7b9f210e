"""Confidence sequences: bounds that hold at every look, the same round by round and at once, and what they plan."""

import math

import numpy as np
import pytest

from tests.support.sequence_reference import reference
from torchfault.errors import StatisticsError
from torchfault.statistics import Sequences, confidence_sequence
from torchfault.statistics.allocation import cheapest_plan, needed_draws
from torchfault.statistics.sequences import SETTLED


def test_the_sequence_is_ville_s_bound_by_hand():
    """One stratum, two rounds, with the guesses, stakes and capital written out."""
    sequence = confidence_sequence([[1], [3]], [[20], [40]], [1.0], target=0.05)
    threshold, upper, lower, stakes, stakes_on = math.log(40), 0.0, 0.0, 0.0, 0.0
    weight = 0.0
    for k, n, g in ((1, 20, 0.1), (3, 40, 1.1 / 21)):
        plan = cheapest_plan(np.ones(1), np.array([g]), target=np.array(0.05), threshold=threshold, price=None)
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
    ends = confidence_sequence(trials * p, trials, shares, target=target, prior=p, price=price)
    assert ends.high[-1] - ends.low[-1] < 2 * target
    same = needed_draws(shares, p, target=target, price=np.ones_like)
    np.testing.assert_array_equal(same, equal)  # the same price everywhere is none


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
        (([[1]], [[2]], [-1.0]), "from 0 up"),
    ],
)
def test_impossible_counts_are_refused(arguments, message):
    with pytest.raises(StatisticsError, match=message):
        confidence_sequence(*arguments, target=0.1)
    with pytest.raises(StatisticsError, match="target=0"):
        confidence_sequence([[1]], [[2]], [1.0], target=0.0)


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


# Many groups at once, round by round.


def pooled_price(p):
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return np.where(p > 0.1, 1.0, np.clip(1.2 * entropy, 1 / 64, 1.0))


def random_rounds(rng, groups, strata, rounds):
    """Return shares with padding, counts (rounds, groups, strata) of which some rounds miss a stratum, and priors."""
    p = rng.beta(0.3, 2.0, (groups, strata))
    used = np.arange(strata) < rng.integers(1, strata + 1, groups)[:, None]
    shares = rng.dirichlet(np.ones(strata), groups) * used + 1e-3 * used
    trials = rng.integers(1, 80, (rounds, groups, strata)) * (rng.random((rounds, groups, strata)) < 0.97)
    failures = rng.binomial(trials, p)
    prior = np.clip(p * rng.uniform(0.3, 3.0, p.shape), 1e-4, 0.9) * used
    return shares, failures, trials, prior


@pytest.mark.parametrize("priced", [False, True], ids=["unpriced", "priced"])
@pytest.mark.parametrize("with_prior", [False, True], ids=["no prior", "prior"])
@pytest.mark.parametrize("seed", range(4))
def test_many_groups_round_by_round_equal_each_group_at_once(seed, with_prior, priced):
    rng = np.random.default_rng(seed)
    groups, strata, rounds, level = 7, 1 + 3 * seed, 40, (0.95, 0.8, 0.99, 0.95)[seed]
    shares, failures, trials, prior = random_rounds(rng, groups, strata, rounds)
    targets, price = rng.uniform(0.01, 0.15, groups), pooled_price if priced else None
    sequences = Sequences(shares, target=targets, level=level, prior=prior if with_prior else None, price=price)
    found = []
    for k, n in zip(failures, trials, strict=True):
        sequences.update(k, n)
        found.append((sequences.value, sequences.low, sequences.high, sequences.settled))
    skipped = 0
    for group in range(groups):
        used, target = shares[group] > 0, float(targets[group])
        k, n, share = failures[:, group, used].astype(float), trials[:, group, used].astype(float), shares[group, used]
        own = prior[group, used] if with_prior else None
        expected = reference(k, n, share, target=target, level=level, prior=own, price=price)
        np.testing.assert_allclose(np.array(found)[:, :, group].T, expected, rtol=0, atol=1e-12)
        once = confidence_sequence(k, n, share, target=target, level=level, prior=own, price=price)
        for column, part in zip((once.value, once.low, once.high, once.settled), expected, strict=True):
            np.testing.assert_allclose(column, part, rtol=0, atol=1e-12)
        full = (n > 0).all(axis=1)
        skipped += int((~full).sum())
        np.testing.assert_array_equal(sequences.trials[group, used], n[full].sum(axis=0))
        np.testing.assert_array_equal(sequences.failures[group, used], k[full].sum(axis=0))
        needed = needed_draws(share, sequences.expected[group, used], target=target, level=level, price=price)
        np.testing.assert_allclose(sequences.needed[group, used], needed, rtol=1e-12)
        assert (sequences.needed[group, ~used] == 0).all()
    assert skipped > 0


def test_needed_draws_of_many_groups_are_those_of_each():
    rng = np.random.default_rng(8)
    shares, _, _, prior = random_rounds(rng, 9, 6, 1)
    p, targets = np.where(shares > 0, prior, 0.3), rng.uniform(0.002, 0.2, 9)
    for price in (None, pooled_price):
        together = needed_draws(shares, p, target=targets, price=price)
        alone = [
            needed_draws(share, own, target=target, price=price)
            for share, own, target in zip(shares, p, targets, strict=True)
        ]
        np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_groups_are_enough_each_by_its_own_width():
    sequences = Sequences([[1.0], [1.0], [1.0]], target=[0.05, 0.05, 0.2])
    assert not sequences.enough(1.0).any()
    assert np.isnan(sequences.value).all()
    assert (sequences.low.tolist(), sequences.high.tolist()) == ([0, 0, 0], [1, 1, 1])
    for _ in range(9):
        sequences.update([[0], [20], [4]], [[40], [40], [10]])
    width = sequences.high - sequences.low
    assert (sequences.settled >= SETTLED).tolist() == [True, False, True]
    assert sequences.enough(1.0).tolist() == [True, False, True]
    assert sequences.enough(width - [1e-9, 0, 0]).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": [1.0]}, r"\(groups, strata\)"),
        ({"shares": [[1.0], [0.0]]}, "leave empty groups out"),
        ({"shares": [[1.0, -0.1]]}, "from 0 up"),
        ({"target": 1.0}, "between 0 and 1"),
        ({"target": [0.1, 0.1]}, "one for all of 1 groups or one each"),
        ({"prior": [0.1]}, r"got shape \(1,\)"),
        ({"prior": [[0.0, 0.1]]}, "not 0"),
        ({"level": 95}, "level"),
    ],
)
def test_groups_that_cannot_be_are_refused(options, message):
    with pytest.raises(StatisticsError, match=message):
        Sequences(**{"shares": [[0.5, 0.5]], "target": 0.1, **options})


@pytest.mark.parametrize(
    ("failures", "trials", "message"),
    [([[1]], [[2]], "axes"), ([[1, 3]], [[2, 2]], "0 <= failures <= trials"), ([[0, 0]] * 2, [[2, 2]] * 2, "a round")],
)
def test_rounds_that_cannot_be_are_refused(failures, trials, message):
    with pytest.raises(StatisticsError, match=message):
        Sequences([[0.5, 0.5]], target=0.1).update(failures, trials)
