"""Confidence sequences anew: one group, all rounds at once by cumulative sums; what round-by-round code must equal."""

from collections.abc import Callable
from math import log

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BOLDEST, BOLDEST_ON, BOLDEST_EXPECTED, HASTE = 0.9, 3.0, 0.75, 1.15


def plan(
    share: Floats, p: Floats, target: float, threshold: float, price: Callable[[Floats], Floats] | None
) -> tuple[Floats, Floats, Floats]:
    """Return draws (rounds, strata), stakes and lower distances (rounds,), for strata that all have a share."""
    spread = (share * np.sqrt(p * (1 - p)))[:, None, :]
    stakes = np.linspace(0.55, 2.0, 30)
    cost = np.ones_like(spread) if price is None else price(p)[:, None, :]
    dear = np.sqrt(cost)
    root = np.sqrt(2 * threshold)
    error = (np.sqrt(root**2 + 2 * threshold * (2 * stakes - 1)) - root) / (stakes * threshold) * target
    least = (stakes * threshold / (BOLDEST * target))[:, None] * share
    factor = (spread * dear).sum(axis=-1, keepdims=True) / np.square(error)[:, None]
    for _ in range(4):
        active = factor * spread / dear > least
        rest = np.square(error)[:, None] - (np.square(spread) / least * ~active).sum(axis=-1, keepdims=True)
        rest = np.maximum(rest, 0.1 * np.square(error)[:, None])
        better = (spread * dear * active).sum(axis=-1, keepdims=True) / rest
        factor = np.where(active.any(axis=-1, keepdims=True), better, factor)
    draws = np.maximum(least, factor * spread / dear)
    differ = (cost != 1).any(axis=-1)  # only then stakes above 1.25 may be the best
    best = np.where((stakes < 1.26) | differ, (cost * draws).sum(axis=-1), np.inf).argmin(axis=-1)
    return draws[np.arange(len(p)), best], stakes[best], root * error[best] / target


def reference(
    failures: Floats,
    trials: Floats,
    share: Floats,
    *,
    target: float,
    level: float = 0.95,
    prior: Floats | None = None,
    price: Callable[[Floats], Floats] | None = None,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return value, low, high and settled, (rounds,) each, from counts of (rounds, strata)."""
    threshold = log(2 / (1 - level))
    full = (trials > 0).all(axis=1)
    k, n = failures * full[:, None], np.where(full[:, None], trials, 0.0)
    before = [np.vstack((np.zeros_like(part[:1]), np.cumsum(part, axis=0)[:-1])) for part in (k, n)]
    g = (before[0] + 0.1) / (before[1] + 1) if prior is None else (before[0] + 4 * prior) / (before[1] + 4)
    draws, best, lower = plan(share, g, target, threshold, price)
    each = share / np.where(full[:, None], n, 1.0)
    variance = (np.square(each) * n * g * (1 - g)).sum(axis=1).clip(1e-300)
    informs = np.square(lower) * target**2 / (2 * threshold) / variance
    against = np.minimum(informs * best * threshold / target, BOLDEST / each.max(axis=1)) * full
    on = np.minimum(BOLDEST_ON / each.max(axis=1), BOLDEST_EXPECTED / (each * g).max(axis=1))
    on = np.minimum(lower * target / variance, on) * full
    r = against[:, None] * each
    up = np.log((1 + g * r) / (1 - (1 - g) * r)) * k - n * np.log1p(g * r) + n * r * g
    r = on[:, None] * each
    down = np.log((1 + (1 - g) * r) / (1 - g * r)) * k + n * np.log1p(-g * r) + n * r * g
    with np.errstate(divide="ignore", invalid="ignore"):
        high = (np.cumsum(up.sum(axis=1)) + threshold) / np.cumsum(against)
        low = (np.cumsum(down.sum(axis=1)) - threshold) / np.cumsum(on)
        plain = np.cumsum((each * k).sum(axis=1) * full) / np.cumsum(full)
    high = np.minimum.accumulate(np.minimum(high, 1.0))
    low = np.maximum.accumulate(np.maximum(low, 0.0))
    narrow = np.concatenate(([False], (high - low <= 2 * target)[:-1]))
    wanted = np.minimum(HASTE * np.minimum(informs, n.sum(axis=1) / draws.sum(axis=1)), 1.0) * full
    weight = np.diff(np.minimum(np.cumsum(np.where(full & narrow, 1.0, wanted)), 1.0), prepend=0.0)
    settled = np.cumsum(weight)
    value = np.where(settled > 1 - 1e-9, np.cumsum(weight * (each * k).sum(axis=1)), plain)
    value = np.clip(value, np.fmin(low, high), np.fmax(low, high))
    return value, np.fmin(low, value), np.fmax(high, value), settled
