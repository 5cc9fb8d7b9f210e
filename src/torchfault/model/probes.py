"""The few inputs on which a model is looked at."""

import torch
from torch import Tensor

from torchfault.data import Data, Tree, map_tensors, rows

__all__ = ["PROBES", "probe_inputs", "repeated", "spread"]

PROBES = 3
"""How many inputs run together, to be held against one of them alone."""


def probe_inputs(data: Data, *, lanes: int = PROBES) -> Tree:
    """Return a few inputs that differ from each other, so that inputs that mix are noticed."""
    few = rows(data.inputs, torch.arange(lanes) % len(data))
    if len(data) >= lanes:
        return few
    generator = torch.Generator().manual_seed(0)

    def vary(leaf: Tensor) -> Tensor:
        if leaf.dtype.is_floating_point:
            return leaf + 0.1 * torch.randn(leaf.shape, generator=generator).to(leaf)
        return torch.stack([row.roll(i, -1) if row.ndim else row for i, row in enumerate(leaf)])

    return map_tensors(vary, few)


def repeated(data: Data, number: int) -> Tree:
    """Return one of the inputs as often as there are probes."""
    return rows(data.inputs, torch.full((PROBES,), number))


def spread(data: Data, *, most: int) -> list[int]:
    """Return the numbers of some inputs, spread evenly over all.

    >>> spread(Data(torch.zeros(100, 2)), most=5)
    [0, 24, 49, 74, 99]
    """
    return sorted({int(i) for i in torch.linspace(0, len(data) - 1, min(most, len(data)))})
