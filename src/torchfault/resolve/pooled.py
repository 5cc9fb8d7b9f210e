"""Pooled injection: faults that are expected to be harmless are struck together, and failing pools searched."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import CampaignError
from torchfault.resolve.block import Block, Resolver
from torchfault.resolve.direct import Direct
from torchfault.resolve.groups import search

__all__ = ["Pooled"]


@dataclass(frozen=True)
class Pooled:
    """Strike at most *size* faults together in one lane on one input; a masked pool counts for all of them.

    Pooled are faults that fail less than *quiet* as far as earlier outcomes, the bit and the input tell, and that no
    stratum keeps alone; the others are left to *inner*. A failing pool is searched, and every fault is run alone before
    it is said to fail. It assumes that errors do not cancel. Every outcome that a pool vouches for is run alone with
    probability *audit*, and what it finds counts; of the faults found failing a share *control* is struck again amid a
    masked pool, to see whether a pool can hide them. Raises :class:`CampaignError` for numbers out of range.

    >>> Pooled(64).assumption
    'errors of pooled faults do not cancel'
    """

    size: int = 64
    inner: Resolver = field(default_factory=Direct)
    audit: float = 0.01
    control: float = 1.0
    quiet: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.audit, self.control)
        if self.size < 2 or not all(0 <= share <= 1 for share in shares) or not 0 < self.quiet <= 0.5:
            raise CampaignError(
                f"a pool has 2 faults or more, audit and control are shares from 0 to 1 and quiet one from 0 to 0.5, "
                f"got {self.size}, {self.audit}, {self.control} and {self.quiet}; the usual ones are 64, 0.01, 1, 0.1"
            )

    @property
    def assumption(self) -> str:
        """That errors do not cancel."""
        own = "errors of pooled faults do not cancel"
        return f"{own}; {self.inner.assumption}" if self.inner.assumption else own

    def resolve(self, block: Block, rows: NDArray[np.int64]) -> None:
        """Find the outcomes of the trials at *rows* of *block*."""
        loud = block.alone[rows] | (block.expected[rows] > self.quiet)
        self.inner.resolve(block, rows[loud])
        items = rows[~loud]
        if not len(items):
            return
        inputs, words = block.trials.inputs[items], block.word[items]
        found = search(items, inputs, words, block.expected[items], block, pool=self.size)
        block.flag("pooled")[items] = True
        block.vouch(items[~found.alone], False, audit=self.audit)
        block.masked += [items[part] for part in found.masked]
        block.control = self.control
