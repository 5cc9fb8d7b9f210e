"""Results: what a campaign found, estimated from its stored trials and the design of their draws; needs no torch."""

from torchfault.results.assumptions import Audit
from torchfault.results.comparison import Agreement, agreement, compare
from torchfault.results.convergence import convergence
from torchfault.results.diagnostics import Diagnostics
from torchfault.results.differences import Difference, differ, differences
from torchfault.results.dropping import Drops, dropped
from torchfault.results.export import export_trials
from torchfault.results.factor_score import FactorScore, factor_score
from torchfault.results.fit import Fit, fit
from torchfault.results.looks import LOOK
from torchfault.results.outcomes import OUTCOMES, outcomes
from torchfault.results.recall import Recall, recall
from torchfault.results.regression import assisted
from torchfault.results.resiliency import Resiliency, resiliency
from torchfault.results.results import Results, load
from torchfault.results.travel import travel
from torchfault.results.vulnerability import factors, ranges
from torchfault.results.what_if import Change, WhatIf, what_if, what_if_table

__all__ = [
    "LOOK",
    "OUTCOMES",
    "Agreement",
    "Audit",
    "Change",
    "Diagnostics",
    "Difference",
    "Drops",
    "FactorScore",
    "Fit",
    "Recall",
    "Resiliency",
    "Results",
    "WhatIf",
    "agreement",
    "assisted",
    "compare",
    "convergence",
    "differ",
    "differences",
    "dropped",
    "export_trials",
    "factor_score",
    "factors",
    "fit",
    "load",
    "outcomes",
    "ranges",
    "recall",
    "resiliency",
    "travel",
    "what_if",
    "what_if_table",
]
