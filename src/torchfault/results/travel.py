"""How far errors travel: at which site they were last alive, of a campaign with a monitor."""

from typing import TYPE_CHECKING

import numpy as np

from torchfault.errors import CampaignError
from torchfault.results.results import Results

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["endings", "travel"]


def travel(results: Results, *, level: float | None = None) -> "pd.DataFrame":
    """Return at each monitored site, in execution order, the share of faults whose error is alive there or behind it.

    The columns are site, trials (with such an error), value, low and high, and died: the trials whose error was last
    seen there, all being golden from the next site on. The last row, ``output``, is that of errors which reach the
    outputs of the model, where criteria judge them. Shares count what was drawn by the campaign's weights, with its
    intervals at *level*. Raises :class:`CampaignError` for a campaign without a monitor.

    >>> from dataclasses import replace
    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> table = travel(run(replace(example_campaign(trials=200), monitor=True)))
    >>> table["site"].tolist()[-1], table["trials"].is_monotonic_decreasing
    ('output', True)
    """
    import pandas as pd

    reach, sites = results.columns.reach, results.record.golden.get("monitored", [])
    if reach is None:
        raise CampaignError(
            f"'{results.name}' ran without a monitor, so that nobody saw where errors ended; run it with monitor=True"
        )
    names, rows = [*sites, "output"], []
    last = np.bincount(reach[reach >= 0], minlength=len(names))
    alive = results.with_flags({"alive": reach >= len(sites)}).estimate("alive", level=level)
    for position, name in reversed([*enumerate(names)]):
        died = int(last[position]) if position < len(sites) else 0
        if died:  # else the same trials are alive here as at the next site
            alive = results.with_flags({"alive": reach >= position}).estimate("alive", level=level)
        rows.append((name, int(last[position:].sum()), alive.value, alive.low, alive.high, died))
    return pd.DataFrame(rows[::-1], columns=["site", "trials", "value", "low", "high", "died"])


def endings(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows of :func:`travel` at which some error was last alive, and that of the outputs.

    >>> import pandas as pd
    >>> endings(pd.DataFrame({"site": ["a", "b", "output"], "died": [2, 0, 0]}))["site"].tolist()
    ['a', 'output']
    """
    held: pd.DataFrame = table[(table["died"] > 0) | (table["site"] == table["site"].iloc[-1])]
    return held
