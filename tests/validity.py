"""Campaigns repeated on the enumerated network: bias, coverage and price of every sampler with its estimator.

A new sampler gets one line in :data:`CASES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import sqrt

import numpy as np
from enumerated import Enumerated
from proposal import TopBits

from torchfault.campaign import Campaign, run
from torchfault.campaign.plan import StopRule
from torchfault.sampling import Adaptive, Importance, Sampler, Statistical, Uniform, bit_probabilities
from torchfault.sensitivity import effect
from torchfault.statistics import HalfWidth, MaxTrials

__all__ = ["CASES", "Case", "Validity", "judge"]


@dataclass(frozen=True)
class Case:
    """A sampler, the rule that stops it (``None``: by itself), and the interval of unweighted failures."""

    sampler: Sampler
    stop: StopRule | None = None
    method: str = "wilson"


@dataclass(frozen=True)
class Validity:
    """What repetitions of a case showed.

    *bias* of the model's value in standard errors of its mean; *coverage* of the model's interval and, on average, of
    the *sites*'; *price*, its mean half-width over that of an oracle who knows the spread of the value, 1.96 standard
    deviations; and the mean number of *trials*.
    """

    bias: float
    coverage: float
    sites: float
    price: float
    trials: float


def _data_aware(known: Enumerated) -> Statistical:
    weights = np.concatenate([part.detach().numpy().ravel() for part in known.engine.model.parameters()])
    return Statistical("data-aware", margin=0.1, bits={"float32": bit_probabilities(weights)})


@cache
def _by_effect(known: Enumerated) -> Importance:
    return Importance(effect(known.engine.model, known.data, known.space))


CASES: dict[str, Callable[[Enumerated], Case]] = {
    "uniform, wilson": lambda _: Case(Uniform(), MaxTrials(1000)),
    "uniform, clopper-pearson": lambda _: Case(Uniform(), MaxTrials(1000), "clopper-pearson"),
    "uniform, jeffreys": lambda _: Case(Uniform(), MaxTrials(1000), "jeffreys"),
    "uniform, until narrow": lambda _: Case(Uniform(), HalfWidth(0.008, method="clopper-pearson"), "clopper-pearson"),
    "network-wise": lambda _: Case(Statistical("network-wise", margin=0.03)),
    "layer-wise": lambda _: Case(Statistical("layer-wise", margin=0.05)),
    "data-unaware": lambda _: Case(Statistical("data-unaware", margin=0.2)),
    "data-aware": lambda known: Case(_data_aware(known)),
    "top bits": lambda _: Case(TopBits(), MaxTrials(1000)),
    "top bits, few trials": lambda _: Case(TopBits(), MaxTrials(100)),
    "importance, effect": lambda known: Case(_by_effect(known), MaxTrials(1000)),
    "importance, effect, few trials": lambda known: Case(_by_effect(known), MaxTrials(100)),
    "adaptive, model": lambda _: Case(Adaptive(model=0.005, block=256)),
    "adaptive, sites": lambda _: Case(Adaptive(site=0.03, model=0.02, block=256)),
    "adaptive, stopped early": lambda _: Case(Adaptive(model=0.004, block=256), MaxTrials(1024)),
}


@dataclass
class _Kept:
    values: list[float] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    sites: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)


def judge(known: Enumerated, name: str, repetitions: int) -> Validity:
    """Run the campaign of the case *name* with seeds from 0 up, and hold its estimates against the truth."""
    case, kept = CASES[name](known), _Kept()
    truth, by_site = float(known.truth()[0]), known.truth("site")
    for seed in range(repetitions):
        results = run(Campaign(known.table, known.space, sampler=case.sampler, seed=seed, stop=case.stop))
        one, table = results.estimate(method=case.method), results.table("site", method=case.method)
        kept.values.append(one.value)
        kept.held.append(one.low <= truth <= one.high)
        kept.sites.append(float(np.mean((table["low"] <= by_site) & (by_site <= table["high"]))))
        kept.widths.append(one.half_width)
        kept.trials.append(len(results))
    spread = float(np.std(kept.values, ddof=1))
    return Validity(
        (float(np.mean(kept.values)) - truth) / (spread / sqrt(repetitions)),
        float(np.mean(kept.held)),
        float(np.mean(kept.sites)),
        float(np.mean(kept.widths)) / (1.96 * spread),
        float(np.mean(kept.trials)),
    )
