"""Moved to :mod:`torchfault.data`; kept for scripts written before."""

from torchfault.data import *  # noqa: F403
