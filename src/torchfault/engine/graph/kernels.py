"""A program for a processor: its constants in the formats that oneDNN works in.

PyTorch leaves products of matrices to MKL, which does without the wide vectors of some processors; oneDNN, which runs
its convolutions, takes a half to a third of the time there, and reads filters in an order of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchfault.model.program import Node, Program, Ref

__all__ = ["for_processor", "has_images"]

_LEAST_WORDS = 1 << 16  # smaller matrices stay in the caches, where the call is what takes time


def has_images(program: Program) -> bool:
    """Whether *program* convolves images, which lie in memory channels last while it runs on a processor."""
    return any(node.op == "conv2d" for node in program.nodes)


def for_processor(program: Program) -> Program:
    """Return *program* with filters of 2-d convolutions channels last, and large matrices of float32 packed.

    What it computes is the same but for the order of additions. Packed matrices are copies: a product with any other
    matrix or bias, such as a struck one, is computed as before.
    """
    constants, nodes = dict(program.constants), list(program.nodes)
    products = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    for node in program.nodes:
        if node.op == "conv2d" and isinstance(node.args[1], Ref) and node.args[1].node in constants:
            weight = constants[node.args[1].node]
            constants[node.args[1].node] = weight.contiguous(memory_format=torch.channels_last)
        elif products and (found := _product(node, constants)) is not None:
            nodes[node.position] = replace(node, target=found)
    return replace(program, constants=constants, nodes=tuple(nodes))


@dataclass(frozen=True, eq=False)
class _Product:
    """The operation *plain*, a product of rows by the constant *weight*, with *packed* instead of it.

    *order* tells which argument of *plain* are the rows, the weight and the bias.
    """

    plain: Callable[..., Tensor]
    order: tuple[int, int, int | None]
    weight: Tensor
    bias: Tensor | None
    packed: Tensor

    def __call__(self, *args: Any) -> Tensor:
        x, weight, bias = (args[at] if at is not None and at < len(args) else None for at in self.order)
        assert x is not None
        if weight is not self.weight or bias is not self.bias or x.ndim < 2 or not x.numel():
            return self.plain(*args)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")
        return found


_ORDERS: Mapping[str, tuple[int, int, int | None]] = {
    "linear": (0, 1, 2), "addmm": (1, 2, 0), "mm": (0, 1, None), "matmul": (0, 1, None),
}  # fmt: skip


def _product(node: Node, constants: Mapping[int, Any]) -> _Product | None:
    """Return what computes *node* from then on, ``None`` where it is no product by a large constant matrix."""
    order = _ORDERS.get(node.op)
    if order is None or node.constant or node.kwargs or node.target is None:
        return None

    def constant(at: int | None) -> Any:
        argument = node.args[at] if at is not None and at < len(node.args) else None
        return constants.get(argument.node, argument) if isinstance(argument, Ref) else argument

    x, weight, bias = (constant(at) for at in order)
    plain = isinstance(x, Ref) and _is_plain(weight, 2) and (bias is None or _is_plain(bias, 1))
    if not plain or weight.numel() < _LEAST_WORDS:
        return None
    rows = weight if node.op == "linear" else weight.t()
    packed = torch.ops.mkldnn._reorder_linear_weight(rows.contiguous(), None)
    return _Product(node.target, order, weight, bias, packed)


def _is_plain(value: Any, dims: int) -> bool:
    return type(value) is Tensor and value.dtype == torch.float32 and value.ndim == dims
