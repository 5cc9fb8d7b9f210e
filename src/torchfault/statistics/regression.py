"""Model-assisted estimates: a prediction for every fault narrows the interval, and never biases the value."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import StatisticsError
from torchfault.statistics.estimators import Estimate, weighted_mean
from torchfault.statistics.intervals import check_level
from torchfault.statistics.weights import Strata, beta_bounds

__all__ = ["assisted_mean"]

Floats = NDArray[np.float64]

_FOLDS = 10


def assisted_mean(
    failed: ArrayLike,
    scores: ArrayLike,
    means: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    largest_weight: float | None = None,
) -> Estimate:
    """Return the regression estimate of a failure probability, from draws whose *scores* have known *means*.

    *failed* holds 0 or 1 for each draw, *scores*, of shape (draws,) or (draws, controls), whatever was predicted for
    it, and *means* the exact mean of each score over all faults; *weights* are p / q, 1 unless told. With y the
    outcome, g the score and G its mean, every draw gives beta G + w (y - beta g), the mean of which is that of w y for
    any beta: a score that says nothing, or the opposite, cannot bias it. Each tenth of the draws takes the beta (one
    for each score, and one for weights that vary, whose mean is 1) that a regression of w y on w g finds in the other
    nine, so that beta is independent of what it multiplies. The interval is that of :func:`weighted_mean` for these
    terms, with one draw more of the kind that would move each bound furthest. Where all scores are the same it is that
    of :func:`weighted_mean` itself.

    Raises :class:`StatisticsError` for lengths that differ, or numbers that are not finite. Sources: Cassel, Sarndal &
    Wretman, Biometrika 63, 1976 (difference estimator); Owen & Zhou, JASA 95, 2000 (weights as controls); Chernozhukov
    et al., Econometrics Journal 21, 2018 (cross-fitting).

    >>> rng = np.random.default_rng(0)
    >>> score = rng.random(4000) ** 8
    >>> failed = rng.random(4000) < score
    >>> print(assisted_mean(failed, score, 1 / 9), weighted_mean(failed, np.ones(4000)))
    0.1155 [0.1083, 0.1228] 0.1128 [0.1031, 0.1230]
    """
    check_level(level)
    y, g, mean, w = _columns(failed, scores, means, weights)
    heaviest = float(w.max(initial=0.0)) if largest_weight is None else max(largest_weight, float(w.max(initial=0.0)))
    if len(y) < 2 * _FOLDS or not (np.ptp(g, axis=0) > 0).any():
        return weighted_mean(y, w, level=level, largest_weight=heaviest)
    if np.ptp(w) > 0:
        g, mean = np.column_stack((np.ones(len(y)), g)), np.append(1.0, mean)
    x = _terms(w * y, w[:, None] * g, mean)
    value, high = float(x.mean()), _bounds(x, w, heaviest, level)[1]
    # a draw that was not seen may lie as far below as scores have been seen to pull one
    low = _bounds(np.append(x, min(x.min(), 0.0)), np.append(w, 0.0), heaviest, level)[0]
    return Estimate(value, min(max(low, 0.0), value), max(high, value), len(y), "assisted-beta", level)


def _terms(x: Floats, scored: Floats, mean: Floats) -> Floats:
    """Return each draw's term, the betas coming from the other folds: E is that of x whatever they are."""
    terms = np.empty(len(x))
    fold = np.arange(len(x)) % _FOLDS
    for number in range(_FOLDS):
        own, others = fold == number, fold != number
        centred = scored[others] - scored[others].mean(axis=0)
        beta = np.zeros(scored.shape[1])
        kept = _apart(centred)
        if kept:
            beta[kept] = np.linalg.lstsq(centred[:, kept], x[others] - x[others].mean(), rcond=None)[0]
        terms[own] = x[own] - (scored[own] - mean) @ beta
    return terms


def _apart(columns: Floats) -> list[int]:
    """Return the columns that say something which those before them do not: no slope can be told for the others.

    A score that is the same wherever these draws looked would else share the slope of the weights, and throw the
    estimate far off where it differs.
    """
    kept: list[int] = []
    for number, column in enumerate(columns.T):
        before = columns[:, kept]
        rest = column - before @ np.linalg.lstsq(before, column, rcond=None)[0] if kept else column
        if rest @ rest > 1e-6 * (column @ column):
            kept.append(number)
    return kept


def _bounds(x: Floats, w: Floats, heaviest: float, level: float) -> tuple[float, float]:
    strata = Strata.of_draws(x, w, np.zeros(len(x), dtype=np.int64))
    return beta_bounds(strata, heaviest=heaviest, level=level)


def _columns(
    failed: ArrayLike, scores: ArrayLike, means: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats, Floats]:
    y, g = np.asarray(failed, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    g, mean = g.reshape(len(g), -1), np.atleast_1d(np.asarray(means, dtype=np.float64))
    if not (len(y) == len(g) == len(w)) or mean.shape != g.shape[1:]:
        raise StatisticsError(
            f"every draw has one outcome, one weight and its scores, and every score one mean, got {len(y)}, {len(w)}, "
            f"{g.shape} and {mean.shape}; pass those of the same draws"
        )
    if not all(np.isfinite(part).all() for part in (y, g, mean, w)) or (w < 0).any() or not np.isin(y, (0, 1)).all():
        raise StatisticsError("outcomes are 0 or 1, weights from 0 up, and scores and means finite, got others")
    return y, g, mean, w
