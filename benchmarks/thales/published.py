"""Estimates of Resiliency Accuracy as Tyagi et al. make them, by the mean of p A, and when estimates have converged."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchfault.results import Results, resiliency
from torchfault.results.upset_sample import UpsetSample, sample_of, shifted
from torchfault.statistics import Estimate

__all__ = ["ESTIMATORS", "NEAR", "WINDOW", "Estimator", "estimate", "running", "until_near"]

Floats = NDArray[np.float64]
NEAR = 0.003  # of the truth: 0.3 percentage points
WINDOW = 300


class Estimator(NamedTuple):
    """Which upsets are drawn, and of what the mean is taken: of p A, as *published*, or of the drop p (SA - A)."""

    proposal: str
    published: bool


ESTIMATORS: Mapping[str, Estimator] = {
    **{name: Estimator(name, published=True) for name in ("UNIFORM", "MAC", "IS", "IS-B")},
    "IS-B-drop": Estimator("IS-B", published=False),
    "strata": Estimator("strata", published=False),
}


def estimate(results: Results, estimator: Estimator) -> Estimate:
    """Return the Resiliency Accuracy that *estimator* finds; what is known of control and of idle flip-flops is used.

    Where p A is averaged, A is large where nothing happens, and the rare draws of it that IS-B makes weigh a lot.
    """
    if not estimator.published:
        return resiliency(results).ra
    sample = sample_of(results)
    return shifted(sample.mean(sample.p, _right(results)), sample.known.idle * sample.sa)


def running(results: Results, estimator: Estimator) -> Floats:
    """Return values, one for each draw after a pilot, whose mean is the Resiliency Accuracy that *estimator* finds."""
    sample = sample_of(results)
    if estimator.published:
        return np.asarray(sample.weight * _right(results) + sample.known.idle * sample.sa)
    whole, x = sample.sa * (1 - sample.known.control), sample.weight * (sample.lost - sample.gained)
    late = _after_pilot(sample)
    return np.asarray(whole - x[~late].sum() / len(x) - x[late] * (late.sum() / len(x)))


def _after_pilot(sample: UpsetSample) -> NDArray[np.bool_]:
    if sample.stages is None:
        return np.ones(len(sample), dtype=bool)
    return sample.stages.stage == len(sample.stages.q) - 1


def _right(results: Results) -> Floats:
    """Return the share of the inputs of each draw whose answer is right."""
    right = ~results.sampled.flag("wrong").astype(bool)
    draw = np.arange(len(right)) // int(results.record.configuration["inputs_per_fault"])
    return np.asarray(np.bincount(draw, right) / np.bincount(draw))


def until_near(values: Floats, truth: float) -> float:
    """Return the first number of *values* at whose last WINDOW running means were all near the truth."""
    means = np.cumsum(values) / np.arange(1, len(values) + 1)
    far = np.cumsum(np.abs(means - truth) > NEAR)
    inside = np.flatnonzero(far[WINDOW - 1 :] == np.concatenate(([0], far))[: len(far) - WINDOW + 1])
    return int(inside[0]) + WINDOW if len(inside) else float("inf")
