"""What each way to measure a space of faults would cost, before anything runs."""

from collections.abc import Mapping
from math import nan
from typing import TYPE_CHECKING

from torchfault.errors import SamplingError
from torchfault.sampling.statistical import METHODS, Statistical
from torchfault.sampling.two_stage import drawn_words, sampled_channels
from torchfault.space import FaultSpace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STEPS", "compare_plans", "plan", "plan_analysis"]

STEPS = 5
"""Tries that halving needs among 21 candidate values and none of them: the logarithm of 22 to base 2, rounded up."""


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


def plan_analysis(space: FaultSpace, *, share: float | None = None) -> "pd.DataFrame":
    """Return one row per site of *space*: its channels and words, and what DeepVigor+ takes of them at *share*.

    The columns are *site*, *kind*, *channels*, *words*, *sampled_channels*, *sampled_words*, *targets* and
    *simulations*: runs of the whole batch of images, as the paper counts. A weight's target is its channel, searched
    once; an activation's is a word (neuron), so that the sum of its targets is equation 16: the logarithm of the number
    of neurons in each channel, over the sampled channels. Without *share* everything is taken. A target takes
    ``2 * STEPS`` simulations: both signs, halving. Source: DeepVigor+, arXiv 2410.15742.

    >>> from torchfault.space import Site
    >>> sites = Site("fc.weight", (10, 64), channel=0), Site("conv:input", (16, 32, 32), kind="input", channel=0)
    >>> plan_analysis(FaultSpace(sites), share=0.1)[["sampled_channels", "sampled_words", "targets", "simulations"]]
       sampled_channels  sampled_words  targets  simulations
    0                 1              6        1           10
    1                 2             10       20          200
    """
    import pandas as pd

    rows = []
    for site in space.sites:
        taken, each = sampled_channels(site, share), drawn_words(site, None if share is None else "log2")
        targets = taken * each if site.is_activation else taken
        words = site.elements // max(site.channels, 1)
        rows.append((site.name, site.kind, site.channels, words, taken, each, targets, 2 * STEPS * targets))
    names = ["site", "kind", "channels", "words", "sampled_channels", "sampled_words", "targets", "simulations"]
    return pd.DataFrame(rows, columns=names)


def compare_plans(
    space: FaultSpace,
    *,
    simulations: int | None = None,
    shares: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2),
    margin: float = 0.01,
    bits: Mapping[str, tuple[float, ...]] | None = None,
) -> "pd.DataFrame":
    """Return one row per way to measure the vulnerability of *space*: *method*, *simulations*, and the *ratio*.

    The rows are DeepVigor+ at each of *shares* and complete (:func:`plan_analysis`); one with the *simulations* that a
    finished analysis made, its lanes over its inputs, where given; and exhaustive and statistical injection
    (:func:`plan` at *margin*, data-aware with *bits*). The *ratio* is how many times as many simulations as the
    analysis (the finished one, else at 0.1, or at the first share) a method takes. Source: DeepVigor+, Tables V and VI.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("conv.weight", (64, 64, 3, 3), channel=0),))
    >>> compare_plans(space, shares=(0.1,))
             method  simulations         ratio
    0  sampled 10 %           70      1.000000
    1      complete          640      9.142857
    2    exhaustive      1179648  16852.114286
    3  network-wise         9526    136.085714
    4    layer-wise         9526    136.085714
    5  data-unaware       243814   3483.057143
    """
    import pandas as pd

    rows = [(f"sampled {100 * s:g} %", int(plan_analysis(space, share=s)["simulations"].sum())) for s in shares]
    rows.append(("complete", int(plan_analysis(space)["simulations"].sum())))
    usual = 0.1 if 0.1 in shares else shares[0] if shares else None
    unit = rows[-1][1] if usual is None else rows[shares.index(usual)][1]
    if simulations is not None:
        rows.insert(0, ("this analysis", simulations))
        unit = simulations
    injected = plan(space, margin=margin, bits=bits).set_index("method")["trials"]
    rows += [(name, int(injected[name])) for name in ("exhaustive", *injected.index[:-1])]
    table = pd.DataFrame(rows, columns=["method", "simulations"])
    table["ratio"] = table["simulations"] / unit
    return table
