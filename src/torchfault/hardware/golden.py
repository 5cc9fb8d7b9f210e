"""The golden values of a captured program for some inputs, read element by element."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.data import Data, leaves, rows
from torchfault.hardware.layers import Layers
from torchfault.model.lane_axis import LaneAxis, lanes_first
from torchfault.model.program import evaluate

__all__ = ["Golden"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Golden:
    """The golden operands of some *inputs* of *data*, one row per input, computed when first asked for."""

    layers: Layers
    data: Data
    inputs: Ints

    @cached_property
    def values(self) -> dict[int, Any]:
        """The value of every node."""
        chosen = rows(self.data.inputs, torch.from_numpy(self.inputs))
        return evaluate(self.layers.program, leaves(chosen), len(self.inputs))

    def __call__(self, node: int) -> tuple[Tensor, bool]:
        """Return the value of *node*, flat per input, and whether it differs between inputs."""
        value, layout = self.values[node], self.layers.program.nodes[node].layout
        if isinstance(layout, LaneAxis):
            first = lanes_first(value, layout)
            return first.reshape(first.shape[0], -1), True
        return value.reshape(1, -1), False

    def read(self, node: int, lane: Ints, element: Ints) -> Tensor:
        """Return element by element, 0 where it is -1 (padding)."""
        flat, varies = self(node)
        at = torch.from_numpy(np.array(element)).to(flat.device)
        row = torch.from_numpy(np.array(np.broadcast_to(lane if varies else 0, element.shape))).to(flat.device)
        return torch.where(at >= 0, flat[row, at.clamp(min=0)], flat.new_zeros(())).cpu()
