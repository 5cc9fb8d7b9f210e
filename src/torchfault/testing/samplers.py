"""The suite for samplers."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from torchfault.measures import Measure, uniform
from torchfault.sampling import AdaptiveSampler, Draws, History, Sampler
from torchfault.space import FaultSpace, Site
from torchfault.testing.rules import MOST, hold, rule

__all__ = ["check_sampler"]

_COLUMNS = ("index", "weight", "stratum", "counts")
_HISTORY = ("faults", "stratum", "failed")
_SIGMAS = 5.0  # with fixed seeds a good sampler passes always, and would fail one seed in millions
_SPACES = (
    FaultSpace(
        (
            Site("conv.weight", (4, 2, 3, 3), channel=0),
            Site("conv:output", (4, 5, 5), kind="output", channel=0),
            Site("fc.weight", (10, 8), word="int8"),
            Site("fc.bias", (10,), kind="bias", bits=(23, 30, 31)),
        )
    ),
    FaultSpace((Site("one", (), bits=(31,)),)),
)


def check_sampler(sampler: Sampler, space: FaultSpace | None = None, *, target: Measure | None = None) -> None:
    """Raise AssertionError, naming the rule, where *sampler* is none; on *space*, or on two small ones.

    *target* is the measure that the weights aim at, uniform unless told. The rules: a block of at least one trial; as
    many trials as asked for, from the space, with finite weights from 0 up; the same trials from the same random
    stream, whatever was drawn before; and weights p/q under which every site and bit has its probability. Of an
    adaptive sampler also: after any outcomes, the same plan again, whose trials keep to all of this, and a reason to
    stop or ``None``.

    >>> from torchfault.sampling import Uniform
    >>> check_sampler(Uniform(faults=3))
    """
    for one in _SPACES if space is None else (space,):
        with rule(sampler, "it has a block of one trial or more, total(space) and draw(space, n, rng=, start=)"):
            hold(isinstance(sampler, Sampler), f"got {type(sampler).__name__}")
            block, total = sampler.block, sampler.total(one)
            for what, number in (("block", block), ("total", block if total is None else total)):
                hold(isinstance(number, int) and number >= 1, f"got a {what} of {number!r}")  # type: ignore[redundant-expr]
        blocks = _blocks(sampler, one)
        for start, draws in blocks:
            _check_draws(sampler, one, draws, n=min(sampler.block, (total or math.inf) - start))
        with rule(sampler, "trials depend on the random stream and their number alone"):
            for start, first in reversed(blocks[:3]):
                again = _draw(sampler, one, start)
                same = all(np.array_equal(getattr(first, part), getattr(again, part)) for part in _COLUMNS)
                hold(same, f"trials from {start} on differ when drawn again")
        if total is None or total <= MOST:
            _check_weights(sampler, one, [draws for _, draws in blocks], target or uniform(one))
        if hasattr(sampler, "replan") or hasattr(sampler, "finished"):
            _check_plans(sampler, one, target or uniform(one))


def _check_plans(sampler: Sampler, space: FaultSpace, target: Measure) -> None:
    """Hold three blocks that follow from outcomes, of which the highest bits fail most, to the rules."""
    with rule(sampler, "one that adapts has replan(space, history) and finished(space, history)"):
        hold(isinstance(sampler, AdaptiveSampler), "one of the two is missing")
    assert isinstance(sampler, AdaptiveSampler)
    parts = [_draw(sampler, space, 0)]
    for number in range(1, 4):
        history = _outcomes(space, parts)
        planned = _plan(sampler, space, history)
        most = MOST if sampler.total(space) is None else 1  # drawn apart, samples without replacement would overlap
        streams = (np.random.default_rng([20261121, number, n]) for n in range(-(-most // sampler.block)))
        drawn = [planned.draw(space, sampler.block, rng=rng, start=len(history)) for rng in streams]
        for draws in drawn:
            _check_draws(sampler, space, draws, n=sampler.block)
        if len(drawn) > 1:
            _check_weights(sampler, space, drawn, target)
        parts.append(drawn[0])


def _plan(sampler: AdaptiveSampler, space: FaultSpace, history: History) -> Sampler:
    """Return the sampler of the block that follows *history*, after a look at how it was planned."""
    given = [getattr(history, part).copy() for part in _HISTORY]
    with rule(sampler, "finished returns a reason, or None to go on"):
        reason: object = sampler.finished(space, history)
        hold(reason is None or (isinstance(reason, str) and reason), f"got {reason!r}")
    with rule(sampler, "replan returns a sampler of the same block"):
        plans = [sampler.replan(space, history) for _ in range(2)]
        hold(all(isinstance(plan, Sampler) for plan in plans), f"got {type(plans[0]).__name__}")
        hold(plans[0].block == sampler.block, f"got a block of {plans[0].block} and not {sampler.block}")
    with rule(sampler, "a plan depends on the outcomes so far alone, which are read, not written"):
        one, two = (plan.draw(space, plan.block, rng=np.random.default_rng(7), start=len(history)) for plan in plans)
        hold(
            all(np.array_equal(getattr(one, part), getattr(two, part)) for part in _COLUMNS), "asked twice, it differs"
        )
        same = all(np.array_equal(kept, getattr(history, part)) for kept, part in zip(given, _HISTORY, strict=True))
        hold(same, "the history was altered")
    return plans[0]


def _outcomes(space: FaultSpace, parts: Sequence[Draws]) -> History:
    """Return a history in which half of the faults in the highest bit of each site fail, and few others."""
    faults, stratum = (np.concatenate([getattr(draws, part) for draws in parts]) for part in ("index", "stratum"))
    site, _, bit = space.locate(faults)
    highest = np.array([max(one.bits) for one in space.sites])[site] == bit
    chance = np.random.default_rng(20261121).random(len(faults))
    return History(faults, stratum, chance < np.where(highest, 0.5, 0.01))


def _draw(sampler: Sampler, space: FaultSpace, start: int) -> Draws:
    total = sampler.total(space)
    n = sampler.block if total is None else min(sampler.block, total - start)
    return sampler.draw(space, n, rng=np.random.default_rng([20261121, start]), start=start)


def _blocks(sampler: Sampler, space: FaultSpace) -> list[tuple[int, Draws]]:
    """Draw block after block, up to the end of the sampler or enough to judge it by."""
    with rule(sampler, "draw returns Draws, also at the end of the sequence"):
        most, faults = min(sampler.total(space) or MOST, MOST), 0
        blocks: list[tuple[int, Draws]] = []
        while (start := len(blocks) * sampler.block) < most and faults < 5 * MOST:
            draws = _draw(sampler, space, start)
            hold(isinstance(draws, Draws), f"got {type(draws).__name__}")
            blocks.append((start, draws))
            faults += len(draws.index)
        return blocks


def _check_draws(sampler: Sampler, space: FaultSpace, draws: Draws, *, n: float) -> None:
    with rule(sampler, "draw returns as many trials as asked for, each of a fault or more"):
        hold(len(draws) == n, f"asked for {n}, got {len(draws)}")
        hold(draws.counts is None or (draws.counts >= 1).all(), "got a trial without a fault")
    with rule(sampler, "faults are whole numbers inside the space"):
        hold(np.issubdtype(draws.index.dtype, np.integer), f"got {draws.index.dtype}")
        inside = (draws.index >= 0) & (draws.index < len(space))
        hold(inside.all(), f"got {draws.index[~inside][:3]} in a space of {len(space)}")
    with rule(sampler, "weights are finite numbers from 0 up, and strata whole numbers from 0 up"):
        hold(np.isfinite(draws.weight).all() and (draws.weight >= 0).all(), f"got weights like {draws.weight[:3]}")
        whole = np.issubdtype(draws.stratum.dtype, np.integer)
        hold(whole and (draws.stratum >= 0).all(), f"got strata like {draws.stratum[:3]}")


def _check_weights(sampler: Sampler, space: FaultSpace, blocks: Sequence[Draws], target: Measure) -> None:
    """Compare the weighted share of every group of faults with its probability."""
    weight = np.concatenate([draws.weight for draws in blocks])
    counts = [np.ones(len(draws), dtype=np.int64) if draws.counts is None else draws.counts for draws in blocks]
    faults = np.concatenate(counts)
    owner, root = np.repeat(np.arange(len(weight)), faults), math.sqrt(len(weight))
    with rule(sampler, "weights are p/q, so that every site, element and bit has its probability on average"):
        off, error = abs(weight.mean() - 1), weight.std() / root
        hold(off <= _SIGMAS * error + 1e-9, f"the mean weight is {weight.mean():.4g} and not 1")
        for what, here, p in _groups(space, np.concatenate([draws.index for draws in blocks]), target):
            mine = np.bincount(owner, weights=here, minlength=len(weight))
            excess = weight * (mine - p * faults)
            # The spread of a group that was never drawn is that of weights of 1.
            error = max(float(excess.std()), math.sqrt(p * faults.mean())) / root
            share = (weight * mine).sum() / (weight * faults).sum()
            hold(abs(excess.mean()) <= _SIGMAS * error + 1e-9, f"{what} has {p:.4g}, got {share:.4g}")


def _groups(
    space: FaultSpace, index: NDArray[np.int64], target: Measure
) -> Iterator[tuple[str, NDArray[np.bool_], float]]:
    """Yield sites, the bits of each and eighths of its elements: a name, which faults belong to it, its probability."""
    site, element, bit = space.locate(index)
    for at, one in enumerate(space.sites):
        here, p = site == at, float(target.sites[at])
        yield f"site '{one.name}'", here, p
        by_bit = (target.bits or {}).get(one.name, np.full(len(one.bits), 1 / len(one.bits)))
        for b, p_bit in zip(one.bits, by_bit, strict=True):
            yield f"bit {b} of '{one.name}'", here & (bit == b), p * float(p_bit)
        by_element = (target.elements or {}).get(one.name)
        edges = np.linspace(0, one.elements, min(8, one.elements) + 1).astype(int)
        for low, high in pairwise(edges):
            p_part = (high - low) / one.elements if by_element is None else by_element[low:high].sum()
            inside = here & (element >= low) & (element < high)
            yield f"elements {low} to {high - 1} of '{one.name}'", inside, p * float(p_part)
