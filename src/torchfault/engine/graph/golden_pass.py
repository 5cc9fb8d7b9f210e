"""The golden pass: every value of the program for a chunk of inputs, and how much memory lanes will need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.data import Tree, leaves, rows
from torchfault.engine.graph.spared import Spared
from torchfault.model.lane_axis import take_value
from torchfault.model.program import Program, Value, evaluate

__all__ = ["Footprint", "Golden", "footprint", "golden_pass"]


class Holder(Protocol):
    """What decides which values of a batch are held, and where."""

    def values(self, program: Program, inputs: Sequence[Tensor], lanes: int) -> Mapping[int, Value]:
        """Return the values of all nodes of *program* for *inputs*, the leaves of the input tree."""
        ...


@dataclass(frozen=True, eq=False)
class Golden:
    """The values of all nodes for *inputs*, ascending numbers of shape (lanes,)."""

    program: Program
    values: Mapping[int, Value]
    inputs: NDArray[np.int64]

    @property
    def lanes(self) -> int:
        """The number of inputs."""
        return len(self.inputs)

    def rows(self, inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of values that stand for *inputs*, all of which it holds."""
        return np.searchsorted(self.inputs, inputs)

    def holds(self, node: int) -> bool:
        """Whether the value of *node* is there, and not to be computed again where it is asked for."""
        return not isinstance(self.values, Spared) or node not in self.values.nodes

    def like(self, node: int) -> Value:
        """Return the value of *node*, or a tensor of its shape without data where it is not held."""
        return self.values.like(node) if isinstance(self.values, Spared) else self.values[node]

    def take(self, node: int, index: Tensor) -> Value:
        """Return the rows *index* of the value of *node*."""
        if isinstance(self.values, Spared):
            return self.values.take(node, index)
        return take_value(self.values[node], self.program.nodes[node].layout, index)

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        given = (self.values[position] for position in self.program.inputs if position is not None)
        return next((value.device for value in given), torch.device("cpu"))

    def outputs(self, index: Tensor) -> Tree:
        """Return the model's output for the inputs *index* of the chunk, lanes first."""
        nodes = self.program.nodes
        return self.program.output(lambda node: take_value(self.values[node], nodes[node].layout, index))


def golden_pass(
    program: Program,
    data: Tree,
    inputs: NDArray[np.int64],
    *,
    channels_last: bool,
    plan: Holder | None = None,
) -> Golden:
    """Run *program* without faults on some *inputs* of *data*, ascending numbers.

    Every value is kept, or what *plan* says.
    """
    first, last = int(inputs[0]), int(inputs[-1]) + 1
    chosen = slice(first, last) if last - first == len(inputs) else torch.from_numpy(inputs)
    chunk = leaves(rows(data, chosen))
    if channels_last:
        chunk = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in chunk]
    hold = evaluate if plan is None else plan.values
    return Golden(program, hold(program, chunk, len(inputs)), inputs)


@dataclass(frozen=True, eq=False)
class Footprint:
    """Bytes for one input: *golden* for what is held of it, and for a lane that boards at a node the most that is alive
    at once (*alive*) and the largest single tensor (*largest*) from there on, both of shape (nodes,)."""

    golden: int
    alive: NDArray[np.int64]
    largest: NDArray[np.int64]


def _bytes(value: Value) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(value))


def footprint(program: Program, one: Golden, last_reader: list[int], golden: int) -> Footprint:
    """Return the memory that lanes need, from a golden pass over a single input, of which *golden* bytes are held."""
    count = len(program.nodes)
    size = np.zeros(count, dtype=np.int64)
    for node in program.nodes:
        if node.constant:
            continue
        size[node.position] = 0 if node.view else _bytes(one.values[node.position])
    alive = np.zeros(count, dtype=np.int64)
    for node in program.nodes:
        until = max(last_reader[node.position], node.position)
        alive[node.position : until + 1] += size[node.position]
    return Footprint(golden, _from_here_on(alive), _from_here_on(size))


def _from_here_on(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.maximum.accumulate(values[::-1])[::-1]
