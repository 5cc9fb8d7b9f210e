"""Golden values of a captured program for some inputs, read element by element."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.data import Data, leaves, rows
from torchfault.engine import Engine
from torchfault.engine.graph.executor import GraphExecutor
from torchfault.hardware.layers import Layers
from torchfault.model.lane_axis import LaneAxis, lanes_first
from torchfault.model.program import Program, evaluate
from torchfault.space import FaultSpace

__all__ = ["Golden", "Machine", "golden_of", "held_together"]

Ints = NDArray[np.int64]
_INPUTS = 64  # inputs whose values are held at a time, if a quarter of the memory can hold as many


class Machine(Protocol):
    """What upsets need of an engine: its inputs, the sites of its model, and how much memory there is."""

    @property
    def data(self) -> Data: ...
    @property
    def space(self) -> FaultSpace: ...
    @property
    def memory(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Golden:
    """The *values* of the nodes of *program* for *inputs*, ascending numbers, one row per input."""

    program: Program
    values: Mapping[int, Any]
    inputs: Ints

    def rows(self, inputs: Ints) -> Ints:
        """Return the rows of *inputs*, all of which it holds."""
        return np.searchsorted(self.inputs, inputs)

    def flat(self, node: int) -> Tensor:
        """Return the value of *node*, flat for each input, shape (inputs, elements)."""
        value, varies = self._rows(node)
        flat = value.reshape(len(value), -1)
        return flat if varies else flat.expand(len(self.inputs), -1)

    def _rows(self, node: int) -> tuple[Tensor, bool]:
        """Return the value of *node* in rows, which have one axis or more, and whether each input has its own."""
        value, layout = self.values[node], self.program.nodes[node].layout
        varies = isinstance(layout, LaneAxis)
        value = lanes_first(value, layout) if isinstance(layout, LaneAxis) else value.unsqueeze(0)
        return value if value.ndim > 1 else value.unsqueeze(1), varies

    def read(self, node: int, lane: Ints, element: Ints) -> Tensor:
        """Return element by element, 0 where it is -1 (padding)."""
        value, varies = self._rows(node)
        places = np.unravel_index(np.maximum(element, 0), value.shape[1:])  # values may lie in any order in memory
        row = np.array(np.broadcast_to(lane if varies else 0, element.shape))
        found = value[tuple(torch.from_numpy(at).to(value.device) for at in (row, *places))].cpu()
        return found.masked_fill_(torch.from_numpy(element < 0), 0)


def _holder(layers: Layers, engine: Machine) -> GraphExecutor | None:
    """Return the executor of *engine* that holds the values of the very program of *layers*, if it has one."""
    graph = engine.graph if isinstance(engine, Engine) else None
    own = graph is not None and graph.captured is not None and graph.captured.program is layers.program
    return graph if own else None


def held_together(layers: Layers, engine: Machine, inputs: Ints) -> list[Ints]:
    """Return *inputs*, each once and ascending, in the parts whose golden values are held at the same time."""
    if (graph := _holder(layers, engine)) is not None:
        return graph.chunks(inputs)
    needed, size = np.unique(inputs), max(1, min(_INPUTS, engine.memory // 4 // max(layers.nbytes, 1)))
    return np.split(needed, range(size, len(needed), size)) if len(needed) else []


def golden_of(layers: Layers, engine: Machine, inputs: Ints) -> Golden:
    """Return the golden values of *inputs*, ascending numbers of one part: those that *engine* holds, or new ones.

    What an engine computed for upsets, lanes on the same inputs find there: on 1,000 images, which do not fit into the
    memory, that halves the passes without faults.
    """
    if (graph := _holder(layers, engine)) is not None:
        held = graph.held(inputs)
        return Golden(held.program, held.values, held.inputs)
    chosen = rows(engine.data.inputs, torch.from_numpy(inputs))
    return Golden(layers.program, evaluate(layers.program, leaves(chosen), len(inputs)), inputs)
