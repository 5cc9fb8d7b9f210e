"""Filters by the published method: one value added to a whole output channel, mapped through the errors of its flips.

What the shape of a weight's error does is lost; it is kept to be measured. Source: DeepVigor+, arXiv 2410.15742, filter
analysis.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.deepvigor.attempts import Bench
from benchmarks.deepvigor.distribution import share_beyond
from benchmarks.deepvigor.ladders import Storage
from benchmarks.deepvigor.refinements import Refinements
from benchmarks.deepvigor.tally import Tally
from benchmarks.deepvigor.thresholds import Thresholds, find_thresholds
from torchfault.data import call, rows
from torchfault.engine import Engine
from torchfault.errors import VulnerabilityError
from torchfault.model.golden_words import per_input
from torchfault.model.watch import Moment, visiting
from torchfault.space import FaultSpace, Site

__all__ = ["FilterAnalysis", "operands", "with_biases"]

_PLACES = 16
_BATCH = 64


def with_biases(model: nn.Module, layers: Sequence[str]) -> nn.Module:
    """Return a copy of *model* whose *layers* all have a bias, of zeros where they had none: a place to add values.

    Raises :class:`VulnerabilityError` for a layer that is no convolution or linear layer of torch's own.

    >>> with_biases(nn.Sequential(nn.Linear(2, 3, bias=False)), ["0"])[0].bias.tolist()
    [0.0, 0.0, 0.0]
    """
    made = copy.deepcopy(model)
    for layer in layers:
        module = made.get_submodule(layer)
        if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            raise VulnerabilityError(
                f"without shape, filters are those of nn.Linear and nn.Conv1d to 3d, got {type(module).__name__} as "
                f"'{layer}'; leave shape on, or leave the layer out"
            )
        assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if module._parameters["bias"] is None:
            module.bias = nn.Parameter(module.weight.new_zeros(len(module.weight)), requires_grad=False)
    return made


def operands(module: nn.Module, x: Tensor, place: NDArray[np.float64]) -> Tensor:
    """Return what the weights of a filter are multiplied by at some places of the output.

    *x*, shape (images, channels, \\*image), is the input (of a linear layer (images, \\*tokens, features)), and
    *place*, shape (images, places), gives places of the output as fractions of their number. The result has shape
    (images, groups, weights of a filter, places).

    >>> x = torch.arange(4.0).view(1, 1, 4)
    >>> operands(nn.Conv1d(1, 1, 2), x, np.array([[0.0, 0.99]])).tolist()
    [[[[0.0, 2.0], [1.0, 3.0]]]]
    """
    image = torch.arange(len(x), device=x.device)[:, None]
    if isinstance(module, nn.Linear):
        tokens = x.reshape(len(x), -1, x.shape[-1])
        at = torch.from_numpy((place * tokens.shape[1]).astype(np.int64)).to(x.device)
        return tokens[image, at].transpose(1, 2)[:, None]
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    kernel = module.kernel_size
    sizes = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(padded.shape[2:], kernel, module.stride, module.dilation, strict=True)
    ]
    flat = (place * np.prod(sizes)).astype(np.int64)
    corner = [torch.from_numpy(p).to(x.device) for p in np.unravel_index(flat, sizes)]
    taps = torch.cartesian_prod(*(torch.arange(k, device=x.device) for k in kernel)).view(-1, len(kernel))
    index = [
        p[:, None, :] * module.stride[axis] + taps[None, :, axis, None] * module.dilation[axis]
        for axis, p in enumerate(corner)
    ]
    picked = padded.movedim(1, -1)[(image[..., None], *index)]  # (images, taps, places, channels)
    by_group: Tensor = picked.movedim(-1, 1).unflatten(1, (module.groups, -1))
    return by_group.flatten(2, 3)


@dataclass(frozen=True, eq=False)
class FilterAnalysis:
    """The analysis of filters of *engine*'s model, some *channels* of each weight, by the name of its site.

    *bench* runs a copy of the model with biases; errors are mapped at places of the output that are drawn.
    """

    bench: Bench
    engine: Engine
    channels: Mapping[str, NDArray[np.int64]]
    refinements: Refinements
    seed: int

    def run(self, space: FaultSpace, numbers: Sequence[int], storages: Mapping[int, Storage], tally: Tally) -> None:
        """Add to *tally* the failing shares of the weights that are the sites *numbers* of *space*."""
        met = self._operands([space.sites[number] for number in numbers])
        for number in numbers:
            site = space.sites[number]
            found = self._thresholds(self.bench.engine.space.site(f"{site.module}.bias"), self.channels[site.name])
            shares = self._shares(number, site, storages[number], tally.positions[number], found, met[site.name])
            for channel, share in zip(self.channels[site.name].tolist(), shares, strict=True):
                tally.add(number, np.full(len(share), channel), share)

    def _operands(self, sites: Sequence[Site]) -> dict[str, Tensor]:
        """Return the operands of each weight, shape (images, groups, weights of a filter, places)."""
        data, model = self.engine.data, self.engine.model
        places = {
            site.name: np.random.default_rng([self.seed, 4, number]).random((len(data), _PLACES))
            for number, site in enumerate(sites)
        }
        read = {f"{site.module}:input": site for site in sites}
        found: dict[str, list[Tensor]] = {site.name: [] for site in sites}
        first, lanes = 0, 0

        def see(moment: Moment) -> None:
            site = read.get(moment.name())
            if site is not None and moment.tensors:
                x = per_input(moment.tensors[0], self.engine.space.site(moment.name()), lanes)
                shaped = x.reshape(lanes, *self.engine.space.site(moment.name()).shape)
                place = places[site.name][first : first + lanes]
                found[site.name].append(operands(model.get_submodule(site.module), shaped, place))

        with torch.inference_mode(), visiting(model, see, modules=[site.module for site in sites]):
            for first in range(0, len(data), _BATCH):
                lanes = min(_BATCH, len(data) - first)
                call(model, rows(data.inputs, slice(first, first + lanes)))
        return {name: torch.cat(batches) for name, batches in found.items()}

    def _thresholds(self, site: Site, channels: NDArray[np.int64]) -> Thresholds:
        """Return the thresholds of every channel on every image, channel by channel."""
        images = len(self.engine.data)
        channel, image = np.repeat(channels, images), np.tile(np.arange(images), len(channels))
        bias = self.bench.engine.model.get_parameter(site.name).detach()
        values = bias[torch.from_numpy(channel).to(bias.device)]
        return find_thresholds(self.bench, site, values, channel, image, refinements=self.refinements)

    def _shares(
        self, number: int, site: Site, storage: Storage, bits: tuple[int, ...], found: Thresholds, met: Tensor
    ) -> list[NDArray[np.float64]]:
        """Return the failing share of each bit on each image, (images, bits), channel by channel."""
        images, per_group = len(met), site.channels // met.shape[1]
        weight = self.engine.model.get_parameter(site.name).detach()
        pool, shares = np.random.default_rng([self.seed, 5, number]), []
        for row, channel in enumerate(self.channels[site.name].tolist()):
            mine = slice(row * images, (row + 1) * images)
            operand = met[:, channel // per_group]
            if not self.refinements.per_image:
                operand = _pooled(operand, pool)
            deltas = torch.from_numpy(storage.deltas(weight[channel].reshape(-1), bits)).to(operand.device)
            share = share_beyond(
                deltas,
                found.positive[mine],
                found.negative[mine],
                operand=operand,
                not_finite=found.not_finite[mine],
                dtype=weight.dtype,
            )
            shares.append(share.cpu().numpy())
        return shares


def _pooled(operand: Tensor, rng: np.random.Generator) -> Tensor:
    """Return, for every image, the same operands, drawn from all images: (images, weights, places)."""
    images, _, places = operand.shape
    image, place = rng.integers(images, size=places), rng.integers(places, size=places)
    one = operand[torch.from_numpy(image), :, torch.from_numpy(place)].T
    return one.expand(images, -1, -1)
