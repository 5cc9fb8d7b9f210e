"""Estimates that carry their uncertainty: intervals, sample sizes, weighted and stratified means, stopping rules."""

from torchfault.statistics.allocation import needed_draws
from torchfault.statistics.estimators import (
    Estimate,
    design_effect,
    effective_sample_size,
    proportion,
    stratified,
    weighted_mean,
)
from torchfault.statistics.intervals import INTERVALS, IntervalFunction, clopper_pearson, jeffreys, wilson
from torchfault.statistics.looks import after_looks, upper_at_every_look
from torchfault.statistics.means import bounded_mean, capped_mean
from torchfault.statistics.quantiles import quantile_interval
from torchfault.statistics.regression import assisted_mean
from torchfault.statistics.samples import leveugle_sample_size, wilson_trials
from torchfault.statistics.sequences import Sequence, Sequences, confidence_sequence
from torchfault.statistics.stopping import (
    AllOf,
    AnyOf,
    Dropped,
    HalfWidth,
    MaxTrials,
    Progress,
    Rule,
    StoppingRule,
    TimeBudget,
    rules,
)

__all__ = [
    "INTERVALS",
    "AllOf",
    "AnyOf",
    "Dropped",
    "Estimate",
    "HalfWidth",
    "IntervalFunction",
    "MaxTrials",
    "Progress",
    "Rule",
    "Sequence",
    "Sequences",
    "StoppingRule",
    "TimeBudget",
    "after_looks",
    "assisted_mean",
    "bounded_mean",
    "capped_mean",
    "clopper_pearson",
    "confidence_sequence",
    "design_effect",
    "effective_sample_size",
    "jeffreys",
    "leveugle_sample_size",
    "needed_draws",
    "proportion",
    "quantile_interval",
    "rules",
    "stratified",
    "upper_at_every_look",
    "weighted_mean",
    "wilson",
    "wilson_trials",
]
