"""Diagnostics: what weights cost, where the trials went, and a warning with a remedy where a region is starved."""

import re

import numpy as np
import pytest

from tests.support.doubles import SPACE, Double
from torchfault.campaign import Campaign, run
from torchfault.results.diagnostics import diagnose
from torchfault.sampling import Population, Statistical, Uniform
from torchfault.space import FaultSpace, Site
from torchfault.statistics import Estimate, MaxTrials, wilson_trials
from torchfault.store import Columns

HALVES = FaultSpace((Site("a", (100,)), Site("b", (100,))))


def columns(faults, *, failed=None, weights=None, strata=None):
    n = len(faults)
    flags = np.zeros(n, dtype=bool) if failed is None else np.asarray(failed)
    weights = None if weights is None else np.asarray(weights, dtype=float)
    strata = None if strata is None else np.asarray(strata, dtype=np.int32)
    return Columns(np.asarray(faults), np.zeros(n, dtype=np.int64), {"failed": flags}, weights, strata)


def found(*arguments, **options):
    return diagnose(HALVES, columns(*arguments, **options), Estimate(0.1, 0.05, 0.2, 10, "wilson"))


def test_uniform_trials_are_worth_themselves_and_need_no_warning():
    results = run(Campaign(Double(), SPACE, sampler=Uniform(), stop=MaxTrials(2000)))
    diagnostics = results.diagnostics()
    assert diagnostics.effective == diagnostics.trials == 2000
    assert diagnostics.design_effect == diagnostics.lightest == diagnostics.heaviest == 1
    assert diagnostics.worth == pytest.approx(2000, rel=0.01)
    assert diagnostics.warnings == ()


def test_the_allocation_says_where_the_trials_went():
    results = run(Campaign(Double(), SPACE, sampler=Statistical("data-unaware", margin=0.05)))
    table = results.diagnostics().allocation
    assert table["trials"].sum() == len(results)
    assert table["failures"].sum() == results.failures
    assert table["share"].sum() == pytest.approx(1)
    assert table["variance"].sum() == pytest.approx(1)
    strata = Statistical("data-unaware").design(Population(SPACE)).strata
    assert table["share"].to_numpy() == pytest.approx(strata.sizes / len(SPACE))


def test_kish_by_hand():
    diagnostics = found(np.arange(4) * 1600, weights=[2.0, 1.0, 1.0, 0.0])
    assert diagnostics.effective == pytest.approx(16 / 6)
    assert diagnostics.design_effect == pytest.approx(4 * 6 / 16)
    assert diagnostics.worth == wilson_trials(0.1, 0.075)


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        (({"faults": []}), "no trial yet: run some"),
        (({"faults": np.arange(50)}), "site 'b' has 50 % .* no trial: .*mix uniform draws in"),
        (({"faults": np.append(np.arange(99), 5000)}), "site 'b' has 50 % .* 1 % of the trials"),
        (
            ({"faults": np.arange(100) * 60, "strata": [0] * 99 + [1], "weights": [0.5] * 99 + [50.5]}),
            "stratum 1 stands for 5[01] % of the faults by 1 of 100 trials: .*more draws",
        ),
        (
            (
                {
                    "faults": np.arange(100) * 60,
                    "weights": [0.9] * 99 + [10.9],
                    "failed": [True] * 3 + [False] * 96 + [True],
                }
            ),
            "one failing trial makes up 80 % of the estimate",
        ),
        (({"faults": np.arange(100) * 60, "weights": [0.01] * 99 + [99.01]}), "100 trials are worth 1 if"),
    ],
)
def test_a_starved_region_is_named_with_the_remedy(given, warning):
    said = found(**given).warnings
    assert any(re.search(warning, text) for text in said), said
