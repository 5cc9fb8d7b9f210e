"""Moved to :mod:`torchfault.adapters.checkpoint`; kept for scripts written before."""

from torchfault.adapters.checkpoint import *  # noqa: F403
