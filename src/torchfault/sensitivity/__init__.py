"""Sensitivity: how much a model's answer depends on each weight and activation, as scores for samplers."""

from torchfault.sensitivity.isimdl import BIT_CODES, CODES, corrected, isimdl, rising
from torchfault.sensitivity.measure import conductances, effect, gradients, held_values, margins
from torchfault.sensitivity.turned import turned

__all__ = [
    "BIT_CODES",
    "CODES",
    "conductances",
    "corrected",
    "effect",
    "gradients",
    "held_values",
    "isimdl",
    "margins",
    "rising",
    "turned",
]
