"""What every executor offers: its sites, the golden outputs, and trials in, faulty outputs out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.data import Tree, map_tensors
from torchfault.errors import EngineError
from torchfault.space import FaultSpace
from torchfault.trials import Trials

if TYPE_CHECKING:
    from torchfault.engine.monitor import MonitorRun

__all__ = ["Executor", "Lanes", "check_trials"]


@dataclass(frozen=True, eq=False)
class Lanes:
    """Finished lanes: row i is trial ``trial[i]`` of those given, on input ``inputs[i]``.

    *golden* and *faulty* are trees of output tensors whose first axis has one row per lane. *masked*, shape (lanes,),
    tells which lanes are known to be as golden (they left early, or a monitor saw their error end); the others may be
    as well. *crashed*,
    shape (lanes,), tells those in which the model raised an exception, or found that a stored index points to nowhere:
    they have no outputs, and golden's stand in for them; none is unless told.
    """

    trial: NDArray[np.int64]
    inputs: NDArray[np.int64]
    golden: Tree
    faulty: Tree
    masked: NDArray[np.bool_]
    crashed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        if not len(self.crashed):
            object.__setattr__(self, "crashed", np.zeros(len(self.trial), dtype=bool))

    @property
    def outputs(self) -> Tree:
        """The faulty outputs, with NaN in the floating-point ones of lanes that crashed: for what needs some number."""
        if not self.crashed.any():
            return self.faulty
        lost = torch.from_numpy(self.crashed)

        def blank(leaf: Tensor) -> Tensor:
            gone = lost.to(leaf.device).view(-1, *[1] * (leaf.ndim - 1))
            return leaf.masked_fill(gone, torch.nan) if leaf.is_floating_point() else leaf

        return map_tensors(blank, self.faulty)


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

    def run(self, trials: Trials, monitor: "MonitorRun | None" = None) -> Iterator[Lanes]:
        """Yield the outcome of every trial exactly once, in any order; *monitor*, if given, looks on."""
        ...


def check_trials(trials: Trials, space: FaultSpace, inputs: int) -> None:
    """Raise an error where *trials* strike sites that are not in *space* as they are there, or beyond the *inputs*."""
    for position in np.unique(trials.site):
        theirs = trials.sites[position]
        mine = space.site(theirs.name)
        if not theirs.part_of(mine):
            raise EngineError(
                f"'{theirs.name}' has {mine.word} words in shape {mine.shape}, got {theirs.word} in {theirs.shape}; "
                "draw trials from this engine's space"
            )
    if len(trials) and not 0 <= trials.inputs.min() <= trials.inputs.max() < inputs:
        raise EngineError(f"inputs run from 0 to {inputs - 1}, got {trials.inputs.min()} to {trials.inputs.max()}")
