"""What every executor offers: its sites, the golden outputs, and trials in, faulty outputs out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from torchfault.faults import Trials
from torchfault.model.data import Tree
from torchfault.space import FaultSpace

__all__ = ["Executor", "Lanes"]


@dataclass(frozen=True, eq=False)
class Lanes:
    """Finished lanes: row i is trial ``trial[i]`` of those given, on input ``inputs[i]``.

    *golden* and *faulty* are trees of output tensors whose first axis has one row per lane. *masked*, shape (lanes,),
    tells which lanes are known to be bit-identical to golden (they left early); the others may be as well.
    """

    trial: NDArray[np.int64]
    inputs: NDArray[np.int64]
    golden: Tree
    faulty: Tree
    masked: NDArray[np.bool_]


class Executor(Protocol):
    """Runs trials: each on its input, with its faults and no others."""

    @property
    def name(self) -> str:
        """The name of the executor: ``graph`` or ``hooks``."""
        ...

    @property
    def space(self) -> FaultSpace:
        """Every site that this executor can strike."""
        ...

    def golden(self) -> Tree:
        """Return the outputs of the model without faults, one row per input."""
        ...

    def run(self, trials: Trials) -> Iterator[Lanes]:
        """Yield the outcome of every trial exactly once, in any order."""
        ...
