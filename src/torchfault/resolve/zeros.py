"""A proof that flips change nothing: those of weights whose operands are all 0, unless they give what is not finite."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.model.operands import Operands
from torchfault.space import FaultSpace
from torchfault.words.deltas import flip_deltas

__all__ = ["MeetsZeros"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class MeetsZeros:
    """Prove that flips of weights change nothing on inputs where all they are multiplied by is 0.

    *words* are the golden words of the weights, *operands* what they meet (:func:`torchfault.model.operands.operands`).
    A flip to NaN or infinity, or from it, is not proven: times 0 it is NaN.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("fc.weight", (1, 2)),))
    >>> met = Operands(np.array([0, 1], dtype=np.int32), np.array([[True, False]]))
    >>> proof = MeetsZeros({"fc.weight": np.array([[0x3F800000] * 2], dtype=np.uint32)}, {"fc.weight": met})
    >>> proof(space, np.array([3, 32 + 3, 32 + 30]), np.zeros(3, dtype=np.int64)).tolist()  # 1.0: bit 30 gives infinity
    [False, True, False]
    """

    words: Mapping[str, NDArray[np.unsignedinteger]]
    operands: Mapping[str, Operands]

    def __call__(self, space: Space, index: Ints, inputs: Ints) -> Bools:
        """Return which of the flips *index* change nothing at all on their *inputs*, shape (n,)."""
        assert isinstance(space, FaultSpace)
        where, proven = space.locate(index), np.zeros(len(index), dtype=np.bool_)
        for position in np.unique(where.site).tolist():
            site = space.sites[position]
            met = self.operands.get(site.name)
            if met is None:
                continue
            here = np.flatnonzero(where.site == position)
            here = here[~met.live[inputs[here], met.channel[where.element[here]]]]
            words = self.words[site.name][0, where.element[here]].astype(np.uint64)
            proven[here] = np.isfinite(flip_deltas(words, site.word, bit=where.bit[here].astype(np.int64)))
        return proven
