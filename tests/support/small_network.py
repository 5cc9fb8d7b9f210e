"""A network so small that every upset of an accelerator under it can be listed."""

import torch
from torch import nn

from torchfault.data import Data

__all__ = ["small_network"]


def small_network() -> tuple[nn.Module, Data]:
    """Return a network of 38 variables, and 10 inputs, some of which it gets wrong."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, inputs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), 2 * torch.randn(10, 3)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    labels[:3] = (labels[:3] + 1) % 3
    return model, Data(inputs, labels)
