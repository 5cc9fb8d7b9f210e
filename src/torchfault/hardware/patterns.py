"""Fault patterns: which outputs of a layer the upset of one flip-flop reaches; NumPy only.

A layer is a matrix product per group: outputs (rows x columns) = operands (rows x depth) @ operands (depth x columns).
For a convolution, rows are output pixels and columns output channels. A flip-flop of the datapath is known by the
product it serves when it is struck: (row, step along the depth, column). Every pattern is then a rectangle of outputs.
"""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import HardwareError, did_you_mean

__all__ = ["PATTERNS", "SIZES", "Grid", "Pattern", "Reach", "find_pattern", "plain_pattern", "reach_of", "read_pattern"]

Ints = NDArray[np.int64]
Effect = Literal["operand", "partial", "tile-partial", "word", "random", "everywhere", "crash"]


@dataclass(frozen=True)
class Grid:
    """The size of a layer's product per group, *rows* x *depth* x *columns*, on an array of *height* x *width*."""

    rows: int
    depth: int
    columns: int
    height: int = 1
    width: int = 1

    def __post_init__(self) -> None:
        sizes = (self.rows, self.depth, self.columns, self.height, self.width)
        if min(sizes) < 1:
            raise HardwareError(f"a grid has sizes of 1 or more, got {sizes}; leave layers without outputs out")


class Reach(NamedTuple):
    """The outputs that upsets reach: rows *row* to *row_end* and columns *column* to *column_end*, ends exclusive.

    Each is an array of shape (upsets,).
    """

    row: Ints
    row_end: Ints
    column: Ints
    column_end: Ints

    @property
    def outputs(self) -> Ints:
        """The number of outputs that each upset reaches, shape (upsets,)."""
        return (self.row_end - self.row) * (self.column_end - self.column)


ReachFunction = Callable[[Ints, Ints, Grid], Reach]


@dataclass(frozen=True)
class Pattern:
    """What an upset does: its *effect*, and where *reach* says that it does it.

    The effects: ``operand``: the reached outputs each get one product with the flipped operand instead of the right
    one; ``partial``: a bit of the running sum after some step flips (``tile-partial``: of the sum that begins anew with
    every tile of the array's height along the depth); ``word``: a bit of a finished output flips; ``random``: an output
    becomes a random word; ``everywhere``: the operand is wrong in every product that uses it; ``crash``: no answer.

    >>> Pattern("operand", along_row).effect
    'operand'
    """

    effect: Effect
    reach: ReachFunction


def along_row(row: Ints, column: Ints, grid: Grid) -> Reach:
    """An input register of a systolic array: inputs move on to the right, up to the tile's last column.

    Source: Tyagi et al., arXiv 2212.02649; FIdelity (He et al., MICRO 2020), reuse analysis.

    >>> along_row(np.array([3]), np.array([5]), Grid(9, 2, 7, height=4, width=4)).column_end
    array([7])
    """
    end = np.minimum((column // grid.width + 1) * grid.width, grid.columns)
    return Reach(row, row + 1, column, end)


def down_tile(row: Ints, column: Ints, grid: Grid) -> Reach:
    """A weight register of an output-stationary array: weights move down, up to the tile's last row.

    >>> down_tile(np.array([2]), np.array([5]), Grid(9, 2, 7, height=4, width=4)).row_end
    array([4])
    """
    end = np.minimum((row // grid.height + 1) * grid.height, grid.rows)
    return Reach(row, end, column, column + 1)


def down_all(row: Ints, column: Ints, grid: Grid) -> Reach:
    """A weight register of a weight-stationary array: the weight stays, and is wrong for every later row.

    >>> down_all(np.array([2]), np.array([5]), Grid(9, 2, 7)).outputs
    array([7])
    """
    return Reach(row, np.full_like(row, grid.rows), column, column + 1)


def column_block(row: Ints, column: Ints, grid: Grid) -> Reach:
    """An input between buffer and MACs of an NVDLA-like design: all *width* channels that work at one pixel.

    >>> column_block(np.array([2]), np.array([19]), Grid(9, 2, 40, width=16)).column
    array([16])
    """
    first = column // grid.width * grid.width
    return Reach(row, row + 1, first, np.minimum(first + grid.width, grid.columns))


def row_block(row: Ints, column: Ints, grid: Grid) -> Reach:
    """A weight between buffer and MACs of an NVDLA-like design: 16 pixels of one channel, for which it is held.

    >>> row_block(np.array([19]), np.array([0]), Grid(20, 2, 40)).outputs
    array([4])
    """
    first = row // _HELD * _HELD
    return Reach(first, np.minimum(first + _HELD, grid.rows), column, column + 1)


def one_output(row: Ints, column: Ints, grid: Grid) -> Reach:
    """A register that serves a single output.

    >>> one_output(np.array([2]), np.array([5]), Grid(9, 2, 7)).outputs
    array([1])
    """
    del grid
    return Reach(row, row + 1, column, column + 1)


def all_outputs(row: Ints, column: Ints, grid: Grid) -> Reach:
    """The largest rectangle an operand can reach: used as a bound where the operand itself is wrong.

    >>> all_outputs(np.array([2]), np.array([5]), Grid(9, 2, 7)).outputs
    array([63])
    """
    return Reach(
        np.zeros_like(row), np.full_like(row, grid.rows), np.zeros_like(column), np.full_like(column, grid.columns)
    )


SIZES = (1, 2, 15, 16, 17, 70)
"""Numbers of rows and of columns on which patterns are tried: smaller and larger than arrays, and at their edges."""

_HELD = 16  # pixels for which an NVDLA-like MAC cell holds a weight (He et al. 2020)

PATTERNS: dict[str, Pattern] = {
    "systolic input": Pattern("operand", along_row),
    "output-stationary weight": Pattern("operand", down_tile),
    "output-stationary accumulator": Pattern("partial", one_output),
    "weight-stationary weight": Pattern("operand", down_all),
    "weight-stationary sum": Pattern("tile-partial", one_output),
    "16 channels": Pattern("operand", column_block),
    "16 pixels": Pattern("operand", row_block),
    "one product": Pattern("operand", one_output),
    "one output": Pattern("word", one_output),
    "random output": Pattern("random", one_output),
    "every use": Pattern("everywhere", all_outputs),
    "crash": Pattern("crash", all_outputs),
}


def find_pattern(pattern: str | Pattern) -> Pattern:
    """Return the pattern called *pattern* (a pattern is its own), or raise :class:`HardwareError` with a suggestion.

    >>> find_pattern("one output").effect
    'word'
    """
    if isinstance(pattern, Pattern):
        return pattern
    if pattern not in PATTERNS:
        near = did_you_mean(pattern, PATTERNS)
        raise HardwareError(f"no pattern is called '{pattern}'{near}; known: {', '.join(PATTERNS)}")
    return PATTERNS[pattern]


def reach_of(pattern: str | Pattern, row: ArrayLike, column: ArrayLike, grid: Grid) -> Reach:
    """Return what upsets reach that strike while serving the products at *row* and *column*, shape (upsets,) each.

    Raises :class:`HardwareError` for a product outside the grid, and for a pattern that leaves it.

    >>> reach_of("systolic input", [0], [2], Grid(4, 3, 4, height=4, width=4)).outputs
    array([2])
    """
    rows, columns = np.asarray(row, dtype=np.int64).reshape(-1), np.asarray(column, dtype=np.int64).reshape(-1)
    if len(rows) != len(columns) or not (_inside(rows, grid.rows) and _inside(columns, grid.columns)):
        raise HardwareError(f"products lie in {grid.rows} rows and {grid.columns} columns, got {rows} and {columns}")
    found = find_pattern(pattern).reach(rows, columns, grid)
    good = (found.row >= 0) & (found.row < found.row_end) & (found.row_end <= grid.rows)
    good &= (found.column >= 0) & (found.column < found.column_end) & (found.column_end <= grid.columns)
    if not good.all():
        bad = [int(part[~good][0]) for part in found]
        raise HardwareError(f"a pattern stays in {grid.rows} x {grid.columns} outputs, got rows and columns {bad}")
    return found


def _inside(values: Ints, end: int) -> bool:
    return bool(((values >= 0) & (values < end)).all())


@dataclass(frozen=True)
class _Absent:
    """In place of a function that is not at hand: its *name*, and a *digest* of what it did."""

    name: str
    digest: str

    def __call__(self, row: Ints, column: Ints, grid: Grid) -> Reach:
        del row, column, grid
        raise HardwareError(f"the pattern '{self.name}' is not stored, only its name; pass the accelerator that has it")


def plain_pattern(pattern: str | Pattern, *, height: int, width: int) -> str | dict[str, str]:
    """Return *pattern* as JSON can hold it: a name; of a function, its name and a digest of what it reaches.

    >>> plain_pattern(Pattern("operand", along_row), height=4, width=4)
    'systolic input'
    """
    found = find_pattern(pattern)
    for name, known in PATTERNS.items():
        if found == known:
            return name
    if isinstance(found.reach, _Absent):
        return {"effect": found.effect, "name": found.reach.name, "digest": found.reach.digest}
    seen = hashlib.sha256()
    for rows, columns in itertools.product(SIZES, SIZES):
        grid = Grid(rows, 3, columns, height, width)
        row, column = np.indices((rows, columns))
        for part in reach_of(found, row, column, grid):
            seen.update(np.asarray(part, dtype=np.int64).tobytes())
    name = f"{found.reach.__module__}.{getattr(found.reach, '__qualname__', type(found.reach).__qualname__)}"
    return {"effect": found.effect, "name": name, "digest": seen.hexdigest()}


def read_pattern(plain: Any) -> str | Pattern:
    """Return the pattern that :func:`plain_pattern` wrote; one that was a function can be shown, and refuses to run.

    Raises :class:`HardwareError` for what is no pattern.

    >>> read_pattern("one output")
    'one output'
    """
    if isinstance(plain, str | Pattern):
        return plain
    match plain:
        case {"effect": str(effect), "name": str(name), "digest": str(digest)} if effect in get_args(Effect):
            return Pattern(effect, _Absent(name, digest))  # type: ignore[arg-type]
    raise HardwareError(f"a pattern is one of {', '.join(PATTERNS)}, got {plain!r}")
