"""What every space of faults offers: cells, places within them, and groups for tables; NumPy only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Axis", "Cells", "Space"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells that a space is cut into, in columns of shape (cells,): a fault is a place within a cell.

    *sizes* counts the places of each, *group* numbers the site that it belongs to (of an accelerator, the layer), and
    *bit* is the bit that its faults strike, -1 where they have none.
    """

    sizes: Ints
    group: Ints
    bit: Ints

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, eq=False)
class Axis:
    """The groups of a table: their *keys*, the number of *faults* in each, and the *code* of the group of any fault.

    *of_cell* is the group of each cell, ``None`` where cells are larger than groups.
    """

    keys: list[str] | list[int]
    faults: Ints
    code: Callable[[ArrayLike], Ints]
    of_cell: Ints | None = None

    def __len__(self) -> int:
        return len(self.keys)


@runtime_checkable
class Space(Protocol):
    """A finite, numbered set of faults: number = place within cell, in closed form; never a list of them."""

    def __len__(self) -> int: ...

    @property
    def cells(self) -> Cells:
        """The cells."""
        ...

    def cell_of(self, index: ArrayLike) -> Ints:
        """Return the cell of each fault number, shape (n,)."""
        ...

    def place_of(self, index: ArrayLike) -> Ints:
        """Return the place of each fault number within its cell, shape (n,)."""
        ...

    def number_of(self, cell: ArrayLike, place: ArrayLike) -> Ints:
        """Return the fault number at each place of a cell, shape (n,)."""
        ...

    def axis(self, by: str) -> Axis:
        """Return the groups of a table by *by*."""
        ...

    @property
    def groupings(self) -> tuple[str, ...]:
        """The names that :meth:`axis` takes."""
        ...

    def columns(self, index: ArrayLike) -> dict[str, NDArray[Any]]:
        """Return what an export shows of each fault, by the names of the columns."""
        ...

    def digest(self) -> str:
        """Return a SHA-256 over everything that decides which fault a number means."""
        ...

    def plain(self) -> dict[str, Any]:
        """Return the space in JSON values, with its kind under ``kind``."""
        ...
