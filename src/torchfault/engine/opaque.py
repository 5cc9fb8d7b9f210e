"""The graph executor for models whose modules keep their words to themselves: packed, or in tensors made of several.

The sweep runs each call of a module as one operation. A lane with changed words starts there: the module runs once more
with these words, for all lanes that share them, and nothing before it is computed.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchfault.data import Data, Tree
from torchfault.engine.executor import Lanes, check_trials
from torchfault.engine.graph.executor import Captured, GraphExecutor
from torchfault.engine.graph.modules import Modules
from torchfault.engine.monitor import MonitorRun
from torchfault.engine.stored import Memory
from torchfault.model.discover import find
from torchfault.model.memory import homes
from torchfault.model.opaque.trace import trace
from torchfault.space import FaultSpace
from torchfault.trials import Trials

__all__ = ["TracedExecutor", "hides_words"]


def hides_words(model: nn.Module) -> bool:
    """Whether *model* has words that no graph of its tensors shows.

    >>> hides_words(nn.Linear(2, 1))
    False
    """
    return any(home.stored is None for home in homes(model))


class TracedExecutor:
    """Runs trials on *model* as followed by ``torch.fx``, within *memory* bytes for activations.

    What concerns all lanes of a pass, such as the scale of what a module gives, runs under hooks; so does everything
    that a monitor looks at. Raises what :class:`GraphExecutor` raises.
    """

    name = "graph"

    def __init__(self, model: nn.Module, data: Data, *, memory: int, buffers: bool = False) -> None:
        self.data = data
        found = find(model, data, buffers=buffers)
        traced = trace(model, data, found)
        assert found.fold is not None
        captured = Captured(traced.program, found.fold, traced.places, modules=Modules(Memory(model), traced.rows))
        self._graph = GraphExecutor(model, data, memory=memory, buffers=buffers, captured=captured)

    @property
    def space(self) -> FaultSpace:
        """Every site of the model, in execution order."""
        return self._graph.space

    def golden(self) -> Tree:
        """Return the outputs without faults, one row per input."""
        return self._graph.golden()

    def run(self, trials: Trials, monitor: MonitorRun | None = None) -> Iterator[Lanes]:
        """Yield the outcome of every trial exactly once, in any order."""
        check_trials(trials, self.space, len(self.data))
        return self._run(trials, monitor)

    def _run(self, trials: Trials, monitor: MonitorRun | None) -> Iterator[Lanes]:
        elsewhere = np.array([site.name not in self._graph.places for site in trials.sites])[trials.site]
        slow = np.bincount(trials.owner[elsewhere], minlength=len(trials)) > 0
        if monitor is not None:
            slow[:] = True
        fast, rest = np.flatnonzero(~slow), np.flatnonzero(slow)
        if len(fast):
            yield from _renumbered(self._graph.run(trials.take(fast)), fast)
        if len(rest):
            self._graph.forget()  # the budget is for one executor at a time
            under = None if monitor is None else monitor.take(rest)
            yield from _renumbered(self._graph.hooks.run(trials.take(rest), under), rest)


def _renumbered(found: Iterator[Lanes], trial: NDArray[np.int64]) -> Iterator[Lanes]:
    for lanes in found:
        yield replace(lanes, trial=trial[lanes.trial])
