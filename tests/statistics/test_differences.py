"""Differences of shares: by pairs, whose intervals are those of their source, and of two samples."""

import pytest

from torchfault.errors import StatisticsError
from torchfault.statistics import proportion
from torchfault.statistics.differences import difference, paired_difference


@pytest.mark.parametrize(
    ("cells", "interval"),
    [
        # Newcombe 1998, Table II, method 10: (both, the second alone, the first alone, neither).
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((36, 14, 0, 0), (0.1528, 0.4167)),
        ((0, 50, 0, 0), (0.8987, 1.0)),
    ],
)
def test_the_interval_of_paired_differences_is_that_of_its_source(cells, interval):
    both, second, first, neither = cells
    found = paired_difference(both, first, second, neither)
    assert found.value == pytest.approx((second - first) / sum(cells))
    assert (found.low, found.high) == pytest.approx(interval, abs=6e-4)


def test_alike_outcomes_differ_in_nothing_and_opposite_ones_in_all():
    same = paired_difference(100, 0, 0, 300)
    assert same.value == 0
    assert -0.011 < same.low <= 0 <= same.high < 0.011
    assert paired_difference(0, 100, 300, 0).value == 0.5


def test_pairs_say_more_than_two_samples_where_outcomes_go_together():
    paired = paired_difference(80, 5, 20, 895)
    apart = difference(proportion(100, 1000), proportion(85, 1000))
    assert paired.value == pytest.approx(apart.value)
    assert paired.half_width < 0.5 * apart.half_width


def test_a_difference_without_trials_is_refused():
    with pytest.raises(StatisticsError, match="got 0"):
        paired_difference(0, 0, 0, 0)
