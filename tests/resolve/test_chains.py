"""Monotone closure by itself: chains of flips are settled rightly where outcomes are monotone, and by few probes."""

import numpy as np
import pytest

from torchfault.resolve.chains import chains
from torchfault.words.deltas import flip_deltas


def settled(word, inputs, change, truth):
    """Return what closure concludes of flips whose outcomes are *truth*, and which were probed."""
    found, probed = chains(word, inputs, change), np.zeros(len(change), dtype=bool)
    while len(probes := found.probes()):
        assert not probed[probes].any(), "nothing is asked twice"
        probed[probes] = True
        found.settle(probes, truth[probes])
    return found.failing(), probed


@pytest.mark.parametrize("form", ["float32", "float16", "int8", "e3m2fn"])
def test_monotone_outcomes_are_found_by_few_probes(form):
    rng, width = np.random.default_rng(3), {"float32": 32, "float16": 16, "int8": 8, "e3m2fn": 6}[form]
    words = rng.integers(0, 1 << width, size=300, dtype=np.uint64)
    change = flip_deltas(words, form)
    low, high = -np.exp2(rng.uniform(-20, 20, size=(300, 1))), np.exp2(rng.uniform(-20, 20, size=(300, 1)))
    truth = (change <= low) | (change >= high) | (np.isnan(change) & (rng.random(change.shape) < 0.5))
    word, inputs = np.repeat(np.arange(300), width), np.repeat(rng.integers(0, 2, size=300), width)
    failing, probed = settled(word, inputs, change.reshape(-1), truth.reshape(-1))
    assert (failing == truth.reshape(-1)).all()
    assert probed.reshape(300, width)[np.isnan(change)].all(), "NaN is no direction"
    chain = probed.reshape(300, width) & ~np.isnan(change)
    assert max((chain & side).sum(axis=1).max() for side in (change > 0, change < 0)) <= 2 * np.log2(width) + 1


def test_the_largest_is_tried_first_then_the_next_in_steps_that_double():
    change = 2.0 ** np.arange(16)
    none = np.zeros(16, dtype=np.int64)
    found, order = chains(none, none, change), []
    while len(probes := found.probes()):
        order += probes.tolist()
        found.settle(probes, change[probes] >= 2.0**4)
    assert order == [15, 14, 12, 8, 0, 4, 2, 3]
    masked, probed = settled(none, none, change, np.zeros(16, dtype=bool))
    assert not masked.any()
    assert probed.nonzero()[0].tolist() == [15]


def test_a_flip_that_changes_no_value_is_masked_without_a_lane():
    change, none = np.array([0.0, 3.0, -0.0, 5.0]), np.zeros(4, dtype=np.int64)
    failing, probed = settled(none, none, change, np.array([False, True, False, True]))
    assert failing.tolist() == [False, True, False, True]
    assert probed.tolist() == [False, True, False, True]
    failing, probed = settled(none[:1], none[:1], np.zeros(1), np.zeros(1, dtype=bool))
    assert not failing.any()
    assert not probed.any()
