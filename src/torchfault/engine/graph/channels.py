"""Channels: a changed weight alters one channel of an output, and until an operation mixes channels only that differs.

Batch norm, rectifiers, residual additions and poolings go on with the one channel. Of the next convolution or linear
layer, that input channel alone is needed: its output is golden plus the filters of the channel, applied to the change.
On ResNet-20 this spares a lane of weights 0.8 of its 3.4 convolutions: it costs 0.141 of a golden image and not 0.171
(paired medians on one thread of a busy machine, 30 November 2026).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torchfault.engine.graph.combination import LARGEST_LOSS, lost_digits
from torchfault.engine.graph.geometry import convolution
from torchfault.engine.graph.golden_pass import Golden
from torchfault.engine.graph.parts import Part, elementwise_operands
from torchfault.engine.graph.patches import Patch
from torchfault.model.lane_axis import LaneAxis
from torchfault.model.program import Node, Program, Ref, run_node

__all__ = ["Channel", "ChannelLanes", "in_channels"]

# Beyond it products overflow, and in which order they are added up decides what becomes of them.
_LARGEST = 1e15


@dataclass(frozen=True, eq=False)
class Channel:
    """One channel of a value that differs from golden: its *index* (lanes,), and *data* (lanes, 1, \\*image)."""

    index: Tensor
    data: Tensor

    @property
    def nbytes(self) -> int:
        """The memory that the channels take."""
        return self.data.nbytes

    def pick(self, index: Tensor | slice) -> "Channel":
        """Return the channels of some of the lanes."""
        return Channel(self.index[index], self.data[index])

    def of(self, value: Tensor, rows: Tensor) -> Tensor:
        """Return the same channel, shape (lanes, 1, \\*image), of the *rows* of another value."""
        return value[rows, self.index].unsqueeze(1)

    def paste(self, value: Tensor) -> None:
        """Write the channels into *value*, shape (lanes, channels, \\*image), in place."""
        value[torch.arange(len(value), device=value.device), self.index] = self.data.squeeze(1)

    def silence(self, value: Tensor) -> None:
        """Write 0 where :meth:`paste` would write the channels."""
        replace(self, data=torch.zeros_like(self.data)).paste(value)


@dataclass(frozen=True, eq=False)
class Spread:
    """The output of a convolution or a linear layer in which one input channel changes by *delta*.

    It holds the change alone; what it makes of all output channels is computed where it is pasted.
    """

    node: Node
    weight: Tensor
    index: Tensor
    delta: Tensor

    @property
    def nbytes(self) -> int:
        """The memory that the changes take."""
        return self.delta.nbytes

    def pick(self, index: Tensor | slice) -> "Spread":
        """Return the changes of some of the lanes."""
        return replace(self, index=self.index[index], delta=self.delta[index])

    def paste(self, value: Tensor) -> None:
        """Add what the changes make to *value*, the outputs of golden, in place."""
        by_input = self.weight.transpose(0, 1).reshape(self.weight.shape[1], self.weight.shape[0], -1)
        found = torch.bmm(self._patches(value.shape[2:]).transpose(1, 2), by_input[self.index].transpose(1, 2))
        value.movedim(1, -1).add_(found.view(len(value), *value.shape[2:], -1))

    def _patches(self, image: Sequence[int]) -> Tensor:
        """Return what every tap of the filter reads of the change, shape (lanes, taps, pixels)."""
        if not image:
            return self.delta.unsqueeze(1)
        args = self.node.args
        reach = convolution(lambda i, default: args[i] if i < len(args) else default, self.weight.shape[2:])
        margins = [(p, p + reach.same) for p in reversed(reach.padding)]
        padded = torch.nn.functional.pad(self.delta.squeeze(1), [n for pair in margins for n in pair]).contiguous()
        first, *steps = padded.stride()
        taps = [step * d for step, d in zip(steps, reach.dilation, strict=True)]
        pixels = [step * s for step, s in zip(steps, reach.stride, strict=True)]
        shape = (len(padded), *reach.kernel, *image)
        return padded.as_strided(shape, (first, *taps, *pixels)).reshape(len(padded), math.prod(reach.kernel), -1)


def in_channels(node: Node, value: Any, patch: Patch, before: Tensor, after: Tensor) -> Tensor:
    """Return which lanes can go on in the one channel that *patch* has changed in *value*, golden's of *node*.

    Not those whose channel is endless or huge, or has lost digits.
    """
    one = len(patch.index) == 1 and patch.mask is None and _has_channels(node, value)
    if not one or not after.is_floating_point() or not (patch.axis == 1 or value.ndim == 2):
        return torch.zeros(len(after), dtype=torch.bool, device=after.device)
    tame = after.reshape(len(after), -1).abs().amax(1) < _LARGEST
    return tame & ~lost_digits(before, after) if patch.add else tame


def _has_channels(node: Node, value: Any) -> bool:
    """Whether the value of *node* has lanes first and channels second."""
    return node.layout == LaneAxis(0) and isinstance(value, Tensor) and value.ndim >= 2


@dataclass(eq=False)
class ChannelLanes:
    """Lanes of which one channel is computed: *rows* are their inputs in the golden chunk, *values* it by node."""

    golden: Golden
    rows: Tensor
    last_reader: Sequence[int]
    values: dict[int, Channel | Spread] = field(default_factory=dict)
    index: Tensor = field(init=False)
    at: int = -1

    def __post_init__(self) -> None:
        self.index = torch.arange(len(self.rows), device=self.rows.device)

    def compared(self, position: int) -> tuple[Tensor, Tensor]:
        """Return the channel of the value of a node, and golden's."""
        channel = self.values[position]
        assert isinstance(channel, Channel)
        return channel.data, _channel(self.golden.values[position], self.rows, channel.index)

    def step(self, node: Node) -> Part | None:
        """Return what becomes of the channels in *node*, ``None`` where no rule applies."""
        read = {source: self.values[source] for source in node.reads if source in self.values}
        channels = {source: part for source, part in read.items() if isinstance(part, Channel)}
        if len(channels) < len(read) or not _has_channels(node, self.golden.like(node.position)):
            return None
        first, *others = channels.values()
        if any(not torch.equal(one.index, first.index) for one in others):
            return None
        found = self._elementwise(node, first.index)
        source = next(iter(channels))
        if found is not None or others or node.kwargs or node.args[0] != Ref(source):
            return found
        return self._alike(node, source, first) or self._apart(node, first) or self._spread(node, source, first)

    def _elementwise(self, node: Node, index: Tensor) -> Channel | None:
        operands = elementwise_operands(node, self.golden)
        if operands is None:
            return None
        data = {}
        for source in operands:
            known = self.values.get(source)
            if isinstance(known, Channel):
                data[source] = known.data
            else:
                data[source] = _channel(self.golden.values[source], self.rows, index)
        return Channel(index, run_node(node, data.__getitem__, len(self.rows)))

    def _alike(self, node: Node, source: int, channel: Channel) -> Channel | None:
        """Run an operation that does the same to every channel: a pooling, a slice of the image, a change of shape."""
        before, after = self.golden.like(source).shape, self.golden.like(node.position).shape
        dims, args = len(before) - 2, node.args
        if node.op in ("pad", "constant_pad_nd"):
            channels = args[1][2 * dims :]
            if any(args[1][: 2 * dims]) or len(channels) != 2 or min(channels) < 0:
                return None
            return Channel(channel.index + channels[0], channel.data)
        if node.op == "slice" and after[1:] == before[1:]:
            return channel
        sliced = node.op == "slice" and args[1] >= 2
        averaged = (
            node.op == "mean" and len(args) > 1 and {d % len(before) for d in args[1]} <= {*range(2, len(before))}
        )
        if sliced or averaged or node.op in {f"{kind}_pool{dims}d" for kind in ("max", "avg", "adaptive_avg")}:
            return Channel(channel.index, run_node(node, lambda _: channel.data, len(self.rows)))
        if node.view and before[1] == after[1] and math.prod(before[2:]) == math.prod(after[2:]) == 1:
            return Channel(channel.index, channel.data.reshape(-1, 1, *after[2:]))
        return None

    def _apart(self, node: Node, channel: Channel) -> Channel | None:
        """Run an operation whose constants belong to channels: lanes stand for the channels of one image."""
        program, (_, *others) = self.golden.program, node.args
        if any(isinstance(other, Ref) and not program.nodes[other.node].constant for other in others):
            return None
        if node.op == "batch_norm":
            if others[4] or others[2] is None or others[3] is None:
                return None
        elif _is_depthwise(node, program):
            others[5] = len(self.rows)
        else:
            return None
        own = [program.constants[o.node][channel.index] if isinstance(o, Ref) else o for o in others]
        assert node.target is not None
        return Channel(channel.index, node.target(channel.data.transpose(0, 1), *own).transpose(0, 1))

    def _spread(self, node: Node, source: int, channel: Channel) -> Spread | None:
        """Return the change of all outputs where *node* mixes channels and no digits would be lost."""
        program, dims = self.golden.program, channel.data.ndim - 2
        weight = node.args[1] if node.op in ("linear", f"conv{dims}d") else None
        if not isinstance(weight, Ref) or not program.nodes[weight.node].constant or _groups(node) > 1:
            return None
        kept, golden = program.constants[weight.node], self.golden.values[source]
        if kept.ndim != dims + 2 or kept.dtype != channel.data.dtype or self._loses(golden, channel):
            return None
        return Spread(node, kept, channel.index, channel.data - _channel(golden, self.rows, channel.index))

    def _loses(self, golden: Tensor, channel: Channel) -> bool:
        """Whether in any lane the channel shrinks by so much, and was so much larger than all others of *golden*."""
        was, now = (
            part.flatten(1).abs().amax(1) for part in (_channel(golden, self.rows, channel.index), channel.data)
        )
        shrunk = (was > LARGEST_LOSS * now).nonzero().squeeze(1)
        if not len(shrunk):
            return False
        others = golden[self.rows[shrunk]]
        channel.pick(shrunk).silence(others)
        return bool((was[shrunk] > LARGEST_LOSS * others.flatten(1).abs().amax(1)).any())


def _channel(value: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Return a channel each of the *rows* of a value, shape (lanes, 1, \\*image)."""
    return value[rows, index].unsqueeze(1)


def _groups(node: Node) -> int:
    return int(node.args[6]) if node.op != "linear" and len(node.args) > 6 else 1


def _is_depthwise(node: Node, program: Program) -> bool:
    """Whether *node* is a convolution that gives one channel for each that it reads."""
    if node.op not in ("conv1d", "conv2d", "conv3d") or _groups(node) == 1:
        return False
    outputs, within, *_ = program.constants[node.args[1].node].shape
    return bool(within == 1 and outputs == _groups(node))
