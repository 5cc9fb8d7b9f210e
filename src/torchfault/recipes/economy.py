"""The vulnerability of every site in as few lanes as can be: strata by deviation, pools, monotone closure."""

from collections.abc import Mapping
from functools import reduce
from operator import and_
from typing import Any

from torchfault.campaign import Campaign
from torchfault.criteria import Criterion, Top1Change
from torchfault.engine import Engine
from torchfault.errors import CriterionError
from torchfault.faults import BitFlip, FaultModel
from torchfault.resolve import Direct, Monotone, Pooled, Resolver
from torchfault.sampling import Adaptive, Deviations
from torchfault.sampling.deviations import BEYOND
from torchfault.sensitivity import margins, turned
from torchfault.space import FaultSpace
from torchfault.statistics import HalfWidth, Rule, StoppingRule

__all__ = ["by_deviations", "economy"]

_RESERVE = 0.05  # of each half-width, for what audits add to intervals
_BLOCK, _POOLED_BLOCK = 1024, 8192  # draws planned together; many where they share lanes


def economy(
    engine: Engine,
    space: FaultSpace,
    *,
    half_width: float | Mapping[str, float] = 0.01,
    pool: int = 64,
    monotone: bool = False,
    stop: Rule | None = None,
    fault: FaultModel | None = None,
    criterion: Criterion | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Campaign:
    """Return the campaign that finds how vulnerable each site is, within *half_width*, by fewer lanes than trials.

    *half_width* is that of each site, or one for each grouping, such as ``{"site": 0.01, "model": 0.001}``. Faults
    are cut by how far they move their words (:class:`torchfault.sampling.Deviations`); those that are expected to be
    harmless are struck together, at most *pool* in one lane (0: none are), and with *monotone* a masked flip vouches
    for the smaller ones of its word. Both assumptions are audited, and intervals allow for what the audits leave open.
    *stop* may end it before. :func:`torchfault.results.factors` tells the vulnerability factors.

    >>> from torchfault import demo
    >>> engine = Engine(demo.model(), demo.data().take(slice(0, 20)), executor="hooks")
    >>> economy(engine, engine.space.select("*.weight"), half_width=0.05).resolver.size
    64
    """
    words = engine.words(space)
    goals = dict(half_width) if isinstance(half_width, Mapping) else {"site": half_width}
    resolver: Resolver = Monotone(words) if monotone else Direct()
    resolver = Pooled(pool, resolver) if pool else resolver
    reached: StoppingRule = reduce(and_, [HalfWidth(h, by=by, level=level) for by, h in goals.items()])
    return Campaign(
        engine,
        space,
        sampler=by_deviations(engine, space, words, goals=goals, resolver=resolver),
        fault=fault or BitFlip(),
        criterion=criterion or Top1Change(),
        resolver=resolver,
        seed=seed,
        stop=reached if stop is None else reached | stop,
    )


def by_deviations(
    engine: Engine, space: FaultSpace, words: Mapping[str, Any], *, goals: Mapping[str, float], resolver: Resolver
) -> Adaptive:
    """Return the adaptive sampler by the deviations of golden *words*, in blocks that fit *space* and *resolver*.

    Where outputs are scores of classes, inputs are parted by their margins; where the graph is known, words are turned
    as batch norms turn what they change. A block has twice as many draws as there are strata at least.
    """
    words = words if engine.captured is None else turned(words, space, engine.captured)
    cut, pool = Deviations(words, margins=_margins(engine)), _pool(resolver)
    sites = len(space.sites) if "site" in goals else 1
    strata = (len(cut.edges) * (len(cut.unsure) + 1) + BEYOND) * sites
    block = max(_POOLED_BLOCK if pool else _BLOCK, 1 << (2 * strata - 1).bit_length())
    return Adaptive(cut, block=block, reserve=_RESERVE if resolver.assumption else 0.0, pool=pool)


def _pool(resolver: Resolver | None) -> int:
    """Return the size of the pools of *resolver*, or of one inside it; 0 without."""
    while resolver is not None and not isinstance(resolver, Pooled):
        resolver = getattr(resolver, "inner", None)
    return 0 if resolver is None else resolver.size


def _margins(engine: Engine) -> Any:
    """Return the margin of each input, ``None`` where outputs are no scores of classes."""
    try:
        return margins(engine.golden())
    except CriterionError:
        return None
