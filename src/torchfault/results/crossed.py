"""Two groupings of faults at once, such as bits within layers."""

import numpy as np

from torchfault.cells import Axis, Space
from torchfault.errors import SpaceError

__all__ = ["Crossed", "crossed"]

Crossed = tuple[str, str]
"""The names of two groupings whose groups are both made of whole cells."""


def crossed(space: Space, by: Crossed) -> tuple[Axis, list[tuple[str | int, str | int]]]:
    """Return an axis of the pairs of groups that have faults in common, and their two keys; the first varies slowest.

    Raises :class:`SpaceError` for a grouping that does not exist, and for one whose groups are smaller than cells.

    >>> from torchfault.space import FaultSpace, Site
    >>> space = FaultSpace((Site("a", (2,), bits=(3, 5)), Site("b", (1,), bits=(5,))))
    >>> axis, keys = crossed(space, ("site", "bit"))
    >>> keys, axis.faults.tolist()
    ([('a', 3), ('a', 5), ('b', 5)], [2, 2, 1])
    """
    one, two = (space.axis(name) for name in by)
    if one.of_cell is None or two.of_cell is None:
        small = by[0] if one.of_cell is None else by[1]
        raise SpaceError(f"groups of {small} are smaller than a site's bit, so they cross no other; ask for it alone")
    held = space.cells.sizes > 0
    pair = one.of_cell * len(two) + two.of_cell
    known = np.unique(pair[held])
    of_cell = np.searchsorted(known, pair).clip(max=max(len(known) - 1, 0))
    faults = np.zeros(len(known), dtype=np.int64)
    np.add.at(faults, of_cell[held], space.cells.sizes[held])
    keys = [(one.keys[group], two.keys[rest]) for group, rest in zip(*np.divmod(known, len(two)), strict=True)]
    names = [f"{first}, {second}" for first, second in keys]
    return Axis(names, faults, lambda index: of_cell[space.cell_of(index)], of_cell), keys
