"""The engine: trials in, faulty outputs out, at the cost of a fraction of a forward pass each."""

from torchfault.engine.engine import Engine, parse_memory
from torchfault.engine.executor import Executor, Lanes
from torchfault.engine.inject import inject
from torchfault.engine.monitor import Monitor
from torchfault.engine.optimizers import optimizer_space, upset_optimizer

__all__ = ["Engine", "Executor", "Lanes", "Monitor", "inject", "optimizer_space", "parse_memory", "upset_optimizer"]
