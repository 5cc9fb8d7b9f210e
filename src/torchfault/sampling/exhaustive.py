"""Exhaustive injection: every fault of the space once, in the order of its number."""

from dataclasses import dataclass

import numpy as np

from torchfault.errors import SamplingError
from torchfault.sampling.draws import Draws
from torchfault.space import FaultSpace

__all__ = ["Exhaustive"]


@dataclass(frozen=True)
class Exhaustive:
    """Draw every fault once: trial n strikes fault n.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (2,), word="int8"),))
    >>> Exhaustive().draw(space, 3, rng=np.random.default_rng(0), start=13).index
    array([13, 14, 15])
    """

    block: int = 4096

    def total(self, space: FaultSpace) -> int | None:
        """Return the size of the space."""
        return len(space)

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return faults *start* to *start + n*; no randomness is used."""
        del rng
        if n < 0 or start < 0 or start + n > len(space):
            raise SamplingError(f"the space ends at {len(space)}, got {start} to {start + n}; draw fewer")
        return Draws.equal(np.arange(start, start + n, dtype=np.int64))
