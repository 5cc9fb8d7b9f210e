"""Windows: a changed pixel of a convolutional network makes a small box differ from golden, and only that is computed.

The box grows by a kernel at every convolution; once it fills a good part of the image, or an operation has no local
rule, the lane boards the sweep with the box pasted into the golden value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchfault.engine.graph.geometry import Reach, convolution, max_pooling
from torchfault.engine.graph.golden_pass import Golden
from torchfault.engine.graph.parts import elementwise_operands
from torchfault.model.lane_axis import LaneAxis
from torchfault.model.program import Node, Program, Ref, Size, run_node
from torchfault.model.rounding import ROUND_BLOCKS
from torchfault.storages import InBlocks

__all__ = ["Local", "LocalLanes", "has_windows", "is_small", "receptive_window"]

_LARGEST_SHARE = 0.45


@dataclass(frozen=True, eq=False)
class Local:
    """A box of a value that differs from golden: *data* (lanes, \\*size, channels) at *offset* (lanes, axes)."""

    offset: Tensor
    data: Tensor

    @property
    def size(self) -> tuple[int, ...]:
        """The size of the box along the spatial axes."""
        return tuple(self.data.shape[1:-1])

    @property
    def nbytes(self) -> int:
        """The memory that the boxes take."""
        return self.data.nbytes

    def pick(self, index: Tensor | slice) -> "Local":
        """Return the boxes of some of the lanes."""
        return Local(self.offset[index], self.data[index])

    def paste(self, value: Tensor) -> None:
        """Write the boxes into *value*, shape (lanes, channels, \\*image), in place."""
        rows = torch.arange(len(value), device=value.device).view(-1, *[1] * len(self.size))
        value.movedim(1, -1)[(rows, *_grid(self.offset, self.size))] = self.data


def has_windows(node: Node, value: Any) -> bool:
    """Whether the value of *node* has lanes first, channels second, and an image behind."""
    return node.layout == LaneAxis(0) and isinstance(value, Tensor) and 3 <= value.ndim <= 5


def is_small(size: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether a box is so small a part of an image that it is worth while to go on in it."""
    return math.prod(size) <= _LARGEST_SHARE * math.prod(image)


def _grid(offset: Tensor, size: tuple[int, ...]) -> list[Tensor]:
    """Return, per spatial axis, the positions inside each lane's box, to broadcast to (lanes, \\*size)."""
    places = []
    for axis, length in enumerate(size):
        shape = [1] * (len(size) + 1)
        shape[axis + 1] = length
        line = torch.arange(length, device=offset.device).view(shape)
        places.append(offset[:, axis].view(-1, *[1] * len(size)) + line)
    return places


def _reach(node: Node, program: Program) -> Reach | None:
    """Return the geometry of a convolution or pooling, ``None`` for others and for what has no plain geometry."""

    def argument(i: int, default: Any) -> Any:
        return node.args[i] if i < len(node.args) else default

    dims = int(node.op[-2]) if node.op[-1:] == "d" and node.op[-2:-1].isdigit() else 0
    if node.kwargs or not dims:
        return None
    if node.op == f"conv{dims}d" and isinstance(node.args[1], Ref) and program.nodes[node.args[1].node].constant:
        reach = convolution(argument, program.constants[node.args[1].node].shape[2:])
        return reach if reach.even else None
    if node.op == f"max_pool{dims}d" and not argument(5, False):
        return max_pooling(argument, dims)
    return None


def receptive_window(
    node: Node, program: Program, offset: Tensor, size: tuple[int, ...], image: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]] | None:
    """Return the box of the output of *node* that a box of its input reaches, inside *image*; ``None`` if unknown."""
    reach = _reach(node, program)
    if reach is None:
        return None
    offsets, sizes = [], []
    for axis, whole in enumerate(image):
        spread = reach.dilation[axis] * (reach.kernel[axis] - 1)
        length = min(whole, (size[axis] - 1 + spread) // reach.stride[axis] + 1)
        first = -((-(offset[:, axis] + reach.padding[axis] - spread)).div(reach.stride[axis], rounding_mode="floor"))
        offsets.append(first.clamp(0, whole - length))
        sizes.append(length)
    return torch.stack(offsets, 1), tuple(sizes)


@dataclass(eq=False)
class LocalLanes:
    """Lanes that are computed in boxes: *rows* are their inputs in the golden chunk, *values* the boxes by node."""

    golden: Golden
    rows: Tensor
    last_reader: Sequence[int]
    values: dict[int, Local] = field(default_factory=dict)
    index: Tensor = field(init=False)
    at: int = -1

    def __post_init__(self) -> None:
        self.index = torch.arange(len(self.rows), device=self.rows.device)

    def first_step(self, node: Node, source: int, struck: Local) -> Local | None:
        """Return the box of *node* where only the copy of *source* that it reads is changed, in the box *struck*."""
        self.values = {source: struck}
        found = self.step(node)
        self.values = {}
        return found

    def compared(self, position: int) -> tuple[Tensor, Tensor]:
        """Return the boxes of the value of a node, and golden's."""
        local = self.values[position]
        return local.data, self._golden_box(position, local.offset, local.size, 0.0)

    def step(self, node: Node) -> Local | None:
        """Return the box of the value of *node*, ``None`` where no rule applies or it is too large."""
        if node.constant or not has_windows(node, self.golden.like(node.position)):
            return None
        image = tuple(self.golden.like(node.position).shape[2:])
        found = self._elementwise(node) or self._in_blocks(node, image)
        found = found or self._sliced(node, image) or self._reaching(node, image)
        if found is None:
            return None
        return found if is_small(found.size, image) else None

    def _elementwise(self, node: Node) -> Local | None:
        """Run an operation that works element by element (or channel by channel) on the union of the boxes."""
        operands = elementwise_operands(node, self.golden, but="batch_norm")  # whose constants belong to channels
        if operands is None:
            return None
        boxes = [self.values[s] for s in operands if s in self.values]
        offset, size = boxes[0].offset, boxes[0].size
        for box in boxes[1:]:
            offset, size = _union(offset, size, box)
        data = {s: self.box(s, offset, size).movedim(-1, 1) for s in operands}
        result = run_node(node, lambda p: data[p] if p in data else self.golden.program.constants[p], len(self.rows))
        return Local(offset, result.movedim(1, -1))

    def _in_blocks(self, node: Node, image: tuple[int, ...]) -> Local | None:
        """Round a box to words of blocks, once it has grown to hold every block that it touches as a whole.

        Some know no box, see :func:`_whole_blocks`.
        """
        if node.op != ROUND_BLOCKS or node.rounded is None or not isinstance(node.rounded.storage, InBlocks):
            return None
        source, unit = node.reads[0], _whole_blocks(node.rounded.storage, image)
        if unit is None:
            return None
        local = self.values[source]
        steps = _row(unit, local.offset)
        first = local.offset.div(steps, rounding_mode="floor")
        last = (local.offset + _row(local.size, local.offset) - 1).div(steps, rounding_mode="floor")
        count = (last - first).amax(0) + 1
        first = first.minimum(_row(image, local.offset) // steps - count)
        size, offset = tuple((count * steps[0]).tolist()), first * steps
        data = self.box(source, offset, size).movedim(-1, 1)
        return Local(offset, node.rounded.storage.round(data).movedim(1, -1))

    def _sliced(self, node: Node, image: tuple[int, ...]) -> Local | None:
        """A strided slice of the image (a shortcut that takes every second pixel), or padding of channels."""
        if node.op == "slice" and not node.kwargs:
            given: list[Any] = [None, 0, 0, 2**63 - 1, 1]
            given[: len(node.args)] = node.args
            source, dim, start, end, step = given
            whole = self.golden.like(source.node).shape
            if start not in (0, None) or isinstance(end, Size) or (end is not None and end < whole[dim]):
                return None
            return self._strided(source.node, int(dim), int(step), image)
        if node.op in ("pad", "constant_pad_nd"):
            source = node.args[0].node
            if any(node.args[1][: 2 * len(image)]) or source not in self.values:
                return None
            local = self.values[source]
            result = run_node(node, lambda _: local.data.movedim(-1, 1), len(self.rows))
            return Local(local.offset, result.movedim(1, -1))
        return None

    def _strided(self, source: int, dim: int, step: int, image: tuple[int, ...]) -> Local | None:
        local = self.values[source]
        axis = dim - 2
        if step == 1 or axis < 0:
            return local if step == 1 else None
        size, offset = list(local.size), local.offset.clone()
        size[axis] = min(image[axis], (size[axis] - 1) // step + 1)
        first = -((-offset[:, axis]).div(step, rounding_mode="floor"))
        offset[:, axis] = first.clamp(0, image[axis] - size[axis])
        start, length = offset.clone(), list(size)
        start[:, axis] *= step
        length[axis] = (size[axis] - 1) * step + 1
        crop = self.box(source, start, tuple(length))
        picked = torch.arange(0, length[axis], step, device=crop.device)
        return Local(offset, crop.index_select(1 + axis, picked))

    def _reaching(self, node: Node, image: tuple[int, ...]) -> Local | None:
        """Run a convolution or pooling on the part of its input that the box reaches."""
        program, reach = self.golden.program, _reach(node, self.golden.program)
        source = node.args[0].node if node.args and isinstance(node.args[0], Ref) else -1
        if reach is None or source not in self.values:
            return None
        local = self.values[source]
        found = receptive_window(node, program, local.offset, local.size, image)
        assert found is not None
        offset, size = found
        stride = torch.tensor(reach.stride, device=offset.device)
        start = offset * stride - torch.tensor(reach.padding, device=offset.device)
        length = tuple(
            (n - 1) * s + d * (k - 1) + 1
            for n, s, d, k in zip(size, reach.stride, reach.dilation, reach.kernel, strict=True)
        )
        pooled = node.op.startswith("max_pool")
        crop = self.box(source, start, length, fill=float("-inf") if pooled else 0.0).movedim(-1, 1)
        args = [
            self.golden.program.constants[a.node] if isinstance(a, Ref) and a.node != source else a for a in node.args
        ]
        args[0] = crop
        where = 3 if pooled else 4
        if where < len(args):
            args[where] = [0] * len(size)
        # The plain overload: padding may have been given as a word, as in 'same'.
        run = getattr(torch.ops.aten, node.op).default
        return Local(offset, run(*args).movedim(1, -1))

    def box(self, node: int, offset: Tensor, size: tuple[int, ...], *, fill: float = 0.0) -> Tensor:
        """Return a box of the value of *node*: golden, with the lane's own box where they overlap, *fill* outside.

        It is not to be written to: where it is the lane's own box, it is no copy.
        """
        local = self.values.get(node)
        if local is not None and local.size == size and (local.offset is offset or torch.equal(local.offset, offset)):
            return local.data
        found = self._golden_box(node, offset, size, fill)
        if local is not None:
            relative = _grid(local.offset - offset, local.size)
            lanes = torch.arange(len(offset), device=offset.device)
            target, inside = _pixels(lanes, relative, size)
            pixels = local.data.reshape(-1, local.data.shape[-1])
            if inside is not None:
                target, pixels = target[inside], pixels[inside]
            found.view(-1, found.shape[-1]).index_copy_(0, target, pixels)
        return found

    def _golden_box(self, node: int, offset: Tensor, size: tuple[int, ...], fill: float) -> Tensor:
        value, places = self.golden.values[node].movedim(1, -1), _grid(offset, size)
        if not value.is_contiguous():  # a view, such as every second pixel, of which no copy is made for some boxes
            return self._box_by_axes(value, places, fill)
        source, inside = _pixels(self.rows, places, tuple(value.shape[1:-1]))
        # Whole pixels, all channels of each in one piece of memory: several times faster than indexing by axes.
        picked: Tensor = value.view(-1, value.shape[-1]).index_select(0, source)
        if inside is not None:
            picked.index_fill_(0, (~inside).nonzero().squeeze(1), fill)
        return picked.view(len(offset), *size, value.shape[-1])

    def _box_by_axes(self, value: Tensor, places: list[Tensor], fill: float) -> Tensor:
        image = value.shape[1:-1]
        rows = self.rows.view(-1, *[1] * len(image))
        picked = value[(rows, *[place.clamp(0, n - 1) for place, n in zip(places, image, strict=True)])]
        return picked.masked_fill_(~_inside(places, tuple(image)).unsqueeze(-1), fill)


def _pixels(lanes: Tensor, places: list[Tensor], image: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Return the flat positions of pixels in (lanes, \\*image), and which are inside, ``None`` where all are."""
    flat = lanes.view(-1, *[1] * len(image))
    outside = False
    for place, length in zip(places, image, strict=True):
        low, high = place.aminmax()
        if int(low) < 0 or int(high) >= length:
            outside = True
        flat = flat * length + place.clamp(0, length - 1)
    return flat.reshape(-1), _inside(places, image).expand(flat.shape).reshape(-1) if outside else None


def _inside(places: list[Tensor], size: tuple[int, ...]) -> Tensor:
    inside = torch.ones((), dtype=torch.bool, device=places[0].device)
    for place, length in zip(places, size, strict=True):
        inside = inside & (place >= 0) & (place < length)
    return inside


def _union(offset: Tensor, size: tuple[int, ...], other: Local) -> tuple[Tensor, tuple[int, ...]]:
    first = torch.minimum(offset, other.offset)
    end = torch.maximum(offset + _row(size, offset), other.offset + _row(other.size, offset))
    lengths = tuple(int(n) for n in (end - first).amax(0))
    # Boxes of one batch have one size: where a lane needs less, its box moves towards the origin and still covers both.
    return (end - _row(lengths, offset)).clamp(min=0), lengths


def _whole_blocks(storage: InBlocks, image: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the size of the least box of an image whose blocks lie in it as a whole.

    ``None`` where there is none: for short blocks, and those that end within a line and go on in the next.
    """
    unit, block = [1] * len(image), storage.kept.block
    if storage.axis == 1:  # of the channels, which a box holds all of
        return tuple(unit)
    if storage.axis is not None:
        at = storage.axis - 2
        unit[at] = min(block, image[at])
        return tuple(unit) if image[at] % unit[at] == 0 else None
    if image[-1] % block == 0:
        unit[-1] = block
    elif len(image) > 1 and block % image[-1] == 0 and image[-2] % (block // image[-1]) == 0:
        unit[-2:] = block // image[-1], image[-1]
    else:
        return None
    return tuple(unit)


def _row(values: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)[None]
