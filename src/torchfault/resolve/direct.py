"""Outcomes by a lane for each trial: nothing is assumed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.resolve.block import Block

__all__ = ["Direct"]


@dataclass(frozen=True)
class Direct:
    """Run every trial in a lane of its own.

    >>> Direct().assumption
    ''
    """

    @property
    def assumption(self) -> str:
        """Nothing."""
        return ""

    def resolve(self, block: Block, rows: NDArray[np.int64]) -> None:
        """Find the outcomes of the trials at *rows* of *block*."""
        block.run_alone(rows)
