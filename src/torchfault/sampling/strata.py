"""Whole numbers of draws from shares: the apportionments that all samplers use."""

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError

__all__ = ["apportion", "in_proportion"]


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
    _check_size(total, least * int(open_.sum()), int(open_.sum()))
    weight = np.where(open_, wanted, 0.0)
    weight = weight if weight.sum() > 0 else open_.astype(np.float64)
    reached = np.floor(np.cumsum(weight) / weight.sum() * spare + 1e-6).astype(np.int64)
    last = int(np.flatnonzero(weight)[-1])
    reached[last:] = spare
    return np.asarray(least * open_ + np.diff(reached, prepend=0))


_HALVINGS = 50  # as many as the bits of a float64 that could matter


def in_proportion(wanted: NDArray[np.float64], total: int, *, among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return whole numbers of draws that sum to *total*, shape (strata,): as *wanted*, rounded up, of strata *among*.

    None of them gets less than its share, for a stratum that does holds back the bound on all of its group: what
    rounding up takes comes off all in proportion. Raises :class:`SamplingError` as :func:`apportion` does.

    >>> in_proportion(np.array([1.0, 3.0, 0.1, 9.0]), 9, among=np.array([True, True, True, False]))
    array([2, 6, 1, 0])
    """
    _check_size(total, int(among.sum()), int(among.sum()))
    weight = np.where(among, wanted, 0.0)
    weight = weight / weight.sum() if weight.sum() > 0 else among / among.sum()
    few, many = 0.0, float(total)
    for _ in range(_HALVINGS):
        middle = (few + many) / 2
        fits = np.maximum(np.ceil(weight * middle), among).sum() <= total
        few, many = (middle, many) if fits else (few, middle)
    counts: NDArray[np.int64] = np.maximum(np.ceil(weight * few), among).astype(np.int64)
    counts[np.argsort(-weight, kind="stable")[: total - int(counts.sum())]] += 1
    return counts


def _check_size(total: int, least: int, strata: int) -> None:
    if total < 2 * least:
        raise SamplingError(
            f"a block of {total} is too small for {strata} strata, each of which takes part in it; "
            f"use block={1 << int(2 * least - 1).bit_length()}"
        )
