"""Every sampler with its estimator on the enumerated network: no bias, and intervals that hold, however it stops."""

import pytest
from proposal import TopBits
from validity import CASES, judge

from torchfault.testing import check_sampler

# Of fifteen cases, a fair one exceeds this many standard errors once in three hundred runs of the suite.
BIASED = 3.6


def test_a_sampler_in_one_file_is_one():
    check_sampler(TopBits())


@pytest.mark.parametrize("name", ["uniform, wilson", "layer-wise", "top bits, few trials", "adaptive, sites"])
def test_estimates_are_unbiased_and_intervals_hold(known, name):
    found = judge(known, name, 60)
    assert abs(found.bias) < BIASED
    assert found.coverage >= 0.87  # of 60 at 94 %, fewer come once in sixty runs
    assert found.sites >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_estimates_are_unbiased_and_intervals_hold_in_a_thousand_campaigns(known, name):
    found = judge(known, name, 1000)
    print(f"{name}: {found}")
    assert abs(found.bias) < BIASED
    assert found.coverage >= 0.94
    assert found.sites >= 0.93  # a hundred weighted trials leave a site with five
