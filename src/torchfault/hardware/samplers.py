"""Samplers of upsets: the published proposals over cells, and two phases, a pilot and strata of what it found alike."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError, did_you_mean
from torchfault.hardware.profile import Profile
from torchfault.hardware.strata import Allocation, most_strata, stratify
from torchfault.hardware.upset_space import UpsetSpace
from torchfault.measures import Measure
from torchfault.sampling.design import Design, Strata
from torchfault.sampling.protocol import Draws, Population
from torchfault.sampling.strata import apportion
from torchfault.sampling.tally import Tally
from torchfault.store import Columns

__all__ = ["PROPOSALS", "ByCells", "TwoPhase", "halves_of", "pairs_of", "pilot_block"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PROPOSALS = ("UNIFORM", "MAC", "IS", "IS-B")
# Of the draws by strata one in five goes by mass alone, of whole numbers a little less: see stratify.
_LARGEST = 1 / (0.2 * 0.92)
_EACH = 4  # draws of a pilot for each pair of a type and a bit, or more


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
        """Return one stratum; with a profile after one for each type and bit, which are no part of the sample."""
        known = _Known.of(population)
        if not self._profiles:
            largest = float((known.mass[known.held] / self._shares(known, None)[known.held]).max())
            return Design(Strata.one(len(population.space)), block=self.block, largest_weight=largest)
        known.pilot_weight(self.block)
        return Design(known.profiled_strata(), block=self.block, sample=(known.pairs,), adapts=True, pilot=self.block)

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return *n* draws; with a profile, the first block is that, and later ones go by it."""
        known = _Known.of(population)
        if self._profiles and start == 0:
            return known.pilot(population, n, rng=rng)
        profile = Profile.of(known.space, _pilot_of(tally, self.block)) if self._profiles else None
        q = self._shares(known, profile)
        cell = rng.choice(len(q), size=n, p=q)
        stratum = np.full(n, known.pairs if self._profiles else 0)
        return known.draws(population, cell, (known.mass / np.where(q > 0, q, 1.0))[cell], stratum, rng=rng)

    def _shares(self, known: "_Known", profile: Profile | None) -> Floats:
        """Return q, the share of draws of each cell, shape (cells,)."""
        mass, layer = known.mass, known.space.layer
        if self.proposal == "IS":
            return mass
        if profile is not None:
            q = mass * profile.by_family()
        else:
            q = np.where(known.held, _bits_of(known.space), 0.0)
            if self.proposal == "MAC":
                q = q / np.bincount(layer, q)[layer] * np.bincount(layer, mass)[layer]
        return np.asarray(q / q.sum())


@dataclass(frozen=True)
class TwoPhase:
    """Draw a pilot of all types and bits, and then from strata of cells that it expects to fail alike.

    The first block is the pilot, in two independent halves, each shared out over the pairs of a type and a bit, evenly
    and by the measure alike. It tells how often cells fail (:class:`torchfault.hardware.profile.Profile`); later blocks
    are drawn from strata of cells of like rates in Neyman's shares, one draw in five by the measure alone
    (:func:`torchfault.hardware.strata.stratify`). Draws weigh p / q within their block, so that the mean of each is
    unbiased whatever the pilot saw. Raises :class:`SamplingError` for a block of fewer than four draws for each pair,
    and for a space that is not of upsets.
    """

    block: int = 1024

    def __post_init__(self) -> None:
        _check_block(self.block)

    def design(self, population: Population) -> Design:
        """Return the strata of the pilot, a type and a bit each; those of later blocks are cut by what it finds."""
        known = _Known.of(population)
        heaviest, later = max(known.pilot_weight(self.block), _LARGEST), most_strata(self.block)
        return Design(
            known.pilot_strata(),
            block=self.block,
            largest_weight=heaviest,
            adapts=True,
            pilot=self.block,
            later=later,
        )

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return the pilot, or *n* draws from strata of what the pilot in *tally* found."""
        known = _Known.of(population)
        if start == 0:
            return known.pilot(population, n, rng=rng)
        plan = self.plan(population, Profile.of(known.space, _pilot_of(tally, self.block)))
        cell = plan.draw(rng=rng)[:n]
        return known.draws(population, cell, plan.weight[cell], known.pairs + plan.stratum[cell], rng=rng)

    def halves(self, population: Population) -> list[Allocation]:
        """Return how the two halves of the pilot are shared out."""
        return _Known.of(population).halves(self.block)

    def plan(self, population: Population, profile: Profile) -> Allocation:
        """Return the strata of the blocks after a pilot with this *profile*, and their shares of the draws."""
        return stratify(population.measure.mass(population.space), profile.rate(), self.block)


class _First:
    """The first so many trials of a campaign."""

    def __init__(self, trials: int) -> None:
        self.trials, self.columns = trials, Columns.empty()

    def add(self, columns: Columns) -> None:
        missing = self.trials - len(self.columns)
        if missing > 0:
            self.columns = Columns.join([self.columns, columns.take(0, min(missing, len(columns)))])


def _pilot_of(tally: Tally | None, block: int) -> Columns:
    """Return the trials of the first *block* draws in *tally*."""
    trials = 0 if tally is None else block * tally.repeats
    if tally is None or tally.trials < trials:
        raise SamplingError(f"later blocks go by a pilot of {block} draws, got none of its trials; draw it first")
    return tally.follow(("first", trials), lambda: _First(trials)).columns


def halves_of(block: int) -> tuple[int, int]:
    """Return the sizes of the pilot's two halves, the first draws of the block and the others."""
    return block - block // 2, block // 2


def pilot_block(space: UpsetSpace, measure: Measure) -> int:
    """Return a block, 1024 or some larger power of two, with room for a pilot of the upsets in *space*.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> from torchfault.hardware.measure import UpsetMeasure
    >>> from torchfault.hardware.work import Work
    >>> work = Work("rnn", "gru", 40, (), (), (), (4, 8, 5))
    >>> [pilot_block(UpsetSpace(FLAT, (work,), ((width,) * 3,)), UpsetMeasure(in_use=True)) for width in (32, 64)]
    [1024, 1024]
    """
    pairs = int(pairs_of(space, measure.mass(space)).max()) + 1
    return max(1024, 1 << (_EACH * pairs - 1).bit_length())


def pairs_of(space: UpsetSpace, mass: Floats) -> Ints:
    """Return the number of the type and bit of each cell, -1 for cells without *mass*, shape (cells,)."""
    pair, held = np.full(len(mass), -1), mass > 0
    kinds = np.stack((space.type, space.cells.bit))[:, held]
    pair[held] = np.unique(kinds, axis=1, return_inverse=True)[1].reshape(-1)
    return pair


@dataclass(frozen=True, eq=False)
class _Known:
    """What samplers know of a population: the *mass* of its cells, and the *pair* of a type and a bit of each."""

    mass: Floats
    pair: Ints
    space: UpsetSpace

    @classmethod
    def of(cls, population: Population) -> "_Known":
        space = population.space
        if not isinstance(space, UpsetSpace):
            raise SamplingError(f"upsets are drawn from the space of an accelerator, got a {type(space).__name__}")
        mass = population.measure.mass(space)
        if (mass[space.is_control] > 0).any():
            raise SamplingError(
                "control is known and never drawn, got a measure with it; take measure=UpsetMeasure(in_use=True)"
            )
        return cls(mass, pairs_of(space, mass), space)

    @property
    def held(self) -> NDArray[np.bool_]:
        return self.mass > 0

    @property
    def pairs(self) -> int:
        return int(self.pair.max()) + 1

    def pilot_strata(self) -> Strata:
        """Return a stratum for each pair."""
        return Strata.of_cells(self.space, self.pair, self.mass)

    def profiled_strata(self) -> Strata:
        """Return a stratum for each pair, of the profile and without a mass of its own, and one of all upsets."""
        pairs = Strata.of_cells(self.space, self.pair, np.zeros(len(self.mass)))
        whole = Strata.one(len(self.space))
        return Strata(
            np.append(pairs.stratum, self.pairs),
            np.append(pairs.group, whole.group),
            np.append(pairs.bit, whole.bit),
            np.append(pairs.size, whole.size),
            np.append(pairs.mass, whole.mass),
        )

    def halves(self, n: int) -> list[Allocation]:
        """Return the halves of a pilot of *n* draws: every pair has some, and as much as half of its mass tells."""
        if n < _EACH * self.pairs:
            raise SamplingError(
                f"a pilot is of four draws or more for each of {self.pairs} pairs of a type and a bit, got a block of "
                f"{n}; use block={1 << int(_EACH * self.pairs - 1).bit_length()}"
            )
        mass = np.bincount(self.pair[self.held], self.mass[self.held], self.pairs)
        wanted = 1 / self.pairs + mass / mass.sum()
        return [Allocation(self.pair, apportion(wanted, size), self.mass) for size in halves_of(n)]

    def pilot_weight(self, n: int) -> float:
        """Return the largest weight of a draw of a pilot, or refuse a block that is too small for one."""
        return max(float(one.weight.max()) for one in self.halves(n))

    def pilot(self, population: Population, n: int, *, rng: np.random.Generator) -> Draws:
        """Return a pilot of *n* draws, half by half."""
        halves = self.halves(n)
        cells = [plan.draw(rng=rng) for plan in halves]
        weight = np.concatenate([plan.weight[cell] for plan, cell in zip(halves, cells, strict=True)])
        cell = np.concatenate(cells)
        return self.draws(population, cell, weight, self.pair[cell], rng=rng)

    def draws(
        self, population: Population, cell: Ints, weight: Floats, stratum: Ints, *, rng: np.random.Generator
    ) -> Draws:
        """Return draws of these cells, each at a place by the measure."""
        place = population.measure.draw_places(self.space, cell, rng=rng)
        weight = np.where(np.isclose(weight, 1.0, rtol=1e-12, atol=0), 1.0, weight)
        return Draws(self.space.number_of(cell, place), weight, stratum.astype(np.int32))


def _bits_of(space: UpsetSpace) -> Floats:
    """Return how many bits of variables each cell stands for; of variables that several types hold, a share."""
    chip = space.accelerator
    weight, holds = np.array([chip.weight_of(one.name) for one in chip.types]), [one.holds for one in chip.types]
    alike = np.array([sum(w for w, other in zip(weight, holds, strict=True) if other == one) for one in holds])
    part = np.divide(weight, alike, out=np.zeros_like(weight), where=alike > 0)
    count = np.array([[work.count(one) for one in holds] for work in space.works], dtype=np.float64)
    random = (space.cells.bit < 0) & ~space.is_control  # words of outputs, all bits at once
    bits = np.where(random, np.array(space.widths)[space.layer, 2], 1)
    return np.asarray(count[space.layer, space.type] * space.words * bits * part[space.type])


def _check_block(block: int) -> None:
    if block < 1:
        raise SamplingError(f"a block has a draw or more, got {block}; the usual one is 1024")
