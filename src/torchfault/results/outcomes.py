"""What became of trials, each in one class: masked on the way, or at the output, SDC, DUE, a crash."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import CampaignError
from torchfault.results.results import Results
from torchfault.sampling.flips import popcount
from torchfault.space import FaultSpace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OUTCOMES", "classified", "outcomes"]

OUTCOMES = {
    "erased": "the error died on the way: outputs are as without the fault",
    "masked": "outputs may differ, but do not fail",
    "SDC": "silent data corruption: it fails, and nothing tells",
    "DUE": "detectable: NaN or infinity among the outputs",
    "crash": "detectable: an exception",
}
"""The classes of outcomes, each with its meaning, from the most harmless on."""

Flags = NDArray[Any]


def classified(results: Results) -> Results:
    """Return *results* with the classes of :data:`OUTCOMES` as further outcomes: each fault has one of them.

    ``erased`` is known where a monitor followed every lane, or its change was noted; else such trials are ``masked``.
    Raises :class:`CampaignError` for a campaign that measured a metric, and for one whose outcomes were not all seen:
    what others vouch for fails or does not, and more is not known of it.
    """
    columns, facts = results.columns, results.record.configuration
    if columns.values is not None or facts.get("assumption"):
        why = "measured a metric" if columns.values is not None else "did not see every outcome"
        raise CampaignError(f"'{results.name}' {why}, so that its trials fall into no classes; ask for its estimate")
    failed, due, crash = (columns.flag(name) for name in ("failed", "due", "crash"))
    harmless, died = _bits(results) & ~(failed | due | crash), _erased(results)
    erased = np.zeros_like(failed) if died is None else harmless & died
    flags = {
        "erased": erased,
        "masked": harmless & ~erased,
        "SDC": failed & ~(due | crash),
        "DUE": due & ~crash,
        "crash": crash,
    }
    return results.with_flags(flags)


def outcomes(results: Results, *, level: float | None = None) -> "pd.DataFrame":
    """Return how many faults end in each class: *outcome*, *trials*, *value*, *low*, *high*; classes without any too.

    A class that was not told apart is left out: ``erased`` where changes were not noted. Raises as :func:`classified`.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> outcomes(run(example_campaign(trials=200)))[["outcome", "trials"]].to_numpy().tolist()
    [['erased', 22], ['masked', 170], ['SDC', 6], ['DUE', 2], ['crash', 0]]
    """
    import pandas as pd

    seen, rows = classified(results), []
    for name in OUTCOMES:
        if name == "erased" and _erased(results) is None:
            continue
        found = seen.estimate(name, level=level)
        rows.append((name, _count(seen.columns.flag(name)), found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["outcome", "trials", "value", "low", "high"])


def _count(flags: Flags) -> int:
    """Return how many faults have an outcome."""
    return int(np.count_nonzero(flags) if flags.dtype == np.bool_ else popcount(flags).sum())


def _erased(results: Results) -> Flags | None:
    """Return which errors ended before the outputs, ``None`` where that is not known."""
    columns = results.columns
    if columns.reach is not None:
        return columns.reach < len(results.record.golden["monitored"])
    return None if columns.changes is None else columns.changes == 0


def _bits(results: Results) -> Flags:
    """Return what a flag is that is set for every fault of each trial: masks of bits for words."""
    columns, space = results.columns, results.space
    if columns.unit == "fault":
        return np.ones(len(columns), dtype=np.bool_)
    assert isinstance(space, FaultSpace)
    known = np.array([sum(1 << bit for bit in site.bits) for site in space.sites], dtype=np.uint64)
    return known[space.locate(columns.faults).site]
