"""Upsets that wait for their lanes: what one does to words depends on golden values, which are there where it runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.campaign import Machine, UpsetModel
from torchfault.cells import Space
from torchfault.trials import Trials

__all__ = ["UpsetLanes"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class UpsetLanes:
    """Upsets *index* of *space*, each on an input and with a random word, columns of shape (lanes,)."""

    fault: UpsetModel
    space: Space
    engine: Machine
    index: Ints
    inputs: Ints
    words: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, order: Ints) -> "UpsetLanes":
        """Return the upsets at positions *order*, in that order."""
        return replace(self, index=self.index[order], inputs=self.inputs[order], words=self.words[order])

    @classmethod
    def join(cls, parts: "Sequence[UpsetLanes]") -> "UpsetLanes":
        """Return the upsets of all *parts*, which are of one campaign, one after the other."""
        index, inputs, words = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("index", "inputs", "words")
        )
        return replace(parts[0], index=index, inputs=inputs, words=words)

    def parts(self) -> Iterator[tuple[Trials, Ints]]:
        """Yield the trials that they become and the positions of theirs, in parts that fit into the engine's memory."""
        return self.fault.parts(self.space, self.index, self.inputs, words=self.words, engine=self.engine)
