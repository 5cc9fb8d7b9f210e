"""Moved to :mod:`torchfault.adapters.sources`; kept for scripts written before."""

from torchfault.adapters.sources import *  # noqa: F403
