"""Campaigns repeated on the enumerated network: bias, coverage and price of every sampler with its estimator.

A new sampler gets one line in :data:`CASES`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from math import nan, sqrt

import numpy as np

from tests.support.enumerated import Enumerated
from tests.support.proposal import TopBits
from torchfault.campaign import Campaign, run
from torchfault.model.golden_words import golden_words
from torchfault.resolve import Direct, Monotone, Pooled, Resolver, certified
from torchfault.results import Results, assisted, recall
from torchfault.sampling import (
    Adaptive,
    BitFields,
    Cut,
    Deviations,
    Importance,
    Learned,
    Population,
    Sampler,
    Search,
    Statistical,
    Table,
    Uniform,
    WholeWords,
    bit_probabilities,
)
from torchfault.sensitivity import corrected, effect, isimdl, margins, rising
from torchfault.statistics import AllOf, AnyOf, Estimate, HalfWidth, MaxTrials, Rule

__all__ = ["CASES", "Case", "Validity", "judge"]

Watcher = Callable[[Results, float], bool]
"""Told of what a campaign has found so far, and of the truth: whether somebody who looks on stops it now."""


@dataclass(frozen=True)
class Case:
    """A sampler, the rule that stops it (``None``: its end), and the interval of unweighted failures.

    *resolver* is the campaign's; *estimate* is of the model where it is not the results' own, and leaves sites out;
    *watcher* looks after every block and stops for reasons of its own. *unbiased* is false where no unbiased estimate
    exists: faults are out of reach, or the outcomes decided the stop in a way that the sampler was not told.
    """

    sampler: Sampler
    stop: Rule | None = None
    method: str = "wilson"
    resolver: Resolver = field(default_factory=Direct)
    estimate: Callable[[Results], Estimate] | None = None
    watcher: Watcher | None = None
    unbiased: bool = True


@dataclass(frozen=True)
class Validity:
    """What repetitions of a case showed.

    *bias* of the model's value in standard errors of its mean; *coverage* of the model's interval and, on average, of
    the *sites*' (NaN where the estimate is of the model alone), the least of them being the *worst*; *price*, its mean
    half-width over that of an oracle who knows the spread of the value, 1.96 standard deviations; the mean numbers of
    *trials* and *lanes*; how many of all intervals of model and sites *missed*, and how many of these would have held
    had every trial had a lane of its own (*astray*).
    """

    bias: float
    coverage: float
    sites: float
    worst: float
    price: float
    trials: float
    lanes: float
    missed: int
    astray: int


@cache
def _words(known: Enumerated) -> dict[str, np.ndarray]:
    return golden_words(known.engine.model, known.data, known.space)


@cache
def _by_effect(known: Enumerated) -> Importance:
    """Return the sampler by effect, its score written out: what a thousand campaigns look at is computed once."""
    score = effect(known.engine.model, known.data, known.space)
    return Importance(Table({site.name: score.rows(site, np.arange(site.elements)) for site in known.space.sites}))


def _data_aware(known: Enumerated) -> Statistical:
    weights = np.concatenate([part.detach().numpy().ravel() for part in known.engine.model.parameters()])
    return Statistical("data-aware", margin=0.1, bits={"float32": bit_probabilities(weights)})


def _isimdl(known: Enumerated, code: str, *, threshold: float = 0.0, floor: float = 0.0) -> Case:
    sampler = isimdl(known.engine.model, known.data, known.space, code, threshold=threshold, floor=floor)
    return Case(sampler, MaxTrials(1000), unbiased=sampler.design(Population(known.space)).reach == 1)


def _assisted(known: Enumerated, sampler: Sampler, trials: int = 1000) -> Case:
    score = _by_effect(known).score
    return Case(sampler, MaxTrials(trials), estimate=lambda results: assisted(results, score))


def _total(results: Results) -> Estimate:
    """Return the number of faults there are to be found as a share of all, as a search tells it."""
    found, size = recall(results).total, len(results.space)
    return replace(found, value=found.value / size, low=found.low / size, high=found.high / size)


def _hostile(results: Results, truth: float) -> bool:
    """Stop at once where the interval has lost the truth: only intervals that hold at every look survive this."""
    one = results.estimate()
    return not one.low <= truth <= one.high


def _until(half_width: float) -> Watcher:
    return lambda results, _: results.estimate().half_width <= half_width


def _sometime(results: Results, truth: float) -> bool:
    """Stop at any moment, one look in four."""
    del truth
    return bool(np.random.default_rng((results.record.seed, len(results))).random() < 0.25)


def _narrow(**half_widths: float) -> Rule:
    """Stop once all intervals are as narrow as asked for, by grouping."""
    return AllOf(tuple(HalfWidth(h, by=by) for by, h in half_widths.items()))


def _resolver(known: Enumerated, *, pool: int, monotone: bool, audit: float = 0.2) -> Resolver:
    """Return pools, closure whose lanes are pooled, or one of the two; of closure a share *audit* is audited."""
    inner = Pooled(pool, audit=0.02) if pool else Direct()
    return Monotone(_words(known), inner, audit=audit) if monotone else inner


def _adaptive(
    strata: Cut | None = None,
    *,
    block: int = 256,
    resolver: Resolver | None = None,
    most: int | None = None,
    watcher: Watcher | None = None,
    unbiased: bool = True,
    **half_widths: float,
) -> Case:
    """Return a case that draws towards *half_widths*, by grouping, and ends there or after *most* trials."""
    stop: Rule = _narrow(**half_widths)
    stop = stop if most is None else AnyOf((stop, MaxTrials(most)))
    sampler = Adaptive(strata or BitFields(), block=block)
    return Case(sampler, stop, resolver=resolver or Direct(), watcher=watcher, unbiased=unbiased)


def _deviation(
    known: Enumerated,
    *,
    pool: int = 0,
    monotone: bool = False,
    by_margin: bool = False,
    reserve: float = 0.05,
    watcher: Watcher | None = None,
    unbiased: bool = True,
    **half_widths: float,
) -> Case:
    resolver = _resolver(known, pool=pool, monotone=monotone)
    cut = Deviations(_words(known), margins=margins(known.engine.golden()) if by_margin else None)
    sampler = Adaptive(cut, block=512, pool=pool, reserve=reserve if resolver.assumption else 0.0)
    return Case(sampler, _narrow(**half_widths), resolver=resolver, watcher=watcher, unbiased=unbiased)


def _certified(known: Enumerated, **half_widths: float) -> Case:
    return replace(_deviation(known, by_margin=True, **half_widths), resolver=certified(known.engine, known.space))


def _uniform(known: Enumerated, *, pool: int = 0, monotone: bool = False) -> Case:
    return Case(Uniform(), MaxTrials(2000), resolver=_resolver(known, pool=pool, monotone=monotone))


CASES: dict[str, Callable[[Enumerated], Case]] = {
    "uniform, wilson": lambda _: Case(Uniform(), MaxTrials(1000)),
    "uniform, clopper-pearson": lambda _: Case(Uniform(), MaxTrials(1000), "clopper-pearson"),
    "uniform, jeffreys": lambda _: Case(Uniform(), MaxTrials(1000), "jeffreys"),
    "uniform, until narrow": lambda _: Case(Uniform(), HalfWidth(0.008, method="clopper-pearson"), "clopper-pearson"),
    "uniform, assisted": lambda known: _assisted(known, Uniform()),
    "network-wise": lambda _: Case(Statistical("network-wise", margin=0.03)),
    "layer-wise": lambda _: Case(Statistical("layer-wise", margin=0.05)),
    "data-unaware": lambda _: Case(Statistical("data-unaware", margin=0.2)),
    "data-aware": lambda known: Case(_data_aware(known)),
    "top bits": lambda _: Case(TopBits(), MaxTrials(1000)),
    "top bits, few trials": lambda _: Case(TopBits(), MaxTrials(100)),
    "importance, effect": lambda known: Case(_by_effect(known), MaxTrials(1000)),
    "importance, effect, few trials": lambda known: Case(_by_effect(known), MaxTrials(100)),
    "importance, effect, assisted": lambda known: _assisted(known, _by_effect(known)),
    "importance, rising": lambda known: Case(rising(known.engine.model, known.data, known.space), MaxTrials(1000)),
    "learned": lambda known: Case(Learned(_by_effect(known).score, block=256), MaxTrials(1024)),
    "learned, assisted": lambda known: _assisted(known, Learned(_by_effect(known).score, block=256), 1024),
    "isimdl, corrected": lambda known: Case(corrected(known.engine.model, known.data, known.space), MaxTrials(1000)),
    **{
        f"isimdl, {code}, floor 0.5": lambda known, code=code: _isimdl(known, code, floor=0.5)
        for code in ("GBIN", "EBIN", "LBIN", "RBIN", "GBRN", "EBRN", "LBRN", "RBRN")
    },
    "isimdl, RBIN, threshold 0.1": lambda known: _isimdl(known, "RBIN", threshold=0.1),
    "isimdl, GBIN, threshold 0.1": lambda known: _isimdl(known, "GBIN", threshold=0.1),
    "isimdl, GBIN, published": lambda known: _isimdl(known, "GBIN"),
    "search, side sample": lambda known: Case(Search(side=1024, block=256, words=_words(known)), MaxTrials(2048)),
    "search, faults to be found": lambda known: Case(
        Search(side=1024, block=256, words=_words(known)), MaxTrials(2048), estimate=_total
    ),
    "adaptive, model": lambda _: _adaptive(model=0.005),
    "adaptive, sites": lambda _: _adaptive(site=0.03, model=0.02),
    "adaptive, bits": lambda _: _adaptive(bit=0.08, block=512),
    "adaptive, stopped early": lambda _: _adaptive(model=0.004, most=1024),
    "adaptive, at any moment": lambda _: _adaptive(model=0.004, watcher=_sometime),
    "adaptive, first look within 1 point": lambda _: _adaptive(model=0.004, watcher=_until(0.01), unbiased=False),
    "adaptive, hostile": lambda _: _adaptive(model=0.005, watcher=_hostile),
    "deviation, sites": lambda known: _deviation(known, site=0.06),
    "deviation, model": lambda known: _deviation(known, model=0.005),
    "deviation, both": lambda known: _deviation(known, site=0.06, model=0.008),
    "deviation, first look within 1 point": lambda known: _deviation(
        known, model=0.004, watcher=_until(0.01), unbiased=False
    ),
    "deviation, margins, sites": lambda known: _deviation(known, site=0.06, by_margin=True),
    "deviation, margins, model": lambda known: _deviation(known, model=0.005, by_margin=True),
    "deviation, margins, pooled": lambda known: _deviation(known, site=0.06, pool=16, by_margin=True),
    "deviation, hostile": lambda known: _deviation(known, model=0.005, watcher=_hostile),
    "deviation, certified, sites": lambda known: _certified(known, site=0.04),
    "deviation, certified, model": lambda known: _certified(known, model=0.005),
    "whole words": lambda _: _adaptive(WholeWords(), site=0.06, block=96),
    "uniform, pooled": lambda known: _uniform(known, pool=16),
    "uniform, closure": lambda known: _uniform(known, monotone=True),
    "deviation, pooled": lambda known: _deviation(known, site=0.06, pool=16),
    "deviation, closure": lambda known: _deviation(known, site=0.06, monotone=True),
    "deviation, pooled and closure": lambda known: _deviation(known, site=0.06, pool=16, monotone=True),
    "deviation, model, pooled and closure": lambda known: _deviation(
        known, model=0.006, pool=16, monotone=True, reserve=0.5
    ),
    "whole words, closure": lambda known: _adaptive(
        WholeWords(), site=0.06, block=96, resolver=_resolver(known, pool=0, monotone=True, audit=0.02)
    ),
}


@dataclass
class _Kept:
    values: list[float] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    sites: list[np.ndarray] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    astray: int = 0


def judge(known: Enumerated, name: str, repetitions: int, *, case: Case | None = None) -> Validity:
    """Run the campaign of the case *name*, or a *case*, with seeds from 0 up; hold its estimates against the truth."""
    case, kept = case or CASES[name](known), _Kept()
    truth = float(known.truth()[0])
    for seed in range(repetitions):
        results = _ended(known, case, seed)
        one, held = _holds(known, case, results)
        kept.values.append(one.value)
        kept.held.append(held[0])
        kept.sites.append(held[1:])
        kept.widths.append(one.half_width)
        kept.trials.append(len(results))
        kept.lanes.append(results.lanes)
        if case.resolver.assumption and not held.all():
            kept.astray += int((~held & _holds(known, case, _lane_by_lane(known, results))[1]).sum())
    spread, by_site = float(np.std(kept.values, ddof=1)), np.mean(kept.sites, axis=0)
    whole = np.concatenate((np.array(kept.held), np.ravel(kept.sites)))
    return Validity(
        (float(np.mean(kept.values)) - truth) / (spread / sqrt(repetitions)),
        float(np.mean(kept.held)),
        float(by_site.mean()) if len(by_site) else nan,
        float(by_site.min()) if len(by_site) else nan,
        float(np.mean(kept.widths)) / (1.96 * spread),
        float(np.mean(kept.trials)),
        float(np.mean(kept.lanes)),
        int((~whole.astype(bool)).sum()),
        kept.astray,
    )


def _ended(known: Enumerated, case: Case, seed: int) -> Results:
    """Run one campaign to its end, or to the first look at which the watcher has seen enough."""
    sampler = case.sampler
    if isinstance(sampler, Search):  # the side sample follows a seed of its own
        sampler = replace(sampler, seed=seed)
    campaign = Campaign(known.table, known.space, sampler=sampler, resolver=case.resolver, seed=seed, stop=case.stop)
    with warnings.catch_warnings():
        if not case.unbiased:  # the warning that faults are out of reach
            warnings.simplefilter("ignore", UserWarning)
        results = run(campaign)
    block = case.sampler.block
    for trials in range(block, len(results), block) if case.watcher else ():
        sofar = Results(replace(results.record, trials=trials), results.columns.take(0, trials))
        if case.watcher and case.watcher(sofar, float(known.truth()[0])):
            return sofar
    return results


def _holds(known: Enumerated, case: Case, results: Results) -> tuple[Estimate, np.ndarray]:
    """Return the estimate of the model, and whether its interval and then each site's hold the truth."""
    one = case.estimate(results) if case.estimate else results.estimate(method=case.method)
    truth = np.concatenate((known.truth(), known.truth("site")))
    low, high = np.array([one.low]), np.array([one.high])
    if case.estimate is None:
        table = results.table("site", method=case.method)
        low, high = np.append(low, table["low"]), np.append(high, table["high"])
    return one, (low <= truth[: len(low)]) & (truth[: len(low)] <= high)


def _lane_by_lane(known: Enumerated, results: Results) -> Results:
    """Return the campaign as if each of its trials had had a lane of its own, with nothing to assume."""
    columns = results.columns
    if columns.unit == "word":
        row, faults, bit = results.space.flips(columns.faults)
        failed, hit = np.zeros(len(columns), dtype=np.uint64), known.outcomes[faults, columns.inputs[row]]
        np.bitwise_or.at(failed, row[hit], np.left_shift(np.uint64(1), bit[hit].astype(np.uint64)))
    else:
        failed = known.outcomes[columns.faults, columns.inputs]
    plain = {key: value for key, value in results.record.configuration.items() if key != "assumption"}
    record = replace(results.record, configuration=plain)
    return Results(record, replace(columns, flags={"failed": failed}, lanes=None))
