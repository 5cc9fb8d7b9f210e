"""The search: on every target, the smallest rung of either sign that changes the outcome, by rounds of lanes.

Under the assumption that a larger change of the same sign is never less harmful, the rungs of a target and sign need a
handful of trials only: the largest first, which most often settles it, then the next below in growing steps, then
halving. All targets take each step together, so that one round fills the engine's sweeps from all layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Found", "Try", "search"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Try = Callable[[Ints, Ints], Bools]
"""Takes targets and columns, shape (n,) each; returns where that changes the outcome."""


@dataclass(frozen=True, eq=False)
class Found:
    """What came out, per target and column: *harmful*, tried or concluded, and which were *tried*."""

    harmful: Bools
    tried: Bools


@dataclass(frozen=True, eq=False)
class _Sides:
    """The finite rungs of each target, both signs apart: row s is target ``s // 2``, the odd rows are negative."""

    order: NDArray[np.int16]
    negative: Ints
    count: Ints

    @classmethod
    def of(cls, delta: NDArray[np.float64], skip: Bools) -> "_Sides":
        kept = np.isfinite(delta) & (delta != 0) & ~skip[:, None]
        order = np.argsort(np.where(kept, delta, np.inf), axis=1, kind="stable").astype(np.int16)
        negative = (kept & (delta < 0)).sum(1)
        return cls(order, negative, np.stack((kept.sum(1) - negative, negative), 1).reshape(-1))

    def column(self, side: Ints, rung: Ints) -> Ints:
        """Return the columns of rungs, counted from the smallest change upwards."""
        target, below = side // 2, side % 2 == 1
        negative = self.negative[target]
        return self.order[target, np.where(below, negative - 1 - rung, negative + rung)].astype(np.int64)


def search(delta: NDArray[np.float64], attempt: Try, *, skip: Bools | None = None) -> Found:
    """Return which columns of *delta*, shape (targets, columns), change the outcome.

    Infinite columns are tried one by one, NaN never. Where *skip*, shape (targets,), is set, finite columns are known
    to change nothing.

    >>> found = search(np.array([[1.0, 4.0, 2.0, -1.0, np.inf]]), lambda target, column: column != 0)
    >>> found.harmful.tolist(), found.tried.tolist()
    ([[False, True, True, True, True]], [[True, True, True, True, True]])
    """
    skip = np.zeros(len(delta), dtype=bool) if skip is None else skip
    harmful, tried = np.zeros(delta.shape, dtype=bool), np.zeros(delta.shape, dtype=bool)
    sides = _Sides.of(delta, skip)
    safe, hit = np.full(len(sides.count), -1), sides.count.copy()
    step = np.ones(len(hit), dtype=np.int64)
    alone = np.nonzero(np.isinf(delta))
    while True:
        side = np.flatnonzero(hit - safe > 1)
        if not len(side) and not len(alone[0]):
            break
        rung = np.where(safe[side] < 0, np.maximum(hit[side] - step[side], 0), (safe[side] + hit[side]) // 2)
        target = np.concatenate((side // 2, alone[0]))
        column = np.concatenate((sides.column(side, rung), alone[1]))
        failed = attempt(target, column)
        tried[target, column] = True
        harmful[alone] = failed[len(side) :]
        below = failed[: len(side)]
        # The largest is tried first; the second step is one rung as well, since thresholds are mostly at the top.
        step[side] = np.where(hit[side] < sides.count[side], 2 * step[side], 1)
        hit[side], safe[side] = np.where(below, rung, hit[side]), np.where(below, safe[side], rung)
        alone = alone[0][:0], alone[1][:0]
    _conclude(harmful, sides, hit)
    return Found(harmful, tried)


def _conclude(harmful: Bools, sides: _Sides, hit: Ints) -> None:
    """Mark every rung from the smallest harmful one on."""
    side = np.repeat(np.arange(len(hit)), np.maximum(sides.count - hit, 0))
    first = np.cumsum(np.maximum(sides.count - hit, 0)) - np.maximum(sides.count - hit, 0)
    rung = np.arange(len(side)) - first[side] + hit[side]
    harmful[side // 2, sides.column(side, rung)] = True
