"""Strata of sites whose draws are whole words: every bit of a random word on one input."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.sampling.design import Strata
from torchfault.sampling.protocol import Population
from torchfault.space import FaultSpace

__all__ = ["WholeWords"]

Ints = NDArray[np.int64]
_PRIOR = 0.02


@dataclass(frozen=True)
class WholeWords:
    """Strata of sites, from which whole words are drawn, each on a random input, with all the flips of its bits.

    The word is what is drawn: its share of failing bits is one outcome from 0 to 1, and the bits of one word, which
    fail together, never count as many. Take it with monotone closure (:class:`torchfault.resolve.Monotone`), which
    needs about three lanes for a word. Raises :class:`SamplingError` for a measure that is not uniform.

    >>> from torchfault.space import Site
    >>> cutting = WholeWords().cut(Population(FaultSpace((Site("a", (9,)),)), inputs=5))
    >>> index, _, inputs = cutting.draw(np.array([3]), rng=np.random.default_rng(0))
    >>> (index % 32).tolist(), len(inputs)
    ([0, 0, 0], 3)
    """

    @property
    def unit(self) -> Literal["fault", "word"]:
        """Whole words."""
        return "word"

    def cut(self, population: Population) -> "_Words":
        """Return the population cut into its sites."""
        if not isinstance(population.space, FaultSpace) or not population.is_uniform:
            raise SamplingError(
                "whole words are drawn from equally likely ones, got another space or a measure; "
                "use Adaptive(BitFields())"
            )
        return _Words(population.space, population.inputs)


class _Words:
    """The words of a space by site."""

    def __init__(self, space: FaultSpace, inputs: int) -> None:
        self.space, self.inputs = space, inputs
        site = np.flatnonzero(space.sizes)
        self.sites, mass = site, space.sizes[site] / len(space)
        none = np.full(len(site), -1)
        self.strata = Strata(np.arange(len(site)), site, none, space.sizes[site], mass, np.full(len(site), _PRIOR))

    def draw(self, counts: Ints, *, rng: np.random.Generator) -> tuple[Ints, Ints, Ints | None]:
        """Return the lowest fault of so many words from each site, their strata and their inputs."""
        stratum = np.repeat(np.arange(len(counts)), counts)
        site = self.sites[stratum]
        element = rng.integers(0, np.array([one.elements for one in self.space.sites])[site])
        lowest = np.array([one.bits[0] for one in self.space.sites])[site]
        return self.space.number(site, element, lowest), stratum, rng.integers(0, self.inputs, size=len(site))
