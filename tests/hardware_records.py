"""Records of upsets on all images: a target that estimators strike seed after seed without running anything again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.measure import UpsetMeasure
from torchfault.hardware.proposals import Cells
from torchfault.hardware.striking import EngineTarget, Fates
from torchfault.hardware.upset_space import UpsetSpace
from torchfault.hardware.work import Work

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Recorded:
    """A target of estimators whose upsets are read from records instead of run.

    Record r belongs to the cell *cell*[r] (in rising order), makes up *share*[r] of it, and its outcomes are row
    *row*[r] of *fates*, packed bits of shape (3, rows, bytes): wrong, changed, due, image by image.
    """

    accelerator: Accelerator
    works: tuple[Work, ...]
    cells: Cells
    before: NDArray[np.bool_]
    cell: Ints
    share: Floats
    row: Ints
    fates: NDArray[np.uint8]

    def strike(self, cell: Ints, inputs: Ints, *, rng: np.random.Generator) -> Fates:
        """Read a random record of each *cell*, on its row of *inputs*."""
        record = np.searchsorted(self._ends(), cell + rng.random(len(cell)), side="right")
        row = self.row[np.minimum(record, len(self.row) - 1)]
        if inputs.shape[1] == len(self.before):
            return Fates(*np.unpackbits(self.fates[:, row], axis=2, count=len(self.before)).view(np.bool_))
        row = row[:, None]
        bits = self.fates[:, row, inputs // 8] >> (7 - inputs % 8).astype(np.uint8) & 1
        return Fates(*bits.astype(bool))

    def _ends(self) -> Floats:
        """Return, record by record, cell + the shares up to this record: rising, to be searched."""
        total = np.cumsum(self.share)
        first = np.searchsorted(self.cell, self.cell)
        return self.cell + np.minimum(total - total[first] + self.share[first], 1.0)

    def truth(self) -> float:
        """Return the Resiliency Accuracy of exactly these records."""
        wrong = np.unpackbits(self.fates[0], axis=1, count=len(self.before)).mean(1)[self.row]
        drop = np.bincount(self.cell, weights=self.share * wrong, minlength=len(self.cells)) - self.before.mean()
        control = self.cells.p[self.cells.control].sum()
        mass = np.where(self.cells.control, 0.0, self.cells.p * self.cells.used)
        return float((1 - self.before.mean()) * (1 - control) - mass @ drop)


def every_upset(space: UpsetSpace) -> tuple[Ints, Ints, Floats]:
    """Return the number of every upset of data that there is, its cell, and its share of that cell."""
    index = np.arange(len(space))
    cell = space.cell_of(index)
    data = space.cells.bit[cell] >= 0
    assert data.sum() + len(space.works) >= len(space), "a random word is one of too many"
    share = np.where(data, UpsetMeasure().within(space, cell, space.place_of(index)), 0.0)
    return index[share > 0], cell[share > 0], share[share > 0]


def record_all(target: EngineTarget) -> Recorded:
    """Return every upset there is on every image, run now."""
    index, cell, share = every_upset(target.space)
    images = len(target.before)
    words = np.zeros(len(index), dtype=np.uint64)
    found = target.run(index, np.tile(np.arange(images), (len(index), 1)), words=words)
    fates = np.packbits(np.stack((found.wrong, found.changed, found.due)), axis=2)
    row = np.arange(len(cell))
    return Recorded(target.accelerator, target.works, target.cells, target.before, cell, share, row, fates)
