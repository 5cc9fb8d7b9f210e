"""Samplers: what is drawn from a population of faults, with weights, so that every estimate stays unbiased."""

from torchfault.sampling.adaptive import Adaptive, Cut, Cutting
from torchfault.sampling.bitfields import BitFields
from torchfault.sampling.design import Design, Strata
from torchfault.sampling.deviations import Deviations
from torchfault.sampling.importance import Importance
from torchfault.sampling.learned import Fitted, Learned
from torchfault.sampling.planning import compare_plans, plan, plan_analysis
from torchfault.sampling.protocol import Draws, Population, Sampler, stream
from torchfault.sampling.scores import Effect, Score, Sensitivity, Table, score_mean, score_of
from torchfault.sampling.search import Search
from torchfault.sampling.simple import BitErrorRate, Exhaustive, Uniform
from torchfault.sampling.statistical import METHODS, Statistical, bit_probabilities, bits_from
from torchfault.sampling.tally import Tally
from torchfault.sampling.two_stage import TwoStage
from torchfault.sampling.wholewords import WholeWords

__all__ = [
    "METHODS",
    "Adaptive",
    "BitErrorRate",
    "BitFields",
    "Cut",
    "Cutting",
    "Design",
    "Deviations",
    "Draws",
    "Effect",
    "Exhaustive",
    "Fitted",
    "Importance",
    "Learned",
    "Population",
    "Sampler",
    "Score",
    "Search",
    "Sensitivity",
    "Statistical",
    "Strata",
    "Table",
    "Tally",
    "TwoStage",
    "Uniform",
    "WholeWords",
    "bit_probabilities",
    "bits_from",
    "compare_plans",
    "plan",
    "plan_analysis",
    "score_mean",
    "score_of",
    "stream",
]
