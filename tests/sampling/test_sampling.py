"""Samplers draw from the distributions they promise, and the n-th trial depends on seed and n alone."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare, kstest

from torchfault.errors import SamplingError
from torchfault.measures import ProductMeasure, probability
from torchfault.sampling import BitErrorRate, Draws, Exhaustive, Population, Sampler, Uniform, stream
from torchfault.space import FaultSpace, Site

TINY = FaultSpace((Site("a", (2, 3), word="int8"), Site("b", (4,), bits=(30, 31))))


def space_of(size):
    """Return a space of *size* faults."""
    return FaultSpace((Site("a", (size,), word="bool"),))


def drawn(sampler, space, n, *, rng, start=0):
    """Return *n* trials from equally likely faults of *space*."""
    return sampler.draw(Population(space), n, rng=rng, start=start)


def fits(seen, expected):
    """Tell whether counts have the expected frequencies, rare classes taken together."""
    common = expected >= 5
    both = [np.append(side[common], side[~common].sum()) for side in (seen, expected)]
    kept = both[1] > 0
    assert both[0][~kept].sum() == 0
    return chisquare(both[0][kept], both[1][kept]).pvalue > 1e-3 if kept.sum() > 1 else True


# Streams.


def test_a_stream_depends_on_its_seed_and_path_alone():
    paths = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (2, 12345)]
    first = {(seed, path): stream(seed, *path).integers(0, 2**63) for seed in (0, 1, 2**64) for path in paths}
    assert len(set(first.values())) == len(first)
    again = {(seed, path): stream(seed, *path).integers(0, 2**63) for seed, path in reversed(first)}
    assert again == first


def test_streams_stay_as_they_are():
    """A campaign begun with one release goes on with the next."""
    raw = stream(7, 0, 3).bit_generator.random_raw(3)
    assert [f"{word:016x}" for word in raw.tolist()] == ["fd81bbd05c9395fb", "4c156052724bb65c", "1432e3c90becf99c"]


def test_neighbouring_streams_are_uncorrelated():
    columns = np.array([stream(20261121, 0, block).random(2000) for block in range(20)])
    correlation = np.corrcoef(columns)
    assert np.abs(correlation[~np.eye(20, dtype=bool)]).max() < 5 / math.sqrt(2000)
    assert kstest(columns.ravel(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("seed", "path"), [(-1, ()), (0, (-1,)), (3, (0, -2))])
def test_negative_seeds_are_refused(seed, path):
    with pytest.raises(SamplingError, match="whole numbers from 0 up, got"):
        stream(seed, *path)


# Draws.


def test_draws_say_how_many_trials_they_are():
    assert len(Draws.equal(np.arange(5))) == 5
    assert len(Draws.equal(np.arange(5), counts=np.array([2, 3]))) == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((np.arange(3), np.ones(2), np.zeros(3, dtype=np.int32)), "got 3 faults, 3 trials, 2 weights and 3 strata"),
        ((np.arange(3), np.ones(3), np.zeros(1, dtype=np.int32)), "3 weights and 1 strata"),
        ((np.arange(3), np.ones(2), np.zeros(2, dtype=np.int32), np.array([1, 1])), "got 3 faults, 2 trials"),
        ((np.arange(2), np.ones(2), np.zeros(2, dtype=np.int32), np.array([2, 0])), "at least one fault, got a count"),
    ],
)
def test_draws_of_unequal_lengths_are_refused(columns, message):
    with pytest.raises(SamplingError, match=message):
        Draws(*columns)


# Exhaustive.


@given(st.integers(1, 200), st.integers(1, 50))
def test_exhaustive_draws_every_fault_once_in_order(size, block):
    space, sampler = space_of(size), Exhaustive(block)
    assert sampler.design(Population(space)).total == size
    faults = []
    for start in range(0, size, block):
        faults += drawn(sampler, space, min(block, size - start), rng=stream(0), start=start).index.tolist()
    assert faults == list(range(size))


@pytest.mark.parametrize(("n", "start"), [(49, 8), (1, 56), (-1, 0), (1, -1)])
def test_exhaustive_ends_with_the_space(n, start):
    assert len(TINY) == 56
    with pytest.raises(SamplingError, match="the space ends at 56, got"):
        drawn(Exhaustive(), TINY, n, rng=stream(0), start=start)


# Uniform.


@pytest.mark.parametrize("faults", [1, 3])
def test_uniform_draws_every_fault_equally_often(faults):
    draws = drawn(Uniform(faults), TINY, 30_000 // faults, rng=stream(1))
    seen = np.bincount(draws.index, minlength=len(TINY))
    assert fits(seen, np.full(len(TINY), seen.sum() / len(TINY)))
    assert set(draws.weight) == {1.0}
    assert set(draws.stratum) == {0}


def test_faults_of_one_uniform_trial_are_independent_where_they_need_not_be_distinct():
    pairs = drawn(Uniform(2, distinct=False), space_of(6), 36_000, rng=stream(2)).index.reshape(-1, 2)
    seen = np.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36)
    assert fits(seen, np.full(36, 1000.0))


@pytest.mark.parametrize(("size", "faults"), [(6, 2), (9, 2), (5, 3), (4, 4), (20, 2), (13, 3)])
def test_the_faults_of_one_trial_are_distinct_and_every_set_of_them_is_equally_likely(size, faults):
    """On both sides of the change from drawing repeats again to permuting."""
    sets = list(itertools.combinations(range(size), faults))
    n = max(400 * len(sets), 4000)
    rows = np.sort(drawn(Uniform(faults), space_of(size), n, rng=stream(2)).index.reshape(n, faults), axis=1)
    key = (rows * size ** np.arange(faults)).sum(axis=1)
    wanted = [sum(one * size**place for place, one in enumerate(held)) for held in sets]
    seen = np.array([(key == one).sum() for one in wanted])
    assert seen.sum() == n
    assert fits(seen, np.full(len(sets), n / len(sets)))


@pytest.mark.parametrize(("size", "faults"), [(100_000, 4096), (2**40, 4096), (3000, 3000), (7, 7), (2**16, 1000)])
def test_many_distinct_faults_are_drawn_in_no_time(size, faults):
    rows = drawn(Uniform(faults), space_of(size), 3, rng=stream(2)).index.reshape(3, faults)
    assert all(len(np.unique(row)) == faults for row in rows)


def test_distinct_faults_follow_a_measure_one_after_the_other():
    """By hand: p of the second fault is what is left, over the rest."""
    p = np.array([0.5, 0.25, 0.125, 0.125])
    space, n = space_of(4), 40_000
    population = Population(space, ProductMeasure(np.ones(1), elements={"a": p}))
    pairs = Uniform(2).draw(population, n, rng=stream(3), start=0).index.reshape(-1, 2)
    expected = np.where(np.eye(4) > 0, 0, n * np.outer(p, p) / (1 - p)[:, None])
    assert fits(np.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16), expected.ravel())


def test_more_distinct_faults_than_there_are_are_refused():
    with pytest.raises(
        SamplingError, match=r"distinct faults, of which there are 56, got 57; strike fewer, or set dis"
    ):
        Uniform(57).design(Population(TINY))
    assert Uniform(57, distinct=False).design(Population(TINY)).total is None
    few = Population(
        TINY, ProductMeasure([1.0, 0.0], elements={"a": [1, 0, 0, 0, 0, 0]}, bits={"a": [0.5, 0.5, *[0] * 6]})
    )
    with pytest.raises(SamplingError, match="hardly so many are likely at all"):
        Uniform(3).draw(few, 2, rng=stream(0), start=0)


def test_a_measure_decides_how_likely_faults_are_drawn():
    measure = ProductMeasure([0.25, 0.75], elements={"b": [0.5, 0, 0.25, 0.25]})
    population, every = Population(TINY, measure), np.arange(len(TINY))
    p = probability(measure, TINY, every)
    seen = np.bincount(Uniform().draw(population, 40_000, rng=stream(4), start=0).index, minlength=len(TINY))
    assert fits(seen, 40_000 * p)
    listed = Exhaustive().draw(population, len(TINY), rng=stream(0), start=0)
    assert listed.weight == pytest.approx(p * len(TINY))
    with pytest.raises(SamplingError, match="a bit error rate is the same for all bits, got a measure"):
        BitErrorRate(0.1).design(population)


@pytest.mark.parametrize("faults", [1, 5])
def test_a_measure_without_factors_is_the_uniform_one_wherever_it_was_made(faults):
    one, two = (Population(TINY, measure) for measure in (Population(TINY).measure, ProductMeasure()))
    assert one.is_uniform
    assert two.is_uniform
    first, second = (Uniform(faults).draw(p, 100, rng=stream(5), start=0).index.tolist() for p in (one, two))
    assert first == second


def test_uniform_reaches_every_part_of_a_huge_space():
    space = FaultSpace((Site("a", (2**57 - 1,), word="float64"),))
    index = drawn(Uniform(), space, 20_000, rng=stream(3)).index
    assert kstest(index / len(space), "uniform").pvalue > 1e-3
    assert (index % 64 < 32).mean() == pytest.approx(0.5, abs=0.02)


def test_uniform_counts_its_faults():
    assert drawn(Uniform(), TINY, 4, rng=stream(0)).counts is None
    assert drawn(Uniform(faults=7), TINY, 4, rng=stream(0)).counts.tolist() == [7] * 4
    assert [Uniform(n).block for n in (1, 2, 4096, 100_000)] == [4096, 2048, 1, 1]
    assert Uniform().design(Population(TINY)).total is None


# Bit error rate.


def conditional(size, rate):
    """Return P(count = k given that it is not 0) of a binomial distribution."""
    chance = binom.pmf(np.arange(size + 1), size, rate)
    chance[0] = 0
    return chance / chance.sum()


@pytest.mark.parametrize(
    ("size", "rate"),
    [(1, 0.5), (2, 0.3), (5, 0.01), (56, 1e-4), (56, 0.01), (56, 0.017), (56, 0.018), (56, 0.3), (56, 0.9), (4, 1.0)],
)
def test_the_number_of_struck_bits_is_binomial_without_its_zero(size, rate):
    draws = drawn(BitErrorRate(rate), space_of(size), 20_000, rng=stream(4))
    seen = np.bincount(draws.counts, minlength=size + 1)
    assert len(seen) == size + 1
    assert fits(seen, 20_000 * conditional(size, rate))


def test_every_set_of_bits_has_its_probability():
    size, rate, n = 4, 0.35, 60_000
    draws = drawn(BitErrorRate(rate), space_of(size), n, rng=stream(5))
    ends = np.cumsum(draws.counts)
    sets = np.add.reduceat(1 << draws.index, ends - draws.counts)
    seen = np.bincount(sets, minlength=16)
    expected = np.array([rate ** s.bit_count() * (1 - rate) ** (size - s.bit_count()) for s in range(16)])
    expected[0] = 0
    assert fits(seen, n * expected / expected.sum())


@pytest.mark.parametrize(("size", "rate"), [(56, 0.02), (56, 0.2), (56, 0.6), (56, 1.0), (2**50, 3e-14)])
def test_struck_bits_are_distinct_in_order_and_inside(size, rate):
    space = space_of(size)
    draws = drawn(BitErrorRate(rate), space, 500, rng=stream(6))
    for group in np.split(draws.index, np.cumsum(draws.counts)[:-1]):
        assert len(group) >= 1
        assert (np.diff(group) > 0).all()
        assert 0 <= group[0] <= group[-1] < size


@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_every_bit_is_struck_equally_often(rate):
    """On both sides of the change from redrawing collisions to permuting."""
    draws = drawn(BitErrorRate(rate), space_of(40), 20_000, rng=stream(7))
    seen = np.bincount(draws.index, minlength=40)
    share = rate / (1 - (1 - rate) ** 40)
    error = math.sqrt(20_000 * share * max(1 - share, 1e-3))
    assert np.abs(seen - 20_000 * share).max() < 5 * error


@pytest.mark.parametrize(
    ("size", "rate"),
    [(10**6, 1e-30), (2**45, 1e-20), (2**62, 1e-19), (2**62, 1e-18), (2**40, 1e-11), (2**40, 1.3e-9), (7, 5e-324)],
)
def test_tiny_rates_on_huge_spaces_have_the_right_mean(size, rate):
    sampler, space = BitErrorRate(rate), space_of(size)
    counts = drawn(sampler, space, 4000, rng=stream(8)).counts
    struck = sampler.strike_probability(space)
    assert struck == pytest.approx(-math.expm1(-size * rate), rel=1e-6)
    mean = size * rate / struck if struck else 1.0
    spread = math.sqrt(max(size * rate, 1e-12))
    assert counts.min() >= 1
    assert abs(counts.mean() - mean) < 5 * spread / math.sqrt(4000) + 1e-6


def test_the_probability_of_a_strike():
    assert BitErrorRate(0.25).strike_probability(space_of(2)) == pytest.approx(1 - 0.75**2)
    assert BitErrorRate(1.0).strike_probability(TINY) == 1.0
    assert BitErrorRate(0.5).design(Population(TINY)).total is None


def test_a_bit_error_rate_does_not_visit_every_bit():
    space = FaultSpace((Site("a", (2**35, 2**10)),))  # 2^50 bits
    draws = drawn(BitErrorRate(1e-10), space, 4, rng=stream(9))
    assert draws.counts.sum() == len(draws.index)
    assert draws.counts.mean() == pytest.approx(2**50 * 1e-10, rel=0.02)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_rates_that_are_no_probabilities_are_refused(rate):
    with pytest.raises(SamplingError, match="above 0 and at most at 1, got"):
        BitErrorRate(rate)


def test_a_trial_without_faults_is_refused():
    with pytest.raises(SamplingError, match="at least one fault, got 0"):
        Uniform(0)


# All of them.


@pytest.mark.parametrize("sampler", [Exhaustive(8), Uniform(), Uniform(5), BitErrorRate(0.03), BitErrorRate(0.01)])
def test_trials_depend_on_seed_and_block_alone(sampler):
    assert isinstance(sampler, Sampler)

    def block(number, seed=11):
        start = number * 8
        return drawn(sampler, TINY, 8, rng=stream(seed, 0, number), start=start)

    forth = [block(number) for number in range(7)]
    back = [block(number) for number in reversed(range(7))][::-1]
    for one, two in zip(forth, back, strict=True):
        assert one.index.tolist() == two.index.tolist()
        assert one.weight.tolist() == two.weight.tolist()
    if not isinstance(sampler, Exhaustive):
        assert all(a.index.tolist() != b.index.tolist() for a, b in itertools.combinations(forth, 2))
        assert forth[0].index.tolist() != block(0, seed=12).index.tolist()


@settings(max_examples=30)
@given(st.floats(1e-6, 1.0), st.integers(1, 300), st.integers(0, 5))
def test_any_rate_and_any_space(rate, size, n):
    draws = drawn(BitErrorRate(rate), space_of(size), n, rng=stream(0))
    assert len(draws) == n
    assert draws.index.dtype == np.int64
    assert ((draws.counts >= 1) & (draws.counts <= size)).all()
