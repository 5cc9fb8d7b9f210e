"""Model-assisted estimates of campaigns: what a score predicts of every fault, and what came out."""

import numpy as np

from torchfault.campaign.results import Results
from torchfault.errors import CampaignError
from torchfault.sampling import Score, score_mean, score_of
from torchfault.statistics import Estimate, assisted_mean

__all__ = ["assisted"]


def assisted(results: Results, *scores: Score, level: float = 0.95) -> Estimate:
    """Return the failure probability of *results*, narrowed by what *scores* predict of every fault.

    The scores' means over the whole space are exact, and the draws tell how much of the outcomes they explain
    (:func:`torchfault.statistics.assisted_mean`): a score that says nothing costs next to nothing, and none can bias.
    They must not come from the outcomes of these trials. Raises :class:`CampaignError` for trials of several faults,
    metrics, samples without replacement or in strata, and faults out of reach.

    >>> from torchfault.sampling import Table
    >>> from torchfault.space import FaultSpace, Site
    >>> from torchfault.store import Columns, Record
    >>> space = FaultSpace((Site("a", (1000,), bits=(30, 31)),))
    >>> faults = np.arange(0, 2000, 20)
    >>> columns = Columns(faults, faults * 0, faults % 40 == 0, np.zeros(100, dtype=bool))
    >>> assisted(Results(Record("one", space=space, inputs=1), columns), Table({"a": np.ones((1000, 2))})).trials
    100
    """
    record, columns = results.record, results.columns
    unlike = {
        "several faults in a trial": columns.counts is not None,
        "a metric": columns.values is not None,
        "strata": columns.strata is not None,
        "every fault": record.population is not None,
        "faults out of reach": "reach" in record.configuration,
    }
    if any(unlike.values()) or not scores:
        what = next((name for name, found in unlike.items() if found), "no score")
        raise CampaignError(
            f"an assisted estimate takes single faults drawn independently and a score, got {what}; use estimate()"
        )
    return assisted_mean(
        columns.failed,
        np.column_stack([score_of(score, record.space, columns.faults) for score in scores]),
        [score_mean(score, record.space) for score in scores],
        weights=columns.weights,
        level=level,
        largest_weight=record.configuration.get("largest_weight"),
    )
