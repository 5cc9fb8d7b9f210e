"""The suite for samplers."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
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
    from the same random stream, whatever was drawn before; and weights p/q under which every group, bit and place has
    its probability by the population's measure. One whose design says that it adapts keeps to all of this after any
    outcomes, and draws by these alone. Samplers of upsets need a *population* of them.

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
        _check_replacement(sampler, one, design, [draws.index for _, draws in blocks])


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
        again = Design.from_plain(json.loads(json.dumps(design.plain()))).plain()
        hold(again == design.plain(), "it came back otherwise")
    return design


def _same(one: Draws, two: Draws) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(two, part)) for part in _COLUMNS)


def _size(sampler: Sampler, design: Design, start: int) -> int:
    return sampler.block if design.total is None else min(sampler.block, design.total - start)


def _draw(
    sampler: Sampler,
    population: Population,
    design: Design,
    start: int,
    *,
    tally: Tally | None = None,
    stream: int = 0,
) -> Draws:
    """Draw the block that begins at *start*, of one that adapts after the outcomes in *tally*."""
    n, rng = _size(sampler, design, start), np.random.default_rng([20261121, start, stream])
    return sampler.draw(population, n, rng=rng, start=start, tally=tally)


def _tally(sampler: Sampler, population: Population, design: Design, end: int) -> Tally:
    """Return the tally of all trials before *end*, of which half of the highest bits failed, and few others."""
    tally = Tally(population.space, design)
    for start in range(0, end, sampler.block):
        tally.add(_outcomes(population, _draw(sampler, population, design, start, tally=tally), design))
    return tally


def _outcomes(population: Population, draws: Draws, design: Design) -> Columns:
    space = population.space
    inputs = np.zeros(len(draws), dtype=np.int64) if draws.inputs is None else draws.inputs
    columns = Columns(
        draws.index, inputs, weights=draws.weight, strata=draws.stratum, counts=draws.counts, unit=design.unit
    )
    row, faults = columns.owner, draws.index
    if isinstance(space, FaultSpace) and design.unit == "word":
        row, faults, _ = space.flips(draws.index)
    cell, (_, part) = space.cell_of(faults), _parts(space)
    highest = np.full(part.max() + 1, -1)
    np.maximum.at(highest, part, space.cells.bit)
    bit = space.cells.bit[cell]
    failing = np.random.default_rng(20261121).random(len(faults)) < np.where(highest[part[cell]] == bit, 0.5, 0.01)
    if design.unit == "fault":
        return replace(columns, flags={"failed": np.bincount(row, failing, len(draws)) > 0})
    masks = np.zeros(len(draws), dtype=np.uint64)
    np.bitwise_or.at(masks, row[failing], np.left_shift(np.uint64(1), bit[failing].astype(np.uint64)))
    return replace(columns, flags={"failed": masks})


def _check_adapting(sampler: Sampler, population: Population, design: Design) -> None:
    """Hold the first block, and three that follow from outcomes, to the rules."""
    for number in range(4):
        start = number * sampler.block
        if design.total is not None and start >= design.total:
            return
        # drawn apart, samples without replacement would overlap
        streams = range(-(-MOST // sampler.block) if design.replacement else 1)
        tally = _tally(sampler, population, design, start)
        drawn = [_draw(sampler, population, design, start, tally=tally, stream=n) for n in streams]
        with rule(sampler, "draws depend on the outcomes so far and the random stream alone"):
            for known in (tally, _tally(sampler, population, design, start)):
                again = _draw(sampler, population, design, start, tally=known)
                hold(_same(drawn[0], again), "drawn again after the same outcomes, they differ")
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
        strata = len(design.strata) + design.later
        known = (draws.stratum >= 0) & (draws.stratum < strata)
        hold(whole and known.all(), f"got strata like {draws.stratum[:3]} of {strata}")


def _check_replacement(
    sampler: Sampler, population: Population, design: Design, drawn: Sequence[NDArray[np.int64]]
) -> None:
    """Hold samples without replacement to it."""
    if design.replacement:
        return
    index = np.concatenate(drawn)
    with rule(sampler, "without replacement no fault is drawn twice, and an enumeration draws them all in order"):
        hold(len(np.unique(index)) == len(index), f"got {len(index) - len(np.unique(index))} faults again")
        listed = np.arange(min(len(index), len(population.space)))
        hold(not design.enumerates or np.array_equal(index, listed), "got them in another order")


def _check_weights(sampler: Sampler, population: Population, design: Design, blocks: Sequence[Draws]) -> None:
    """Compare the weighted share of every group of faults with its probability, as far as it was drawn from."""
    space, sample = population.space, design.sample
    weight, stratum = (np.concatenate([getattr(draws, part) for draws in blocks]) for part in ("weight", "stratum"))
    if sample is not None:  # what was picked on purpose stands for itself alone
        weight = weight * np.isin(stratum, sample)
        if not weight.any():
            return
    index = np.concatenate([draws.index for draws in blocks])
    counts = [np.ones(len(draws), dtype=np.int64) if draws.counts is None else draws.counts for draws in blocks]
    owner = np.repeat(np.arange(len(weight)), np.concatenate(counts))
    part = np.ones(len(owner))
    if isinstance(space, FaultSpace) and design.unit == "word":  # a word is one draw, however many bits it has
        owner, index, _ = space.flips(index)
        part = 1 / np.bincount(owner)[owner]
    faults, masses = np.bincount(owner, part, len(weight)), design.strata.masses
    drawn = np.ones(len(masses), dtype=bool)
    if design.adapts and stratum.max() < len(masses):  # later strata hold the whole measure, wherever they are cut
        drawn = np.bincount(stratum, minlength=len(masses)) > 0
    root, whole = math.sqrt(len(weight)), float(masses[drawn].sum())
    with rule(sampler, "weights are p/q, so that every group, bit and place has its probability on average"):
        off, error = abs(weight.mean() - whole), weight.std() / root
        hold(off <= _SIGMAS * error + 1e-9, f"the mean weight is {weight.mean():.4g} and not {whole:.4g}")
        for what, here, p in _groups(population, _mass(population, design, drawn) / whole, index):
            mine = np.bincount(owner, weights=here * part, minlength=len(weight))
            excess = weight * (mine - p * faults)
            # The spread of a group that was never drawn is that of weights of 1.
            error = max(float(excess.std()), math.sqrt(p * faults.mean())) / root
            share = (weight * mine).sum() / (weight * faults).sum()
            hold(abs(excess.mean()) <= _SIGMAS * error + 1e-9, f"{what} has {p:.4g}, got {share:.4g}")


def _mass(population: Population, design: Design, drawn: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mass of each cell in the strata that were *drawn* from: NaN where these hold a part of it."""
    space, strata = population.space, design.strata
    cells, parts, held = space.cells, *np.zeros((2, len(space.cells)))
    for stratum, group, bit in zip(strata.stratum, strata.group, strata.bit, strict=True):
        here = ((cells.group == group) | (group < 0)) & ((cells.bit == bit) | (bit < 0))
        parts[here] += 1
        held[here] += drawn[stratum]
    share = np.where(held == 0, 0.0, np.where(held == parts, 1.0, np.nan))
    return population.measure.mass(space) * share


def _groups(
    population: Population, mass: NDArray[np.float64], index: NDArray[np.int64]
) -> Iterator[tuple[str, NDArray[np.bool_], float]]:
    """Yield the groups of every grouping, and the bits of each part of a space and eighths of its places.

    Each is a name, which faults belong to it, and its probability. *mass* is that of each cell; groups of unknown mass
    are left out.
    """
    space = population.space
    cells, cell, place, (names, part) = space.cells, space.cell_of(index), space.place_of(index), _parts(space)
    sets = [
        (f"{by} '{key}'", axis.of_cell == code)
        for by in space.groupings
        if (axis := space.axis(by)).of_cell is not None
        for code, key in enumerate(axis.keys)
    ]
    for number, name in enumerate(names):
        sets += [(f"bit {b} of {name}", (part == number) & (cells.bit == b)) for b in set(cells.bit[part == number])]
    for name, own in sets:
        if not np.isnan(mass[own]).any():
            yield name, own[cell], float(mass[own].sum())
    for number, name in enumerate(names):
        own = np.flatnonzero(part == number)
        if np.isnan(mass[own]).any():
            continue
        size = int(cells.sizes[own[0]])
        edges = np.linspace(0, size, min(8, size) + 1).astype(int)
        for low, high in pairwise(edges):
            inside = (part[cell] == number) & (place >= low) & (place < high)
            p = float(mass[own] @ _spread(population, own, low, high))
            yield f"places {low} to {high - 1} of {name}", inside, p


def _parts(space: Space) -> tuple[list[str], NDArray[np.int64]]:
    """Return the parts of *space*, cells of one site (of upsets, of one layer and type) and size: names, and of cells
    the number of theirs."""
    by = [name for name in ("site", "layer", "type") if name in space.groupings]
    axes = [space.axis(name) for name in by]
    codes = [axis.of_cell for axis in axes if axis.of_cell is not None]
    _, first, part = np.unique(np.stack([*codes, space.cells.sizes]), axis=1, return_index=True, return_inverse=True)
    names = [
        ", ".join(f"{name} '{axis.keys[of_cell[at]]}'" for name, axis, of_cell in zip(by, axes, codes, strict=True))
        for at in first
    ]
    return names, part.reshape(-1)


def _spread(population: Population, cells: NDArray[np.int64], low: int, high: int) -> NDArray[np.float64]:
    """Return which share of each of *cells* the places from *low* to *high* have."""
    space, count = population.space, high - low
    if population.is_uniform:
        return count / space.cells.sizes[cells]
    cell, place = np.repeat(cells, count), np.tile(np.arange(low, high), len(cells))
    within = population.measure.within(space, cell, place)
    return np.asarray(within.reshape(len(cells), count).sum(axis=1))
