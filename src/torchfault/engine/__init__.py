"""The engine: trials in, faulty outputs out, at the cost of a fraction of a forward pass each."""

from torchfault.engine.contract import Executor, Lanes
from torchfault.engine.engine import Engine, parse_memory
from torchfault.engine.inject import inject

__all__ = ["Engine", "Executor", "Lanes", "inject", "parse_memory"]
