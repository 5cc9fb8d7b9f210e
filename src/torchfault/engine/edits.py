"""Edits of one tensor's words, applied as a dense mask or at single places, whichever is cheaper."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.errors import FaultError
from torchfault.faults import Trials
from torchfault.model.lane_axis import LaneAxis
from torchfault.storages import BlockEdits
from torchfault.words import WORDS, WordFormat, decode, encode, held_in, masks_to_words, word

__all__ = ["Edits", "Mask", "Places", "by_sample", "edits_by_site", "masks_by_site"]

# One pass over every word costs as much as visiting about this fraction of them singly (measured on a CPU).
_DENSE = 32


@dataclass(frozen=True, eq=False)
class Edits:
    """Words of one tensor to change, ``(w & keep) ^ toggle`` at flat per-sample *element*; all of shape (m,).

    *sample* is the element of the batch that each row strikes, shape (m,); ``None`` strikes every one.
    """

    element: NDArray[np.int64]
    keep: NDArray[np.uint64]
    toggle: NDArray[np.uint64]
    sample: NDArray[np.int64] | None = None


def edits_by_site(trials: Trials, *, lanes: bool = False) -> dict[str, Edits]:
    """Return the rows of *trials* by the name of their site; with *lanes*, trial i strikes element i of the batch.

    >>> from torchfault.faults import BitFlip, strike
    >>> from torchfault.space import FaultSpace, Site
    >>> space = FaultSpace((Site("conv:output", (4,), kind="output"),))
    >>> trials = strike(space, space.locate([3, 65]), model=BitFlip(), rng=np.random.default_rng(0))
    >>> edits_by_site(trials, lanes=True)["conv:output"].sample.tolist()
    [0, 1]
    """
    owner = trials.owner if lanes else None
    order = np.argsort(trials.site, kind="stable")
    starts = np.flatnonzero(np.diff(trials.site[order], prepend=-1))
    parts = np.split(order, starts[1:]) if len(order) else []
    return {
        trials.sites[trials.site[rows[0]]].name: Edits(
            trials.element[rows], trials.keep[rows], trials.toggle[rows], None if owner is None else owner[rows]
        )
        for rows in parts
    }


def by_sample(tensor: Tensor, layout: LaneAxis | None) -> Tensor:
    """Return a view of *tensor* with the batch axis first; merged axes come apart, their flat order stays."""
    if layout is None:
        return tensor.unsqueeze(0)
    if layout.plain:
        return tensor.movedim(layout.axis, 0)
    axis, shape = layout.axis, tensor.shape
    lanes = shape[axis] // (layout.outer * layout.inner)
    return tensor.view(*shape[:axis], layout.outer, lanes, layout.inner, *shape[axis + 1 :]).movedim(axis + 1, 0)


Editor = Callable[[Tensor, bool], Tensor]
"""Changes a tensor of words, in place where the flag says so, and returns the changed words."""


@dataclass(frozen=True, eq=False)
class Places:
    """Single words of a tensor by their distance in memory, so that strides of any kind cost nothing more.

    >>> places = Places.of(torch.zeros(2, 3).t().unsqueeze(0), np.array([1, 4]))
    >>> places.read(torch.arange(6.0).view(2, 3))
    tensor([[3., 2.]])
    """

    index: Tensor
    sizes: tuple[int, int]
    steps: tuple[int, int]

    @classmethod
    def of(cls, apart: Tensor, element: NDArray[np.int64], sample: NDArray[np.int64] | None = None) -> "Places":
        """Return the places of flat *element* in each row of *apart*, or in the row *sample* of each."""
        shape, strides = apart.shape, apart.stride()
        where = np.unravel_index(element, shape[1:]) if len(shape) > 1 else ()
        offset = np.zeros(len(element), dtype=np.int64)
        for place, stride in zip(where, strides[1:], strict=True):
            offset += place * stride
        reach = 1 + sum((size - 1) * stride for size, stride in zip(shape[1:], strides[1:], strict=True))
        sizes, steps = (shape[0], reach), (strides[0], 1)
        if sample is not None:
            offset += sample * strides[0]
            sizes, steps = (1, reach + (shape[0] - 1) * strides[0]), (0, 1)
        return cls(torch.from_numpy(offset).to(apart.device).expand(sizes[0], -1), sizes, steps)

    def read(self, words: Tensor) -> Tensor:
        """Return a copy of the words there, shape (rows, m)."""
        return words.as_strided(self.sizes, self.steps).gather(1, self.index)

    def write(self, words: Tensor, values: Tensor) -> None:
        """Overwrite the words there, in place."""
        words.as_strided(self.sizes, self.steps).scatter_(1, self.index, values)


@dataclass(eq=False)
class Mask:
    """The edits of the tensor called *name*, made ready once for every memory format that comes by.

    >>> from torchfault.words import word
    >>> row = Edits(np.array([1]), np.array([2**32 - 1], dtype=np.uint64), np.array([2**31], dtype=np.uint64))
    >>> Mask("fc:output", word("float32"), row).applied(torch.ones(2, 3), LaneAxis(0))
    tensor([[ 1., -1.,  1.],
            [ 1., -1.,  1.]])
    """

    name: str
    fmt: WordFormat
    edits: Edits
    _ready: dict[Any, Editor] = field(default_factory=dict)

    def write(self, tensor: Tensor, layout: LaneAxis | None) -> None:
        """Change the words of *tensor* in place."""
        if self.fmt.name in WORDS and tensor.dtype == self.fmt.dtype:
            self._editor(tensor, layout)(encode(tensor, self.fmt), True)
        else:  # whose words are not the memory of the tensor
            tensor.copy_(self.applied(tensor, layout))

    def applied(self, tensor: Tensor, layout: LaneAxis | None) -> Tensor:
        """Return a changed copy of *tensor*, in the same memory format."""
        fmt = held_in(self.fmt, tensor.dtype)
        words = encode(tensor, fmt)
        if not self._broadcasts(tensor, layout):
            words = words.clone()  # whose strides may differ from those of a slice or an expanded tensor
            return decode(self._editor(words, layout)(words, True), fmt)
        return decode(self._editor(tensor, layout)(words, False), fmt)

    def _broadcasts(self, tensor: Tensor, layout: LaneAxis | None) -> bool:
        """Whether one dense mask for every sample is cheaper than single places."""
        per_sample = tensor.numel() if layout is None else tensor.numel() // max(tensor.shape[layout.axis], 1)
        plain = layout is None or layout.plain
        return self.edits.sample is None and plain and len(self.edits.element) * _DENSE >= per_sample

    def in_blocks(self, part: str, apart: Tensor) -> BlockEdits:
        """Return the edits for *part* of an activation in blocks, given its values as :func:`by_sample` has them."""
        lanes, edits = len(apart), self.edits
        if not part or edits.sample is not None:
            self._check(apart)
        keep, toggle = self.masks(apart.device)
        keep = torch.full_like(toggle, -1 if toggle.dtype.is_signed else 255) if keep is None else keep
        element = torch.from_numpy(edits.element).to(apart.device)
        if edits.sample is not None:
            return BlockEdits(part, torch.from_numpy(edits.sample).to(apart.device), element, keep, toggle)
        lane = torch.arange(lanes, device=apart.device).repeat_interleave(len(element))
        return BlockEdits(part, lane, element.repeat(lanes), keep.repeat(lanes), toggle.repeat(lanes))

    def _editor(self, tensor: Tensor, layout: LaneAxis | None) -> Editor:
        key = (tensor.shape, tensor.stride(), tensor.device, layout)
        if key not in self._ready:
            self._ready[key] = self._prepare(tensor, layout)
        return self._ready[key]

    def _prepare(self, tensor: Tensor, layout: LaneAxis | None) -> Editor:
        if not tensor.numel():
            return lambda words, _: words
        apart, edits = by_sample(tensor, layout), self.edits
        self._check(apart)
        keep, toggle = self.masks(tensor.device)
        if self._broadcasts(tensor, layout):
            return _dense(tensor, layout, edits.element, keep, toggle)
        return _sparse(Places.of(apart, edits.element, edits.sample), keep, toggle)

    def _check(self, apart: Tensor) -> None:
        samples, elements = apart.shape[0], apart[0].numel()
        if (largest := int(self.edits.element.max(initial=0))) >= elements:
            raise FaultError(
                f"element {largest} is outside '{self.name}', which has {elements} per sample here; "
                "find the sites with inputs of the same size"
            )
        if self.edits.sample is not None and (largest := int(self.edits.sample.max(initial=0))) >= samples:
            raise FaultError(
                f"sample {largest} is outside the batch of {samples} that reached '{self.name}'; use 0 to {samples - 1}"
            )

    def masks(self, device: torch.device) -> tuple[Tensor | None, Tensor]:
        """Return the masks *keep* (``None`` where every bit is kept) and *toggle* as words, shape (m,) each."""
        keep, toggle = (masks_to_words(part, self.fmt, device=device) for part in (self.edits.keep, self.edits.toggle))
        every = np.uint64((1 << self.fmt.width) - 1)
        return None if bool((self.edits.keep == every).all()) else keep, toggle


def _dense(
    tensor: Tensor, layout: LaneAxis | None, element: NDArray[np.int64], keep: Tensor | None, toggle: Tensor
) -> Editor:
    """Spread the masks over one sample, laid out in memory as the samples of *tensor* are, to broadcast over all."""
    one = tensor if layout is None else tensor.narrow(layout.axis, 0, 1)
    index = torch.from_numpy(element).to(tensor.device)

    def spread(masks: Tensor, otherwise: int) -> Tensor:
        flat = torch.full((one.numel(),), otherwise, dtype=masks.dtype, device=masks.device)
        laid = torch.empty_like(one, dtype=masks.dtype, memory_format=torch.preserve_format)
        return laid.copy_(flat.index_copy_(0, index, masks).view(one.shape))

    flips = spread(toggle, 0)
    kept = None if keep is None else spread(keep, -1 if keep.dtype.is_signed else 255)

    def edit(words: Tensor, in_place: bool) -> Tensor:
        if kept is not None:
            words = words.bitwise_and_(kept) if in_place else words.bitwise_and(kept)
        # One pass over the tensor where there is only a flip; a second one in place where there is more.
        return words.bitwise_xor_(flips) if in_place or kept is not None else words.bitwise_xor(flips)

    return edit


def _sparse(places: Places, keep: Tensor | None, toggle: Tensor) -> Editor:
    def edit(words: Tensor, in_place: bool) -> Tensor:
        assert in_place
        struck = places.read(words)
        if keep is not None:
            struck &= keep
        struck ^= toggle
        places.write(words, struck)
        return words

    return edit


def masks_by_site(trials: Trials, *, lanes: bool = False) -> dict[str, Mask]:
    """Return :func:`edits_by_site` as masks in the words of each site."""
    words = {site.name: site.word for site in trials.sites}
    return {name: Mask(name, word(words[name]), e) for name, e in edits_by_site(trials, lanes=lanes).items()}
