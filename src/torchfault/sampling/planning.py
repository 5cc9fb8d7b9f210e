"""What each way to draw faults would cost, before anything runs."""

from collections.abc import Mapping
from math import nan
from typing import TYPE_CHECKING

from torchfault.errors import SamplingError
from torchfault.sampling.statistical import METHODS, Statistical
from torchfault.space import FaultSpace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plan"]


def plan(
    space: FaultSpace,
    *,
    margin: float = 0.01,
    t: float = 1.96,
    p: float = 0.5,
    bits: Mapping[str, tuple[float, ...]] | None = None,
    inputs: int = 1,
    all_inputs: int = 1,
    rate: float | None = None,
) -> "pd.DataFrame":
    """Return one row per method of statistical injection, and one for exhaustive injection: what *space* would take.

    The columns are *method*, *strata* (samples drawn apart), *trials* (faults), *share* of the space, *lanes* (trials
    times the *inputs* that each runs on; 1 where every trial has one random input; exhaustive injection takes each
    fault on *all_inputs*) and *seconds* at *rate* lanes per second, NaN without a rate. ``data-aware`` is among them
    where *bits* are given (:func:`bit_probabilities`); *margin*, *t* and *p* are those of :class:`Statistical`.
    Raises :class:`SamplingError` for fewer than one input or a rate that is not above 0.

    >>> from torchfault.space import Site
    >>> table = plan(FaultSpace((Site("a.weight", (1000,)), Site("b.weight", (10,)))), rate=1000.0)
    >>> table[["method", "strata", "trials", "seconds"]]
             method  strata  trials  seconds
    0  network-wise       1    7404    7.404
    1    layer-wise       2    7696    7.696
    2  data-unaware      64   29304   29.304
    3    exhaustive       1   32320   32.320
    """
    import pandas as pd

    if min(inputs, all_inputs) < 1 or (rate is not None and not rate > 0):
        raise SamplingError(f"a plan takes one input or more and a rate above 0, got {inputs} and {rate}; count lanes")
    names = METHODS if bits is not None else METHODS[:-1]
    rows = []
    for name in names:
        sampler = Statistical(name, margin=margin, t=t, p=p, bits=bits if name == "data-aware" else None)
        draws = sampler.allocation(space)
        rows.append((name, int((draws > 0).sum()), int(draws.sum())))
    rows.append(("exhaustive", 1, len(space)))
    table = pd.DataFrame(rows, columns=["method", "strata", "trials"])
    table["share"] = table["trials"] / len(space)
    each = [inputs] * (len(rows) - 1) + [max(inputs, all_inputs)]
    table["lanes"] = table["trials"] * each
    table["seconds"] = nan if rate is None else table["lanes"] / rate
    return table
