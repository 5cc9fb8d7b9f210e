"""Samplers of upsets: draws that weigh what they should, pilots, strata, and campaigns that find the truth."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.thales.records import answers_of
from tests.support.small_network import small_network
from torchfault.campaign import Campaign, run
from torchfault.engine import Engine
from torchfault.errors import SamplingError
from torchfault.hardware.accelerator import FLAT, NVDLA_LIKE, OUTPUT_STATIONARY
from torchfault.hardware.layers import layers_of
from torchfault.hardware.measure import UpsetMeasure
from torchfault.hardware.samplers import PROPOSALS, ByCells, TwoPhase, halves_of, pairs_of
from torchfault.hardware.upset_space import upset_space
from torchfault.hardware.upsets import Upset
from torchfault.measures import UNIFORM
from torchfault.sampling.protocol import Population, Sampler, stream
from torchfault.sampling.tally import Tally
from torchfault.space import FaultSpace, Site
from torchfault.statistics import MaxTrials
from torchfault.store import Columns

ARRAY = replace(OUTPUT_STATIONARY, height=2, width=2, utilisation="tile")
CHIPS = {"array": ARRAY, "flat": FLAT, "nvdla-like": NVDLA_LIKE}
IN_USE = UpsetMeasure(in_use=True)
SAMPLERS = {"two phases": TwoPhase(block=512), **{name: ByCells(name, block=512) for name in PROPOSALS}}


@pytest.fixture(scope="module")
def small():
    """Return an engine on a network of 38 variables and 10 inputs, some of which it gets wrong, and its layers."""
    model, data = small_network()
    return Engine(model, data), layers_of(model, data)


@pytest.fixture(scope="module", params=["array", "flat"])
def outcomes(request, small):
    """Return a population of upsets, whether each changes the answer to each input, and the true probability."""
    engine, layers = small
    space = upset_space(CHIPS[request.param], layers.works, layers.space)
    index = np.arange(len(space))
    cell, place = space.cell_of(index), space.place_of(index)
    data = index[space.cells.bit[cell] >= 0]
    failed = np.zeros((len(space), 10), dtype=bool)
    failed[data] = answers_of(engine, Upset(layers), space, data) != engine.golden().argmax(1).numpy()
    truth = IN_USE.mass(space)[cell] * IN_USE.within(space, cell, place) @ failed.mean(1)
    return Population(space, IN_USE, inputs=10), failed, float(truth)


def population(small, chip):
    """Return the upsets of an accelerator on the small network."""
    _, layers = small
    return Population(upset_space(chip, layers.works, layers.space), IN_USE, inputs=10)


def drawn(sampler, population, failed, *, blocks, seed):
    """Return the draws of some blocks, one after the other, and whether each failed."""
    tally = Tally(population.space, sampler.design(population))
    parts = []
    for number in range(blocks):
        start, rng = number * sampler.block, stream(seed, number)
        draws = sampler.draw(population, sampler.block, rng=rng, start=start, tally=tally)
        inputs = stream(seed, number, 1).integers(0, population.inputs, len(draws))
        y = failed[draws.index, inputs]
        tally.add(Columns(draws.index, inputs, {"failed": y}, weights=draws.weight, strata=draws.stratum))
        parts.append((draws, y))
    return parts


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_mean_of_every_block_is_unbiased(outcomes, name):
    population, failed, truth = outcomes
    sampler, seeds = SAMPLERS[name], 60
    assert isinstance(sampler, Sampler)
    runs = [drawn(sampler, population, failed, blocks=3, seed=seed) for seed in range(seeds)]
    for block in range(3):
        means = np.array([(parts[block][0].weight * parts[block][1]).mean() for parts in runs])
        assert abs(means.mean() - truth) < 4.5 * means.std(ddof=1) / np.sqrt(seeds), block


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_weigh_what_they_should(small, name, chip):
    sampler, within = SAMPLERS[name], population(small, chip)
    sampler = replace(sampler, block=1024)
    space, mass, design = within.space, IN_USE.mass(within.space), sampler.design(within)
    never = np.zeros((len(space), 10), dtype=bool)
    total, blocks = np.zeros(len(mass)), 24
    for number, (draws, _) in enumerate(drawn(sampler, within, never, blocks=blocks, seed=1)):
        cell = space.cell_of(draws.index)
        assert (mass[cell] > 0).all()
        assert number == 0 or design.largest_weight is None or draws.weight.max() <= design.largest_weight + 1e-9
        np.add.at(total, cell, draws.weight / 1024)
        if design.adapts and number == 0:
            of_pair, pair = np.bincount(draws.stratum, draws.weight / 1024), pairs_of(space, mass)
            assert set(draws.stratum.tolist()) == set(range(pair.max() + 1))
            masses = np.bincount(pair[pair >= 0], mass[pair >= 0])
            assert of_pair == pytest.approx(masses), "strata of the pilot have a share fixed beforehand"
        if isinstance(sampler, TwoPhase):
            assert draws.weight.mean() == pytest.approx(1)
            assert number == 0 or draws.stratum.min() == len(design.strata)
    often = mass > np.quantile(mass[mass > 0], 0.5)
    assert total[often].sum() / blocks == pytest.approx(mass[often].sum(), rel=0.02)
    assert total.sum() / blocks == pytest.approx(1, abs=0.02)


def test_a_pilot_comes_in_halves_that_know_all_pairs(small):
    within = population(small, NVDLA_LIKE)
    draws = TwoPhase(block=1001).draw(within, 1001, rng=np.random.default_rng(0), start=0)
    first, second = halves_of(1001)
    assert (first, second) == (501, 500)
    pairs = 5 * 32 + 1  # random words have no bit
    masses = TwoPhase(block=1001).design(within).strata.masses
    for half in (slice(0, first), slice(first, None)):
        counts = np.bincount(draws.stratum[half], minlength=pairs)
        assert counts.min() >= 1
        weights = np.bincount(draws.stratum[half], draws.weight[half], pairs) / counts.sum()
        assert weights == pytest.approx(masses)
        assert draws.weight[half].max() < 3, "half of the pilot goes by the measure"


def test_the_pilot_directs_the_draws_after_it(outcomes):
    population, failed, _ = outcomes
    space = population.space
    (_, _), (later, _) = drawn(TwoPhase(block=512), population, failed, blocks=2, seed=3)
    bit, other = (space.locate(part.index).bit for part in (later, ByCells("IS").draw(
        population, 2000, rng=np.random.default_rng(0), start=0)))  # fmt: skip
    assert np.mean(bit == 30) > 3 * np.mean(other == 30)
    assert np.mean(bit < 16) < 0.7 * np.mean(other < 16)
    harmless = drawn(TwoPhase(block=512), population, np.zeros_like(failed), blocks=2, seed=3)[1][0]
    assert np.mean(space.locate(harmless.index).bit == 30) < 2 * np.mean(other == 30)


def test_a_block_depends_on_its_stream_and_the_pilot_alone(outcomes):
    population, failed, _ = outcomes
    one, two, other = (drawn(TwoPhase(block=512), population, failed, blocks=3, seed=seed) for seed in (4, 4, 5))
    for (first, _), (second, _) in zip(one, two, strict=True):
        assert (first.index == second.index).all()
        assert (first.weight == second.weight).all()
    assert (one[0][0].index != other[0][0].index).any()
    with pytest.raises(SamplingError, match="a pilot of 512 draws"):
        TwoPhase(block=512).draw(population, 512, rng=np.random.default_rng(0), start=512)


def test_two_phases_are_the_sharpest(outcomes):
    population, failed, truth = outcomes

    def error(sampler):
        means = []
        for seed in range(40):
            parts = drawn(sampler, population, failed, blocks=4, seed=seed)[sampler == SAMPLERS["IS-B"] :]
            means.append(np.mean([(draws.weight * y).mean() for draws, y in parts]))
        return np.sqrt(np.mean((np.array(means) - truth) ** 2))

    errors = {name: error(sampler) for name, sampler in SAMPLERS.items()}
    print({name: round(float(value), 5) for name, value in errors.items()})
    assert min(errors, key=errors.get) == "two phases"


@pytest.mark.parametrize("name", SAMPLERS)
def test_resiliency_is_a_plain_campaign(small, outcomes, name):
    population, _, truth = outcomes
    engine, layers = small
    campaign = Campaign(
        engine,
        population.space,
        sampler=SAMPLERS[name],
        measure=IN_USE,
        fault=Upset(layers),
        stop=MaxTrials(2048),
    )
    found = run(campaign).estimate()
    assert found.low <= truth <= found.high
    assert found.high - found.low < 0.1


def test_what_cannot_be_drawn_is_refused(small):
    within = population(small, FLAT)
    with pytest.raises(SamplingError, match=r"for each of 96 pairs of a type and a bit, got a block of 383; use"):
        TwoPhase(block=383).design(within)
    assert len(TwoPhase(block=384).design(within).strata) == 96
    with pytest.raises(SamplingError, match="control is known and never drawn"):
        TwoPhase().design(replace(within, measure=UpsetMeasure()))
    with pytest.raises(SamplingError, match="from the space of an accelerator, got a FaultSpace"):
        ByCells().design(Population(FaultSpace((Site("a", (2,)),)), UNIFORM))
    with pytest.raises(SamplingError, match="did you mean 'IS-B'"):
        ByCells("ISB")
    with pytest.raises(SamplingError, match="a draw or more"):
        ByCells(block=0)
