"""Intervals, sample sizes, estimators and stopping rules, against independent references and by simulation."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from math import inf, isnan, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, hypergeom
from statsmodels.stats.proportion import proportion_confint

from torchfault.errors import StatisticsError
from torchfault.statistics import (
    INTERVALS,
    AllOf,
    Estimate,
    HalfWidth,
    MaxTrials,
    Progress,
    TimeBudget,
    clopper_pearson,
    design_effect,
    effective_sample_size,
    jeffreys,
    leveugle_sample_size,
    proportion,
    stratified,
    weighted_mean,
    wilson,
    wilson_trials,
)
from torchfault.statistics.intervals import variance_left
from torchfault.statistics.looks import after_looks, upper_at_every_look

Floats = NDArray[np.float64]
COUNTS = [
    (0, 1),
    (1, 1),
    (0, 10),
    (10, 10),
    (1, 7),
    (3, 100),
    (50, 100),
    (1, 1_000_000),
    (999_999, 1_000_000),
    (7, 10**9),
]
counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
levels = st.floats(0.5, 0.999)
methods = st.sampled_from(sorted(INTERVALS))


# --- intervals against references ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(("k", "n"), COUNTS)
def test_wilson_and_clopper_pearson_equal_scipy(k: int, n: int, level: float) -> None:
    for name, reference, digits in (("wilson", "wilson", 1e-14), ("clopper-pearson", "exact", 4e-12)):
        expected = binomtest(k, n).proportion_ci(level, method=reference)
        got = INTERVALS[name](k, n, level=level)
        np.testing.assert_allclose(got, (expected.low, expected.high), rtol=1e-7, atol=digits)  # scipy's own


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_every_interval_equals_statsmodels(level: float) -> None:
    k, n = np.array([1, 3, 50, 99, 4000]), np.array([7, 100, 100, 100, 100_000])
    for name, reference in (("wilson", "wilson"), ("clopper-pearson", "beta"), ("jeffreys", "jeffreys")):
        expected = proportion_confint(k, n, alpha=1 - level, method=reference)
        np.testing.assert_allclose(INTERVALS[name](k, n, level=level), expected, rtol=1e-7)


def test_jeffreys_is_one_sided_at_the_edges_as_brown_cai_and_dasgupta_ask() -> None:
    low, high = jeffreys([0, 10], [10, 10])
    assert low[0] == 0
    assert high[1] == 1
    np.testing.assert_allclose([high[0], low[1]], [0.2171961, 0.7828039], rtol=1e-6)  # Beta(1/2, 21/2) and its mirror


def test_wilson_lower_bound_of_a_rare_event_keeps_its_digits() -> None:
    # for one failure the bound tends to n^-1 ((z^2 + 2 - z sqrt(z^2 + 4)) / 2); the plain formula loses it to rounding
    z = 1.959963984540054
    low, _ = wilson(1, 10**14)
    np.testing.assert_allclose(low * 1e14, (z * z + 2 - z * np.sqrt(z * z + 4)) / 2, rtol=1e-9)


@given(counts, levels, methods)
def test_an_interval_holds_its_estimate_mirrors_and_widens_with_the_level(
    count: tuple[int, int], level: float, method: str
) -> None:
    k, n = count
    low, high = INTERVALS[method](k, n, level=level)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high
    mirrored = INTERVALS[method](n - k, n, level=level)
    np.testing.assert_allclose((1 - mirrored[1], 1 - mirrored[0]), (low, high), atol=1e-9)
    wider = INTERVALS[method](k, n, level=level + (1 - level) / 2)
    assert wider[0] <= low
    assert wider[1] >= high


@given(st.lists(counts, min_size=1, max_size=6), methods)
def test_arrays_give_what_scalars_give(many: list[tuple[int, int]], method: str) -> None:
    k, n = np.array(many).T
    together = np.stack(INTERVALS[method](k, n))
    apart = np.array([INTERVALS[method](*count) for count in many]).T
    np.testing.assert_array_equal(together, apart)


def test_counts_broadcast_and_no_trials_leave_everything_open() -> None:
    low, high = wilson([[0], [1]], [0, 10, 100][1:])
    assert low.shape == high.shape == (2, 2)
    for interval in INTERVALS.values():
        assert tuple(map(float, interval(0, 0))) == (0, 1)
        assert tuple(map(float, interval(0, 0, population=5))) == (0, 1)
        empty = interval(np.zeros(0), np.zeros(0))
        assert empty[0].shape == (0,)


@pytest.mark.parametrize("method", sorted(INTERVALS))
@pytest.mark.parametrize(
    ("k", "n", "options", "message"),
    [
        (3, 2, {}, "between 0 and the number of trials, got 3 of 2"),
        (-1, 2, {}, "got -1 of 2"),
        (nan, 2, {}, "got nan of 2"),
        (1, inf, {}, "got 1 of inf"),
        ([1, 2], [1, 2, 3], {}, "matching arrays"),
        ("many", 3, {}, "matching arrays"),
        (1, 2, {"level": 1.0}, "strictly between 0 and 1, got 1.0"),
        (1, 2, {"level": nan}, "got nan"),
        (1, 3, {"population": 2}, "between 0 and the population, got 3 of 2"),
        (0, 0, {"population": 0}, "got 0 of 0"),
    ],
)
def test_impossible_counts_and_levels_are_refused(
    method: str, k: float, n: float, options: dict[str, float], message: str
) -> None:
    with pytest.raises(StatisticsError, match=message):
        INTERVALS[method](k, n, **options)


# --- finite populations ----------------------------------------------------------------------------------------------


@given(counts, levels, methods)
def test_an_exhausted_population_leaves_no_doubt(count: tuple[int, int], level: float, method: str) -> None:
    k, n = count
    low, high = INTERVALS[method](k, n, level=level, population=n)
    assert low == high == k / n


@given(counts, st.integers(1, 10_000), methods)
def test_a_finite_population_narrows_and_holds_only_what_it_can(count: tuple[int, int], more: int, method: str) -> None:
    k, n = count
    size = n + more
    low, high = INTERVALS[method](k, n, population=size)
    plain = INTERVALS[method](k, n)
    assert k / size <= low <= k / n <= high <= (size - n + k) / size
    assert low >= plain[0] - 1.01 / size  # bounds are rounded outward to whole faults
    assert high <= plain[1] + 1.01 / size
    np.testing.assert_allclose(np.array([low, high]) * size, np.round(np.array([low, high]) * size), atol=1e-6)


def test_a_huge_population_makes_no_difference() -> None:
    for interval in INTERVALS.values():
        np.testing.assert_allclose(interval(12, 1000, population=2**40), interval(12, 1000), atol=1e-7)


def test_clopper_pearson_with_a_population_inverts_the_hypergeometric_tails() -> None:
    size, n = 60, 25
    for k in range(n + 1):
        failing = np.arange(size + 1)
        likely = (hypergeom.cdf(k, size, failing, n) > 0.025) & (hypergeom.sf(k - 1, size, failing, n) > 0.025)
        low, high = clopper_pearson(k, n, population=size)
        assert (round(float(low) * size), round(float(high) * size)) == (failing[likely].min(), failing[likely].max())


def test_the_variance_left_is_that_of_the_hypergeometric_distribution() -> None:
    n = np.array([1, 2, 9, 18, 19])
    left = hypergeom.var(20, 7, n) / binom.var(n, 7 / 20)
    np.testing.assert_allclose(variance_left(n.astype(float), np.full(5, 20.0)), left, atol=1e-12)


@pytest.mark.parametrize(("size", "n"), [(5, 3), (8, 4), (12, 7), (40, 15), (300, 290)])
def test_wilson_with_a_population_inverts_the_score_test_with_its_variance(size: int, n: int) -> None:
    p = np.linspace(0, 1, 400_001)
    error = np.sqrt(p * (1 - p) / n * (size - n) / (size - 1))
    for k in range(1, n):
        accepted = p[np.abs(k / n - p) <= 1.959963984540054 * error]
        low, high = wilson(k, n, population=size)
        assert float(low) == max(np.floor(accepted.min() * size), k) / size
        assert float(high) == min(np.ceil(accepted.max() * size), size - n + k) / size


def test_clopper_pearson_with_a_population_wants_whole_counts() -> None:
    with pytest.raises(StatisticsError, match="whole counts"):
        clopper_pearson(1.5, 10, population=100)


def hypergeometric_coverage(interval: Callable[..., tuple[Floats, Floats]], size: int, n: int) -> Floats:
    k, failing = np.arange(n + 1), np.arange(size + 1)[:, None]
    low, high = interval(k, n, population=size)
    covered = (low <= failing / size + 1e-12) & (failing / size <= high + 1e-12)
    return np.asarray((hypergeom.pmf(k, size, failing, n) * covered).sum(axis=1))


@pytest.mark.parametrize("size", [30, 200])
def test_coverage_in_finite_populations_enumerated(size: int) -> None:
    for n in (size // 10, size // 2, size - 3, size - 1, size):
        assert hypergeometric_coverage(clopper_pearson, size, n).min() >= 0.95
        for interval in (wilson, jeffreys):
            assert hypergeometric_coverage(interval, size, n).mean() >= 0.945


# --- coverage of the plain intervals, enumerated: no simulation needed -----------------------------------------------


def binomial_coverage(interval: Callable[..., tuple[Floats, Floats]], n: int, p: Floats) -> Floats:
    k = np.arange(n + 1)
    low, high = interval(k, n)
    pmf = binom.pmf(k, n, p[:, None])
    return np.asarray((pmf * ((low <= p[:, None]) & (p[:, None] <= high))).sum(axis=1))


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_coverage_of_the_plain_intervals_enumerated(n: int) -> None:
    p = np.linspace(0.001, 0.5, 500)
    assert binomial_coverage(clopper_pearson, n, p).min() >= 0.95
    for interval, least in ((wilson, 0.83), (jeffreys, 0.86)):  # both dip near 0 and 1 and are known to
        coverage = binomial_coverage(interval, n, p)
        assert abs(coverage.mean() - 0.95) < 0.008
        assert coverage.min() >= least


def test_coverage_of_proportion_simulated() -> None:
    rng = np.random.default_rng(20)
    for p in (0.001, 0.01, 0.1, 0.5):
        failures = rng.binomial(5000, p, size=400)
        held = [e.low <= p <= e.high for e in (proportion(int(k), 5000) for k in failures)]
        assert np.mean(held) >= 0.92


# --- Estimate and proportion -----------------------------------------------------------------------------------------


def test_an_estimate_prints_two_digits_of_its_half_width() -> None:
    estimate = Estimate(0.0123, 0.0098, 0.0155, 1000, "wilson")
    assert str(estimate) == "0.0123 [0.0098, 0.0155]"
    assert estimate.format_percent() == "1.23 % [0.98, 1.55]"
    assert estimate.half_width == pytest.approx(0.00285)
    assert str(proportion(0, 1000)) == "0.0000 [0.0000, 0.0038]"
    assert proportion(500, 1000, population=1000).format_percent() == "50.00 % [50.00, 50.00]"
    assert str(proportion(0, 0)) == "nan [0.00, 1.00]"
    assert str(Estimate(0.25, -inf, inf, 1, "quantile 0.5")) == "0.2500 [-inf, inf]"
    assert str(Estimate(-1234.0, -1300.0, -1168.0, 5, "gaffke")) == "-1234 [-1300, -1168]"
    assert str(Estimate(0.0, 0.0, 0.0, 5, "gaffke")) == "0.0 [0.0, 0.0]"


def test_proportion_names_its_method_and_suggests_the_nearest() -> None:
    estimate = proportion(3, 100, method="clopper-pearson", level=0.9)
    assert (estimate.value, estimate.trials, estimate.method, estimate.level) == (0.03, 100, "clopper-pearson", 0.9)
    assert (estimate.low, estimate.high) == tuple(map(float, clopper_pearson(3, 100, level=0.9)))
    assert isnan(proportion(0, 0).value)
    with pytest.raises(StatisticsError, match="did you mean 'wilson'"):
        proportion(3, 100, method="wilsn")


# --- sample sizes ----------------------------------------------------------------------------------------------------


def resnet18() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the weights and the inputs of ResNet-18's 20 convolutions, for images of 224 x 224."""
    layers = [(3, 64, 7, 224)]  # channels in, channels out, kernel, height and width of the input
    channels, size = 64, 56
    for width in (64, 128, 256, 512):
        shrunk = size if width == 64 else size // 2
        layers += [
            (channels, width, 3, size),
            (width, width, 3, shrunk),
            (width, width, 3, shrunk),
            (width, width, 3, shrunk),
        ]
        if width != 64:
            layers.append((channels, width, 1, size))
        channels, size = width, shrunk
    array = np.array(layers)
    return array[:, 0] * array[:, 1] * array[:, 2] ** 2, array[:, 0] * array[:, 3] ** 2


def test_leveugle_gives_the_published_sample_sizes_of_resnet18() -> None:
    weights, inputs = resnet18()
    assert len(weights) == len(inputs) == 20
    assert (weights.sum() * 32, inputs.sum() * 32) == (357_341_184, 69_844_992)
    for elements, by_layer, by_bit in ((weights, 190_896, 5_358_315), (inputs, 191_205, 5_407_659)):
        assert np.floor(leveugle_sample_size(elements * 32).sum()) == by_layer
        assert np.floor((leveugle_sample_size(elements) * 32).sum()) == by_bit


def test_leveugle_is_a_fraction_of_the_population_and_tends_to_the_infinite_case() -> None:
    assert leveugle_sample_size(0) == 0
    assert leveugle_sample_size(1) == 1
    assert isinstance(leveugle_sample_size(50), float)
    np.testing.assert_allclose(leveugle_sample_size(2**50), 9604, rtol=1e-9)
    np.testing.assert_allclose(leveugle_sample_size(2**50, margin=0.05, t=2.5758, p=0.1), 2.5758**2 * 0.09 / 0.0025)
    sizes = leveugle_sample_size(np.arange(1, 1000))
    assert np.all(np.diff(sizes) > 0)
    assert np.all(sizes <= np.arange(1, 1000))
    # its margin is that of sampling without replacement: the variance at n is (margin / t)^2
    n = leveugle_sample_size(50_000)
    assert 0.25 / n * (50_000 - n) / 49_999 == pytest.approx((0.01 / 1.96) ** 2)


@pytest.mark.parametrize("wrong", [{"margin": 0.0}, {"margin": 1.0}, {"t": 0.0}, {"p": 0.0}, {"p": 1.0}, {"t": nan}])
def test_leveugle_refuses_what_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(StatisticsError, match="usual values"):
        leveugle_sample_size(100, **wrong)
    with pytest.raises(StatisticsError, match="from 0 up"):
        leveugle_sample_size([10, -1])


@given(st.floats(0, 1), st.floats(1e-4, 0.45), levels)
def test_wilson_trials_are_just_enough(p: float, half_width: float, level: float) -> None:
    n = wilson_trials(p, half_width, level=level)
    low, high = wilson(p * n, n, level=level)
    assert (high - low) / 2 <= half_width * (1 + 1e-9)
    if n > 1:
        low, high = wilson(p * (n - 1), n - 1, level=level)
        assert (high - low) / 2 >= half_width * (1 - 1e-9)


def test_wilson_trials_at_its_edges() -> None:
    assert wilson_trials(0.3, 0.5) == 0
    for p, half_width in ((-0.1, 0.1), (1.1, 0.1), (0.1, 0.0), (nan, 0.1)):
        with pytest.raises(StatisticsError, match="use fractions"):
            wilson_trials(p, half_width)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_effective_sample_size_is_kish() -> None:
    w = np.array([0.2, 1.0, 3.0, 0.5])
    assert effective_sample_size(w) == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert design_effect(w) == pytest.approx(1 + w.var() / w.mean() ** 2)  # Kish's other form
    assert effective_sample_size(np.full(7, 1e-200)) == 7
    assert effective_sample_size([]) == 0
    with pytest.raises(StatisticsError, match="at least one draw"):
        design_effect([])
    for wrong in ([-1.0, 2.0], [0.0, 0.0], [nan], [[1.0]]):
        with pytest.raises(StatisticsError):
            effective_sample_size(wrong)


def bounds(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0.1, 0.99))
def test_equal_weights_give_clopper_pearson(values: list[bool], level: float) -> None:
    plain = proportion(sum(values), len(values), method="clopper-pearson", level=level)
    assert weighted_mean(values, np.ones(len(values)), level=level) == plain
    # the interval itself, not only the short cut, is Clopper-Pearson's: a hair off 1 takes the long way
    weighed = weighted_mean(values, np.full(len(values), 1 + 1e-12), level=level)
    assert weighed.method == "weighted-beta"
    np.testing.assert_allclose(bounds(weighed), bounds(plain), atol=1e-9)
    one = stratified([sum(values)], [len(values)], [1.0], level=level)
    np.testing.assert_allclose(bounds(one), bounds(plain), atol=1e-12)


weighted_draws = st.lists(
    st.tuples(st.booleans(), st.floats(0, 50), st.integers(0, 4)), min_size=1, max_size=80
).filter(lambda rows: any(row[1] > 0 for row in rows))


@pytest.mark.parametrize("weight", [1e-60, 1e-100, 1.0054868518617169e-140, 1e-150])
@pytest.mark.parametrize("ratio", [False, True])
def test_vanishing_weights_have_the_interval_of_their_limit(weight: float, ratio: bool) -> None:
    near = weighted_mean([0, 1, 1], [0.0, 1e-20, 1e-20], level=0.5, ratio=ratio)
    found = weighted_mean([0, 1, 1], [0.0, weight, weight], level=0.5, ratio=ratio)
    scale = 1.0 if ratio else weight / 1e-20
    for one, other in ((found.value, near.value), (found.low, near.low), (found.high, near.high)):
        assert one == pytest.approx(other * scale, rel=1e-9)


@given(weighted_draws, levels)
def test_weighted_mean_is_unbiased_holds_its_value_and_ignores_order(
    rows: list[tuple[bool, float, int]], level: float
) -> None:
    y, w, s = (np.array(column) for column in zip(*rows, strict=True))
    for stratum in (None, s):
        estimate = weighted_mean(y, w, stratum=stratum, level=level)
        assert estimate.value == pytest.approx(float((y * w).mean()))
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= max(1, estimate.value)
        assert estimate.trials == len(y)
        turned = weighted_mean(y[::-1], w[::-1], stratum=None if stratum is None else s[::-1], level=level)
        np.testing.assert_allclose(bounds(turned), bounds(estimate), rtol=1e-9, atol=1e-12)
        wider = weighted_mean(y, w, stratum=stratum, level=level, largest_weight=100.0)
        assert wider.high >= estimate.high * (1 - 1e-12)


def test_a_quotient_of_equal_weights_is_clopper_pearsons_and_of_others_holds_its_value() -> None:
    for failures, n in ((0, 9), (3, 40), (12, 12)):
        y, plain = np.arange(n) < failures, proportion(failures, n, method="clopper-pearson")
        assert weighted_mean(y, np.full(n, 0.3), largest_weight=0.3, ratio=True) == plain
        nearly = weighted_mean(y, np.where(np.arange(n) % 2, 0.3, 0.3 + 1e-12), ratio=True)
        np.testing.assert_allclose(bounds(nearly), bounds(plain), atol=1e-9)
    y, w = np.array([1, 0, 0, 1]), np.array([1.0, 4.0, 4.0, 1.0])
    one = weighted_mean(y, w, ratio=True)
    assert one.value == pytest.approx(0.2)
    assert 0 < one.low < one.value < one.high < 1
    assert weighted_mean(y, w, ratio=True, largest_weight=40.0).low < one.low


@pytest.mark.parametrize("p", [0.002, 0.02, 0.3])
def test_an_upper_bound_holds_at_every_look(p: float) -> None:
    looks = np.unique(np.geomspace(1, 5000, 150).astype(int))
    failures = np.cumsum(np.random.default_rng(3).random((1000, 5000)) < p, axis=1)[:, looks - 1]
    at_every, at_one = (bound(failures, looks) < p for bound in (upper_at_every_look, lambda k, n: wilson(k, n)[1]))
    assert at_every.any(axis=1).mean() <= 0.025  # at most; what the looks leave unused is about half
    assert at_one.any(axis=1).mean() > 0.04
    assert np.mean(upper_at_every_look(failures, looks)[:, -1]) < 1.7 * p + 0.002


def test_an_upper_bound_refuses_what_cannot_be() -> None:
    assert upper_at_every_look([3, 0], [3, 0]).tolist() == [1.0, 1.0]
    assert upper_at_every_look(2, 30, level=0.99) > upper_at_every_look(2, 30) > wilson(2, 30)[1]
    with pytest.raises(StatisticsError, match="0 <= failures <= trials"):
        upper_at_every_look([3], [2])


def test_a_few_draws_of_small_weight_prove_little_though_all_of_them_fail() -> None:
    assert weighted_mean(np.ones(5), np.full(5, 0.05), largest_weight=2.0, ratio=True).low < 0.05
    assert weighted_mean(np.ones(5), np.full(5, 0.05), largest_weight=0.05, ratio=True).low > 0.4


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_coverage_in_a_part_of_the_space_whose_draws_are_few(share: float) -> None:
    """Half of all draws from faults that fail by half, a tenth of the space; a *share* of the draws is of the part."""
    rng, held = np.random.default_rng(8), 0
    for _ in range(400):
        n = rng.binomial(300, share)
        aimed = rng.random(n) < 0.55  # p / q is 0.1 / 0.55 for those aimed at, and 0.9 / 0.45 for the others
        y = rng.random(n) < np.where(aimed, 0.5, 0.001)
        if n:
            one = weighted_mean(y, np.where(aimed, 0.1 / 0.55, 2.0), largest_weight=2.0, ratio=True)
            held += one.low <= 0.0509 <= one.high
        else:
            held += 1
    assert held / 400 >= 0.94 - 2 * np.sqrt(0.94 * 0.06 / 400)


def test_weighted_mean_stays_open_without_failures_as_wide_as_the_heaviest_weight() -> None:
    light, heavy = weighted_mean(np.zeros(100), np.full(100, 0.5)), weighted_mean(np.zeros(100), np.full(100, 2.0))
    assert light.low == heavy.low == 0
    assert heavy.high == pytest.approx(4 * light.high, rel=0.03)
    assert isnan(weighted_mean([], []).value)
    assert bounds(weighted_mean([], [])) == (0, 1)
    for ratio in (False, True):
        assert bounds(weighted_mean([], [], largest_weight=3.0, ratio=ratio)) == (0, 1)


@pytest.mark.parametrize(
    ("values", "weights", "options", "message"),
    [
        ([1, 0], [1], {}, "one to one, got 2, 1 and 2"),
        ([1, 0], [1, 1], {"stratum": [0]}, "one to one"),
        ([1, 0], [-1, 1], {}, "not negative"),
        ([1, 0], [0, 0], {}, "not all 0"),
        ([1, nan], [1, 1], {}, "finite numbers in one dimension, got NaN"),
        ([[1, 0]], [1, 1], {}, r"shape \(1, 2\)"),
        (["a"], [1], {}, "sequence of numbers"),
        ([1, 0], [1, 2], {"largest_weight": 1.5}, "bounds all weights"),
        ([1, 0], [1, 2], {"largest_weight": nan}, "bounds all weights"),
        ([1, 0], [1, 2], {"level": 0}, "strictly between"),
        ([1, 0.25], [1, 1], {}, "got 0.25 among them; for others use bounded_mean"),
        ([1, -1], [1, 1], {}, "got -1 among them"),
    ],
)
def test_weighted_mean_refuses(values: object, weights: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        weighted_mean(values, weights, **options)  # type: ignore[arg-type]


# --- strata ----------------------------------------------------------------------------------------------------------


def test_stratified_equals_weighted_mean_over_the_same_draws() -> None:
    failures, trials, shares = np.array([0, 7, 3, 1]), np.array([20, 30, 3, 1]), np.array([0.4, 0.3, 0.2, 0.1])
    stratum = np.repeat(np.arange(4), trials)
    values = np.concatenate([np.arange(n) < k for k, n in zip(failures, trials, strict=True)])
    weights = (shares / (trials / trials.sum()))[stratum]
    ours, theirs = stratified(failures, trials, shares), weighted_mean(values, weights, stratum=stratum)
    assert ours.value == pytest.approx(float(shares @ (failures / trials)))
    assert ours.value == pytest.approx(theirs.value)
    np.testing.assert_allclose(bounds(ours), bounds(theirs), rtol=1e-12)
    assert (ours.trials, ours.method, theirs.method) == (54, "stratified-beta", "weighted-beta")


def test_stratified_tends_to_the_textbook_variance() -> None:
    trials, shares = np.array([40_000, 20_000, 90_000]), np.array([0.5, 0.3, 0.2])
    failures = np.array([400, 9000, 45_000])
    p = failures / trials
    error = np.sqrt((shares**2 * p * (1 - p) / (trials - 1)).sum())
    estimate = stratified(failures, trials, shares)
    assert estimate.half_width == pytest.approx(1.959964 * error, rel=0.01)
    pooled = proportion(54_400, 150_000).half_width  # its own estimate is another, its width no smaller
    assert estimate.half_width < pooled  # the strata differ, and knowing them pays


def test_stratified_without_failures_is_as_open_as_one_sample_however_many_strata() -> None:
    for strata in (1, 10, 500):
        ones = np.ones(strata)
        assert stratified(0 * ones, 1000 / strata * ones, ones / strata).high == pytest.approx(
            float(clopper_pearson(0, 1000)[1])
        )
    undersampled = stratified([0, 0], [10, 990], [0.5, 0.5])
    assert undersampled.high > 0.5 * float(clopper_pearson(0, 10)[1])


def test_stratified_with_populations_narrows_to_the_truth() -> None:
    failures, shares, sizes = np.array([1, 0, 5]), np.array([0.25, 0.25, 0.5]), np.array([100, 100, 200])
    plain = stratified(failures, [50, 50, 50], shares)
    finite = stratified(failures, [50, 50, 50], shares, population=sizes)
    done = stratified(failures, sizes, shares, population=sizes)
    part = stratified(failures, [100, 100, 50], shares, population=sizes)
    assert finite.half_width < plain.half_width
    assert part.half_width < finite.half_width
    assert bounds(done) == (done.value, done.value) == (pytest.approx(0.015), pytest.approx(0.015))
    assert part.low >= 0.0025 + 0.5 * 5 / 200  # never below the faults known to fail
    almost = stratified([0, 0], [99, 100], [0.5, 0.5], population=[100, 100])
    assert almost.high == pytest.approx(0.005)  # one fault left, and it may fail


@pytest.mark.parametrize(
    ("failures", "trials", "shares", "options", "message"),
    [
        ([1], [2], [0.5], {}, "sum to 1, got 0.5"),
        ([1, 1], [2, 2], [1.5, -0.5], {}, "not negative"),
        ([1, 0], [2, 0], [0.5, 0.5], {}, "none in stratum 1"),
        ([3], [2], [1.0], {}, "0 <= failures <= trials"),
        ([1], [2], [1.0], {"population": [1]}, "trials <= population"),
        ([1, 1], [2], [1.0], {}, "one count and one share"),
        ([1], [2], [1.0], {"population": [4, 4]}, "one count and one share"),
        ([1], [2], [1.0], {"level": 95}, "strictly between"),
    ],
)
def test_stratified_refuses(
    failures: list[int], trials: list[int], shares: list[float], options: dict[str, object], message: str
) -> None:
    with pytest.raises(StatisticsError, match=message):
        stratified(failures, trials, shares, **options)  # type: ignore[arg-type]


def test_a_stratum_without_share_and_trials_does_not_count() -> None:
    assert stratified([1, 0], [20, 0], [1.0, 0.0]) == stratified([1], [20], [1.0])


# --- coverage by simulation: weights and strata ----------------------------------------------------------------------

CLASSES = 50
# 94 % is refuted below this at a level of 5 %, in a thousand repetitions
REFUTED = 0.94 - 1.645 * (0.94 * 0.06 / 1000) ** 0.5


def campaign(kind: str, mu: float) -> tuple[Floats, Floats, Floats]:
    """Return p, the failure probability and q of CLASSES kinds of faults, failures being oversampled or not by q."""
    p = np.full(CLASSES, 1 / CLASSES)
    failing = np.zeros(CLASSES)
    many = max(int(CLASSES * mu * 2), 1)
    failing[:many] = mu * CLASSES / many
    guess = np.where(failing > 0, 10, 0.01)
    q = {
        "oversampled": p * np.where(failing > 0, 5, 0.5),
        "defensive": p / 2 + guess / guess.sum() / 2,
        "undersampled": p * np.where(failing > 0, 0.2, 1),
        "unrelated": p * np.exp(np.random.default_rng(7).normal(0, 1, CLASSES)),
    }[kind]
    return p, failing, q / q.sum()


def weighted_coverage(kind: str, mu: float, n: int, repeats: int, seed: int) -> tuple[float, Floats]:
    p, failing, q = campaign(kind, mu)
    weight, truth = p / q, float(p @ failing)
    rng = np.random.default_rng(seed)
    estimates = []
    for _ in range(repeats):
        drawn = rng.choice(CLASSES, size=n, p=q)
        y = rng.random(n) < failing[drawn]
        estimates.append(weighted_mean(y, weight[drawn], largest_weight=float(weight.max())))
    table = np.array([(e.value, e.low, e.high) for e in estimates])
    # the true spread, not that of a table in which the rare heavy failure may be missing
    error = np.sqrt((float(q @ (np.square(weight) * failing)) - truth**2) / n / repeats)
    assert abs(table[:, 0].mean() - truth) < 4.5 * error + 1e-12  # unbiased
    return float(np.mean((table[:, 1] <= truth) & (truth <= table[:, 2]))), table


@pytest.mark.parametrize("kind", ["oversampled", "defensive", "undersampled", "unrelated"])
def test_weighted_coverage_simulated(kind: str) -> None:
    for mu, n in ((0.001, 2000), (0.01, 500), (0.1, 200), (0.5, 100)):
        assert weighted_coverage(kind, mu, n, 150, 5)[0] >= 0.91


@pytest.mark.slow
@pytest.mark.parametrize("mu", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["oversampled", "defensive", "undersampled", "unrelated"])
def test_weighted_coverage_simulated_at_length(kind: str, mu: float) -> None:
    for n in (30, 200, 1000, 5000):
        assert weighted_coverage(kind, mu, n, 1000, 6)[0] >= REFUTED


@pytest.mark.slow
def test_kish_is_no_guide_where_the_weight_tells_of_the_outcome() -> None:
    for kind, seed in (("undersampled", 1), ("defensive", 2)):
        mu, n = (0.001, 5000) if kind == "undersampled" else (0.01, 5000)
        p, failing, q = campaign(kind, mu)
        weight, rng = p / q, np.random.default_rng(seed)
        kish, ours, truth = [], [], float(p @ failing)
        for _ in range(500):
            drawn = rng.choice(CLASSES, size=n, p=q)
            y = rng.random(n) < failing[drawn]
            size = effective_sample_size(weight[drawn])
            kish.append(tuple(map(float, wilson(min(float((y * weight[drawn]).mean()), 1) * size, size))))
            ours.append(bounds(weighted_mean(y, weight[drawn])))
        (kish_low, kish_high), (low, high) = np.array(kish).T, np.array(ours).T
        if kind == "undersampled":
            assert np.mean((kish_low <= truth) & (truth <= kish_high)) < 0.45
            assert np.mean((low <= truth) & (truth <= high)) > 0.90
        else:
            assert np.mean(kish_high - kish_low) > 3 * np.mean(high - low)
            assert np.mean((low <= truth) & (truth <= high)) > 0.94


def stratified_coverage(trials: Floats, shares: Floats, failing: Floats, repeats: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    truth = float(shares @ failing)
    failures = rng.binomial(trials.astype(int), failing, size=(repeats, len(trials)))
    table = np.array([(e.value, e.low, e.high) for e in (stratified(k, trials, shares) for k in failures)])
    assert abs(table[:, 0].mean() - truth) < 4.5 * table[:, 0].std() / np.sqrt(repeats) + 1e-12
    return float(np.mean((table[:, 1] <= truth + 1e-12) & (truth <= table[:, 2] + 1e-12)))


def alike_or_not(strata: int, mu: float, alike: bool) -> Floats:
    rng = np.random.default_rng(5)
    return np.full(strata, mu) if alike else rng.beta(0.5, 0.5 * (1 - mu) / mu, strata)


@pytest.mark.parametrize(("strata", "each"), [(100, 1), (20, 20), (5, 400)])
def test_stratified_coverage_simulated(strata: int, each: int) -> None:
    for mu in (0.001, 0.01, 0.1, 0.5):
        for alike in (True, False):
            trials, failing = np.full(strata, float(each)), alike_or_not(strata, mu, alike)
            assert stratified_coverage(trials, np.full(strata, 1 / strata), failing, 200, 5) >= 0.91


@pytest.mark.parametrize(
    ("trials", "share", "failing"),
    [
        # a stratum of a large share and few trials that fails always, nearly always, half the time, or hardly ever
        ((20, 1000), 0.9, (0.9, 0.02)),
        ((100, 1000), 0.9, (0.98, 0.02)),
        ((20, 1000), 0.5, (0.9, 0.5)),
        ((5, 1000), 0.5, (0.65, 0.5)),
        ((5, 1000), 0.5, (0.3, 1.0)),
        ((5, 1000), 0.1, (0.2, 0.0)),
        ((100, 1000), 0.9, (0.02, 0.0)),
    ],
)
def test_stratified_coverage_where_the_heavy_stratum_is_undersampled(
    trials: tuple[int, int], share: float, failing: tuple[float, float]
) -> None:
    shares = np.array([share, 1 - share])
    assert stratified_coverage(np.array(trials, dtype=float), shares, np.array(failing), 1000, 8) >= 0.94


@pytest.mark.slow
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize(("strata", "each"), [(1, 200), (400, 1), (100, 4), (20, 20), (20, 100), (5, 1000)])
def test_stratified_coverage_simulated_at_length(strata: int, each: int, unequal: bool) -> None:
    shares = np.random.default_rng(5).dirichlet(np.full(strata, 2.0)) if unequal else np.full(strata, 1 / strata)
    for mu in (0.001, 0.01, 0.1, 0.5):
        for alike in (True, False):
            trials, failing = np.full(strata, float(each)), alike_or_not(strata, mu, alike)
            assert stratified_coverage(trials, shares / shares.sum(), failing, 1000, 5) >= REFUTED


def test_stratified_coverage_without_replacement_simulated() -> None:
    rng = np.random.default_rng(3)
    for sizes, trials, failing in (
        ([1000, 200], [500, 199], [3, 1]),
        ([50] * 20, [25] * 20, [1] * 20),
        ([50] * 20, [25] * 20, [20] * 20),
        ([10_000, 100], [1000, 100], [100, 10]),
    ):
        size, n, bad = map(np.array, (sizes, trials, failing))
        shares = size / size.sum()
        truth = float(shares @ (bad / size))
        drawn = rng.hypergeometric(bad, size - bad, n, size=(600, len(n)))
        table = np.array([bounds(stratified(k, n, shares, population=size)) for k in drawn])
        assert np.mean((table[:, 0] <= truth + 1e-12) & (truth <= table[:, 1] + 1e-12)) >= 0.93


# --- values of campaigns that stop themselves ------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
def test_the_value_after_looks_is_unbiased_over_every_order_of_failures(p: float) -> None:
    looks, unbiased, plain, all_of_them = [3, 6, 9], 0.0, 0.0, 0.0

    def stops(n: int, k: Floats) -> NDArray[np.bool_]:
        return np.asarray((k <= n // 3) & (n < 9))

    for order in itertools.product((0, 1), repeat=9):
        n = next(n for n in looks if n == 9 or stops(n, np.array([sum(order[:n])]))[0])
        k, chance = sum(order[:n]), p ** sum(order) * (1 - p) ** (9 - sum(order))
        unbiased += chance * after_looks(k, n, looks=[look for look in looks if look <= n], stops=stops)
        plain += chance * k / n
        all_of_them += chance
    assert all_of_them == pytest.approx(1)
    assert unbiased == pytest.approx(p)
    assert plain < p - 0.002


def test_a_value_after_looks_wants_counts_that_fit() -> None:
    for failures, trials, looks in ((4, 3, [3]), (1, 3, []), (1, 3, [2]), (1, 3, [2, 2, 3]), (-1, 3, [3])):
        with pytest.raises(StatisticsError, match="every number of trials at which the rule was asked"):
            after_looks(failures, trials, looks=looks, stops=lambda n, k: k < n)


# --- stopping rules --------------------------------------------------------------------------------------------------


def at(trials: int = 0, failures: int = 0, seconds: float = 0.0) -> Progress:
    return Progress(trials=trials, failures=failures, seconds=seconds)


def test_each_rule_gives_its_reason_at_its_border() -> None:
    assert MaxTrials(10)(at(9)) is None
    assert MaxTrials(10)(at(10)) == "10 of 10 trials run"
    assert TimeBudget(2)(at(seconds=1.99)) is None
    assert TimeBudget(2)(at(seconds=2)) == "time budget of 2 s spent"
    enough = wilson_trials(0.1, 0.02)
    assert HalfWidth(0.02)(at(enough - 20, (enough - 20) // 10)) is None
    assert HalfWidth(0.02)(at(enough + 20, enough // 10)) == "half-width 0.019 of at most 0.02 reached by model (95 %)"
    assert HalfWidth(0.4, minimum=50)(at(49)) is None
    assert HalfWidth(0.4, minimum=50)(at(50)) is not None
    assert HalfWidth(0.4)(at(0)) is None


def test_the_method_and_the_level_of_a_half_width_count() -> None:
    progress = at(1000, 100)
    width = proportion(100, 1000).half_width
    assert HalfWidth(width)(progress) is not None
    assert HalfWidth(width, method="clopper-pearson")(progress) is None
    assert HalfWidth(width, level=0.96)(progress) is None


def test_rules_compose_and_so_do_plain_callables() -> None:
    def bored(progress: Progress) -> str | None:
        return "bored" if progress.seconds > 5 else None

    either, both = MaxTrials(10) | TimeBudget(2), MaxTrials(10) & TimeBudget(2)
    assert either(at(1, seconds=1)) is None
    assert either(at(10, seconds=1)) == "10 of 10 trials run"
    assert either(at(1, seconds=3)) == "time budget of 2 s spent"
    assert both(at(10, seconds=1)) is None
    assert both(at(10, seconds=2)) == "10 of 10 trials run and time budget of 2 s spent"
    for rule in (MaxTrials(10) | bored, bored | MaxTrials(10)):
        assert rule(at(1, seconds=6)) == "bored"
    for rule in (MaxTrials(10) & bored, bored & MaxTrials(10)):
        assert rule(at(1, seconds=6)) is None
    assert either == (MaxTrials(10) | TimeBudget(2))
    assert hash(both) == hash(MaxTrials(10) & TimeBudget(2))


def test_impossible_rules_are_refused() -> None:
    for make in (
        lambda: MaxTrials(0),
        lambda: TimeBudget(0),
        lambda: TimeBudget(nan),
        lambda: HalfWidth(0.0),
        lambda: HalfWidth(0.5),
        lambda: HalfWidth(0.1, minimum=0),
        lambda: HalfWidth(0.1, method="wald"),
        lambda: HalfWidth(0.1, level=95),
        lambda: AllOf(()),
    ):
        with pytest.raises(StatisticsError):
            make()


def coverage_when_stopped(method: str, h: float, block: int, p: float, repeats: int, rng: np.random.Generator) -> float:
    """Return how often the interval at the moment that HalfWidth stops holds the truth; asked after every block."""
    rule, interval = HalfWidth(h, method=method, minimum=block), INTERVALS[method]
    trials = np.arange(block, 1.1 * wilson_trials(0.5, h) + 4 * block, block).astype(int)
    failures = rng.binomial(block, p, size=(repeats, len(trials))).cumsum(axis=1)
    low, high = interval(failures, trials)
    stop = ((high - low) / 2 <= h).argmax(axis=1)
    for row in range(3):  # the arrays stand for the rule: look at some where the rule itself says stop
        reasons = [rule(at(int(n), int(k))) for n, k in zip(trials, failures[row], strict=True)]
        assert [reason is None for reason in reasons].index(False) == stop[row]
    chosen = np.arange(repeats), stop
    return float(np.mean((low[chosen] <= p) & (p <= high[chosen])))


def test_stopping_at_a_half_width_costs_little_coverage() -> None:
    rng = np.random.default_rng(9)
    for method in INTERVALS:
        for p in (0.002, 0.01, 0.05, 0.1, 0.5):
            assert coverage_when_stopped(method, 0.05, 100, p, 400, rng) >= 0.88


@pytest.mark.slow
def test_stopping_at_a_half_width_costs_what_its_docstring_says() -> None:
    rng = np.random.default_rng(9)
    worst = {
        (method, block): min(
            coverage_when_stopped(method, h, block, p, 2000, rng)
            for h in (0.01, 0.02, 0.05, 0.1)
            if h * block >= 0.2
            for p in (0.002, 0.01, 0.03, 0.05, 0.1, 0.2, 0.5)
        )
        for method in INTERVALS
        for block in (10, 100)
    }
    assert worst["wilson", 100] >= 0.905
    assert worst["jeffreys", 100] >= 0.905
    assert 0.93 <= worst["clopper-pearson", 100] < 0.949  # the guarantee at a fixed number is lost, but little of it
    assert worst["wilson", 10] >= 0.905
    assert worst["jeffreys", 10] >= 0.89


# --- imports ---------------------------------------------------------------------------------------------------------


def test_importing_statistics_brings_in_neither_torch_nor_pandas_nor_the_slow_part_of_scipy() -> None:
    code = (
        "import sys, torchfault.statistics; print([m for m in ('torch', 'pandas', 'scipy.stats') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
