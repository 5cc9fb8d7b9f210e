"""The axis of a tensor that counts the lanes, also when an operation has merged it with others, and how it is found."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchfault.errors import FaultError
from torchfault.words import bits_of

__all__ = [
    "LaneAxis",
    "axis_by_shapes",
    "axis_of_one",
    "axis_within",
    "by_sample",
    "find_axis",
    "identical_lanes",
    "join",
    "lanes_first",
    "per_sample",
    "put",
    "same_values",
    "take",
    "take_value",
    "write_back",
]

_AT_ONCE = 1 << 20  # values that are compared at a time, in double precision


@dataclass(frozen=True)
class LaneAxis:
    """The axis that counts the lanes: its size is ``outer * lanes * inner``, in this order of significance.

    ``outer`` and ``inner`` are 1 but for tensors in which a view merged the batch axis with a neighbour, as attention
    does with heads and time steps.

    >>> per_sample((12, 8), LaneAxis(0, outer=4), lanes=3)
    (4, 8)
    """

    axis: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def plain(self) -> bool:
        """Whether nothing is merged with the batch axis."""
        return self.outer == 1 and self.inner == 1

    @property
    def nested(self) -> bool:
        """Whether axes are merged with the batch axis on both of its sides."""
        return self.outer > 1 and self.inner > 1


def per_sample(shape: Sequence[int], layout: LaneAxis, *, lanes: int) -> tuple[int, ...]:
    """Return *shape* without its batch axis; axes merged with it stay, as one."""
    rest = shape[layout.axis] // lanes
    return (*shape[: layout.axis], *((rest,) if rest != 1 else ()), *shape[layout.axis + 1 :])


def _split(value: Tensor, layout: LaneAxis) -> tuple[Tensor, int]:
    """Return a view of *value* with the lanes on an axis of their own, and that axis."""
    if layout.plain:
        return value, layout.axis
    lanes = value.shape[layout.axis] // (layout.outer * layout.inner)
    sizes = [layout.outer, lanes, layout.inner]
    return value.unflatten(layout.axis, sizes), layout.axis + 1


def _merge(value: Tensor, layout: LaneAxis) -> Tensor:
    return value if layout.plain else value.flatten(layout.axis, layout.axis + 2)


def _channels_last(value: Tensor) -> bool:
    return value.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)


def take(value: Tensor, layout: LaneAxis, index: Tensor) -> Tensor:
    """Return a copy of the lanes *index* of *value*; the memory format stays.

    >>> take(torch.arange(6).view(2, 3), LaneAxis(1), torch.tensor([2, 2]))
    tensor([[2, 2],
            [5, 5]])
    """
    if layout == LaneAxis(0) and _channels_last(value):
        # index_select would return the default format, and the next convolution would convert it back.
        return value.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    apart, axis = _split(value, layout)
    return _merge(apart.index_select(axis, index), layout)


def take_value(value: Any, layout: "LaneAxis | tuple[LaneAxis | None, ...] | None", index: Tensor) -> Any:
    """Return :func:`take` of a value, or of each of several results; what has no lanes stays as it is."""
    if layout is None:
        return value
    if isinstance(layout, tuple):
        return tuple(take_value(v, where, index) for v, where in zip(value, layout, strict=True))
    return take(value, layout, index)


def join(parts: Sequence[Tensor], layout: LaneAxis) -> Tensor:
    """Return the lanes of several tensors, one after the other.

    >>> join([torch.zeros(1, 2), torch.ones(1, 2)], LaneAxis(0))
    tensor([[0., 0.],
            [1., 1.]])
    """
    if len(parts) == 1:
        return parts[0]
    apart = [_split(part, layout) for part in parts]
    return _merge(torch.cat([part for part, _ in apart], dim=apart[0][1]), layout)


def put(value: Tensor, layout: LaneAxis, index: Tensor, lanes: Tensor) -> None:
    """Overwrite the lanes *index* of *value* with *lanes*, in place.

    >>> value = torch.zeros(2, 2)
    >>> put(value, LaneAxis(0), torch.tensor([1]), torch.ones(1, 2))
    >>> value
    tensor([[0., 0.],
            [1., 1.]])
    """
    (mine, axis), (theirs, _) = _split(value, layout), _split(lanes, layout)
    mine.movedim(axis, 0)[index] = theirs.movedim(axis, 0)


def lanes_first(value: Tensor, layout: LaneAxis) -> Tensor:
    """Return *value* with shape (lanes, \\*per-sample shape): a view but where the layout is :attr:`LaneAxis.nested`.

    >>> lanes_first(torch.zeros(12, 8), LaneAxis(0, outer=4)).shape
    torch.Size([3, 4, 8])
    """
    if layout == LaneAxis(0):
        return value
    apart, axis = _split(value, layout)
    if layout.plain:
        return apart.movedim(axis, 0)
    first = apart.movedim(axis, 0)
    if layout.inner == 1:
        return first.squeeze(layout.axis + 2)
    if layout.outer == 1:
        return first.squeeze(layout.axis + 1)
    return first.flatten(layout.axis + 1, layout.axis + 2)


def write_back(value: Tensor, layout: LaneAxis, first: Tensor) -> None:
    """Store an edited :func:`lanes_first` of *value* in *value*, where it was no view of it.

    >>> value, layout = torch.zeros(8, 1), LaneAxis(0, outer=2, inner=2)
    >>> first = lanes_first(value, layout)
    >>> first[1] = 7
    >>> write_back(value, layout, first)
    >>> value[:, 0]
    tensor([0., 0., 7., 7., 0., 0., 7., 7.])
    """
    if layout.nested:
        apart, axis = _split(value, layout)
        moved = apart.movedim(axis, 0)
        moved.copy_(first.reshape(moved.shape))


def find_axis(many: Tensor, one: Tensor, *, lanes: int, lane: int) -> LaneAxis | None:
    """Return how *many*, computed for several lanes, holds what *one* is for one lane alone, or ``None``.

    *many* comes from *lanes* inputs and *one* from the input at position *lane*. ``None`` means that there is no batch
    axis, or that lanes influence each other.
    """
    scaled = axis_by_shapes(many.shape, one.shape, lanes=lanes, fewer=1)
    if scaled is None or many.dtype != one.dtype:
        return None
    for outer in [n for n in range(1, scaled.inner + 1) if scaled.inner % n == 0]:
        layout = LaneAxis(scaled.axis, outer, scaled.inner // outer)
        apart, position = _split(many, layout)
        mine = apart.select(position, lane).reshape(one.shape)
        if same_values(mine, one):
            return layout
    return None


def axis_within(shape: Sequence[int], expected: tuple[int, ...]) -> LaneAxis | None:
    """Return where the batch axis is in *shape*, given the per-sample shape, preferring the first axis.

    ``None`` means that there is no batch axis. Raises :class:`FaultError` where the two shapes cannot be reconciled.

    >>> axis_within((7, 2, 5), (7, 5))
    LaneAxis(axis=1, outer=1, inner=1)
    """
    for axis in range(len(shape)):
        if (*shape[:axis], *shape[axis + 1 :]) == expected:
            return LaneAxis(axis)
    if tuple(shape) == expected:
        return None
    if len(shape) == len(expected):
        apart = [axis for axis in range(len(shape)) if shape[axis] != expected[axis]]
        if len(apart) == 1 and shape[apart[0]] % max(expected[apart[0]], 1) == 0:
            return LaneAxis(apart[0], inner=expected[apart[0]])
    raise FaultError(
        f"a tensor of shape {tuple(shape)} came where the fault space has {expected} per sample; "
        "find the sites with inputs of the same size"
    )


def axis_by_shapes(many: Sequence[int], few: Sequence[int], *, lanes: int, fewer: int) -> LaneAxis | None:
    """Return the axis that has grown from the shape *few*, for *fewer* lanes, to *many*, for *lanes*, or ``None``.

    Without values nothing tells on which side of the lanes a merged axis is: it is taken to be the inner one.

    >>> axis_by_shapes((5, 12), (5, 4), lanes=3, fewer=1)
    LaneAxis(axis=1, outer=1, inner=4)
    """
    grown = [axis for axis in range(len(many)) if len(many) == len(few) and many[axis] != few[axis]]
    if len(grown) != 1 or fewer * many[grown[0]] != lanes * few[grown[0]]:
        return None
    return LaneAxis(grown[0], inner=few[grown[0]] // fewer)


def axis_of_one(shape: Sequence[int]) -> LaneAxis | None:
    """Return where a single lane may be said to be: the first axis of size 1, else merged with the first one.

    >>> axis_of_one((4, 1, 3)), axis_of_one((4, 3))
    (LaneAxis(axis=1, outer=1, inner=1), LaneAxis(axis=0, outer=1, inner=4))
    """
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    return LaneAxis(ones[0]) if ones else LaneAxis(0, inner=shape[0]) if shape else None


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two computations of one value agree, up to the order of floating-point additions."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.dtype.is_floating_point:
        return bool(torch.equal(a, b))
    parts = list(zip(a.reshape(-1).split(_AT_ONCE), b.reshape(-1).split(_AT_ONCE), strict=True))
    scale = max((_largest(theirs) for _, theirs in parts if theirs.numel()), default=0.0)
    tolerance = math.sqrt(torch.finfo(a.dtype).eps) * 10
    return all(_near(x, y, tolerance, tolerance * scale + 1e-12) for x, y in parts)


def _largest(values: Tensor) -> float:
    """Return the largest finite magnitude among *values*, 0 where none is finite."""
    wide = values.float() if values.element_size() < 4 else values
    found = float(wide.abs().max())
    if math.isfinite(found):
        return found
    finite = wide[wide.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _near(x: Tensor, y: Tensor, rtol: float, atol: float) -> bool:
    """Whether *x* is within ``atol + rtol |y|`` of *y*: mostly seen at once in single precision, else in double."""
    if x.dtype == torch.float32 and x.numel():
        apart = (x - y).abs_()
        if math.isfinite(float(apart.max())) and bool((apart <= y.abs().mul_(rtol).add_(atol)).all()):
            return True
    return torch.allclose(x.double(), y.double(), rtol=rtol, atol=atol, equal_nan=True)


def by_sample(tensor: Tensor, layout: LaneAxis | None) -> Tensor:
    """Return a view of *tensor* with the batch axis first; merged axes come apart, their flat order stays."""
    if layout is None:
        return tensor.unsqueeze(0)
    if layout.plain:
        return tensor.movedim(layout.axis, 0)
    axis, shape = layout.axis, tensor.shape
    lanes = shape[axis] // (layout.outer * layout.inner)
    return tensor.view(*shape[:axis], layout.outer, lanes, layout.inner, *shape[axis + 1 :]).movedim(axis + 1, 0)


def identical_lanes(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return which lanes of two tensors (lanes first) agree in every bit.

    >>> identical_lanes(torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), torch.tensor([[1.0, torch.nan], [-0.0, 1.0]]))
    tensor([ True, False])
    """
    same = bits_of(mine) == bits_of(theirs)
    return same.flatten(1).all(1) if same.ndim > 1 else same
