"""Where the operands of each product lie: flat elements of the sites, and the way back from an element; NumPy only."""

import math

import numpy as np
from numpy.typing import NDArray

from torchfault.hardware.work import Convolution, Product

__all__ = [
    "input_element",
    "input_offsets",
    "input_uses",
    "offset_of_use",
    "output_element",
    "use_of_input",
    "use_of_output",
    "use_of_weight",
    "weight_element",
]

Ints = NDArray[np.int64]


def input_element(product: Product, group: Ints, row: Ints, step: Ints) -> Ints:
    """Return the flat input element of each (group, row, step), -1 in padding; all broadcast together.

    >>> one = Convolution(1, (4, 4), (4, 4), (3, 3), (1, 1), (1, 1), (1, 1))
    >>> input_element(Product(1, 16, 9, 2, one), np.array(0), np.array([0, 5]), np.array([0, 4])).tolist()
    [-1, 5]
    """
    if product.convolution is None:
        return (group * product.rows + row) * product.depth + step
    place = product.convolution
    area = math.prod(place.kernel)
    channel = group * (place.channels // product.groups) + step // area
    out, offset = np.unravel_index(row, place.out), np.unravel_index(step % area, place.kernel)
    flat, inside = channel, np.ones((), dtype=bool)
    for axis, size in enumerate(place.size):
        at = out[axis] * place.stride[axis] - place.before[axis] + offset[axis] * place.dilation[axis]
        inside = inside & (at >= 0) & (at < size)
        flat = flat * size + at
    return np.asarray(np.where(inside, flat, -1))


def weight_element(product: Product, group: Ints, step: Ints, column: Ints) -> Ints:
    """Return the flat weight element of each (group, step, column); all broadcast together.

    >>> weight_element(Product(1, 1, 3, 2, transposed=True), np.array(0), np.array(2), np.array(1))
    np.int64(5)
    """
    if product.convolution is not None or product.transposed:
        return (group * product.columns + column) * product.depth + step
    return (group * product.depth + step) * product.columns + column


def output_element(product: Product, group: Ints, row: Ints, column: Ints) -> Ints:
    """Return the flat output element of each (group, row, column); all broadcast together.

    >>> output_element(Product(1, 4, 3, 2), np.array(0), np.array(3), np.array(1))
    np.int64(7)
    """
    if product.convolution is not None:
        return (group * product.columns + column) * product.rows + row
    return (group * product.rows + row) * product.columns + column


def use_of_output(product: Product, element: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the group, row and column of each output element.

    >>> use_of_output(Product(1, 4, 3, 2), np.array([7]))
    (array([0]), array([3]), array([1]))
    """
    if product.convolution is not None:
        rest, row = np.divmod(element, product.rows)
        return rest // product.columns, row, rest % product.columns
    rest, column = np.divmod(element, product.columns)
    return rest // product.rows, rest % product.rows, column


def use_of_weight(product: Product, element: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the group, step and column of each weight element.

    >>> use_of_weight(Product(1, 1, 3, 2, transposed=True), np.array([5]))
    (array([0]), array([2]), array([1]))
    """
    if product.convolution is not None or product.transposed:
        rest, step = np.divmod(element, product.depth)
        return rest // product.columns, step, rest % product.columns
    rest, column = np.divmod(element, product.columns)
    return rest // product.depth, rest % product.depth, column


def input_offsets(product: Product) -> int:
    """Return by how many kernel offsets an input may be used: those of a convolution, 1 for any other product."""
    return 1 if product.convolution is None else math.prod(product.convolution.kernel)


def use_of_input(product: Product, element: Ints, offset: Ints) -> tuple[Ints, Ints, Ints]:
    """Return group, row and step of the use of each input element by the kernel *offset*; row -1 where it has none.

    >>> one = Convolution(1, (3,), (1,), (1,), (3,), (0,), (1,))
    >>> use_of_input(Product(1, 1, 1, 1, one), np.array([0, 1]), np.array([0, 0]))[1]
    array([ 0, -1])
    """
    if product.convolution is None:
        rest, step = np.divmod(element, product.depth)
        return rest // product.rows, rest % product.rows, step
    place = product.convolution
    channel, pixel = np.divmod(element, math.prod(place.size))
    group, inner = np.divmod(channel, place.channels // product.groups)
    at, offsets = np.unravel_index(pixel, place.size), np.unravel_index(offset, place.kernel)
    row, used = np.zeros_like(element), np.ones(element.shape, dtype=bool)
    for axis, size in enumerate(place.out):
        out = _outputs(place, axis)[at[axis], offsets[axis]]
        used &= out >= 0
        row = row * size + out
    return group, np.where(used, row, -1), inner * math.prod(place.kernel) + offset


def input_uses(product: Product, element: Ints) -> Ints:
    """Return by how many kernel offsets each input element is used; a strided convolution may skip some altogether.

    >>> one = Convolution(1, (3,), (1,), (1,), (3,), (0,), (1,))
    >>> input_uses(Product(1, 1, 1, 1, one), np.array([0, 1]))
    array([1, 0])
    """
    if product.convolution is None:
        return np.ones_like(element)
    place = product.convolution
    at = np.unravel_index(element % math.prod(place.size), place.size)
    counts = [(_outputs(place, axis) >= 0).sum(1)[at[axis]] for axis in range(len(at))]
    return np.asarray(np.prod(counts, axis=0, dtype=np.int64))


def offset_of_use(product: Product, element: Ints, number: Ints) -> Ints:
    """Return the kernel offset of the use *number* of each input element, in rising order; 0 where it has no use.

    >>> one = Convolution(1, (3,), (3,), (3,), (1,), (1,), (1,))
    >>> offset_of_use(Product(1, 3, 3, 1, one), np.array([0, 0, 1]), np.array([0, 1, 2]))
    array([0, 1, 2])
    """
    if product.convolution is None:
        return np.zeros_like(element)
    place = product.convolution
    at = np.unravel_index(element % math.prod(place.size), place.size)
    offset, rest, scale, alive = np.zeros_like(element), number, 1, np.ones(element.shape, dtype=bool)
    for axis in reversed(range(len(at))):  # axes are used independently: digits of a number, the last axis first
        used = _outputs(place, axis) >= 0
        count = used.sum(1)[at[axis]]
        rest, digit = np.divmod(rest, np.maximum(count, 1))
        offset = offset + scale * np.argsort(~used, axis=1, kind="stable")[at[axis], digit]
        scale, alive = scale * place.kernel[axis], alive & (count > 0)
    return np.where(alive, offset, 0)


def _outputs(place: Convolution, axis: int) -> Ints:
    """Return the output position to which each kernel offset brings each position, -1 for none, (size, kernel)."""
    position, offset = np.arange(place.size[axis])[:, None], np.arange(place.kernel[axis])
    out, rest = np.divmod(position + place.before[axis] - offset * place.dilation[axis], place.stride[axis])
    return np.where((rest == 0) & (out >= 0) & (out < place.out[axis]), out, -1)
