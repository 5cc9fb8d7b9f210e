"""Sums over a batch: what linear layers have read and given, added up, and whether the two agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchfault.hardening.rounding import rounding, wide

__all__ = ["BatchSums", "added", "agree"]


def added(batch: Tensor) -> Tensor:
    """Return the sum over the inputs of a batch, in float32 at least.

    >>> added(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([4., 6.])
    """
    kind = wide(batch)
    if batch.dtype != kind:
        return batch.sum(0, dtype=kind)
    whole = batch.new_ones(1, len(batch)) @ batch.reshape(len(batch), -1)  # half the time of a sum over the first axis
    return whole.view(batch.shape[1:])


@dataclass(frozen=True, eq=False)
class BatchSums:
    """What a convolution or linear *layer* read and gave, added up over *count* inputs, and what it computed with.

    *dtype* is that of what it gave. *most* bounds the magnitudes that were added up at any place, a tensor of shape ();
    the sum itself stands for them unless it is given: it is no larger, and no less where no input is negative.
    """

    layer: nn.Module
    weight: Tensor
    bias: Tensor | None
    count: int
    given: Tensor
    output: Tensor
    dtype: torch.dtype
    most: Tensor | None = None

    @classmethod
    def of(cls, layer: nn.Module, given: Tensor, output: Tensor) -> Self:
        """Return the sums of what *layer* has read and given in this call."""
        held: Any = layer
        first = added(output)  # while it is in the caches: the layer has just written it
        return cls(layer, held.weight, held.bias, len(given), added(given), first, output.dtype)

    @property
    def alike(self) -> tuple[object, ...]:
        """What layers share that are checked together."""
        layer = self.layer
        steps = (layer.stride, layer.padding, layer.dilation, layer.groups) if isinstance(layer, nn.Conv2d) else ()
        return self.weight.shape, self.given.shape, self.count, self.dtype, self.bias is None, steps


def agree(sums: Sequence[BatchSums]) -> bool:
    """Return whether layers have given what they make of what they read: all sums within what rounding explains.

    >>> layer, images = nn.Conv2d(1, 2, 3), torch.rand(20, 1, 8, 8)
    >>> output = layer(images).detach()
    >>> agree([BatchSums.of(layer, images, output)])
    True
    >>> output[7, 1, 2, 3] += 1
    >>> agree([BatchSums.of(layer, images, output)])
    False
    """
    groups = dict[tuple[object, ...], list[BatchSums]]()
    for one in sums:
        groups.setdefault(one.alike, []).append(one)
    return all(_agree(group) for group in groups.values())


def _agree(group: Sequence[BatchSums]) -> bool:
    first, kind = group[0], group[0].output.dtype
    weight = torch.stack([one.weight for one in group]).to(kind)  # (layers, channels, ...)
    given, output = (torch.stack(parts) for parts in zip(*((one.given, one.output) for one in group), strict=True))
    bias = None if first.bias is None else torch.stack([one.bias for one in group if one.bias is not None]).to(kind)
    start = None if bias is None else first.count * bias
    off = output.sub_(_applied(first.layer, given, weight, start)).abs_()  # stacked, and so nobody else's
    # The largest of each channel, the first axis behind that of the layers, or the last.
    off = (
        off.flatten(2).amax(2)
        if isinstance(first.layer, nn.Conv2d)
        else off.view(len(group), -1, off.shape[-1]).amax(1)
    )
    most = [one.given.abs().amax() if one.most is None else one.most for one in group]
    terms = weight.abs().flatten(2).sum(2) * torch.stack(most)[:, None]
    terms = terms if start is None else terms + start.abs()
    return bool((off <= rounding(terms, first.count + weight[0, 0].numel(), first.dtype)).all())


def _applied(layer: nn.Module, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what layers like *layer* make of an input each, by *weight* and *bias*, all with an axis of the layers."""
    if isinstance(layer, nn.Conv2d):
        groups = len(given) * layer.groups
        start = None if bias is None else bias.flatten()
        images, filters = given.flatten(0, 1)[None], weight.flatten(0, 1)
        found = F.conv2d(images, filters, start, layer.stride, layer.padding, layer.dilation, groups)
        return found.view(len(given), -1, *found.shape[2:])
    rows = given.flatten(1, -2) if given.ndim > 2 else given[:, None]
    found = rows @ weight.mT if bias is None else torch.baddbmm(bias[:, None], rows, weight.mT)
    return found.view(*given.shape[:-1], -1)
