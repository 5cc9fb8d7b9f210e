"""Bit errors of the benchmark: every bit is drawn for itself, few or many; the fall of a curve is read off it."""

import numpy as np
import pytest

from benchmarks.error_rates import Curve, Point, flips
from torchfault.space import FaultSpace, Site

SITES = (Site("a", (3000,), word="int8", width=8), Site("b", (500, 2)), Site("c", (40,), word="int4"))
SPACE = FaultSpace(SITES)


def flipped(trial, position):
    toggles = trial.toggle[trial.site == position]
    return sum(int(word).bit_count() for word in toggles)


@pytest.mark.parametrize("rate", [0.001, 0.015, 0.3])
def test_each_bit_is_flipped_with_the_rate(rate):
    counts = np.zeros((60, 3))
    for repeat in range(60):
        trial = flips(SPACE, rate, np.random.default_rng([1, repeat]))
        pairs = set(zip(trial.site.tolist(), trial.element.tolist(), strict=True))
        assert len(pairs) == len(trial.element)  # every word once
        assert all(one.elements > e for one, e in ((SPACE.sites[s], e) for s, e in pairs))
        counts[repeat] = [flipped(trial, position) for position in range(3)]
    bits = np.array([24_000, 32_000, 160])
    error = np.sqrt(bits * rate * (1 - rate) / 60)
    assert (np.abs(counts.mean(0) - bits * rate) < 5 * error).all()
    assert 0.5 < counts[:, 0].var() / (24_000 * rate * (1 - rate)) < 2


def test_at_rate_one_every_bit_is_flipped():
    trial = flips(SPACE, 1.0, np.random.default_rng(0))
    assert [flipped(trial, position) for position in range(3)] == [24_000, 32_000, 160]
    assert len(flips(SPACE, 0.0, np.random.default_rng(0)).element) == 0


def test_the_fall_of_40_points_is_read_between_two_rates():
    means = {0.0: 0.9, 1e-4: 0.8, 1e-2: 0.2, 1.0: 0.1}
    one = Curve("int8", "weights", 1000, 8000, tuple(Point(rate, mean, mean, mean, 0) for rate, mean in means.items()))
    assert one.faults_per_word == pytest.approx(8 * 10**-3)  # half of the way down is half of the way in the exponent
    flat = Curve("int8", "weights", 1000, 8000, tuple(Point(rate, 0.9, 0.9, 0.9, 0) for rate in means))
    assert flat.faults_per_word is None
