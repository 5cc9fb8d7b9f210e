"""The configuration of a campaign: a YAML file and flags in, validated settings out, and the objects they describe."""

from torchfault.config.merge import Override
from torchfault.config.reading import apply, leaf_keys, read_settings, restore_settings
from torchfault.config.schema import Settings

__all__ = ["Override", "Settings", "apply", "leaf_keys", "read_settings", "restore_settings"]
