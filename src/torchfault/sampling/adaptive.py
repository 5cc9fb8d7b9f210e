"""Adaptive sampling: draws go where the outcomes so far leave most doubt about the intervals asked for."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.sampling.bitfields import BitFields
from torchfault.sampling.design import Design, Strata
from torchfault.sampling.protocol import Draws, Population
from torchfault.sampling.strata import apportion, in_proportion
from torchfault.sampling.tally import Tally

__all__ = ["Adaptive", "Cut", "Cutting"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_AHEAD = 0.1  # at least this share of the draws that a stratum needs is drawn again while its group is unfinished
_STEP = 0.05  # of what a stratum needs, in one block, where the rest of the block costs next to nothing:
_FREE = 0.1  # so many lanes a draw or fewer


class Cutting(Protocol):
    """A population cut into strata."""

    @property
    def strata(self) -> Strata:
        """The strata."""
        ...

    def draw(self, counts: Ints, *, rng: np.random.Generator) -> tuple[Ints, Ints, Ints | None]:
        """Return fault numbers, strata and inputs of so many draws from each stratum, all likely as given within it."""
        ...


class Cut(Protocol):
    """How :class:`Adaptive` cuts a population: a frozen value, and whether its draws are faults or whole words."""

    @property
    def unit(self) -> Literal["fault", "word"]:
        """What a draw is."""
        ...

    def cut(self, population: Population) -> Cutting:
        """Return the population in strata."""
        ...


@dataclass(frozen=True, eq=False)
class Adaptive:
    """Draw from strata, in shares that each block takes anew from the outcomes so far.

    *strata* say how the faults are cut: by site and groups of bits (:class:`~torchfault.sampling.BitFields`), by how
    far a flip moves its word (:class:`~torchfault.sampling.Deviations`), or as whole words
    (:class:`~torchfault.sampling.WholeWords`). Draws go towards the half-widths that the campaign's rule asks for, of
    the model, of each site or of each bit (``stop=HalfWidth(0.01, by="site")``), until their intervals, which hold at
    every look (:class:`torchfault.statistics.Sequences`), are that narrow: each block of *block* draws gives a stratum
    what its widest unfinished interval still needs of it (:func:`torchfault.statistics.needed_draws`), one draw at
    least, and none where all intervals that it counts for are finished. The price of draws is how many lanes earlier
    ones of their stratum have taken. Where these are next to none, as of flips that are certified, a block takes a
    twentieth of each need, and the rest from there, so that the last blocks do not overshoot (on ResNet-20, every layer
    within 0.25 points: 38,058 lanes, 43,871 without and before words were turned). The draws of a block depend on its
    random stream and on the outcomes and lanes of earlier blocks alone, and weigh p / q within their block.

    *reserve* is the share of each half-width that draws are planned to leave to what audits add to intervals; with
    *pool* draws are priced as struck in pools of so many (:class:`torchfault.resolve.Pooled`), and what is left of a
    block goes to the cheapest. Raises :class:`SamplingError` without a half-width to reach, and where a space has more
    strata than half a block. Source: Neyman, Journal of the Royal Statistical Society 97, 1934, for the shares.

    >>> from torchfault.space import FaultSpace, Site
    >>> population = Population(FaultSpace((Site("a", (1000,)), Site("b", (10,)))), goals={"site": 0.01})
    >>> draws = Adaptive(block=64).draw(population, 64, rng=np.random.default_rng(0), start=0)
    >>> len(draws), round(float(draws.weight.mean()), 6)
    (64, 1.0)
    """

    strata: Cut = field(default_factory=BitFields)
    _: KW_ONLY
    block: int = 1024
    reserve: float = 0.0
    pool: int = 0

    def __post_init__(self) -> None:
        if self.block < 2 or not 0 <= self.reserve < 1 or self.pool < 0:
            raise SamplingError(
                f"a block has two draws or more, a reserve is a share below 1 and a pool none or more faults, got "
                f"{self.block}, {self.reserve} and {self.pool}; the usual ones are 1024, 0 and 0"
            )

    def design(self, population: Population) -> Design:
        """Return the strata, with a target for each half-width asked for."""
        if not population.goals:
            raise SamplingError(
                "adaptive sampling draws towards half-widths, got none to reach; give stop=HalfWidth(0.01, by='site')"
            )
        targets = {by: h * (1 - self.reserve) for by, h in population.goals.items()}
        strata = self.strata.cut(population).strata
        return Design(
            strata,
            looks="every",
            block=self.block,
            targets=targets,
            unit=self.strata.unit,
            adapts=True,
            pool=self.pool,
        )

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return the block that begins at *start*, planned from the outcomes in *tally*."""
        del start
        cutting = self.strata.cut(population)
        known = tally or Tally(population.space, self.design(population))
        counts = self._allocation(population, known, n)
        index, stratum, inputs = cutting.draw(counts, rng=rng)
        order = rng.permutation(n)
        weight = (cutting.strata.masses * (n / np.maximum(counts, 1)))[stratum[order]]
        given = None if inputs is None else inputs[order]
        return Draws(index[order], weight, stratum[order].astype(np.int32), None, given)

    def _allocation(self, population: Population, tally: Tally, n: int) -> Ints:
        """Return how many draws of the next block each stratum gets."""
        design = tally.design
        needed, drawn, p = np.zeros((3, len(design.strata)))
        for by, half_width in population.goals.items():
            rounds = tally.rounds(by, level=population.level)
            sequences, held = rounds.sequences, rounds.strata >= 0
            drawn[rounds.strata[held]], p[rounds.strata[held]] = sequences.trials[held], sequences.expected[held]
            open_ = tally.unfinished(by, half_width, level=population.level)[rounds.groups]
            unsure = held & open_[:, None]
            np.maximum.at(needed, rounds.strata[unsure], sequences.needed[unsure])
        if not needed.any():
            needed = design.strata.masses
        among, cost = np.asarray(needed > 0), tally.blocks().cost[-1]
        if design.price is None and (cost.min() <= _FREE or "model" in population.goals):
            # where only sites are asked for, the model's interval would fall short of its level: 93.3 % of 1,000 held
            return _in_steps(needed, cost, n, among=among)
        wanted = np.maximum(needed - drawn, _AHEAD * needed)
        spare = n - among.sum()
        if design.price is not None and wanted.sum() < spare:  # what is left over goes where draws are cheapest
            price = design.price(p)
            cheapest = among & (price <= price[among].min())
            wanted = wanted + cheapest * (spare - wanted.sum()) / cheapest.sum()
        return apportion(wanted, n, among=among)


def _in_steps(needed: Floats, cost: Floats, n: int, *, among: NDArray[np.bool_]) -> Ints:
    """Return a block of *n* draws as *needed* of strata *among*; where others *cost* next to nothing, a part of it.

    Blocks in the proportions of the whole plan stake most.
    """
    wanted, cheapest = _STEP * needed, int(cost.argmin())
    if cost[cheapest] <= _FREE and (left := n - np.maximum(wanted, among).sum()) > 0:
        wanted[cheapest] += left
        among[cheapest] = True
    return in_proportion(wanted, n, among=among)
