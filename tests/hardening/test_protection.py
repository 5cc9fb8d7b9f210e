"""Selective protection against enumeration: sizes, choices, budgets, and bounds that hold."""

from dataclasses import replace
from itertools import combinations

import pytest

from torchfault.campaign import run
from torchfault.errors import SamplingError, StatisticsError
from torchfault.hardening import front, protect, residual
from torchfault.hardening.protection import _exactly, _greedily
from torchfault.sampling import Exhaustive, Uniform
from torchfault.testing import example_campaign


@pytest.fixture(scope="module")
def results():
    return run(example_campaign(trials=3000))


@pytest.fixture(scope="module")
def everything():
    """Every fault of the example on both inputs."""
    return run(replace(example_campaign(), sampler=Exhaustive(), stop=None, inputs_per_fault=None))


def test_groups_have_the_sizes_of_their_space(results):
    every = {"bit": (32, 12), "site": (1, 384), "channel": (3, 128), "word": (12, 32), ("channel", "bit"): (96, 4)}
    for by, (groups, bits) in every.items():
        found = protect(results, by, budget=1.0)
        assert set(found.chosen["bits"]) == {bits}, by
        assert len(found.chosen) <= groups
        assert found.bits <= 1
        assert found.removed.value > 0.95
        assert found.residual.value < 0.01


def test_the_exact_choice_is_the_best_of_all_choices(rng):
    for _ in range(20):
        failures, cost = rng.integers(0, 9, 8).astype(float), rng.random(8) + 0.05
        budget = float(rng.random() * cost.sum())
        best = max(
            failures[list(some)].sum()
            for n in range(9)
            for some in combinations(range(8), n)
            if cost[list(some)].sum() <= budget
        )
        picked = _exactly(failures, cost, budget)
        assert failures[picked].sum() == best
        assert cost[picked].sum() <= budget * (1 + 1e-9)
        greedy = _greedily(failures, cost, budget)
        assert failures[greedy].sum() <= best
        assert cost[greedy].sum() <= budget * (1 + 1e-9)


def test_a_cost_of_ones_own_is_what_counts(results):
    found = protect(results, ("channel", "bit"), budget=3, cost=lambda group: 1.0 if group["bit"] == 30 else 2.0)
    assert found.cost == 3
    assert found.chosen["bit"].tolist() == [30, 30, 30]


@pytest.mark.slow
def test_bounds_hold_against_the_enumeration(everything):
    by = ("channel", "bit")
    held = 0
    for seed in range(60):
        found = protect(run(example_campaign(trials=400, seed=seed)), by, budget=0.02)
        truth = residual(found, everything)
        held += truth.value <= found.residual.high
    assert held >= 53  # of 60 at 95 %: fewer have a probability below 1 %


def test_the_front_grows_and_ends_with_what_failed(results):
    table = front(results, ("channel", "bit"))
    assert table["cost"].is_monotonic_increasing
    assert table["residual"].is_monotonic_decreasing
    assert table["cost"].iloc[-1] <= 1
    assert (table["removed_low"] <= table["removed"]).all()
    assert (table["residual_high"] >= table["residual"]).all()


def test_bad_input_is_refused_in_one_line(results):
    campaign = example_campaign(trials=40)
    nothing = run(replace(campaign, space=campaign.space.select("weight", bits=[0])))
    for call, error, message in (
        (lambda: protect(results, "bit", budget=0), StatisticsError, "budget above 0, got 0"),
        (
            lambda: protect(results, "bit", budget=1e-3),
            StatisticsError,
            "a budget of 0.001 pays for no group in which a trial failed: the cheapest costs 0.0312",
        ),
        (lambda: protect(results, "bti", budget=1), SamplingError, "did you mean 'bit'"),
        (lambda: protect(results, "bit", budget=1, cost=lambda _: -1.0), StatisticsError, "0 or more"),
        (lambda: protect(results, (), budget=1), SamplingError, "by one or more of layer, .* got none"),
        (lambda: protect(results, "bit", budget=1, level=0.4), StatisticsError, "between 0.5 and 1, got 0.4"),
        (lambda: front(results, "bit", level=1.0), StatisticsError, "between 0.5 and 1, got 1"),
        (lambda: protect(nothing, "bit", budget=1), StatisticsError, "none of the trials that choose failed"),
        (
            lambda: protect(run(replace(example_campaign(trials=64), sampler=Uniform(faults=2))), "bit", budget=1),
            SamplingError,
            "one fault each",
        ),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
