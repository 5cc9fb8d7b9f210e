"""Strata of sites and groups of their bits, for adaptive sampling of anything that has bits."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.errors import SamplingError
from torchfault.measures import Measure
from torchfault.sampling.design import Strata
from torchfault.sampling.protocol import Population

__all__ = ["BitFields"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BitFields:
    """Strata of a site and a group of its bits: of as many bits as *groups* says, from the top of the word.

    The rest of the bits are the last group. Raises :class:`SamplingError` for a group without bits.

    >>> from torchfault.space import FaultSpace, Site
    >>> BitFields().cut(Population(FaultSpace((Site("a", (1000,)),)))).strata.sizes
    array([ 1000,  1000,  4000,  3000, 23000])
    """

    groups: tuple[int, ...] = (1, 1, 4, 3)

    def __post_init__(self) -> None:
        if not all(size >= 1 for size in self.groups):
            raise SamplingError(f"a group has one bit or more, got {self.groups}; leave empty ones out")

    @property
    def unit(self) -> Literal["fault", "word"]:
        """Single faults."""
        return "fault"

    def cut(self, population: Population) -> "_CellStrata":
        """Return the population cut into sites by groups of bits, numbered from the top bits of the first site on."""
        cells, borders = population.space.cells, np.cumsum(self.groups)
        top = np.zeros(int(cells.group.max(initial=0)) + 1, dtype=np.int64)
        np.maximum.at(top, cells.group, cells.bit)
        rank = np.searchsorted(borders, top[cells.group] - cells.bit, side="right")
        mass = population.measure.mass(population.space)
        key = np.where((cells.sizes > 0) & (mass > 0), cells.group * (len(borders) + 1) + rank, -1)
        held = key >= 0
        stratum = np.full(len(cells), -1)
        stratum[held] = np.unique(key[held], return_inverse=True)[1].reshape(-1)
        return _CellStrata(population.space, population.measure, stratum)


class _CellStrata:
    """Strata of whole cells, drawn from by a measure."""

    def __init__(self, space: Space, measure: Measure, stratum: Ints) -> None:
        self.space, self.measure = space, measure
        self._mass = measure.mass(space)
        self.strata = Strata.of_cells(space, stratum, self._mass)
        self._order = np.argsort(stratum, kind="stable")[int((stratum < 0).sum()) :]
        self._edges = np.concatenate(([0.0], np.cumsum(self._mass[self._order])))
        first = np.searchsorted(stratum[self._order], np.arange(len(self.strata) + 1))
        self._low, self._high = self._edges[first[:-1]], self._edges[first[1:]]
        self._last = first[1:] - 1

    def draw(self, counts: Ints, *, rng: np.random.Generator) -> tuple[Ints, Ints, Ints | None]:
        """Return fault numbers and strata of so many draws from each stratum."""
        stratum = np.repeat(np.arange(len(counts)), counts)
        at = self._low[stratum] + rng.random(len(stratum)) * (self._high - self._low)[stratum]
        position = np.minimum(np.searchsorted(self._edges, at, side="right") - 1, self._last[stratum])
        cell = self._order[position]
        place = self.measure.draw_places(self.space, cell, rng=rng)
        return self.space.number_of(cell, place), stratum, None
