"""How a sampler spent its trials: weights, effective sample size, allocation, and what it starved."""

from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.results.counter import Counter
from torchfault.sampling.flips import failing_share
from torchfault.statistics import Estimate, effective_sample_size, wilson_trials
from torchfault.store import Columns

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Diagnostics", "diagnose"]

Floats = NDArray[np.float64]

_STARVED = 0.1  # a region that gets less than this share of what it would get by chance
_LARGE = 0.01  # regions of a smaller share are not worth a warning
_HEAVY = 0.2  # share of the estimate that one trial may make up
_POOR = 0.1  # effective trials per trial


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """How well the draws of a campaign serve its estimate.

    *effective* is Kish's effective sample size and *design_effect* the trials over it: what unequal weights would cost
    if outcomes had nothing to do with them. *worth* is how many uniform trials would give an interval as narrow
    (Wilson's, at the same estimate), and tells what the sampler gained: NaN where there is no width. *lightest* and
    *heaviest* are the extreme weights; *allocation* has one row per stratum, with its *share* of the faults by weight,
    *trials*, *failures*, the largest *weight*, and its *variance*: the share of the estimate's. *warnings* name the
    regions that were starved, with the remedy.

    >>> from torchfault.space import FaultSpace, Site
    >>> space = FaultSpace((Site("a", (100,)), Site("b", (100,))))
    >>> columns = Columns(np.arange(50), np.zeros(50, dtype=np.int64))
    >>> found = diagnose(space, columns, Estimate(0.0, 0.0, 0.07, 50, "wilson"))
    >>> found.effective, found.warnings[0][:68]
    (50.0, "site 'b' has 50 % of the faults and no trial: nothing is known of it")
    """

    trials: int
    effective: float
    design_effect: float
    worth: float
    lightest: float
    heaviest: float
    allocation: "pd.DataFrame"
    warnings: tuple[str, ...]


def diagnose(space: Space, columns: Columns, estimate: Estimate, *, counter: Counter | None = None) -> Diagnostics:
    """Return the diagnostics of *columns*, trials on *space* from which *estimate* was made.

    A *counter* of the columns, where there is one, tells where they struck.
    """
    weights, failing = columns.weight, failing_share(space, columns)
    table = _allocation(columns, weights, failing)
    effective = effective_sample_size(weights) if weights.any() else 0.0
    worth = nan
    if 0 <= estimate.low <= estimate.value <= estimate.high <= 1 and estimate.half_width > 0:
        worth = float(wilson_trials(estimate.value, estimate.half_width, level=estimate.level))
    return Diagnostics(
        len(columns),
        effective,
        len(columns) / effective if effective else nan,
        worth,
        float(weights.min(initial=np.inf)) if len(weights) else nan,
        float(weights.max(initial=0.0)) if len(weights) else nan,
        table,
        tuple(_warnings(space, columns, failing, effective, table, counter)),
    )


def _allocation(columns: Columns, weights: Floats, failing: Floats) -> "pd.DataFrame":
    import pandas as pd

    x = weights * failing
    if columns.strata is None:
        names, of = np.zeros(min(len(columns), 1), dtype=np.int64), np.zeros(len(columns), dtype=np.int64)
        heaviest = weights.max(keepdims=True) if len(columns) else weights
    else:
        names, of = np.unique(columns.stratum, return_inverse=True)
        heaviest = np.zeros(len(names))
        np.maximum.at(heaviest, of, weights)
    trials = np.bincount(of, minlength=len(names))
    total = weights.sum() or 1.0
    mean = np.bincount(of, x, len(names)) / np.maximum(trials, 1)
    variance = np.bincount(of, np.square(x - mean[of]), len(names))
    return pd.DataFrame(
        {
            "stratum": names,
            "share": np.bincount(of, weights, len(names)) / total,
            "trials": trials,
            "failures": np.bincount(of[failing > 0], minlength=len(names)),
            "weight": heaviest,
            "variance": variance / (variance.sum() or 1.0),
        }
    )


def _warnings(
    space: Space,
    columns: Columns,
    failing: Floats,
    effective: float,
    table: "pd.DataFrame",
    counter: Counter | None,
) -> list[str]:
    count, weights, warnings = len(columns), columns.weight, list[str]()
    if not count:
        return ["there is no trial yet: run some"]
    axis = space.axis("site" if "site" in space.groupings else "layer")
    struck = np.bincount(axis.code(columns.faults), minlength=len(axis)) if counter is None else counter.trials(axis)
    for key, share, trials in zip(axis.keys, axis.faults / len(space), struck.tolist(), strict=True):
        if share >= _LARGE and trials == 0:
            warnings.append(
                f"site '{key}' has {100 * share:.2g} % of the faults and no trial: nothing is known of it; "
                "run more trials, or mix uniform draws in"
            )
        elif share >= _LARGE and trials < _STARVED * share * len(columns.faults) and columns.strata is None:
            warnings.append(
                f"site '{key}' has {100 * share:.2g} % of the faults and {100 * trials / len(columns.faults):.2g} % of "
                "the trials: its interval is wide; mix uniform draws in, or stratify by site"
            )
    for stratum, share, trials in zip(table["stratum"], table["share"], table["trials"], strict=True):
        if share >= _LARGE and trials < _STARVED * share * count:
            warnings.append(
                f"stratum {stratum} stands for {100 * share:.2g} % of the faults by {trials} of {count} trials: a "
                "failure there would weigh heavily; give it more draws, or a larger uniform part"
            )
    x = weights * failing
    if columns.weights is not None and failing.sum() > 1 and x.max() > _HEAVY * x.sum():
        warnings.append(
            f"one failing trial makes up {100 * x.max() / x.sum():.2g} % of the estimate: the proposal misses faults "
            "that fail; bound its weights by a larger uniform part, and run more trials"
        )
    if isfinite(effective) and effective < _POOR * count and columns.strata is None:
        warnings.append(
            f"{count} trials are worth {effective:.0f} if outcomes do not follow the proposal: its scores are too "
            "extreme; mix uniform draws in"
        )
    return warnings
