"""Where the operands of each product lie: flat elements of the sites, and the way back from an element; NumPy only."""

import math

import numpy as np
from numpy.typing import NDArray

from torchfault.hardware.work import Convolution, Product

__all__ = ["input_element", "output_element", "random_use", "use_of_output", "use_of_weight", "weight_element"]

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


def random_use(product: Product, element: Ints, *, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """Return group, row and step of a random use of each input element, every use equally likely; row -1 for no use.

    A strided convolution may skip an input altogether.

    >>> one = Convolution(1, (3,), (1,), (1,), (3,), (0,), (1,))
    >>> random_use(Product(1, 1, 1, 1, one), np.array([0, 1]), rng=np.random.default_rng(0))[1]
    array([ 0, -1])
    """
    if product.convolution is None:
        rest, step = np.divmod(element, product.depth)
        return rest // product.rows, rest % product.rows, step
    place = product.convolution
    channel, pixel = np.divmod(element, math.prod(place.size))
    group, inner = np.divmod(channel, place.channels // product.groups)
    rows, used = _rows_using(place, pixel)
    # The largest of random keys picks one use uniformly; keys of offsets that do not use the input lose.
    offset = np.where(used, rng.random(used.shape), -1.0).argmax(1)
    row = np.where(used.any(1), rows[np.arange(len(element)), offset], -1)
    return group, row, inner * math.prod(place.kernel) + offset


def _rows_using(place: Convolution, pixel: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the output row that each kernel offset brings each pixel to, and whether there is one, (n, offsets)."""
    at = np.unravel_index(pixel, place.size)
    offset = np.unravel_index(np.arange(math.prod(place.kernel)), place.kernel)
    rows = np.zeros((len(pixel), len(offset[0])), dtype=np.int64)
    used = np.ones(rows.shape, dtype=bool)
    for axis, size in enumerate(place.out):
        reach = at[axis][:, None] + place.before[axis] - offset[axis] * place.dilation[axis]
        out, rest = np.divmod(reach, place.stride[axis])
        used &= (rest == 0) & (out >= 0) & (out < size)
        rows = rows * size + out
    return rows, used
