"""Whole numbers of draws from shares: the one apportionment that all samplers use."""

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError

__all__ = ["apportion"]


def apportion(
    wanted: NDArray[np.float64], total: int, *, least: int = 1, among: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Return whole numbers of draws that sum to *total*, shape (strata,): *least* each, and the rest as *wanted*.

    Strata that are not *among* those given get none. Raises :class:`SamplingError` where *total* does not suffice for
    twice the least of each, since then outcomes would hardly decide anything.

    >>> apportion(np.array([1.0, 3.0, 0.0]), 11)
    array([3, 7, 1])
    """
    open_ = np.ones(len(wanted), dtype=bool) if among is None else among
    spare = total - least * int(open_.sum())
    if spare < least * open_.sum():
        raise SamplingError(
            f"a block of {total} is too small for {open_.sum()} strata, each of which takes part in it; "
            f"use block={1 << int(2 * least * open_.sum() - 1).bit_length()}"
        )
    weight = np.where(open_, wanted, 0.0)
    weight = weight if weight.sum() > 0 else open_.astype(np.float64)
    reached = np.floor(np.cumsum(weight) / weight.sum() * spare + 1e-6).astype(np.int64)
    last = int(np.flatnonzero(weight)[-1])
    reached[last:] = spare
    return np.asarray(least * open_ + np.diff(reached, prepend=0))
