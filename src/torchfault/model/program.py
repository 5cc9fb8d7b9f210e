"""A captured model as a flat program: nodes in execution order, with the batch size left open."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchfault.data import Tree
from torchfault.model.lane_axis import LaneAxis
from torchfault.model.rounding import Rounded

__all__ = ["VIEWS", "Node", "Program", "Ref", "Size", "evaluate", "fill", "plain_name", "run_node"]

_RESHAPES = {"view", "reshape", "_unsafe_view", "view_as", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous"}
_PARTS = {"select", "slice", "split", "split_with_sizes", "tensor_split", "chunk", "unbind", "narrow", "getitem"}
_ORDERS = {"transpose", "permute", "t", "movedim", "swapaxes", "numpy_T", "expand", "expand_as", "unfold", "diagonal"}
_COPIES = {"detach", "alias", "clone", "lift_fresh_copy", "dropout", "feature_dropout"}
VIEWS = frozenset(_RESHAPES | _PARTS | _ORDERS | _COPIES)
"""The plain names of operations that compute nothing."""

_SHAPE_ONLY = frozenset({"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full"})

Value = Any
"""What a node computes: a tensor, or a tuple of tensors for operations with several results."""


@dataclass(frozen=True)
class Ref:
    """An argument that is the value of the node at *node*."""

    node: int


@dataclass(frozen=True)
class Size:
    """An argument that depends on the number of lanes."""

    formula: Callable[[int], int]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation, or one input or constant (then *target* is ``None``).

    *layout* tells where the lanes are in the value (one per result, for several); ``None`` is a value that no input
    reaches: a parameter, or something computed from parameters alone. *module* is the path of the module it belongs
    to, *call* the same with ``@k`` from the module's second call on, *op* the plain name of the operation.
    A *positional* value depends on the number of lanes and on nothing that they hold, as ``arange(batch)`` does.
    *rounded* tells of an operation that rounds to emulated words whose activation it gives.
    """

    position: int
    target: Callable[..., Value] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    reads: tuple[int, ...]
    layout: LaneAxis | tuple[LaneAxis | None, ...] | None
    module: str = ""
    call: str = ""
    module_type: str = ""
    op: str = ""
    view: bool = False
    positional: bool = False
    rounded: Rounded | None = None

    @property
    def constant(self) -> bool:
        """Whether the value is the same for every input."""
        return self.layout is None


@dataclass(frozen=True, eq=False)
class Program:
    """The nodes of a model; *constants* holds the values of those that no input reaches.

    *inputs* are the nodes of the input tensors, in the order of the input tree's leaves (``None`` for leaves that
    nothing reads), *parameters* maps the qualified name of a parameter or buffer to its node, and *unflatten*
    rebuilds the model's output from the values at *outputs*.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[int, Value]
    inputs: tuple[int | None, ...]
    parameters: Mapping[str, int]
    outputs: tuple[Any, ...]
    unflatten: Callable[[Sequence[Any]], Tree]

    def output(self, value: Callable[[int], Tensor]) -> Tree:
        """Return the model's output, lanes first, from the *value* of each node that it is made of."""
        flat = []
        for part in self.outputs:
            if isinstance(part, Ref):
                layout = self.nodes[part.node].layout
                assert isinstance(layout, LaneAxis)
                flat.append(value(part.node).movedim(layout.axis, 0))
            else:
                flat.append(part)
        return self.unflatten(flat)

    def fed(self) -> set[int]:
        """Return the nodes that the values of the inputs reach, and not only their number."""
        found = {position for position in self.inputs if position is not None}
        for node in self.nodes:
            if node.op not in _SHAPE_ONLY and any(source in found for source in node.reads):
                found.add(node.position)
        return found

    def readers(self) -> list[list[int]]:
        """Return, for every node, the nodes that read its value."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for source in node.reads:
                found[source].append(node.position)
        return found


def plain_name(target: Any) -> str:
    """Return the name of an operation without its overload, and without the mark of one in place.

    >>> plain_name(torch.ops.aten.add_.Tensor)
    'add'
    """
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[-1]
    else:
        name = getattr(target, "__name__", str(target))
    return name.rstrip("_") or name


def fill(argument: Any, values: Callable[[int], Value], lanes: int) -> Any:
    """Return *argument* with every reference replaced by a value and every size by a number."""
    if isinstance(argument, Ref):
        return values(argument.node)
    if isinstance(argument, Size):
        return argument.formula(lanes)
    if isinstance(argument, list | tuple):
        return type(argument)([fill(part, values, lanes) for part in argument])
    if isinstance(argument, dict):
        return {key: fill(part, values, lanes) for key, part in argument.items()}
    return argument


def run_node(node: Node, values: Callable[[int], Value], lanes: int) -> Value:
    """Return the value of *node*, given the values it reads."""
    assert node.target is not None
    args = [fill(argument, values, lanes) for argument in node.args]
    return node.target(*args, **{key: fill(argument, values, lanes) for key, argument in node.kwargs.items()})


def evaluate(program: Program, inputs: Sequence[Tensor], lanes: int) -> dict[int, Value]:
    """Return the value of every node for a batch of *inputs* (the leaves of the input tree), without faults."""
    values: dict[int, Value] = dict(program.constants)
    for position, leaf in zip(program.inputs, inputs, strict=True):
        if position is not None:
            values[position] = leaf
    for node in program.nodes:
        if node.position not in values:
            values[node.position] = run_node(node, values.__getitem__, lanes)
    return values
