"""The configuration of campaigns: a YAML file and flags in, validated settings out, and the objects they describe."""

from torchfault.config.merge import Override
from torchfault.config.persistence import keep, restore
from torchfault.config.reading import leaf_keys, read_settings
from torchfault.config.schema import RECIPES, Settings

__all__ = [
    "RECIPES",
    "Override",
    "Settings",
    "keep",
    "leaf_keys",
    "read_settings",
    "restore",
]
