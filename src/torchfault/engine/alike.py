"""Trials with equal faults, found so that a changed word is put in place once for all of them."""

import numpy as np
from numpy.typing import NDArray

from torchfault.faults import Trials

__all__ = ["alike", "some_rows"]


def some_rows(trials: Trials, kept: NDArray[np.bool_]) -> Trials:
    """Return the same trials with some of their rows."""
    offsets = np.concatenate(([0], np.cumsum(kept)))[trials.offsets]
    columns = (trials.site[kept], trials.element[kept], trials.keep[kept], trials.toggle[kept])
    return Trials(trials.sites, offsets, trials.inputs, *columns)


def alike(trials: Trials) -> list[NDArray[np.int64]]:
    """Return the positions of *trials*, grouped by equal faults.

    >>> from torchfault.faults import BitFlip, strike
    >>> from torchfault.space import FaultSpace, Site
    >>> space = FaultSpace((Site("fc.weight", (4,)),))
    >>> trials = strike(space, space.locate([3, 65, 3]), model=BitFlip(), rng=np.random.default_rng(0))
    >>> [group.tolist() for group in alike(trials)]
    [[0, 2], [1]]
    """
    groups: dict[bytes, list[int]] = {}
    columns = (trials.site, trials.element, trials.keep, trials.toggle)
    for trial, (start, stop) in enumerate(zip(trials.offsets[:-1], trials.offsets[1:], strict=True)):
        key = b"".join(column[start:stop].tobytes() for column in columns) if stop > start else b""
        groups.setdefault(key, []).append(trial)
    return [np.array(group, dtype=np.int64) for group in groups.values()]
