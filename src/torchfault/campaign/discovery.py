"""What a search for critical faults found, and how much of what there is to find."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import CampaignError
from torchfault.sampling.search import SIDE
from torchfault.statistics import Estimate, proportion
from torchfault.store import Columns, Record

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Discovery", "discovery", "is_search", "side_sample"]


@dataclass(frozen=True, eq=False)
class Discovery:
    """How a search went: *found* failing faults after each trial, shape (trials,), of a *total* that was estimated.

    *total* is the number of faults that fail, with the interval that the side sample gives, cut to what is known
    of the faults struck; *faults* the numbers of those found, in order, and *side* the trials of the side sample, which
    are counted in.

    >>> whole = Estimate(20.0, 10.0, 40.0, 100, "wilson")
    >>> Discovery(np.array([0, 1, 1, 2]), np.array([7, 9]), whole, 0).table([2, 4])
       trials  found  precision  recall  recall_low  recall_high
    0       2      1        0.5    0.05       0.025          0.1
    1       4      2        0.5    0.10       0.050          0.2
    """

    found: NDArray[np.int64]
    faults: NDArray[np.int64]
    total: Estimate
    side: int

    def table(self, trials: "list[int] | NDArray[np.int64] | None" = None) -> "pd.DataFrame":
        """Return precision (found per trial) and recall (found of the total, with its interval) after some *trials*.

        They double from a hundredth of all trials on, unless told.
        """
        import pandas as pd

        count = len(self.found)
        if trials is None:
            trials = np.unique(np.ceil(count / 2.0 ** np.arange(7)).astype(np.int64))[: count or None]
        at = np.asarray(trials, dtype=np.int64)
        found = self.found[at - 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = [np.minimum(found / bound, 1.0) for bound in (self.total.value, self.total.high, self.total.low)]
        names = ("recall", "recall_low", "recall_high")
        return pd.DataFrame(
            {"trials": at, "found": found, "precision": found / at} | dict(zip(names, recall, strict=True))
        )


def is_search(record: Record) -> bool:
    """Return whether a campaign was a search."""
    described = record.configuration.get("sampler")
    return isinstance(described, dict) and described.get("class") == "Search"


def side_sample(columns: Columns) -> Columns:
    """Return the trials of the side sample: those that say something of all faults."""
    return columns if columns.strata is None else columns.take(0, int((columns.strata == SIDE).sum()))


def discovery(record: Record, columns: Columns, *, level: float) -> Discovery:
    """Return what a search found; raises :class:`CampaignError` for another campaign."""
    if not is_search(record):
        raise CampaignError(f"'{record.name}' was no search, so nothing tells its recall; use sampler=Search()")
    side = side_sample(columns)
    size, found = len(record.space), np.cumsum(columns.failed, dtype=np.int64)
    share = proportion(int(side.failed.sum()), len(side), level=level, population=size)
    least = int(found[-1]) if len(found) else 0
    most = size - (len(columns) - least)
    value, low, high = (float(np.clip(size * v, least, most)) for v in (share.value, share.low, share.high))
    total = Estimate(value, low, high, len(side), share.method, level)
    return Discovery(found, columns.faults[columns.failed], total, len(side))
