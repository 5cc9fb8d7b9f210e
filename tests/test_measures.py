"""Measures: probabilities that sum to one, draws that follow them, refusals of what does not fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from torchfault.errors import SpaceError
from torchfault.measures import UNIFORM, Measure, ProductMeasure, draw, probability
from torchfault.space import FaultSpace, Site

SPACE = FaultSpace(
    (
        Site("a", (2, 3), word="int8"),
        Site("empty", (0, 4)),
        Site("b", (4,), bits=(0, 23, 30, 31)),
        Site("c", (), word="int8", bits=(7,)),
    )
)


def normal(values):
    """Return *values* divided by their sum."""
    return np.asarray(values, dtype=float) / np.sum(values)


MEASURES = {
    "uniform": UNIFORM,
    "by site": ProductMeasure(normal([1, 0, 2, 5])),
    "by element": ProductMeasure(normal([1, 0, 2, 1]), elements={"a": normal([1, 2, 3, 0, 5, 6])}),
    "by bit": ProductMeasure(normal([1, 0, 2, 1]), bits={"b": normal([0, 1, 2, 3])}),
    "by all": ProductMeasure(
        normal([5, 0, 2, 1]),
        elements={"a": normal([9, 1, 1, 1, 1, 9]), "b": normal([4, 3, 2, 1])},
        bits={"a": normal(2.0 ** np.arange(8)), "b": normal([1, 1, 1, 7]), "c": normal([3])},
    ),
}


def by_hand(measure, space):
    """Return the probability of every fault by three loops."""
    found, shares = [], space.sizes / len(space) if measure.sites is None else measure.sites
    for site, p in zip(space.sites, shares, strict=True):
        elements = (measure.elements or {}).get(site.name, [1 / max(site.elements, 1)] * site.elements)
        bits = (measure.bits or {}).get(site.name, [1 / len(site.bits)] * len(site.bits))
        found += [p * e * b for e in elements for b in bits]
    return np.array(found)


@pytest.mark.parametrize("name", MEASURES)
def test_probabilities_are_products_and_sum_to_one(name):
    p = probability(MEASURES[name], SPACE, np.arange(len(SPACE)))
    assert np.allclose(p, by_hand(MEASURES[name], SPACE), rtol=1e-12, atol=0)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_a_mass_of_cells_and_a_spread_over_their_places(name, rng):
    measure, every = MEASURES[name], np.arange(len(SPACE))
    assert isinstance(measure, Measure)
    cell, place = SPACE.cell_of(every), SPACE.place_of(every)
    p = by_hand(measure, SPACE)
    mass = measure.mass(SPACE)
    np.testing.assert_allclose(mass, np.bincount(cell, p, len(SPACE.cells)), atol=1e-15)
    within = measure.within(SPACE, cell, place)
    held = np.bincount(cell, within, len(SPACE.cells))
    np.testing.assert_allclose(held, SPACE.cells.sizes > 0, atol=1e-12)
    for one in np.flatnonzero(SPACE.cells.sizes)[::5]:
        places = measure.draw_places(SPACE, np.full(4000, one), rng=rng)
        seen, expected = np.bincount(places, minlength=SPACE.cells.sizes[one]), 4000 * within[cell == one]
        assert not seen[expected == 0].any()
        assert seen.sum() == 4000
        if (expected > 0).sum() > 1:
            assert chisquare(seen[expected > 0], expected[expected > 0]).pvalue > 1e-4


@pytest.mark.parametrize("name", MEASURES)
def test_draws_have_the_frequencies_of_the_measure(name, rng):
    n = 100_000
    index = draw(MEASURES[name], SPACE, n, rng=rng)
    assert index.dtype == np.int64
    assert index.shape == (n,)
    expected = n * by_hand(MEASURES[name], SPACE)
    seen = np.bincount(index, minlength=len(SPACE))
    assert (seen[expected == 0] == 0).all()
    assert chisquare(seen[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_the_test_of_frequencies_sees_a_wrong_measure(rng):
    n = 100_000
    seen = np.bincount(draw(MEASURES["by bit"], SPACE, n, rng=rng), minlength=len(SPACE))
    wrong = n * by_hand(ProductMeasure(normal([1, 0, 2, 1]), bits={"b": normal([0, 1.1, 2, 3])}), SPACE)
    assert chisquare(seen[wrong > 0], wrong[wrong > 0]).pvalue < 1e-3


def test_draws_depend_on_the_generator_alone():
    one, two, other = (draw(MEASURES["by all"], SPACE, 50, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_no_draws(rng):
    assert draw(UNIFORM, SPACE, 0, rng=rng).shape == (0,)
    assert probability(UNIFORM, SPACE, []).shape == (0,)


def test_a_huge_space_is_never_listed(rng):
    space = FaultSpace((Site("a", (2**30, 2**20)), Site("b", (2**26,))))
    measure = ProductMeasure(np.array([0.5, 0.5]))
    index = draw(measure, space, 1000, rng=rng)
    assert np.array_equal(probability(measure, space, index) < 1e-15, index < space.sizes[0])
    assert probability(UNIFORM, space, index) == pytest.approx(np.full(1000, 1 / len(space)))


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_uniform_gives_every_fault_the_same(sizes, seed):
    space = FaultSpace(tuple(Site(f"s{i}", (n,), word="int8") for i, n in enumerate(sizes)))
    index = np.random.default_rng(seed).integers(0, len(space), 20)
    assert probability(UNIFORM, space, index) == pytest.approx(np.full(20, 1 / len(space)))


def test_plain_lists_become_arrays():
    measure = ProductMeasure([0.5, 0, 0.5, 0], elements={"b": [0.25] * 4}, bits={"b": [1, 0, 0, 0]})
    assert measure.sites.dtype == measure.bits["b"].dtype == np.float64
    assert probability(measure, SPACE, [48]) == pytest.approx([0.125])


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: ProductMeasure(np.array([0.5, 0.6])),
            r"of the sites are one row.* got shape \(2,\) and sum 1.1; normalise",
        ),
        (lambda: ProductMeasure(np.array([1.5, -0.5])), "at least 0"),
        (lambda: ProductMeasure(np.array([0.5, np.nan])), "sum nan"),
        (lambda: ProductMeasure(np.array([0.5, np.inf])), "sum inf"),
        (lambda: ProductMeasure(np.array([])), "sum 0"),
        (lambda: ProductMeasure(np.array([[0.5, 0.5]])), r"got shape \(1, 2\)"),
        (lambda: ProductMeasure(np.array([1.0]), elements={"a": np.array([0.9])}), "of the elements of 'a'"),
        (lambda: ProductMeasure(np.array([1.0]), bits={"a": np.array([2.0, -1.0])}), "of the bits of 'a'"),
    ],
)
def test_what_is_no_distribution_is_refused(attempt, message):
    with pytest.raises(SpaceError, match=message):
        attempt()


class Other:
    """A space of another kind, of one cell."""

    cells = SPACE.cells

    def __len__(self):
        return len(SPACE)


def test_a_product_over_sites_asks_for_a_space_of_sites():
    with pytest.raises(SpaceError, match="a product measure is over sites, got a Other; take its own measure"):
        MEASURES["by all"].mass(Other())
    np.testing.assert_allclose(UNIFORM.mass(Other()), UNIFORM.mass(SPACE))


def test_the_shares_of_sites_may_be_left_as_they_are():
    measure = ProductMeasure(bits={"b": normal([0, 1, 2, 3])})
    p = probability(measure, SPACE, np.arange(len(SPACE)))
    np.testing.assert_allclose(p, by_hand(measure, SPACE))


MISFITS = {
    "sites": (ProductMeasure(normal([1, 1])), "a space of 4 sites needs one probability each, got 2"),
    "an empty site": (ProductMeasure(normal([1, 1, 1, 1])), "'empty' has no element, so its probability is 0"),
    "elements": (
        ProductMeasure(normal([1, 0, 0, 0]), elements={"a": normal([1] * 5)}),
        "'a' has 6 elements, got 5 probabilities",
    ),
    "bits": (
        ProductMeasure(normal([0, 0, 1, 0]), bits={"b": normal([1] * 32)}),
        "'b' has 4 bits, got 32 probabilities",
    ),
    "names": (ProductMeasure(normal([1, 0, 1, 1]), bits={"aa": normal([1] * 8)}), "no site is called 'aa'"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_measure_of_another_space_is_refused(name, rng):
    measure, message = MISFITS[name]
    with pytest.raises(SpaceError, match=message):
        draw(measure, SPACE, 10, rng=rng)
    with pytest.raises(SpaceError, match=message):
        probability(measure, SPACE, np.arange(len(SPACE)))
