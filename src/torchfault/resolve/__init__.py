"""Resolvers: how an outcome becomes known, by a lane of its own or because others vouch for it, audited."""

from torchfault.resolve.block import Ask, Block, Resolver, Verdicts
from torchfault.resolve.certification import Certified, certified, certifies
from torchfault.resolve.direct import Direct
from torchfault.resolve.gated import Gated
from torchfault.resolve.monotone import Monotone
from torchfault.resolve.pooled import Pooled
from torchfault.resolve.zeros import MeetsZeros

__all__ = [
    "Ask",
    "Block",
    "Certified",
    "Direct",
    "Gated",
    "MeetsZeros",
    "Monotone",
    "Pooled",
    "Resolver",
    "Verdicts",
    "certified",
    "certifies",
]
