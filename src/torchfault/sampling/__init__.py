"""Samplers: from a fault space to draws that carry weights, so that every estimate stays unbiased."""

from torchfault.sampling.draws import Draws, Sampler, stream
from torchfault.sampling.exhaustive import Exhaustive
from torchfault.sampling.planning import plan
from torchfault.sampling.statistical import METHODS, Statistical, bit_probabilities, bits_from
from torchfault.sampling.uniform import BitErrorRate, Uniform

__all__ = [
    "METHODS",
    "BitErrorRate",
    "Draws",
    "Exhaustive",
    "Sampler",
    "Statistical",
    "Uniform",
    "bit_probabilities",
    "bits_from",
    "plan",
    "stream",
]
