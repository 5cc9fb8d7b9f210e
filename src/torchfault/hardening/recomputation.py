"""Recomputation: what a guard saw wrong is computed once more, which ends transient faults."""

from typing import Any

import torch
from torch import nn

from torchfault.data import Tree
from torchfault.hardening.detection import Detecting, detecting
from torchfault.hardening.standby import by_rows

__all__ = ["Recomputing", "recomputing"]


class Recomputing(nn.Module):
    """A model that computes once more where its guards saw something wrong; it is what :func:`recomputing` returns."""

    def __init__(self, watched: Detecting) -> None:
        super().__init__()
        self.watched = watched

    def forward(self, *args: Any, **named: Any) -> Tree:
        """Return what the model gives: of rows in which a guard saw something, what it gives the second time."""
        first = self.watched(*args, **named)
        # A captured graph has no branches: it computes twice.
        if not torch.compiler.is_compiling() and not bool(first["detected"].any()):
            output: Tree = first["output"]
            return output
        return by_rows(first["detected"], self.watched(*args, **named)["output"], first["output"])


def recomputing(model: nn.Module) -> Recomputing:
    """Return a copy of a hardened *model* that computes an input again, once, where a guard saw something wrong in it.

    A transient fault is gone by then, so that what it gives is what it gives without faults; what guards see a second
    time they mend as before. A pass in which nothing is seen costs what looking costs. Raises :class:`ModelError` for a
    model without guards.

    >>> from torchfault.hardening import Ranges, harden, profile
    >>> plain, data = nn.Sequential(nn.Linear(2, 2)), torch.rand(50, 2)
    >>> safe = recomputing(harden(plain, Ranges(), profile=profile(plain, data)))
    >>> torch.equal(safe(data), plain(data))
    True
    """
    return Recomputing(detecting(model)).eval()
