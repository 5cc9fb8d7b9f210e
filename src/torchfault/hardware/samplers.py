"""Samplers of upsets: the published proposals over cells, and two phases, a pilot and strata of what it found alike."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError, did_you_mean
from torchfault.hardware.proposals import Cells, Profile, cells_of, proposal
from torchfault.hardware.strata import Allocation, stratify
from torchfault.hardware.upset_space import UpsetSpace
from torchfault.sampling.design import Design, Strata
from torchfault.sampling.protocol import Draws, Population
from torchfault.sampling.strata import apportion
from torchfault.sampling.tally import Tally
from torchfault.store import Columns

__all__ = ["PROPOSALS", "ByCells", "TwoPhase", "halves_of", "profile_of"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PROPOSALS = ("UNIFORM", "MAC", "IS", "IS-B")
# Of the draws by strata one in five goes by mass alone, of whole numbers a little less: see stratify.
_LARGEST = 1 / (0.2 * 0.92)


@dataclass(frozen=True)
class ByCells:
    """Draw upsets independently, by one of the proposals over cells of Tyagi et al. (arXiv 2212.02649, 2022).

    ``UNIFORM``: every bit of every variable alike; ``MAC``: layers by their mass, alike within; ``IS``: by the measure;
    ``IS-B``: by the measure times how often bits changed an outcome in a profile. The profile is the first block,
    shared out over types and bits, and no part of the sample. Cells that the measure leaves out are never drawn.
    Raises :class:`SamplingError` for another *proposal*, and for a space that is not of upsets.
    """

    proposal: str = "IS"
    block: int = 1024

    def __post_init__(self) -> None:
        _check_block(self.block)
        if self.proposal not in PROPOSALS:
            near = did_you_mean(self.proposal, PROPOSALS)
            raise SamplingError(f"no proposal is called '{self.proposal}'{near}; known: {', '.join(PROPOSALS)}")

    @property
    def _profiles(self) -> bool:
        return self.proposal == "IS-B"

    def design(self, population: Population) -> Design:
        """Return one stratum; with a profile one for each type and bit before it, which are no part of the sample."""
        known = _Known.of(population)
        if not self._profiles:
            largest = float((known.mass[known.held] / known.by(self.proposal, None)[known.held]).max())
            return Design(Strata.one(len(population.space)), block=self.block, largest_weight=largest)
        known.pilot_weight(self.block)
        return Design(known.pilot_strata(), block=self.block, sample=(known.pairs,), adapts=True)

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return *n* draws; with a profile, the first block is that, and later ones go by it."""
        known = _Known.of(population)
        if self._profiles and start == 0:
            return known.pilot(population, n, rng=rng)
        profile = profile_of(known.space, _pilot_of(tally, start, self.block)) if self._profiles else None
        q = known.by(self.proposal, profile)
        cell = rng.choice(len(q), size=n, p=q)
        stratum = np.full(n, known.pairs if self._profiles else 0)
        return known.draws(population, cell, (known.mass / np.where(q > 0, q, 1.0))[cell], stratum, rng=rng)


@dataclass(frozen=True)
class TwoPhase:
    """Draw a pilot of all types and bits, and then from strata of cells that it expects to fail alike.

    The first block is the pilot, in two independent halves, each shared out over the pairs of a type and a bit, evenly
    and by the measure alike. It tells how often cells fail (:class:`torchfault.hardware.proposals.Profile`); later
    blocks are drawn from strata of cells of like rates in Neyman's shares, one draw in five by the measure alone
    (:func:`torchfault.hardware.strata.stratify`). Draws weigh p / q within their block, so that the mean of each is
    unbiased whatever the pilot saw. Raises :class:`SamplingError` for a block of fewer than four draws for each pair,
    and for a space that is not of upsets.
    """

    block: int = 1024

    def __post_init__(self) -> None:
        _check_block(self.block)

    def design(self, population: Population) -> Design:
        """Return the strata of the pilot, a type and a bit each; those of later blocks have further numbers."""
        known = _Known.of(population)
        heaviest = max(known.pilot_weight(self.block), _LARGEST)
        return Design(known.pilot_strata(), block=self.block, largest_weight=heaviest, adapts=True)

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return the pilot, or *n* draws from strata of what the pilot in *tally* found."""
        known = _Known.of(population)
        if start == 0:
            return known.pilot(population, n, rng=rng)
        plan = self.plan(population, _pilot_of(tally, start, self.block), n)
        cell = plan.draw(rng=rng)
        weight = known.mass / np.where(plan.q > 0, plan.q, 1.0)
        return known.draws(population, cell, weight[cell], known.pairs + plan.stratum[cell], rng=rng)

    def plan(self, population: Population, pilot: Columns, n: int) -> Allocation:
        """Return the strata of the blocks after the trials of the *pilot*, and their shares of *n* draws."""
        known = _Known.of(population)
        return stratify(known.mass, profile_of(known.space, pilot).rate(known.cells), n)


def profile_of(space: UpsetSpace, trials: Columns) -> Profile:
    """Return how often upsets of each cell failed in *trials*, of several inputs each for itself."""
    cell, size = space.cell_of(trials.faults), len(space.cells)
    failed, drawn = np.zeros(size), np.zeros(size)
    np.add.at(failed, cell, trials.failed)
    np.add.at(drawn, cell, 1.0)
    return Profile(failed, drawn)


def _pilot_of(tally: Tally | None, start: int, block: int) -> Columns:
    """Return the trials of the first *block* draws, of *start* in *tally*."""
    columns = Columns.empty() if tally is None else tally.columns()
    trials = len(columns) * block // start
    if not trials:
        raise SamplingError(f"later blocks go by a pilot of {block} draws, got none of its trials; draw it first")
    return columns.where(np.arange(len(columns)) < trials)


def halves_of(block: int) -> tuple[int, int]:
    """Return the sizes of the pilot's two halves, the first draws of the block and the others."""
    return block - block // 2, block // 2


@dataclass(frozen=True, eq=False)
class _Known:
    """What samplers know of a population: its *cells*, their *mass*, and the *pair* of a type and a bit of each.

    *pair* is -1 for cells without mass, and *pairs* the number of pairs.
    """

    cells: Cells
    mass: Floats
    pair: Ints
    space: UpsetSpace

    @classmethod
    def of(cls, population: Population) -> "_Known":
        space = population.space
        if not isinstance(space, UpsetSpace):
            raise SamplingError(f"upsets are drawn from the space of an accelerator, got a {type(space).__name__}")
        cells, mass = cells_of(space), population.measure.mass(space)
        if (mass[cells.control] > 0).any():
            raise SamplingError(
                "control is known and never drawn, got a measure with it; take measure=UpsetMeasure(in_use=True)"
            )
        pair = np.full(len(mass), -1)
        held = mass > 0
        kinds = np.stack((cells.kind, cells.bit))[:, held]
        pair[held] = np.unique(kinds, axis=1, return_inverse=True)[1].reshape(-1)
        return cls(cells, mass, pair, space)

    @property
    def held(self) -> NDArray[np.bool_]:
        return self.mass > 0

    @property
    def pairs(self) -> int:
        return int(self.pair.max()) + 1

    def by(self, name: str, profile: Profile | None) -> Floats:
        """Return q of each cell for the proposal called *name*."""
        q = np.where(self.held, proposal(name, self.cells, profile), 0.0) if name != "IS" else self.mass
        return np.asarray(q / q.sum())

    def pilot_strata(self) -> Strata:
        """Return a stratum for each pair."""
        return Strata.of_cells(self.space, self.pair, self.mass)

    def _halves(self, n: int) -> list[Allocation]:
        """Return the halves of a pilot of *n* draws: every pair has some, and as much as half of its mass tells."""
        if n < 4 * self.pairs:
            raise SamplingError(
                f"a pilot is of four draws or more for each of {self.pairs} pairs of a type and a bit, got a block of "
                f"{n}; use block={1 << int(4 * self.pairs - 1).bit_length()}"
            )
        mass = np.bincount(self.pair[self.held], self.mass[self.held], self.pairs)
        wanted = 1 / self.pairs + mass / mass.sum()
        return [Allocation(self.pair, apportion(wanted, size), self.mass) for size in halves_of(n)]

    def pilot_weight(self, n: int) -> float:
        """Return the largest weight of a draw of a pilot, or refuse a block that is too small for one."""
        return max(float((self.mass / np.where(one.q > 0, one.q, np.inf)).max()) for one in self._halves(n))

    def pilot(self, population: Population, n: int, *, rng: np.random.Generator) -> Draws:
        """Return a pilot of *n* draws, half by half."""
        cells, weights = [], []
        for plan in self._halves(n):
            cells.append(plan.draw(rng=rng))
            weights.append((self.mass / np.where(plan.q > 0, plan.q, 1.0))[cells[-1]])
        cell = np.concatenate(cells)
        return self.draws(population, cell, np.concatenate(weights), self.pair[cell], rng=rng)

    def draws(
        self, population: Population, cell: Ints, weight: Floats, stratum: Ints, *, rng: np.random.Generator
    ) -> Draws:
        """Return draws of these cells, each at a place by the measure."""
        place = population.measure.draw_places(self.space, cell, rng=rng)
        weight = np.where(np.isclose(weight, 1.0, rtol=1e-12, atol=0), 1.0, weight)
        return Draws(self.space.number_of(cell, place), weight, stratum.astype(np.int32))


def _check_block(block: int) -> None:
    if block < 1:
        raise SamplingError(f"a block has a draw or more, got {block}; the usual one is 1024")
