"""How far a change of one operation's value can grow on its way through a program: Lipschitz bounds in the l2 norm."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torchfault.model.lane_axis import LaneAxis
from torchfault.model.operator_norms import convolution_norms, linear_norms, residual_norms
from torchfault.model.program import Node, Program, Ref

__all__ = ["CONVOLUTIONS", "PRODUCTS", "Gains", "Reach", "Unbounded", "convolution_arguments", "normalized"]

Floats = NDArray[np.float64]
CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
PRODUCTS = CONVOLUTIONS | {"linear"}
_FLAT = frozenset({"relu", "relu6", "hardtanh", "tanh", "sigmoid"})  # rise with what goes in, by no more, one by one
_SAME = frozenset({"clone", "detach", "alias", "contiguous", "dropout", "feature_dropout", "lift_fresh_copy"})
_RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"})
_MOVES = frozenset({"transpose", "permute", "movedim", "slice", "select", "narrow"})  # keep values at most once


class Unbounded(Exception):
    """An operation that no bound is known for; its message names it."""


@dataclass(frozen=True, eq=False)
class Reach:
    """How large a change of norm 1 may have become: *most*, shape (channels + 1,).

    The first hold for a change within one channel (axis 1) of where it began, the last for any. *confined* tells that a
    change within one channel is still in that channel.
    """

    most: Floats
    confined: bool


@dataclass(frozen=True, eq=False)
class _Step:
    """What one operation does to the norm of a change: of any, of one within each channel, and whether that stays."""

    most: float
    channels: Floats | float
    keeps: bool

    def after(self, reach: Reach) -> Reach:
        """Return how large a change is behind the operation."""
        if not reach.confined:
            return Reach(reach.most * self.most, False)
        return Reach(np.append(reach.most[:-1] * self.channels, reach.most[-1] * self.most), self.keeps)


@dataclass(eq=False)
class Gains:
    """Bounds the growth of changes in *program*, of which *values* holds the value of every node on one input.

    ReLU and pooling are 1-Lipschitz, and of everything else on the way the l2 norm is known or bounded; the bounds of a
    path multiply, and add up where paths meet. Source: Szegedy et al., Intriguing properties of neural networks,
    arXiv:1312.6199, section 4.3.
    """

    program: Program
    values: Mapping[int, Any]
    _steps: dict[tuple[int, int], _Step] = field(default_factory=dict)
    _blocks: dict[tuple[int, int], _Step] = field(default_factory=dict)

    @cached_property
    def _normalized(self) -> Mapping[int, int]:
        return normalized(self.program)

    def behind(self, product: Node) -> Node:
        """Return the batch norm that alone reads what *product* gives, or the product itself."""
        return self.program.nodes[self._normalized.get(product.position, product.position)]

    def constant(self, argument: Any) -> Tensor | None:
        """Return the value of an *argument* that no input reaches; raises :class:`Unbounded` where one does."""
        if argument is None:
            return None
        if not isinstance(argument, Ref) or not self.program.nodes[argument.node].constant:
            raise Unbounded("a weight that is computed from inputs")
        value: Tensor = self.values[argument.node]
        return value

    def shape(self, node: int) -> tuple[int, ...]:
        """Return the shape of the value of *node* on one input."""
        return tuple(self.values[node].shape)

    def reach(self, start: int, end: int) -> Reach:
        """Return how large changes of the value of *start* may be in that of *end*.

        Raises :class:`Unbounded` where an operation on the way has no bound.
        """
        found = {start: Reach(np.ones((*self.shape(start), 1)[1] + 1), confined=True)}
        for node in self.program.nodes[start + 1 : end + 1]:
            if node.position in self._normalized and node.position != end:
                continue  # its batch norm takes both steps
            if any(source in found for source in self._sources(node, found)):
                found[node.position] = self._behind(node, found)
        if end not in found:
            raise Unbounded("an output that it does not reach")
        return found[end]

    def _behind(self, node: Node, found: Mapping[int, Reach]) -> Reach:
        if node.layout != LaneAxis() or node.rounded is not None or not isinstance(self.values[node.position], Tensor):
            raise Unbounded(node.op)
        if node.op in ("add", "sub", "cat"):
            return self._joined(node, found)
        if node.kwargs and node.op not in _SAME:
            raise Unbounded(f"{node.op} with {', '.join(node.kwargs)}")
        source = node.args[0].node if node.args and isinstance(node.args[0], Ref) else -1
        product = self.program.nodes[source] if source in self._normalized and source not in found else None
        if product is not None:
            source = product.args[0].node
        if [one for one in self._sources(node, found) if one in found] != [source]:
            raise Unbounded(node.op)
        step = self._step(node) if product is None else self._step(product, scale=node)
        return step.after(found[source])

    def _sources(self, node: Node, found: Mapping[int, Reach]) -> tuple[int, ...]:
        """Return what *node* reads, and what the product that it normalizes reads in place of that product."""
        return tuple(
            one
            for read in node.reads
            for one in (self.program.nodes[read].reads if read in self._normalized and read not in found else (read,))
        )

    def _joined(self, node: Node, found: Mapping[int, Reach]) -> Reach:
        """Return the sum of what meets in an addition or concatenation."""
        parts = node.args[0] if node.op == "cat" else node.args[:2]
        met = [part.node for part in parts if isinstance(part, Ref) and part.node in found]
        whole = self.shape(node.position)
        if node.op != "cat" and any(self.shape(one) != whole for one in met):
            raise Unbounded(f"{node.op} of two shapes")
        for skip, branch in itertools.permutations(met, 2) if node.op == "add" and not node.kwargs else ():
            if (block := self._block(skip, branch)) is not None:
                return block.after(found[skip])
        factor = abs(float(node.kwargs.get("alpha", 1)))
        confined = node.op != "cat" and all(found[one].confined for one in met)
        return Reach(np.sum([found[one].most for one in met], axis=0) * max(factor, 1.0), confined)

    def _block(self, skip: int, branch: int) -> _Step | None:
        """Return what a residual block makes of a change of *skip* that *branch* is added to, ``None`` if it is none.

        Between its two convolutions every value rises by 0 to 1 times what goes in, which is half of it and, up or
        down, at most half of it: x + W2 D W1 x is (I + W2 W1 / 2) x + W2 S W1 x / 2 where S stretches nothing. That is
        never more than 1 + |W1| |W2|, in ResNet-20 by 11 to 35 % less. Source: Combettes & Pesquet,
        Lipschitz certificates for layered network structures, arXiv:1903.01014 (of averaged operators).
        """
        second = self._scaled(branch)
        between = self.program.nodes[second[0].args[0].node] if second is not None else None
        if second is None or between is None or between.op not in _FLAT:
            return None
        first = self._scaled(between.args[0].node)
        if first is None or first[0].args[0] != Ref(skip) or self.shape(skip) != self.shape(branch):
            return None
        both = first, second
        strides, paddings, dilations, groups = zip(*(convolution_arguments(node) for node, _ in both), strict=True)
        if groups != (1, 1) or any(step != 1 for one in strides for step in one):
            return None
        key = (skip, branch)
        if key not in self._blocks:
            one, two = (self._step(node, scale=scale) for node, scale in both)
            weights = [self.product(node, scale=scale) for node, scale in both]
            size = self.shape(skip)[2:]
            whole, channels = residual_norms(weights, size, paddings=paddings, dilations=dilations)
            rest = two.most / 2
            self._blocks[key] = _Step(whole + one.most * rest, channels + one.channels * rest, False)
        return self._blocks[key]

    def _scaled(self, position: int) -> tuple[Node, Node | None] | None:
        """Return the convolution whose value a node holds, and the batch norm that scales it where one does."""
        node, scale = self.program.nodes[position], None
        if node.op == "batch_norm" and isinstance(node.args[0], Ref) and node.args[0].node in self._normalized:
            node, scale = self.program.nodes[node.args[0].node], node
        return (node, scale) if node.op in CONVOLUTIONS and not node.kwargs else None

    def _step(self, node: Node, *, scale: Node | None = None) -> _Step:
        key = (node.position, -1 if scale is None else scale.position)
        if key not in self._steps:
            self._steps[key] = self._bounded(node, scale)
        return self._steps[key]

    def _bounded(self, node: Node, scale: Node | None) -> _Step:
        if node.op in PRODUCTS:
            return self._product(node, scale)
        if node.op in _FLAT | _SAME:
            return _Step(1.0, 1.0, True)
        if node.op in _RESHAPES | _MOVES or (node.op == "pad" and node.args[2:3] in ((), ("constant",))):
            return _Step(1.0, 1.0, node.op in _RESHAPES and self._channels_stay(node))
        if node.op in ("mul", "div") and isinstance(node.args[1], int | float):
            factor = abs(float(node.args[1]))
            factor = factor if node.op == "mul" else 1 / factor
            return _Step(factor, factor, True)
        if node.op == "batch_norm":
            factors = self._scale(node).abs().numpy()
            return _Step(float(factors.max()), factors, True)
        bound = _POOLS.get(node.op)
        if bound is None:
            raise Unbounded(node.op)
        gain, keeps = bound(node, self.shape(node.args[0].node))
        return _Step(gain, gain, keeps)

    def _product(self, node: Node, scale: Node | None) -> _Step:
        weight = self.product(node, scale=scale)
        inner = self.shape(node.args[0].node)
        if node.op == "linear":
            whole, channels = linear_norms(weight)
            return _Step(whole, channels if len(inner) == 2 else whole, False)
        *_, dilation, groups = convolution_arguments(node)
        return _Step(*convolution_norms(weight, inner[2:], groups=groups, dilation=dilation), False)

    def product(self, node: Node, *, scale: Node | None = None) -> Tensor:
        """Return the weight of a convolution or linear layer in float64, times the factors of a batch norm behind."""
        weight = self.constant(node.args[1])
        if weight is None:
            raise Unbounded(f"{node.op} without a weight")
        factor = 1.0 if scale is None else self._scale(scale).reshape(-1, *[1] * (weight.dim() - 1))
        return weight.detach().double().cpu() * factor

    def _scale(self, node: Node) -> Tensor:
        """Return what batch norm multiplies each channel by, (channels,)."""
        weight, variance = self.constant(node.args[1]), self.constant(node.args[4])
        if node.args[5] or variance is None:
            raise Unbounded("batch_norm in training mode")
        factor = (variance.detach().double() + float(node.args[7])).rsqrt()
        return (factor if weight is None else factor * weight.detach().double()).cpu()

    def _channels_stay(self, node: Node) -> bool:
        before, after = self.shape(node.args[0].node), self.shape(node.position)
        return before[:2] == after[:2] and math.prod(before[2:]) == math.prod(after[2:])


def normalized(program: Program) -> Mapping[int, int]:
    """Return the batch norms that alone read what a product gives, by the product: of both the norm is smaller."""
    readers, nodes = program.readers(), program.nodes
    products = [
        node.position
        for node in nodes
        if node.op in PRODUCTS and node.rounded is None and len(readers[node.position]) == 1
    ]
    return {one: readers[one][0] for one in products if nodes[readers[one][0]].op == "batch_norm"}


def convolution_arguments(node: Node) -> tuple[list[int], list[int], list[int], int]:
    """Return stride, padding and dilation of a convolution, for each axis, and the number of its groups."""
    given = _filled(node.args[3:], (1, 0, 1, 1))
    if isinstance(given[1], str):
        raise Unbounded(f"{node.op} with padding '{given[1]}'")
    dims = int(node.op[-2])
    return _each(given[0], dims), _each(given[1], dims), _each(given[2], dims), given[3]


def _filled(given: Sequence[Any], usual: Sequence[Any]) -> list[Any]:
    """Return the arguments *given*, and the usual values of those left out at the end."""
    return [*given, *usual[len(given) :]]


def _each(argument: Any, dims: int) -> list[int]:
    """Return an argument for each of *dims* axes, given as one number or as many."""
    if isinstance(argument, int):
        return [argument] * dims
    return list(argument) * dims if len(argument) == 1 else list(argument)


def _windows(node: Node) -> tuple[list[int], float]:
    """Return the sides of a pooling's windows, and how many of them hold one value at most."""
    dims = int(node.op[-2])
    sides = _each(node.args[1], dims)
    strides = _each(node.args[2], dims) if len(node.args) > 2 and node.args[2] else sides
    return sides, float(math.prod(-(-k // s) for k, s in zip(sides, strides, strict=True)))


def _max_pool(node: Node, inner: Sequence[int]) -> tuple[float, bool]:
    del inner
    sides, cover = _windows(node)
    dilated = any(d != 1 for d in _each(node.args[4], len(sides))) if len(node.args) > 4 else False
    return math.sqrt(math.prod(sides) if dilated else cover), True


def _avg_pool(node: Node, inner: Sequence[int]) -> tuple[float, bool]:
    del inner
    sides, cover = _windows(node)
    padding, ceil, _, divisor = _filled(node.args[3:], (0, False, True, None))
    if divisor is not None:
        raise Unbounded(f"{node.op} with a divisor")
    whole = not any(_each(padding, len(sides))) and not ceil  # no window reaches beyond, to be divided by less
    return math.sqrt(cover / (math.prod(sides) if whole else 1)), True


def _adaptive_avg_pool(node: Node, inner: Sequence[int]) -> tuple[float, bool]:
    wanted = _each(node.args[1], len(inner) - 2)
    if any(n % k for n, k in zip(inner[2:], wanted, strict=True)):
        raise Unbounded(f"{node.op} to a size that does not divide")
    return math.sqrt(math.prod(wanted) / math.prod(inner[2:])), True


def _mean(node: Node, inner: Sequence[int]) -> tuple[float, bool]:
    given = list(node.args[1]) if len(node.args) > 1 and node.args[1] else list(range(len(inner)))
    dims = [dim % len(inner) for dim in given]
    if 0 in dims:
        raise Unbounded("mean over the inputs")
    return 1 / math.sqrt(math.prod(inner[dim] for dim in dims)), 1 not in dims


_POOLS: Mapping[str, Callable[[Node, Sequence[int]], tuple[float, bool]]] = {
    **{f"max_pool{dims}d": _max_pool for dims in (1, 2, 3)},
    **{f"avg_pool{dims}d": _avg_pool for dims in (1, 2, 3)},
    **{f"adaptive_avg_pool{dims}d": _adaptive_avg_pool for dims in (1, 2, 3)},
    "mean": _mean,
}
