"""Samplers: from a fault space to draws that carry weights, so that every estimate stays unbiased."""

from torchfault.sampling.draws import Draws, Sampler, stream
from torchfault.sampling.exhaustive import Exhaustive
from torchfault.sampling.uniform import BitErrorRate, Uniform

__all__ = ["BitErrorRate", "Draws", "Exhaustive", "Sampler", "Uniform", "stream"]
