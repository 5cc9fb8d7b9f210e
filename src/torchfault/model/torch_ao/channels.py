"""Single output channels of torch's quantised layers, each with a filter of its own: no whole weight is packed anew."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.model.lane_axis import LaneAxis
from torchfault.model.program import Program, Ref
from torchfault.model.torch_ao.quantised import coded, packs
from torchfault.model.torch_ao.quantised import codes as codes_of

__all__ = ["Rows", "rows_of"]

_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Rows:
    """A *layer* that packs its weight: its codes, scales and biases by output channel, and the scale of its *input*.

    Its weight has zero points of 0 alone, as those of torch's own recipes: the kernels are chosen by that.
    """

    layer: Any
    codes: Tensor
    scales: Tensor | None
    scale: float
    bias: Tensor | None
    input: Tensor

    @property
    def axis(self) -> int:
        """The axis of channels in what the layer gives."""
        return 1 if self.codes.ndim > 2 else -1

    def channel(self, part: str, element: Tensor) -> Tensor | None:
        """Return the output channel that each word of *part* alone has to do with, ``None`` where there is none."""
        if part == "weight":
            return element // max(self.codes[0].numel(), 1)
        return element if part == "bias" or (part == "weight:scale" and self.scales is not None) else None

    def words(self, part: str) -> Tensor:
        """Return the stored words of *part*."""
        found = {"weight": self.codes, "weight:scale": self.scales, "bias": self.bias}[part]
        assert found is not None
        return found.float() if part == "weight:scale" else found

    def changed(self, x: Tensor, part: str, element: Tensor, fresh: Tensor) -> Tensor:
        """Return the codes of one output channel for each lane of *x*, which has its own word of *part* changed.

        Lane i has *fresh[i]* in the place of the flat *element[i]*. The result has shape (lanes, \\*image).
        """
        channel = self.channel(part, element)
        assert channel is not None
        parts = []
        for begin in range(0, len(channel), _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            lane = torch.arange(len(channel[some]), device=x.device)
            codes, scales, bias = self._picked(channel[some])
            if part == "weight":
                codes.view(len(lane), -1)[lane, element[some] % codes[0].numel()] = fresh[some]
            elif part == "bias":
                bias = fresh[some].clone()
            else:
                scales = fresh[some].double()
            parts.append(self._run(x[some], codes, scales, bias).movedim(self.axis, 1)[lane, lane])
        return torch.cat(parts)

    def golden(self, x: Tensor, channel: Tensor) -> Tensor:
        """Return the codes of some output channels as they are."""
        return self._run(x, *self._picked(channel))

    def _picked(self, channel: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        each = [None if column is None else column[channel] for column in (self.scales, self.bias)]
        return self.codes[channel], each[0], each[1]

    def _run(self, x: Tensor, codes: Tensor, scales: Tensor | None, bias: Tensor | None) -> Tensor:
        small = _twin(self.layer)
        small.__dict__["_modules"] = {name: _twin(part) for name, part in self.layer._modules.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if scales is None:
                weight = torch._make_per_tensor_quantized_tensor(codes, self.scale, 0)
            else:
                weight = torch._make_per_channel_quantized_tensor(codes, scales, torch.zeros_like(scales).long(), 0)
        small.set_weight_bias(weight, bias)
        return codes_of(small.forward(coded(x, self.input)))


def _twin(module: Any) -> Any:
    """Return a module that shares everything with *module*; copy.copy would pack the weight anew."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    return twin


def rows_of(program: Program, likes: Mapping[int, Any], values: Mapping[int, Any]) -> dict[int, Rows]:
    """Return, for nodes of *program* that run a packed layer, that layer by its output channels.

    *likes* tells what the values of nodes are quantised like, and *values* holds those of a few lanes: a layer that
    gives something else for some of its channels than for all of them is left out.
    """
    found = {}
    for node in program.nodes:
        layer = program.constants.get(node.args[0].node) if node.args and isinstance(node.args[0], Ref) else None
        plain = len(node.args) == 2 and not node.kwargs and isinstance(node.args[1], Ref) and node.layout == LaneAxis(0)
        if plain and isinstance(layer, nn.Module) and packs(layer):
            source = node.args[1].node
            rows = _rows(layer, likes.get(source)) if program.nodes[source].layout == LaneAxis(0) else None
            if rows is not None and _agrees(rows, values[source], values[node.position]):
                found[node.position] = rows
    return found


def _rows(layer: Any, like: Tensor | None) -> Rows | None:
    transposed = "Transpose" in type(layer).__name__
    if like is None or transposed or getattr(layer, "groups", 1) != 1 or not hasattr(layer, "zero_point"):
        return None
    weight, bias = layer._weight_bias()
    per_channel = weight.qscheme() == torch.per_channel_affine
    zero = weight.q_per_channel_zero_points() if per_channel else torch.tensor(weight.q_zero_point())
    if bool(zero.any()) or (per_channel and weight.q_per_channel_axis() != 0):
        return None
    scales, scale = (weight.q_per_channel_scales(), 0.0) if per_channel else (None, weight.q_scale())
    # Without VNNI, torch unpacks weights in channels-last order.
    return Rows(layer, weight.int_repr().contiguous(), scales, scale, None if bias is None else bias.detach(), like)


def _agrees(rows: Rows, x: Tensor, golden: Tensor) -> bool:
    count = len(rows.codes)
    channel = torch.linspace(0, count - 1, min(count, _AT_ONCE), device=x.device).round().long()
    for some in (channel, channel[:1]):
        if not torch.equal(rows.golden(x, some), golden.index_select(rows.axis, some)):
            return False
    return True
