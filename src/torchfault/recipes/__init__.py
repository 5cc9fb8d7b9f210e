"""Recipes: campaigns for a purpose; each is a function that returns a :class:`torchfault.campaign.Campaign`."""

from torchfault.recipes.drops import CriticalPool, drops
from torchfault.recipes.economy import economy
from torchfault.recipes.paired import paired
from torchfault.recipes.search import search
from torchfault.recipes.survival import survival
from torchfault.recipes.upsets import upsets
from torchfault.recipes.vulnerability import injection, layer_space, vulnerability

__all__ = [
    "CriticalPool",
    "drops",
    "economy",
    "injection",
    "layer_space",
    "paired",
    "search",
    "survival",
    "upsets",
    "vulnerability",
]
