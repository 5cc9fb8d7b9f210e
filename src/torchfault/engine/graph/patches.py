"""Closed forms: what one changed word does to the output of the operation that reads it, without running it again.

A changed weight adds (new - old) times one shifted input channel to one output channel; a changed input adds
(new - old) times one filter column to a small patch of the output. Every function here works on many lanes at
once and returns a :class:`Patch`: where in the output, and what to add or to write there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchfault.engine.graph.geometry import Reach, convolution, listed
from torchfault.model.lane_axis import LaneAxis, lanes_first
from torchfault.model.program import Node, Ref

__all__ = ["CHANNELS_LAST", "Patch", "Struck", "batch_norm_patch", "patch_for", "row_patch"]

CHANNELS_LAST = frozenset({"linear", "embedding", "addmm", "mm", "matmul"})
"""The operations with a closed form whose channels are the last axis of what they give."""


@dataclass(frozen=True, eq=False)
class Struck:
    """Lanes struck in one word each: the flat *element* of the tensor, and its *old* and *new* values, shape (lanes,).

    *rows* says which row of the operands and of the output belongs to each lane.
    """

    rows: Tensor
    element: Tensor
    old: Tensor
    new: Tensor

    @property
    def delta(self) -> Tensor:
        """The change of value."""
        return self.new - self.old

    def where(self, mask: Tensor) -> "Struck":
        """Return some of them."""
        return Struck(self.rows[mask], self.element[mask], self.old[mask], self.new[mask])


@dataclass(frozen=True, eq=False)
class Patch:
    """A part of every struck lane's output: *index* into the axes from *axis* on (moved to the front), and *values*.

    With *add* the values are added to what is there, else they replace it, and only where *mask* is set, if given.
    """

    axis: int
    index: tuple[Tensor, ...]
    values: Tensor
    add: bool = True
    mask: Tensor | None = None

    def _at(self, output: Tensor, rows: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        shaped = rows.view(-1, *[1] * (self.index[0].ndim - 1))
        return output.movedim(self.axis, 1), (shaped, *self.index)

    def read(self, output: Tensor, rows: Tensor) -> Tensor:
        """Return the struck part of the lanes *rows* of *output* (lanes first)."""
        view, where = self._at(output, rows)
        return view[where]

    def onto(self, before: Tensor) -> Tensor:
        """Return what the struck part becomes, given what it was."""
        if self.add:
            return before + self.values
        return self.values if self.mask is None else torch.where(self.mask, self.values, before)

    def result(self, output: Tensor, rows: Tensor) -> Tensor:
        """Return what the struck part becomes."""
        return self.values if not self.add and self.mask is None else self.onto(self.read(output, rows))

    def write(self, output: Tensor, rows: Tensor, result: Tensor) -> None:
        """Overwrite the struck part of the lanes *rows* of *output*, in place."""
        view, where = self._at(output, rows)
        view[where] = result


@dataclass(frozen=True, eq=False)
class _Operands:
    """The arguments of a node by position, lanes first where they have lanes."""

    node: Node
    value: Callable[[int], Any]
    layout: Callable[[int], Any]

    def get(self, position: int, default: Any = None) -> Any:
        """Return an argument; tensors with lanes have them first."""
        arguments = self.node.args
        argument = arguments[position] if position < len(arguments) else default
        if not isinstance(argument, Ref):
            return argument
        value = self.value(argument.node)
        layout = self.layout(argument.node)
        return lanes_first(value, layout) if isinstance(layout, LaneAxis) else value


def patch_for(
    node: Node,
    slot: int,
    struck: Struck,
    *,
    value: Callable[[int], Any],
    layout: Callable[[int], Any],
) -> Patch | None:
    """Return the patch that *struck* words of argument *slot* of *node* make, or ``None`` where no closed form exists.

    *value* and *layout* give the value of a node that *node* reads, and where its lanes are. Only float32 and float64
    have closed forms: narrower types round twice, which would differ from running the operation.
    """
    if struck.old.dtype not in (torch.float32, torch.float64) or not bool(torch.isfinite(struck.old).all()):
        return None
    form = _FORMS.get((node.op, slot))
    if form is None or node.kwargs:
        return None
    return form(_Operands(node, value, layout), struck)


def batch_norm_patch(
    node: Node,
    rows: Tensor,
    channel: Tensor,
    changed: Mapping[int, Tensor],
    *,
    value: Callable[[int], Any],
    layout: Callable[[int], Any],
) -> Patch | None:
    """Return the patch of one *channel* for each of *rows*, by arguments *changed* of a batch norm (one value each)."""
    return None if node.kwargs else _channel_of_batch_norm(_Operands(node, value, layout), rows, channel, changed)


def row_patch(
    node: Node,
    slot: int,
    lanes: Tensor,
    row: Tensor,
    weights: Tensor,
    *,
    value: Callable[[int], Any],
    layout: Callable[[int], Any],
) -> Patch | None:
    """Return the patch that new *weights* (lanes, \\*filter) for the output channel *row* of each lane make.

    ``None`` where *node* is no convolution or linear layer that reads them as argument *slot* of 1. The channel is
    computed anew, for all lanes together.
    """
    if slot != 1 or node.kwargs or weights.dtype not in (torch.float32, torch.float64):
        return None
    operands = _Operands(node, value, layout)
    x, bias = operands.get(0), operands.get(2)
    shift = torch.zeros_like(row, dtype=weights.dtype) if bias is None else bias[row]
    if node.op == "linear":
        found = torch.einsum("n...c,nc->n...", x[lanes], weights)
        return Patch(-1, (row,), found + _wide(shift, found.ndim - 1), add=False)
    dims = weights.ndim - 2
    if node.op != f"conv{dims}d" or x.ndim != dims + 2 or not (reach := _reach(operands)).even:
        return None
    groups, outputs, within = int(operands.get(6, 1)), operands.get(1).shape[0], weights.shape[1]
    channel = (row // (outputs // groups) * within)[:, None] + torch.arange(within, device=x.device)
    read = x[lanes[:, None], channel].reshape(1, -1, *x.shape[2:])  # every lane's channels are a group of their own
    run = getattr(torch.nn.functional, node.op)
    found = run(read, weights, None, reach.stride, reach.padding, reach.dilation, len(lanes)).squeeze(0)
    return Patch(1, (row,), found + _wide(shift, dims), add=False)


def _reach(operands: _Operands) -> Reach:
    return convolution(operands.get, operands.get(1).shape[2:])


def _unravel(element: Tensor, shape: torch.Size) -> list[Tensor]:
    return list(torch.unravel_index(element, shape))


def _line(sizes: list[int], axis: int, device: torch.device) -> Tensor:
    """Return 0, 1, ... along one of the spatial axes, shaped to broadcast behind the lanes."""
    shape = [1] * (len(sizes) + 1)
    shape[axis + 1] = sizes[axis]
    return torch.arange(sizes[axis], device=device).view(shape)


def _wide(column: Tensor, dims: int) -> Tensor:
    return column.view(-1, *[1] * dims)


def _scaled(x: Tensor, struck: Struck, channel: Tensor, places: list[Tensor], valid: list[Tensor]) -> Tensor:
    """Return x[row, channel, *places] times the change, with 0 where a place is not *valid* (axis by axis)."""
    dims = len(places)
    steps, reach = x.stride(), 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    where = _wide(struck.rows * steps[0] + channel * steps[1], dims)
    for place, size, step in zip(places, x.shape[2:], steps[2:], strict=True):
        where = where + place.clamp(0, size - 1) * step
    # By the distance in memory: several times faster than indexing by axes.
    picked = x.as_strided((reach,), (1,)).index_select(0, where.view(-1)).view(where.shape)
    for inside in valid[1:]:
        picked *= inside.to(x.dtype)
    picked *= _wide(struck.delta, dims) * valid[0]
    return picked


def _conv_weight(operands: _Operands, struck: Struck) -> Patch | None:
    x, weight = operands.get(0), operands.get(1)
    if x.ndim != weight.ndim:
        return None
    reach, groups = _reach(operands), int(operands.get(6, 1))
    out_channel, within, *taps = _unravel(struck.element, weight.shape)
    group = out_channel // (weight.shape[0] // groups)
    channel = group * weight.shape[1] + within
    sizes = reach.outputs(x.shape[2:])
    dims = len(sizes)
    places, valid = [], []
    for axis in range(dims):
        offset = _wide(taps[axis] * reach.dilation[axis] - reach.padding[axis], dims)
        place = _line(sizes, axis, x.device) * reach.stride[axis] + offset
        valid.append((place >= 0) & (place < x.shape[2 + axis]))
        places.append(place)
    return Patch(1, (out_channel,), _scaled(x, struck, channel, places, valid))


def _conv_bias(operands: _Operands, struck: Struck) -> Patch | None:
    dims = operands.get(1).ndim - 2
    if operands.get(0).ndim != dims + 2:
        return None
    return Patch(1, (struck.element,), _wide(struck.delta, dims))


def _conv_input(operands: _Operands, struck: Struck) -> Patch | None:
    """A changed input reaches, for every tap of the kernel, one place in each output channel of its group."""
    x, weight = operands.get(0), operands.get(1)
    if x.ndim != weight.ndim:
        return None
    reach = _reach(operands)
    channel, *place = _unravel(struck.element, x.shape[1:])
    sizes = reach.outputs(x.shape[2:])
    taps = math.prod(reach.kernel)
    per_tap = torch.unravel_index(torch.arange(taps, device=x.device), tuple(reach.kernel))
    reached, valid = [], torch.ones(len(channel), taps, dtype=torch.bool, device=x.device)
    for axis, size in enumerate(sizes):
        shifted = place[axis][:, None] + reach.padding[axis] - per_tap[axis][None] * reach.dilation[axis]
        position = shifted.div(reach.stride[axis], rounding_mode="floor")
        valid &= (shifted % reach.stride[axis] == 0) & (position >= 0) & (position < size)
        reached.append(position)
    outputs = weight.shape[0] // int(operands.get(6, 1))
    group = channel // weight.shape[1]
    out_channel = group[:, None] * outputs + torch.arange(outputs, device=x.device)[None]
    every_tap = torch.arange(taps, device=x.device).view(1, -1, 1)
    columns = weight.flatten(2)[out_channel[:, None, :], (channel % weight.shape[1])[:, None, None], every_tap]
    values = (columns * struck.delta[:, None, None]).masked_fill(~valid[..., None], 0)
    # Places outside the output repeat a valid one with the same value, so that every write is harmless.
    stand_in = valid.int().argmax(1, keepdim=True)
    tap = torch.where(valid, torch.arange(taps, device=x.device)[None], stand_in)
    reached = [position.gather(1, tap).clamp(0, size - 1) for position, size in zip(reached, sizes, strict=True)]
    values = values.gather(1, tap[..., None].expand_as(values))
    return Patch(1, (out_channel[:, None, :], *(position[..., None] for position in reached)), values)


def _transposed_weight(operands: _Operands, struck: Struck) -> Patch | None:
    x, weight = operands.get(0), operands.get(1)
    dims = weight.ndim - 2
    if x.ndim != weight.ndim:
        return None
    stride, padding = listed(operands.get(3, 1), dims), listed(operands.get(4, 0), dims)
    extra, groups = listed(operands.get(5, 0), dims), int(operands.get(6, 1))
    dilation = listed(operands.get(7, 1), dims)
    channel, within, *taps = _unravel(struck.element, weight.shape)
    out_channel = channel // (weight.shape[0] // groups) * weight.shape[1] + within
    sizes = [
        (size - 1) * s - 2 * p + d * (k - 1) + e + 1
        for size, k, s, p, d, e in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, extra, strict=True)
    ]
    places, valid = [], []
    for axis in range(dims):
        shifted = _line(sizes, axis, x.device) + padding[axis] - _wide(taps[axis] * dilation[axis], dims)
        place = shifted.div(stride[axis], rounding_mode="floor")
        valid.append((shifted % stride[axis] == 0) & (place >= 0) & (place < x.shape[2 + axis]))
        places.append(place)
    return Patch(1, (out_channel,), _scaled(x, struck, channel, places, valid))


def _linear_weight(operands: _Operands, struck: Struck) -> Patch | None:
    weight = operands.get(1)
    return _product(operands.get(0), weight, struck, *_unravel(struck.element, weight.shape))


def _product_weight(slot: int) -> Callable[[_Operands, Struck], Patch | None]:
    """A product of rows by a matrix (inputs, outputs), which is argument *slot* behind the rows."""

    def form(operands: _Operands, struck: Struck) -> Patch | None:
        weight = operands.get(slot)
        column, row = _unravel(struck.element, weight.shape)[-2:]
        return _product(operands.get(slot - 1), weight, struck, row, column)

    return form


def _product(x: Tensor, weight: Tensor, struck: Struck, row: Tensor, column: Tensor) -> Patch | None:
    """The output *row* changes by the input *column* times what its weight changes by."""
    if weight.ndim != 2 or x.ndim < 2:
        return None
    return Patch(-1, (row,), x.movedim(-1, 1)[struck.rows, column] * _wide(struck.delta, x.ndim - 2))


def _bias(slot: int, rows: int) -> Callable[[_Operands, Struck], Patch | None]:
    """A bias, argument *slot* of a product, which adds it to every row of argument *rows*."""

    def form(operands: _Operands, struck: Struck) -> Patch | None:
        if operands.get(slot).ndim > 1:
            return None
        return Patch(-1, (struck.element,), _wide(struck.delta, operands.get(rows).ndim - 2))

    return form


def _batch_norm(slot: int) -> Callable[[_Operands, Struck], Patch | None]:
    def form(operands: _Operands, struck: Struck) -> Patch | None:
        return _channel_of_batch_norm(operands, struck.rows, struck.element, {slot: struck.new})

    return form


def _channel_of_batch_norm(
    operands: _Operands, rows: Tensor, channel: Tensor, changed: Mapping[int, Tensor]
) -> Patch | None:
    """One channel of a batch norm in inference mode, computed anew in the order of torch's own kernel."""
    x, training = operands.get(0), operands.get(5)
    if training or any(operands.get(i) is None for i in (3, 4)):
        return None
    parts: dict[int, Tensor | None] = {}
    for i in (1, 2, 3, 4):
        stored = operands.get(i)
        parts[i] = changed[i] if i in changed else None if stored is None else stored[channel]
    scale = torch.rsqrt(_have(parts[4]) + float(operands.get(7)))
    scale = scale if parts[1] is None else scale * parts[1]
    shift = -_have(parts[3]) * scale
    shift = shift if parts[2] is None else shift + parts[2]
    dims = x.ndim - 2
    return Patch(1, (channel,), x[rows, channel] * _wide(scale, dims) + _wide(shift, dims), add=False)


def _have(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _embedding(operands: _Operands, struck: Struck) -> Patch | None:
    weight, ids = operands.get(0), operands.get(1)
    row, column = _unravel(struck.element, weight.shape)
    hit = ids[struck.rows] == _wide(row, ids.ndim - 1)
    return Patch(-1, (column,), _wide(struck.new, ids.ndim - 1).expand(hit.shape), add=False, mask=hit)


_FORMS: dict[tuple[str, int], Callable[[_Operands, Struck], Patch | None]] = {
    ("linear", 1): _linear_weight,
    ("linear", 2): _bias(2, 0),
    ("addmm", 0): _bias(0, 1),
    ("addmm", 2): _product_weight(2),
    **{(op, 1): _product_weight(1) for op in ("mm", "matmul")},
    ("embedding", 0): _embedding,
    **{("batch_norm", slot): _batch_norm(slot) for slot in (1, 2, 3, 4)},
}
for _dims in (1, 2, 3):
    _FORMS[f"conv{_dims}d", 0] = _conv_input
    _FORMS[f"conv{_dims}d", 1] = _conv_weight
    _FORMS[f"conv{_dims}d", 2] = _conv_bias
    _FORMS[f"conv_transpose{_dims}d", 1] = _transposed_weight
    _FORMS[f"conv_transpose{_dims}d", 2] = _conv_bias
