"""Recipes: methods as campaigns, each a function that returns one."""

from torchfault.recipes.vulnerability import layer_space, vulnerability

__all__ = ["layer_space", "vulnerability"]
