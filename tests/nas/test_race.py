"""The race: who dominates whom, and by simulation how often one of the front is dropped."""

import numpy as np
import pytest

from torchfault.errors import StatisticsError
from torchfault.nas import Contender, Race
from torchfault.statistics import proportion

SIZES = (40, 80, 160, 320)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Contender((0.9, -10.0), 0.81, 0.85), True),
        (Contender((0.95, -5.0), 0.81, 0.85), True),
        (Contender((0.9, -10.0), 0.80, 0.85), False),  # bounds that touch prove nothing
        (Contender((0.89, -5.0), 0.9, 0.95), False),  # less accurate
        (Contender((0.95, -11.0), 0.9, 0.95), False),  # dearer
    ],
)
def test_one_is_dominated_by_what_is_nowhere_worse_and_surely_more_robust(other, expected):
    assert Race().dominated(Contender((0.9, -10.0), 0.7, 0.80), [other]) is expected


def test_risks_add_up_to_the_error():
    race = Race(error=0.1, looks=3)
    tails = [race.looks * (1 - race.below(number)) / 2 for number in range(100_000)]
    assert race.looks * (1 - race.above) / 2 + sum(tails) <= 0.1
    assert sum(tails) > 0.0499


def raced(rng, exact, robust, race):
    """Look at candidates in turn, by binomial samples that grow; return which were dropped, and all the trials."""
    dropped, floors, spent = [], [], 0
    for number, (fixed, p) in enumerate(zip(exact, robust, strict=True)):
        outcomes = rng.random(SIZES[-1]) < p
        ended = False
        for size in SIZES:
            hits = int(outcomes[:size].sum())
            high = proportion(hits, size, method="clopper-pearson", level=race.above).high
            ended = race.dominated(Contender(fixed, 0.0, high), floors)
            if ended:
                break
        low = proportion(hits, size, method="clopper-pearson", level=race.below(number)).low
        floors.append(Contender(fixed, low, 1.0))
        dropped.append(ended)
        spent += size
    return dropped, spent


def on_front(exact, robust):
    """Return which candidates none dominates by true values."""
    return [
        not any(other > p and all(b >= a for a, b in zip(fixed, theirs, strict=True)) for theirs, other in rivals)
        for fixed, p in zip(exact, robust, strict=True)
        for rivals in [list(zip(exact, robust, strict=True))]
    ]


@pytest.mark.parametrize("case", ["spread", "equal", "near"])
def test_the_front_is_dropped_no_more_often_than_stated(case):
    """Equal true values are the worst case: every candidate is on the front, and all can err."""
    rng, race = np.random.default_rng(7), Race(error=0.1, looks=len(SIZES))
    count, wrong, shares = 12, np.zeros(12), []
    repeats = 150
    for _ in range(repeats):
        exact = [tuple(rng.integers(0, 3, 2).tolist()) for _ in range(count)]
        robust = {
            "spread": rng.uniform(0.4, 0.95, count),
            "equal": np.full(count, 0.7),
            "near": rng.uniform(0.68, 0.72, count),
        }[case]
        dropped, spent = raced(rng, exact, robust, race)
        wrong += np.array(dropped) & np.array(on_front(exact, robust))
        shares.append(spent / (count * SIZES[-1]))
    assert wrong.max() / repeats <= 0.1 + 3 * (0.1 * 0.9 / repeats) ** 0.5
    assert wrong.mean() / repeats <= 0.1
    if case == "spread":
        assert np.mean(shares) < 0.85  # what it is for


def test_what_cannot_be_is_refused():
    for wrong in ({"error": 0.0}, {"error": 1.0}, {"looks": 0}):
        with pytest.raises(StatisticsError, match="a risk of error between 0 and 1 and a look or more"):
            Race(**wrong)
