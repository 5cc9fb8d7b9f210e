"""The golden pass: every value of the program for a chunk of inputs, and how much memory lanes will need."""

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.data import Tree, leaves, rows
from torchfault.engine.graph.segments import Segmented, Segments
from torchfault.model.lane_axis import take_value
from torchfault.model.program import Program, Value, evaluate

__all__ = ["Footprint", "Golden", "footprint", "give_back_memory", "golden_pass"]


@dataclass(frozen=True, eq=False)
class Golden:
    """The values of all nodes for inputs *first* to *first + lanes*."""

    program: Program
    values: Mapping[int, Value]
    first: int
    lanes: int

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
    program: Program, inputs: Tree, first: int, lanes: int, *, channels_last: bool, plan: Segments | None = None
) -> Golden:
    """Run *program* without faults on a chunk of *inputs*, and keep every value, or what *plan* says of them."""
    chunk = leaves(rows(inputs, slice(first, first + lanes)))
    if channels_last:
        chunk = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in chunk]
    count = len(chunk[0])
    if plan is None or len(plan.starts) == 1:
        return Golden(program, evaluate(program, chunk, count), first, count)
    return Golden(program, Segmented(program, plan, chunk, count), first, count)


@dataclass(frozen=True, eq=False)
class Footprint:
    """Bytes for one input: *golden* for what is held of it, and for a lane that boards at a node the most that is alive
    at once (*alive*) and the largest single tensor (*largest*) from there on, both of shape (nodes,)."""

    golden: int
    alive: NDArray[np.int64]
    largest: NDArray[np.int64]


def _bytes(value: Value) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(value))


def footprint(program: Program, one: Golden, last_reader: list[int], plan: Segments) -> Footprint:
    """Return the memory that one input or lane needs, from a golden pass over a single input."""
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
    return Footprint(plan.nbytes, _from_here_on(alive), _from_here_on(size))


def _from_here_on(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.maximum.accumulate(values[::-1])[::-1]


def give_back_memory() -> None:
    """Return freed memory to the system where the C library can: it keeps pieces too small for the next tensors."""
    with suppress(OSError, AttributeError):  # other C libraries than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
