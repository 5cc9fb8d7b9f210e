"""How often upsets failed in a pilot, cell by cell, and what that makes one expect of all cells; NumPy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.hardware.upset_space import UpsetSpace
from torchfault.store import Columns

__all__ = ["Profile"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# How many trials the rate of a whole counts in that of its parts: a type in its bit, a cell in its type and bit.
_PRIOR = (1.0, 2.0, 8.0)
_BITLESS = 1000  # families from here on are no bits


@dataclass(frozen=True, eq=False)
class Profile:
    """What a few upsets of *space* did: how many *failed*, of those *drawn*, cell by cell, shape (cells,) each."""

    space: UpsetSpace
    failed: Floats
    drawn: Floats

    @classmethod
    def of(cls, space: UpsetSpace, trials: Columns) -> "Profile":
        """Return the profile that *trials* make, those of several inputs each for itself."""
        cell, size = space.cell_of(trials.faults), len(space.cells)
        failed = np.bincount(cell, np.asarray(trials.failed, dtype=np.float64), size)
        drawn = np.bincount(cell, minlength=size)
        return cls(space, failed.astype(np.float64), drawn.astype(np.float64))

    @property
    def family(self) -> Ints:
        """Which cells do alike, shape (cells,): those of one bit; of a type that leaves random words, all."""
        bit = self.space.cells.bit
        return np.where(bit >= 0, bit, _BITLESS + self.space.type)

    def rate(self) -> Floats:
        """Return the failing share that is expected of every cell, shape (cells,), never 0.

        A cell with few trials takes after its type and bit, these after the bit, and that after the whole: each adds
        so many trials of its own rate to those of its parts (shrinkage; Efron & Morris, JASA 70, 1975).
        """
        family, cells = self.family, np.arange(len(self.drawn))
        group = np.unique(np.stack((self.space.type, family)), axis=1, return_inverse=True)[1].reshape(-1)
        rate = np.full(len(cells), (self.failed.sum() + 0.5) / (self.drawn.sum() + 1))
        for part, prior in zip((family, group, cells), _PRIOR, strict=True):
            failed, drawn = (np.bincount(part, weights=of) for of in (self.failed, self.drawn))
            rate = (failed[part] + prior * rate) / (drawn[part] + prior)
        return rate

    def by_family(self) -> Floats:
        """Return the failing share of the family of each cell alone, shape (cells,), never 0."""
        alike = np.unique(self.family, return_inverse=True)[1]
        failed, drawn = (np.bincount(alike, weights=of) for of in (self.failed, self.drawn))
        return np.asarray(((failed + 0.25) / (drawn + 0.5))[alike])
