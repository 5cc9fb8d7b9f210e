"""Score intervals of weighted strata: Wilson's where there is one, possible always, honest where nothing changed."""

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import manual_seed, nn, no_grad, randn

from tests.support.hardware_records import record_all
from torchfault.campaign import run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import StatisticsError
from torchfault.hardware.accelerator import FLAT
from torchfault.hardware.layers import layers_of
from torchfault.results.upset_sample import sample_of
from torchfault.statistics import MaxTrials, bounded_mean, wilson
from torchfault.statistics.stratified_score import tilted_bounds

Floats = NDArray[np.float64]


def prior(*moments: float, strata: int = 1) -> list[Floats]:
    return [np.full(strata, moment) for moment in moments]


@pytest.mark.parametrize(("k", "n"), [(25, 100), (60, 1000), (300, 400)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_one_stratum_of_zeros_and_ones_has_wilsons_interval(k: int, n: int, level: float) -> None:
    x = np.repeat([1.0, 0.0], [k, n - k])
    found = tilted_bounds(x, np.zeros(n, dtype=np.int64), prior(0, 0, 0), level=level, reach=(0, 1))
    np.testing.assert_allclose(found[1:], wilson(k, n, level=level), atol=6 / n**1.5)
    assert found[0] == k / n


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_sample_of_zeros_leaves_room_for_three_changes(size: float) -> None:
    """However heavy the prior's tails, of which the degrees of freedom were once made."""
    for n in (10, 300, 4000):
        heavy = prior(1e-9 * size**2, 1e-3 * size**3, 1e3 * size**4, strata=5)
        stratum = np.arange(n) % 5
        value, low, high = tilted_bounds(np.zeros(n), stratum, heavy, level=0.95, reach=(-size / 10, size))
        assert value == 0
        assert 3.0 < high * n / size < 3.7
        assert 3.0 < -low * n / size * 10 < 3.7
        held = tilted_bounds(np.zeros(n), stratum, heavy, level=0.95, reach=(-size / 10, size), least=0, most=size / n)
        assert held == (0, 0, size / n)
        alone = tilted_bounds(np.zeros(n), stratum, heavy, level=0.95, least=-size, most=size)
        assert -size <= alone[1] <= 0 <= alone[2] <= size


def test_few_changes_are_bounded_by_the_reach_of_a_draw() -> None:
    x = np.zeros(200)
    x[[3, 50, 90]] = 0.5, -0.2, 2.0
    stratum = np.repeat(np.arange(4), 50)
    found = tilted_bounds(x, stratum, prior(0.1, 0.1, 0.1, strata=4), level=0.9, reach=(-1, 3))
    expected = bounded_mean(x, low=-1, high=3, level=0.9)
    assert found == (expected.value, expected.low, expected.high)


@pytest.mark.parametrize(("heavy", "expected"), [(1, 0.1), (1, 0.15), (2, 0.3), (3, 0.8)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_few_heavy_draws_do_not_prove_that_there_must_be_so_many(heavy: int, expected: float, sign: int) -> None:
    """Of 200 draws each in two strata, 40 are 1, and so many 50 where *expected* were: 4 to 14 % of samples."""
    x, stratum = np.zeros(400), np.repeat([0, 1], 200)
    x[:40], x[200 : 200 + heavy] = 1, 50
    value, low, high = tilted_bounds(sign * x, stratum, prior(0.1, 0.1, 0.1, strata=2), level=0.95)
    low, high = sorted((sign * low, sign * high))
    assert low < (40 + 50 * expected) / 400 < sign * value
    assert (40 + 50 * (heavy + 1.96 * heavy**0.5)) / 400 < high, "those that might have come are as many as before"


def test_an_estimate_beyond_the_possible_stays_within_its_bounds() -> None:
    found = tilted_bounds(np.full(30, 2.0), np.zeros(30, dtype=np.int64), prior(1, 1, 1), level=0.95, least=0, most=1)
    assert found[2] == found[0] == 2
    with pytest.raises(StatisticsError, match="level"):
        tilted_bounds(np.ones(3), np.zeros(3, dtype=np.int64), prior(1, 1, 1), level=95)


def test_parts_and_the_whole_hold_their_level_though_most_strata_never_change() -> None:
    """Twenty strata of unequal weights, of which one in four ever changes anything; parts are strata of one kind."""
    rng, repeats = np.random.default_rng(12), 300
    weight = rng.uniform(0.2, 5.0, 20)
    failing = np.where(np.arange(20) % 4 == 0, [0.001, 0.01, 0.05, 0.2, 0.6] * 4, 0.0)
    stratum = np.repeat(np.arange(20), 40)
    parts = {"whole": np.ones(20), **{f"part {one}": (np.arange(20) % 4 == one) + 0.0 for one in range(4)}}
    parts |= {"rare": np.isin(np.arange(20), [0, 4]) + 0.0}
    held = dict.fromkeys(parts, 0)
    for _ in range(repeats):
        y = (rng.random(len(stratum)) < failing[stratum]) * 1.0
        for name, part in parts.items():
            w = weight * part
            moments = [w**power * 0.02 for power in (2, 3, 4)]
            _, low, high = tilted_bounds(w[stratum] * y, stratum, moments, level=0.95, reach=(0, float(w.max())))
            held[name] += low <= float((w * failing).mean()) + 1e-12 <= high + 2e-12
    assert {name: count for name, count in held.items() if count < 0.915 * repeats} == {}


@pytest.mark.slow
def test_contributions_of_layers_types_and_bits_hold_their_level() -> None:
    """A network whose first layer is idle, and every upset of it; few bits of few layers ever change an answer."""
    manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    inputs = randn(10, 3)
    with no_grad():
        model[2].weight[:, 1:] = 0
        labels = model(inputs).argmax(1)
    labels[:2] = (labels[:2] + 1) % 3
    data = Data(inputs, labels)
    held = record_all(Engine(model, data), FLAT, layers_of(model, data))
    space, answers = held.space, held.answers[held.records.row]
    wrong = (answers != labels.numpy()).mean(1) - 0.2
    drop = np.bincount(held.records.cell, held.records.share * wrong, len(space.cells))
    codes = {"layer": space.layer, "type": space.type, "bit": space.cells.bit}
    for trials in (1100, 2048, 4096):
        hits: dict[tuple[str, int], list[bool]] = {}
        for seed in range(150):
            sample = sample_of(run(held.campaign(stop=MaxTrials(trials), seed=seed)))
            for by, code in codes.items():
                for one in np.unique(code[sample.p > 0]).tolist():
                    p = np.where(code == one, sample.p, 0.0)
                    part, truth = sample.drop(p, control=0.0), float(p @ drop)
                    hits.setdefault((by, one), []).append(part.low - 1e-12 <= truth <= part.high + 1e-12)
        for by in codes:
            shares = np.array([np.mean(hit) for (name, _), hit in hits.items() if name == by])
            print(f"{trials} trials, by {by}: {shares.mean():.3f} on average, {shares.min():.3f} at worst")
            assert shares.mean() >= 0.94
            assert shares.min() >= 0.86
