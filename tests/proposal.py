"""A sampler in one file, as anyone may write it: half of the draws from the top bit of the exponent."""

from dataclasses import dataclass

import numpy as np

from torchfault.sampling import Draws
from torchfault.space import FaultSpace


@dataclass(frozen=True)
class TopBits:
    """Draw from bit 30 of float32 words with probability *share*, and else from everywhere: q = share q30 + rest p.

    A draw weighs p / q, and since everything is drawn at times no weight exceeds 1 / (1 - share).
    """

    share: float = 0.5
    block: int = 1000

    def total(self, space: FaultSpace) -> int | None:
        """Return no end."""
        del space
        return None

    def largest_weight(self, space: FaultSpace) -> float:
        """Return the weight of what is drawn uniformly alone."""
        del space
        return 1 / (1 - self.share)

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return *n* trials; *start* does not matter, since they are independent."""
        del start
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
