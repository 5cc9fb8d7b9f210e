"""Outcomes that are known without a lane, for certain: changes that meet nothing but zeros."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.resolve.block import Block, Resolver
from torchfault.resolve.direct import Direct

__all__ = ["Gated", "Proof"]

Ints = NDArray[np.int64]
Proof = Callable[[Space, Ints, Ints], NDArray[np.bool_]]
"""Takes a space, fault numbers and their inputs; returns which of them are proven to change nothing at all."""


@dataclass(frozen=True, eq=False)
class Gated:
    """Take the trials that *proof* shows to be masked as such, and leave the others to *inner*.

    Nothing is assumed: these are exact outcomes.

    >>> Gated(lambda space, index, inputs: index < 0).assumption
    ''
    """

    proof: Proof
    inner: Resolver = field(default_factory=Direct)

    @property
    def assumption(self) -> str:
        """What the inner resolver assumes."""
        return self.inner.assumption

    def resolve(self, block: Block, rows: Ints) -> None:
        """Find the outcomes of the trials at *rows* of *block*."""
        proven = self.proof(block.space, block.index[rows], block.trials.inputs[rows])
        block.take_as_golden(rows[proven])
        self.inner.resolve(block, rows[~proven])
