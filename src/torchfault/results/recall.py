"""What a search for critical faults found, and how much of what there is to find."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import CampaignError
from torchfault.results.results import Results
from torchfault.statistics import Estimate, proportion

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Recall", "recall"]


@dataclass(frozen=True, eq=False)
class Recall:
    """How a search went: *hits*, the failing faults after each trial, shape (trials,), of an estimated *total*.

    *total* is the number of faults that fail, with the interval that the side sample gives, cut to what is known
    of the faults struck; *faults* the numbers of those found, in order, and *side* the trials of the side sample, which
    are counted in.

    >>> whole = Estimate(20.0, 10.0, 40.0, 100, "wilson")
    >>> Recall(np.array([0, 1, 1, 2]), np.array([7, 9]), whole, 0).table([2, 4])
       trials  found  precision  recall  recall_low  recall_high
    0       2      1        0.5    0.05       0.025          0.1
    1       4      2        0.5    0.10       0.050          0.2
    """

    hits: NDArray[np.int64]
    faults: NDArray[np.int64]
    total: Estimate
    side: int

    def table(self, trials: "list[int] | NDArray[np.int64] | None" = None) -> "pd.DataFrame":
        """Return precision (found per trial) and recall (found of the total, with its interval) after some *trials*.

        They double from a hundredth of all trials on, unless told.
        """
        import pandas as pd

        count = len(self.hits)
        if trials is None:
            trials = np.unique(np.ceil(count / 2.0 ** np.arange(7)).astype(np.int64))[: count or None]
        at = np.asarray(trials, dtype=np.int64)
        hits = self.hits[at - 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = [np.minimum(hits / bound, 1.0) for bound in (self.total.value, self.total.high, self.total.low)]
        names = ("recall", "recall_low", "recall_high")
        return pd.DataFrame(
            {"trials": at, "found": hits, "precision": hits / at} | dict(zip(names, share, strict=True))
        )


def recall(results: Results, *, level: float | None = None) -> Recall:
    """Return what a search found; raises :class:`CampaignError` for a campaign that picked no faults on purpose."""
    sample = results.design.sample
    if sample is None:
        raise CampaignError(f"'{results.name}' was no search, so nothing tells its recall; use sampler=Search()")
    columns, chosen = results.columns, results.level if level is None else level
    side = columns.where(np.isin(columns.stratum, sample))
    size, hits = len(results.space), np.cumsum(columns.failed, dtype=np.int64)
    share = proportion(int(side.failed.sum()), len(side), level=chosen, population=size)
    least = int(hits[-1]) if len(hits) else 0
    most = size - (len(columns) - least)
    value, low, high = (float(np.clip(size * v, least, most)) for v in (share.value, share.low, share.high))
    total = Estimate(value, low, high, len(side), share.method, chosen)
    return Recall(hits, columns.faults[columns.failed.astype(bool)], total, len(side))
