"""Flips of values that are known up to rounding: none nearby moves further than the bound, and the bound is tight."""

import numpy as np
import pytest

from torchfault.words.deltas import flip_deltas, words_of
from torchfault.words.largest_flips import largest_flips


@pytest.mark.parametrize("word", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-3])
def test_no_value_nearby_moves_further(word, apart, rng):
    powers = 2.0 ** rng.integers(-12, 4, 3000)
    values = np.concatenate((rng.normal(size=3000) * powers, powers, -powers, np.zeros(50), powers * (1 + 1e-4)))
    values = values + apart * rng.uniform(-1, 1, len(values)) * (rng.random(len(values)) < 0.5)
    width = {"float32": 32}.get(word, 16)
    bit = rng.integers(0, width, len(values))
    most = largest_flips(values, word, bit, apart=apart)
    for place in (-1.0, 1.0, 0.0, *rng.uniform(-1, 1, 20)):
        near = words_of(values + place * apart, word)
        with np.errstate(invalid="ignore"):
            change = np.nan_to_num(np.abs(flip_deltas(near, word, bit=bit)), nan=np.inf, posinf=np.inf)
        assert (change <= most * (1 + 1e-6)).all()


def test_away_from_powers_of_two_the_bound_is_the_change(rng):
    values, bit = rng.uniform(1.1, 1.9, 500) * 2.0 ** rng.integers(-5, 5, 500), rng.integers(0, 32, 500)
    exact = np.nan_to_num(
        np.abs(flip_deltas(words_of(values, "float32"), "float32", bit=bit)), nan=np.inf, posinf=np.inf
    )
    np.testing.assert_allclose(largest_flips(values, "float32", bit, apart=1e-6), exact, rtol=1e-3)
    assert np.isinf(largest_flips(np.array([1.5]), "float32", np.array([30]), apart=1e-6)).all()
