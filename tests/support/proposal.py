"""A sampler in one file, as anyone may write it: half of the draws from the top bit of the exponent."""

from dataclasses import dataclass

import numpy as np

from torchfault.sampling import Design, Draws, Population, Strata, Tally
from torchfault.space import FaultSpace


@dataclass(frozen=True)
class TopBits:
    """Draw from bit 30 of float32 words with probability *share*, and else from everywhere: q = share q30 + rest p.

    A draw weighs p / q, and since everything is drawn at times no weight exceeds 1 / (1 - share).
    """

    share: float = 0.5
    block: int = 1000

    def design(self, population: Population) -> Design:
        """Return one stratum, and the weight of what is drawn uniformly alone."""
        return Design(Strata.one(len(population.space)), block=self.block, largest_weight=1 / (1 - self.share))

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return *n* trials; *start* does not matter, since they are independent, nor do the outcomes so far."""
        del start, tally
        space = population.space
        assert isinstance(space, FaultSpace)
        top = np.array([site.elements if site.width == 32 and 30 in site.bits else 0 for site in space.sites])
        share = self.share if top.sum() else 0.0
        index = rng.integers(0, len(space), size=n, dtype=np.int64)
        aimed = np.flatnonzero(rng.random(n) < share)
        nth = rng.integers(0, max(top.sum(), 1), size=len(aimed))
        site = np.searchsorted(np.cumsum(top), nth, side="right")
        index[aimed] = space.number(site, nth - (np.cumsum(top) - top)[site], np.full(len(aimed), 30))
        where = space.locate(index)
        hit = (where.bit == 30) & (top[where.site] > 0)
        weight = 1 / (1 - share + hit * share * len(space) / max(top.sum(), 1))
        return Draws(index, weight, np.zeros(n, dtype=np.int32))
