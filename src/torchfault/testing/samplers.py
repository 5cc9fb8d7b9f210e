"""The suite for samplers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from torchfault.measures import probability
from torchfault.sampling import Design, Draws, Population, Sampler, Tally
from torchfault.space import FaultSpace, Site
from torchfault.store import Columns
from torchfault.testing.rules import MOST, hold, rule

__all__ = ["check_sampler"]

_COLUMNS = ("index", "weight", "stratum", "counts", "inputs")
_SIGMAS = 5.0  # with fixed seeds a good sampler passes always, and would fail one seed in millions
_GOALS = {"site": 0.05}
_POPULATIONS = (
    Population(
        FaultSpace(
            (
                Site("conv.weight", (4, 2, 3, 3), channel=0),
                Site("conv:output", (4, 5, 5), kind="output", channel=0),
                Site("fc.weight", (10, 8), word="int8"),
                Site("fc.bias", (10,), kind="bias", bits=(23, 30, 31)),
            )
        ),
        inputs=3,
        goals=_GOALS,
    ),
    Population(FaultSpace((Site("two", (2,), bits=(30, 31)),)), goals=_GOALS),
)


def check_sampler(sampler: Sampler, population: Population | None = None) -> None:
    """Raise AssertionError, naming the rule, where *sampler* is none; for *population*, or two small ones.

    The rules: a block of at least one trial; a design that fits it and survives a store; as many trials as asked for,
    from the space, with finite weights from 0 up to the largest one promised, in strata of the design; the same trials
    from the same random stream, whatever was drawn before; and weights p/q under which every site, element and bit has
    its probability by the population's measure. One whose design says that it adapts keeps to all of this after any
    outcomes, and draws by these alone.

    >>> from torchfault.sampling import Uniform
    >>> check_sampler(Uniform(faults=3))
    """
    for one in _POPULATIONS if population is None else (population,):
        with rule(sampler, "it has a block of one trial or more, design(population) and draw(population, n, rng=...)"):
            hold(isinstance(sampler, Sampler), f"got {type(sampler).__name__}")
            block: object = sampler.block
            hold(isinstance(block, int) and block >= 1, f"got a block of {block!r}")
        design = _design(sampler, one)
        blocks = _blocks(sampler, one, design)
        for start, draws in blocks:
            _check_draws(sampler, one, design, draws, n=_size(sampler, design, start))
        with rule(sampler, "trials depend on the random stream and their number alone"):
            for start, first in reversed(blocks[:3]):
                hold(
                    _same(first, _draw(sampler, one, design, start)), f"trials from {start} on differ when drawn again"
                )
        if design.adapts:
            _check_adapting(sampler, one, design)
        elif design.total is None or design.total <= MOST:
            _check_weights(sampler, one, design, [draws for _, draws in blocks])


def _design(sampler: Sampler, population: Population) -> Design:
    """Return the sampler's design, which has to be consistent."""
    with rule(sampler, "its design has strata that hold the measure, and a total of trials from 1 up or None"):
        design: object = sampler.design(population)
        hold(isinstance(design, Design), f"got {type(design).__name__}")
        assert isinstance(design, Design)
        mass = float(design.strata.masses.sum())
        hold(abs(mass - 1) < 1e-6, f"masses sum to {mass:.6g} and not 1")
        hold(design.total is None or design.total >= 1, f"got a total of {design.total!r}")
        hold(design.block == sampler.block, f"got a block of {design.block} and not {sampler.block}")
        hold(design.looks == "one" or bool(design.targets), "intervals at every look need the half-widths they are for")
    with rule(sampler, "its design is plain data, which a store gives back"):
        again = Design.from_plain(design.plain()).plain()
        hold(again == design.plain(), "it came back otherwise")
    return design


def _same(one: Draws, two: Draws) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(two, part)) for part in _COLUMNS)


def _size(sampler: Sampler, design: Design, start: int) -> int:
    return sampler.block if design.total is None else min(sampler.block, design.total - start)


def _draw(sampler: Sampler, population: Population, design: Design, start: int, *, stream: int = 0) -> Draws:
    """Draw the block that begins at *start*, of one that adapts after the outcomes that :func:`_tally` makes up."""
    n, rng = _size(sampler, design, start), np.random.default_rng([20261121, start, stream])
    tally = _tally(sampler, population, design, start) if design.adapts and start else None
    return sampler.draw(population, n, rng=rng, start=start, tally=tally)


def _tally(sampler: Sampler, population: Population, design: Design, end: int) -> Tally:
    """Return the tally of all trials before *end*, of which half of the highest bits failed, and few others."""
    tally = Tally(population.space, design)
    for start in range(0, end, sampler.block):
        n, rng = _size(sampler, design, start), np.random.default_rng([20261121, start, 0])
        tally.add(_outcomes(population, sampler.draw(population, n, rng=rng, start=start, tally=tally), design))
    return tally


def _outcomes(population: Population, draws: Draws, design: Design) -> Columns:
    space = population.space
    assert isinstance(space, FaultSpace)
    inputs = np.zeros(len(draws), dtype=np.int64) if draws.inputs is None else draws.inputs
    columns = Columns(
        draws.index, inputs, weights=draws.weight, strata=draws.stratum, counts=draws.counts, unit=design.unit
    )
    row, faults, bit = columns.owner, draws.index, space.locate(draws.index).bit.astype(np.int64)
    if design.unit == "word":
        row, faults, bit = space.flips(draws.index)
    top = np.array([max(site.bits) for site in space.sites])[space.locate(faults).site] == bit
    failing = np.random.default_rng(20261121).random(len(faults)) < np.where(top, 0.5, 0.01)
    masks = np.zeros(len(draws), dtype=np.uint64)
    np.bitwise_or.at(masks, row[failing], np.left_shift(np.uint64(1), bit[failing].astype(np.uint64)))
    return replace(columns, flags={"failed": masks if design.unit == "word" else masks > 0})


def _check_adapting(sampler: Sampler, population: Population, design: Design) -> None:
    """Hold three blocks that follow from outcomes to the rules."""
    for number in range(1, 4):
        start = number * sampler.block
        if design.total is not None and start >= design.total:
            return
        with rule(sampler, "draws depend on the outcomes so far and the random stream alone"):
            one, two = (_draw(sampler, population, design, start) for _ in range(2))
            hold(_same(one, two), "drawn twice after the same outcomes, they differ")
        most = MOST if design.replacement else 1  # drawn apart, samples without replacement would overlap
        drawn = [_draw(sampler, population, design, start, stream=n) for n in range(-(-most // sampler.block))]
        for draws in drawn:
            _check_draws(sampler, population, design, draws, n=_size(sampler, design, start))
        if len(drawn) > 1:
            _check_weights(sampler, population, design, drawn)


def _blocks(sampler: Sampler, population: Population, design: Design) -> list[tuple[int, Draws]]:
    """Draw block after block, up to the end of the sampler or enough to judge it by."""
    with rule(sampler, "draw returns Draws, also at the end of the sequence"):
        most, faults = min(design.total or MOST, 1 if design.adapts else MOST), 0
        blocks: list[tuple[int, Draws]] = []
        while (start := len(blocks) * sampler.block) < most and faults < 5 * MOST:
            draws = _draw(sampler, population, design, start)
            hold(isinstance(draws, Draws), f"got {type(draws).__name__}")
            blocks.append((start, draws))
            faults += len(draws.index)
        return blocks


def _check_draws(sampler: Sampler, population: Population, design: Design, draws: Draws, *, n: int) -> None:
    space = population.space
    with rule(sampler, "draw returns as many trials as asked for, each of a fault or more"):
        hold(len(draws) == n, f"asked for {n}, got {len(draws)}")
        hold(draws.counts is None or (draws.counts >= 1).all(), "got a trial without a fault")
    with rule(sampler, "faults are whole numbers inside the space, and so are inputs"):
        hold(np.issubdtype(draws.index.dtype, np.integer), f"got {draws.index.dtype}")
        inside = (draws.index >= 0) & (draws.index < len(space))
        hold(inside.all(), f"got {draws.index[~inside][:3]} in a space of {len(space)}")
        if draws.inputs is not None:
            known = (draws.inputs >= 0) & (draws.inputs < population.inputs)
            hold(known.all(), f"got inputs {draws.inputs[~known][:3]} of {population.inputs}")
    with rule(
        sampler, "weights are finite, from 0 up to the largest of the design, and strata are those of the design"
    ):
        hold(np.isfinite(draws.weight).all() and (draws.weight >= 0).all(), f"got weights like {draws.weight[:3]}")
        largest = math.inf if design.largest_weight is None else design.largest_weight * (1 + 1e-9)
        hold(
            draws.weight.max(initial=0.0) <= largest, f"got {draws.weight.max(initial=0.0)}, and {largest} was promised"
        )
        whole = np.issubdtype(draws.stratum.dtype, np.integer)
        known = (draws.stratum >= 0) & (draws.stratum < len(design.strata))
        hold(whole and known.all(), f"got strata like {draws.stratum[:3]} of {len(design.strata)}")


def _check_weights(sampler: Sampler, population: Population, design: Design, blocks: Sequence[Draws]) -> None:
    """Compare the weighted share of every group of faults with its probability."""
    space, sample = population.space, design.sample
    assert isinstance(space, FaultSpace)
    weight = np.concatenate([draws.weight for draws in blocks])
    if sample is not None:  # what was picked on purpose stands for itself alone
        weight = weight * np.isin(np.concatenate([draws.stratum for draws in blocks]), sample)
        if not weight.any():
            return
    index = np.concatenate([draws.index for draws in blocks])
    counts = [np.ones(len(draws), dtype=np.int64) if draws.counts is None else draws.counts for draws in blocks]
    owner = np.repeat(np.arange(len(weight)), np.concatenate(counts))
    part = np.ones(len(owner))
    if design.unit == "word":  # a word is one draw, however many bits it has
        owner, index, _ = space.flips(index)
        part = 1 / np.bincount(owner)[owner]
    faults = np.bincount(owner, part, len(weight))
    root = math.sqrt(len(weight))
    with rule(sampler, "weights are p/q, so that every site, element and bit has its probability on average"):
        off, error = abs(weight.mean() - 1), weight.std() / root
        hold(off <= _SIGMAS * error + 1e-9, f"the mean weight is {weight.mean():.4g} and not 1")
        for what, here, p in _groups(population, space, index):
            mine = np.bincount(owner, weights=here * part, minlength=len(weight))
            excess = weight * (mine - p * faults)
            # The spread of a group that was never drawn is that of weights of 1.
            error = max(float(excess.std()), math.sqrt(p) * faults.mean()) / root
            share = (weight * mine).sum() / (weight * faults).sum()
            hold(abs(excess.mean()) <= _SIGMAS * error + 1e-9, f"{what} has {p:.4g}, got {share:.4g}")


def _groups(
    population: Population, space: FaultSpace, index: NDArray[np.int64]
) -> Iterator[tuple[str, NDArray[np.bool_], float]]:
    """Yield sites, the bits of each and eighths of its elements: a name, which faults belong to it, its probability."""
    every = np.arange(len(space))
    p, all_of = probability(population.measure, space, every), space.locate(every)
    site, element, bit = space.locate(index)
    for at, one in enumerate(space.sites):
        here, mass = site == at, p * (all_of.site == at)
        yield f"site '{one.name}'", here, float(mass.sum())
        for b in one.bits:
            yield f"bit {b} of '{one.name}'", here & (bit == b), float(mass[all_of.bit == b].sum())
        edges = np.linspace(0, one.elements, min(8, one.elements) + 1).astype(int)
        for low, high in pairwise(edges):
            part = mass[(all_of.element >= low) & (all_of.element < high)].sum()
            inside = here & (element >= low) & (element < high)
            yield f"elements {low} to {high - 1} of '{one.name}'", inside, float(part)
