"""One layer's work: its multiply-accumulates, the variables it reads and writes, and the matrix product; NumPy only."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torchfault.errors import HardwareError
from torchfault.hardware.patterns import Grid

__all__ = ["Convolution", "Product", "Shape", "Work", "plain_work", "read_work"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    """Where the operands of a convolution are; all sizes per spatial axis, the input *channels* for all groups.

    *before* is the padding in front, the first of the two sides.
    """

    channels: int
    size: Shape
    out: Shape
    kernel: Shape
    stride: Shape
    before: Shape
    dilation: Shape


@dataclass(frozen=True)
class Product:
    """A layer as *groups* products (rows x depth) @ (depth x columns); *convolution* where it is one.

    Without it, the operands are stored as (groups, rows, depth) and (groups, depth, columns), the second as (groups,
    columns, depth) where *transposed*. Outputs are (groups, rows, columns), of a convolution (groups, columns, rows).
    """

    groups: int
    rows: int
    depth: int
    columns: int
    convolution: Convolution | None = None
    transposed: bool = False

    def grid(self, *, height: int = 1, width: int = 1) -> Grid:
        """Return the size of one group's product on an array of *height* x *width*."""
        return Grid(self.rows, self.depth, self.columns, height, width)


@dataclass(frozen=True)
class Work:
    """One layer's work on one input: *macs*, and the sites and numbers of the variables of each kind.

    *inputs* stream, *weights* stay (for a product of two activations, the second operand), *outputs* are what it
    computes; *variables* counts them in this order. *product* is ``None`` where the layer is no single matrix product:
    recurrent layers, attention as one operation, transposed convolutions, einsum.
    """

    layer: str
    op: str
    macs: int
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    variables: tuple[int, int, int]
    product: Product | None = None
    node: int = -1

    def __post_init__(self) -> None:
        sizes: tuple[Any, ...] = (self.macs, *self.variables)
        if not all(isinstance(name, str) for name in (self.layer, self.op, *self.inputs, *self.weights, *self.outputs)):
            raise HardwareError(f"layers and sites have names, got {self}")
        fits = len(sizes) == 4 and all(isinstance(size, int) and size >= 0 for size in sizes)
        if not fits or (self.product is not None and _operands(self.product) != self.variables):
            expected = "three whole numbers" if self.product is None else f"those of {self.product}"
            raise HardwareError(f"the variables of '{self.layer}' are {expected}, got {self.variables}")

    def sites(self, holds: str) -> tuple[str, ...]:
        """Return the names of the sites of the variables that a type *holds*; none for control."""
        return {"input": self.inputs, "weight": self.weights, "output": self.outputs}.get(holds, ())

    def count(self, holds: str) -> int:
        """Return the number of variables that a type *holds*, 1 for control."""
        return dict(zip(("input", "weight", "output"), self.variables, strict=True)).get(holds, 1)


def _operands(product: Product) -> tuple[int, int, int] | None:
    """Return the number of inputs, weights and outputs of *product*; ``None`` where its sizes contradict each other."""
    groups, rows, depth, columns = product.groups, product.rows, product.depth, product.columns
    inputs, place = groups * rows * depth, product.convolution
    if place is not None:
        axes = (place.size, place.out, place.kernel, place.stride, place.before, place.dilation)
        if {len(one) for one in axes} != {len(place.size)} or min(*place.stride, *place.dilation) < 1:
            return None
        if place.channels != place.channels // groups * groups or rows != math.prod(place.out):
            return None
        if depth != place.channels // groups * math.prod(place.kernel):
            return None
        inputs = place.channels * math.prod(place.size)
    return inputs, groups * depth * columns, groups * rows * columns


def plain_work(work: Work) -> dict[str, Any]:
    """Return *work* as JSON can hold it, its place in a captured program aside; :func:`read_work` is the way back.

    >>> work = Work("fc", "linear", 6, ("fc:input",), ("fc.weight",), ("fc:output",), (3, 6, 2), Product(1, 1, 3, 2))
    >>> read_work(plain_work(work)) == work
    True
    """
    held = asdict(work)
    del held["node"]
    return held


def read_work(plain: Mapping[str, Any]) -> Work:
    """Return the work that :func:`plain_work` wrote, or raise :class:`HardwareError` where it is none.

    >>> read_work({"layer": "fc"})
    Traceback (most recent call last):
    torchfault.errors.HardwareError: a stored layer has the fields of Work, got layer; the file is damaged
    """
    try:
        held = {name: _tuples(value) for name, value in plain.items()}
        if held["product"] is not None:
            product = {name: _tuples(value) for name, value in held["product"].items()}
            place = product["convolution"]
            if place is not None:
                product["convolution"] = Convolution(**{name: _tuples(value) for name, value in place.items()})
            held["product"] = Product(**product)
        return Work(**held)
    except (AttributeError, KeyError, TypeError) as error:
        raise HardwareError(
            f"a stored layer has the fields of Work, got {', '.join(plain)}; the file is damaged"
        ) from error


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
