"""Means of values with a known range, and quantiles of any: right by simulation, never sure from a sample alone."""

from math import inf, isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import binom

from torchfault.errors import StatisticsError
from torchfault.statistics import bounded_mean, capped_mean, clopper_pearson, quantile_interval
from torchfault.statistics.means import _not_above

Floats = NDArray[np.float64]

# --- the bound itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 7), (3, 20), (20, 20), (1, 500), (250, 500), (4, 100_000)])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_values_of_0_and_1_have_clopper_and_pearsons_interval(k: int, n: int, level: float) -> None:
    found = bounded_mean(np.arange(n) < k, low=0, high=1, level=level)
    np.testing.assert_allclose((found.low, found.high), clopper_pearson(k, n, level=level), rtol=1e-7, atol=1e-12)


def test_the_bounds_are_quantiles_of_a_dirichlet_mean() -> None:
    rng = np.random.default_rng(4)
    y = rng.choice([0.0, 0.0, 0.0, 0.02, 0.3, 0.7], 25)
    found = bounded_mean(y, low=-0.2, high=0.8)
    mass = rng.dirichlet(np.ones(26), 400_000)
    assert found.high == pytest.approx(np.quantile(mass @ np.append(y, 0.8), 0.975), abs=1e-3)
    assert found.low == pytest.approx(np.quantile(mass @ np.append(y, -0.2), 0.025), abs=1e-3)


@pytest.mark.parametrize("shapes", [(1.0, 1.0), (3.5, 0.2, 9.0), (400.0, 1.0, 30.0)])
def test_the_chance_of_a_sum_of_gammas_is_that_of_many_draws(shapes: tuple[float, ...]) -> None:
    a = np.array([-0.4, 0.9, 0.1])[: len(shapes)]
    draws = np.random.default_rng(2).gamma(shapes, size=(400_000, len(shapes)))
    for shift in (-0.1, 0.0, 0.2):
        assert _not_above(a + shift, np.array(shapes)) == pytest.approx(np.mean(draws @ (a + shift) <= 0), abs=4e-3)


@given(st.lists(st.floats(-1.0, 3.0), min_size=1, max_size=30), st.floats(0.6, 0.99), st.randoms())
@settings(max_examples=60, deadline=None)
def test_an_interval_lies_in_the_range_holds_its_mean_and_knows_no_order(values, level, shuffler) -> None:  # type: ignore[no-untyped-def]
    found = bounded_mean(values, low=-1, high=3, level=level)
    assert -1 <= found.low <= found.value <= found.high <= 3
    assert found.high - found.low > 0
    shuffled = list(values)
    shuffler.shuffle(shuffled)
    again = bounded_mean(shuffled, low=-1, high=3, level=level)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=1e-9)
    wider = bounded_mean(values, low=-2, high=4, level=level)
    assert wider.low <= found.low + 1e-9
    assert wider.high >= found.high - 1e-9


def test_scale_and_sign_do_not_matter() -> None:
    y = np.random.default_rng(5).choice([0.0, 0.0, 0.1, 0.6], 40)
    found = bounded_mean(y, low=0, high=1)
    scaled = bounded_mean(20 - 50 * y, low=-30, high=20)
    assert (scaled.low, scaled.high) == pytest.approx((20 - 50 * found.high, 20 - 50 * found.low))


def test_tiny_and_huge_values_are_no_trouble() -> None:
    y = np.array([0.0, 0.0, 0.0, 0.5, 1.0])
    plain = bounded_mean(y, low=0, high=1)
    for size in (1e-300, 1e300):
        found = bounded_mean(size * y, low=0, high=size)
        assert (found.low / size, found.high / size) == pytest.approx((plain.low, plain.high))
    weighed = bounded_mean([1e-310, 0.0], low=0, high=1, weights=[1e-250, 1e-250])
    assert 0 <= weighed.low <= weighed.value <= weighed.high <= 1


def test_nothing_that_changed_and_a_single_trial_leave_room() -> None:
    for n, most in ((20, 0.17), (100, 0.037), (3000, 0.0013)):
        found = bounded_mean(np.zeros(n), low=-0.1, high=0.9)
        assert (found.value, found.trials) == (0, n)
        assert -0.1 * most < found.low < 0 < found.high < 0.9 * most
    one = bounded_mean([0.3], low=-0.1, high=0.9)
    assert one.low == pytest.approx(-0.1 + 0.025 * 0.4)
    assert one.high == pytest.approx(0.9 - 0.025 * 0.6)
    assert isnan(bounded_mean([], low=0, high=1).value)
    assert (bounded_mean([], low=0, high=1).low, bounded_mean([], low=0, high=1).high) == (0, 1)


def test_rounding_beyond_the_range_is_forgiven_and_more_is_not() -> None:
    golden = 0.7
    assert bounded_mean([golden - 0.6999999999999999 - 0.1 - 0.6], low=-0.7, high=0.3).low == pytest.approx(-0.7)
    for wrong in (1.1, -0.1):
        with pytest.raises(StatisticsError, match=r"lie between low=0 and high=1, got .* use capped_mean"):
            bounded_mean([0.5, wrong], low=0, high=1)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.5], {"low": 0, "high": inf}, "quantile_interval or capped_mean"),
        ([0.5], {"low": 0.5, "high": 0.5}, "low < high"),
        ([0.5], {"low": nan, "high": 1}, "finite"),
        ([0.5, nan], {"low": 0, "high": 1}, "NaN or infinity"),
        ([0.5, inf], {"low": 0, "high": 1}, "NaN or infinity"),
        ([0.5], {"low": 0, "high": 1, "weights": [1, 1]}, "one to one"),
        ([0.5], {"low": 0, "high": 1, "weights": [2], "largest_weight": 1}, "bounds all weights"),
        ([0.5], {"low": 0, "high": 1, "level": 95}, "strictly between"),
    ],
)
def test_what_cannot_be_is_refused(values: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        bounded_mean(values, **options)  # type: ignore[arg-type]


# --- coverage by simulation ------------------------------------------------------------------------------------------


def rare(rng: np.random.Generator, n: int, share: float, low: float, high: float) -> Floats:
    return np.where(rng.random(n) < share, rng.uniform(low, high, n), 0.0)


DISTRIBUTIONS = {
    "rare drops": (lambda rng, n: rare(rng, n, 0.01, 0.1, 0.8), 0.0045),
    "rarer and as large as can be": (lambda rng, n: rare(rng, n, 0.003, 0.8, 0.8), 0.0024),
    "small drops": (lambda rng, n: rare(rng, n, 0.1, 0.01, 0.05), 0.003),
    "gains and drops": (lambda rng, n: rare(rng, n, 0.3, -0.02, 0.05) + rare(rng, n, 0.02, 0.5, 0.9), 0.0185),
    "uniform": (lambda rng, n: rng.random(n), 0.5),
    "half": (lambda rng, n: (rng.random(n) < 0.5).astype(float), 0.5),
    "skewed": (lambda rng, n: rng.beta(0.1, 2, n), 0.1 / 2.1),
    "nearly all": (lambda rng, n: 1 - rare(rng, n, 0.02, 0.2, 1.0), 0.988),
}


def covered(name: str, n: int, repeats: int) -> tuple[float, float]:
    draw, truth = DISTRIBUTIONS[name]
    rng = np.random.default_rng(n)
    found = [bounded_mean(draw(rng, n), low=-0.1, high=1) for _ in range(repeats)]
    return np.mean([e.low <= truth <= e.high for e in found]), np.mean([e.high - e.low for e in found])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_intervals_hold_their_level(name: str) -> None:
    for n in (20, 50, 100, 300):
        assert covered(name, n, 100)[0] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50, 100, 300, 1000])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_intervals_hold_their_level_in_a_thousand_samples(name: str, n: int) -> None:
    share, width = covered(name, n, 1000)
    print(f"{name} {n}: {share:.3f}, mean width {width:.4f}, Hoeffding's {1.1 * np.sqrt(2 * np.log(40) / n):.4f}")
    assert share >= 0.94


def test_a_mean_of_many_values_is_as_narrow_as_normal_theory_has_it() -> None:
    y = np.random.default_rng(6).uniform(0.2, 0.4, 2000)
    normal = 2 * -float(ndtri(0.025)) * y.std() / np.sqrt(len(y))
    found = bounded_mean(y, low=0, high=1)
    assert normal < found.high - found.low < 1.25 * normal


CLASSES = 40


@pytest.mark.parametrize("ratio", [False, True])
@pytest.mark.parametrize("kind", ["aimed", "shunned", "unrelated"])
def test_weighted_intervals_hold_their_level(kind: str, ratio: bool) -> None:
    rng = np.random.default_rng(8)
    harmful = np.arange(CLASSES) < 4
    q = {
        "aimed": np.where(harmful, 6.0, 0.5),
        "shunned": np.where(harmful, 0.2, 1.0),
        "unrelated": np.exp(np.random.default_rng(3).normal(0, 1, CLASSES)),
    }[kind]
    q /= q.sum()
    weight, values, chances = 1 / CLASSES / q, [-0.05, 0.1, 0.4, 0.8], [0.2, 0.3, 0.3, 0.2]
    truth = 0.1 * 0.3 * float(np.dot(values, chances))
    for n in (20, 100, 500):
        estimates = []
        for _ in range(80):
            drawn = rng.choice(CLASSES, size=n, p=q)
            y = np.where(harmful[drawn] & (rng.random(n) < 0.3), rng.choice(values, n, p=chances), 0.0)
            options = {"weights": weight[drawn], "largest_weight": float(weight.max()), "ratio": ratio}
            estimates.append(bounded_mean(y, low=-0.1, high=0.9, **options))
        assert np.mean([e.low <= truth <= e.high for e in estimates]) >= 0.9
        if not ratio:  # by the true spread, not that of a table in which the rare heavy failure may be missing
            square = 0.3 * float(np.dot(np.square(values), chances))
            error = np.sqrt((float(q @ (np.square(weight) * harmful)) * square - truth**2) / n / 80)
            assert abs(np.mean([e.value for e in estimates]) - truth) < 4.5 * error


@pytest.mark.parametrize(
    ("trials", "share", "failing"),
    [
        ((20, 600), 0.9, (0.9, 0.02)),
        ((5, 400), 0.5, (0.65, 0.5)),
        ((5, 400), 0.1, (0.2, 0.0)),
        ((300, 300), 0.5, (0.9, 0.01)),
        ((2,) * 50, None, (0.1,) * 50),
    ],
)
def test_strata_hold_their_level_and_narrow(
    trials: tuple[int, ...], share: float | None, failing: tuple[float, ...]
) -> None:
    shares = np.full(len(trials), 1 / len(trials)) if share is None else np.array([share, 1 - share])
    stratum = np.repeat(np.arange(len(trials)), trials)
    weight = (shares * sum(trials) / np.array(trials))[stratum]
    rng, truth, held, ratios = np.random.default_rng(9), 0.4 * float(shares @ failing), 0, []
    for _ in range(200):
        fails = rng.random(len(stratum)) < np.array(failing)[stratum]
        y = fails * rng.choice([0.1, 0.3, 0.8], len(stratum))
        one = bounded_mean(y, low=0, high=0.9, weights=weight, stratum=stratum)
        held += one.low <= truth <= one.high
        ratios.append((one.high - one.low) / bounded_mean(y, low=0, high=0.9, weights=weight).half_width / 2)
    assert held / 200 >= 0.91
    assert np.mean(ratios) < 1.03


# --- values without a range ------------------------------------------------------------------------------------------


def test_quantile_bounds_are_order_statistics() -> None:
    for n, q, level in ((20, 0.5, 0.95), (100, 0.9, 0.95), (37, 0.25, 0.8)):
        y = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
        found, tail = quantile_interval(y, q, level=level), (1 - level) / 2
        assert found.value == np.ceil(q * n)
        assert found.low == binom.ppf(tail, n, q)
        assert found.high == binom.isf(tail, n, q) + 1
        assert found.method == f"quantile {q:g}"


def test_infinite_values_are_the_largest_and_nan_is_the_worst() -> None:
    y = np.concatenate((np.arange(65.0), np.full(20, inf), np.full(15, nan)))
    assert quantile_interval(y).high < inf
    assert quantile_interval(y, 0.8).value == inf
    assert quantile_interval(y, 0.8).low == inf
    assert quantile_interval(-y[:85], 0.1).low == -inf
    few = quantile_interval([3.0])
    assert (few.value, few.low, few.high) == (3, -inf, inf)
    assert isnan(quantile_interval([]).value)
    assert quantile_interval(np.zeros(50)).high == 0  # a median may be known where a mean is not


def test_weighted_quantiles_hold_their_level() -> None:
    rng, held = np.random.default_rng(11), 0
    true = 3 * -np.log(0.2)  # of an exponential distribution of mean 3
    for _ in range(300):
        # from a mixture of the distribution and one of twice its mean, so that weights are at most 2
        y = rng.exponential(np.where(rng.random(200) < 0.5, 3.0, 6.0))
        density = np.exp(-y / 3) / 3
        weight = density / (density / 2 + np.exp(-y / 6) / 12)
        one = quantile_interval(y, 0.8, weights=weight, largest_weight=2.0)
        held += one.low <= true <= one.high
    assert held / 300 >= 0.92


def test_impossible_quantiles_are_refused() -> None:
    for q in (0.0, 1.0, 95):
        with pytest.raises(StatisticsError, match=r"the median is 0\.5"):
            quantile_interval([1.0, 2.0], q)
    with pytest.raises(StatisticsError, match=r"shape \(1, 1\)"):
        quantile_interval([[1.0]])


def test_a_capped_mean_says_its_cap_and_counts_what_is_beyond() -> None:
    y = np.array([0.0, 0.5, 2.0, 7.0, inf, nan])
    found = capped_mean(y, low=-1, cap=2)
    assert found.value == pytest.approx((0 + 0.5 + 4 * 2) / 6)
    assert found.method == "gaffke, capped at 2"
    plain = bounded_mean([0, 0.5, 2, 2, 2, 2], low=-1, high=2)
    assert (found.low, found.high) == (plain.low, plain.high)
    assert capped_mean(y, low=-1, cap=5).high > found.high
    with pytest.raises(StatisticsError, match="low=1"):
        capped_mean(y, low=1, cap=5)
