"""Samplers: from a fault space to draws that carry weights, so that every estimate stays unbiased."""

from torchfault.sampling.adaptive import Adaptive
from torchfault.sampling.deviation import Deviation
from torchfault.sampling.draws import AdaptiveSampler, Draws, History, Sampler, WeightedSampler, stream
from torchfault.sampling.exhaustive import Exhaustive
from torchfault.sampling.importance import Importance
from torchfault.sampling.learned import Fitted, Learned
from torchfault.sampling.planning import plan
from torchfault.sampling.scores import Effect, Score, Sensitivity, Table, score_mean, score_of
from torchfault.sampling.search import Search
from torchfault.sampling.statistical import METHODS, Statistical, bit_probabilities, bits_from
from torchfault.sampling.uniform import BitErrorRate, Uniform
from torchfault.sampling.whole import WholeWords

__all__ = [
    "METHODS",
    "Adaptive",
    "AdaptiveSampler",
    "BitErrorRate",
    "Deviation",
    "Draws",
    "Effect",
    "Exhaustive",
    "Fitted",
    "History",
    "Importance",
    "Learned",
    "Sampler",
    "Score",
    "Search",
    "Sensitivity",
    "Statistical",
    "Table",
    "Uniform",
    "WeightedSampler",
    "WholeWords",
    "bit_probabilities",
    "bits_from",
    "plan",
    "score_mean",
    "score_of",
    "stream",
]
