"""Estimates of campaigns that regress on scores: what these predict of every fault, and what came out."""

import numpy as np

from torchfault.errors import CampaignError
from torchfault.results.results import Results
from torchfault.sampling import Score, score_mean, score_of
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate, assisted_mean

__all__ = ["assisted"]


def assisted(results: Results, *scores: Score, level: float | None = None) -> Estimate:
    """Return the failure probability of *results*, narrowed by what *scores* predict of every fault.

    The scores' means over the whole space are exact, and the draws tell how much of the outcomes they explain
    (:func:`torchfault.statistics.assisted_mean`): a score that says nothing costs next to nothing, and none can bias.
    They must not come from the outcomes of these trials. Raises :class:`CampaignError` for trials of several faults,
    metrics, samples without replacement or in strata, and faults out of reach.

    >>> from torchfault.campaign import run
    >>> from torchfault.sampling import Table
    >>> from torchfault.testing import example_campaign
    >>> results = run(example_campaign(trials=100))
    >>> scores = {site.name: np.ones((site.elements, len(site.bits))) for site in results.space.sites}
    >>> assisted(results, Table(scores)).trials
    100
    """
    columns, design, space = results.columns, results.design, results.space
    unlike = {
        "every fault": design.enumerates,
        "several faults in a trial": columns.counts is not None,
        "whole words": columns.unit == "word",
        "several inputs for each fault": results.record.configuration.get("inputs_per_fault", 1) != 1,
        "a metric": columns.values is not None,
        "strata": columns.strata is not None or design.sample is not None,
        "a sample without replacement": not design.replacement,
        "faults out of reach": design.reach < 1,
        "outcomes that were not seen": bool(results.record.configuration.get("assumption")),
        "a space of upsets": not isinstance(space, FaultSpace),
    }
    if any(unlike.values()) or not scores:
        what = next((name for name, holds in unlike.items() if holds), "no score")
        raise CampaignError(
            f"an assisted estimate takes single faults drawn independently and a score, got {what}; use estimate()"
        )
    assert isinstance(space, FaultSpace)
    return assisted_mean(
        columns.failed,
        np.column_stack([score_of(score, space, columns.faults) for score in scores]),
        [score_mean(score, space) for score in scores],
        weights=columns.weights,
        level=results.level if level is None else level,
        largest_weight=design.largest_weight,
    )
