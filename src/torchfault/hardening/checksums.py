"""Checksums: of the words of weights, and of what convolutions and linear layers compute (ABFT)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchfault.errors import ModelError
from torchfault.hardening.attention import check_attention
from torchfault.hardening.harden import check_free
from torchfault.hardening.profile import Profile
from torchfault.hardening.rounding import rounding, wide
from torchfault.hardening.stored import PLAIN, chosen, watch_parameter, words_of
from torchfault.hardening.sums import BatchSums, added, agree
from torchfault.names import matching

__all__ = ["ChecksumGuard", "Checksums", "WeightChecksums", "few"]

_MANY = 16  # inputs of a batch, from which on sums over the batch cost less than sums over positions


@dataclass(frozen=True)
class WeightChecksums:
    """Keep the sums of the words of each weight by row and by column; a wrong word shows in both and is put right.

    A row is an output channel. Words are added as integers, modulo 2**32, so that a sum is exact: any number of flips
    in a word is undone, and wrong words in other rows and columns too. *sites* are globs of parameters; those of fewer
    than two axes are left out.

    Source: Huang and Abraham, Algorithm-Based Fault Tolerance for Matrix Operations, IEEE TC 1984, on stored words.

    >>> from torchfault.hardening import harden
    >>> safe = harden(nn.Linear(3, 2), WeightChecksums())
    >>> before = safe(torch.ones(1, 3))
    >>> with torch.no_grad():
    ...     safe.weight[0, 1] = 1e30
    >>> torch.equal(safe(torch.ones(1, 3)), before)
    True
    """

    sites: str | tuple[str, ...] = "*"

    def __call__(self, model: nn.Module, profile: Profile | None) -> nn.Module:
        """Return *model* with sums beside its weights."""
        kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8)
        found = chosen(model, self.sites, profile, types=kinds)
        matrices = {name: tensor for name, tensor in found.items() if tensor.ndim > 1}
        if not matrices:
            raise ModelError("checksums need weights of two or more axes, got none; choose others")
        for name, tensor in matrices.items():
            rows, columns = _sums(words_of(tensor.contiguous()))
            watch_parameter(model, name, _Restored(), profile, held={"rows": rows, "columns": columns})
        return model


def _sums(words: Tensor) -> tuple[Tensor, Tensor]:
    matrix = words.flatten(1)
    return matrix.sum(1, dtype=words.dtype), matrix.sum(0, dtype=words.dtype)


@dataclass(frozen=True)
class _Restored:
    def decode(self, value: Tensor, held: Mapping[str, Tensor]) -> Tensor:
        words = words_of(value)
        rows, columns = self._off(words, held)
        wrong = (rows[:, None] == columns) & (rows[:, None] != 0)
        return (words - torch.where(wrong, rows[:, None], 0).view(words.shape)).view(value.dtype)

    def wrong(self, value: Tensor, held: Mapping[str, Tensor]) -> Tensor:
        rows, columns = self._off(words_of(value), held)
        return rows.any() | columns.any()

    def _off(self, words: Tensor, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        rows, columns = _sums(words)
        return rows - held["rows"], columns - held["columns"]


@dataclass(frozen=True)
class Checksums:
    """Check what convolutions and linear layers compute against sums of their inputs, and compute again what is wrong.

    A layer is linear: of the sum of all inputs of a batch it makes the sum of their outputs. Batches of 16 and more are
    checked so, by a pass of the layer on one input, and computed again where the sums are off by more than rounding
    explains. In smaller ones, and for what detectors tell, each input is checked alone: the sum of an output channel
    over all positions is the product of the filter and of sums of the input, and a channel that is off is computed
    again. That is done on the weights as they are stored: it is the computation that is checked; stored weights are for
    :class:`WeightChecksums`. Sums of numbers of 16 bits are kept in float32. *sites* are globs of modules; without them
    all convolutions over images with zeros around, all linear layers and ``nn.MultiheadAttention``.

    Attention then computes its products one by one, projections, queries with keys and shares with values, and computes
    rows of them again whose sums are off; :func:`checked_attention` is for models that call a function instead.

    The threshold is a bound of what rounding does (Higham and Mary 2019), for numbers of 16, 32 and 64 bits. Source of
    the sums: Zhao et al., FT-CNN, IEEE TPDS 2021; Huang and Abraham, IEEE TC 1984.

    >>> from torchfault.hardening import harden
    >>> model, images = nn.Sequential(nn.Conv2d(2, 3, 3)), torch.rand(2, 2, 8, 8)
    >>> torch.equal(harden(model, Checksums())(images), model(images))
    True
    """

    sites: str | tuple[str, ...] = ()

    def __call__(self, model: nn.Module, _profile: Profile | None) -> nn.Module:
        """Return *model* with guards behind its layers."""
        inside = {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
        fit = {
            path: module for path, module in model.named_modules() if path and _fits(module) and module not in inside
        }
        if not fit:
            raise ModelError(
                "checksums are for Conv2d with zeros around, Linear and MultiheadAttention, got a model without any"
            )
        names = list(fit)
        for i in sorted(matching(names, self.sites or "*", what="layer that can be checked")):
            path, module = names[i], fit[names[i]]
            if isinstance(module, nn.MultiheadAttention):
                check_attention(module, path)
                path, module = f"{path}.out_proj", module.out_proj
            guard = ChecksumGuard()
            check_free(module, path, guard)
            # A child makes the operation a site of its own, struck before its sum is checked.
            module.add_module("checksum", _Check())
            # Before the hook that ends the cover of decoded weights, which the sums are of.
            module.register_forward_hook(guard, prepend=True)
        return model


class _Check(nn.Module):
    """Tells which sums are off beyond rounding, shape (n, channels)."""

    def forward(self, given: Tensor, output: Tensor, weight: Tensor, bias: Tensor | None, expected: Tensor) -> Tensor:
        kind, filters, positions = wide(output), weight.ndim == 4, _positions(output, weight)
        found = output.sum((2, 3), dtype=kind) if filters else output.sum(-1, keepdim=True, dtype=kind)
        size = given.abs().sum((2, 3), dtype=kind) if filters else given.abs().to(kind)
        magnitude = weight.abs().sum((2, 3)) if filters else weight.abs().sum(0, keepdim=True)
        terms = _by_groups(size, magnitude.to(kind)) if filters else F.linear(size, magnitude.to(kind))
        if bias is not None:
            terms = terms + positions * (bias.abs() if filters else bias.abs().sum())
        additions = positions + weight[0].numel() + (0 if filters else len(weight))
        most = rounding(terms, additions, output.dtype)
        # No difference of the two, which would be rounding alone, another for each size of batch.
        return ~((found <= expected + most) & (found >= expected - most))


def _positions(output: Tensor, weight: Tensor) -> int:
    """Return how many outputs of each channel an input has that are added up."""
    return math.prod(output.shape[2:]) if weight.ndim == 4 else 1


def few(module: nn.Module, output: Tensor) -> bool:
    """Return whether inputs are checked one by one: there are few, or one without an axis for more.

    >>> few(nn.Conv2d(1, 20, 3), torch.zeros(20, 4, 4)), few(nn.Linear(2, 3), torch.zeros(20, 3))
    (True, False)
    """
    return _alone(module, output) or len(output) < _MANY or not output.numel()


@dataclass(frozen=True)
class ChecksumGuard:
    """The hook that computes again where sums are off."""

    place: str = "output"

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if _alone(module, output):
            return self(module, (args[0][None],), output[None])[0]
        captured = bool(torch.compiler.is_compiling())
        if captured or few(module, output):
            wrong = self._wrong(module, args[0], output)
            # A captured graph has no branches: it computes twice, and takes what is right.
            if not captured and not bool(wrong.any()):
                return output
            again = _computed(module, args[0])
            return torch.where(wrong[..., None, None] if isinstance(module, nn.Conv2d) else wrong, again, output)
        with torch._C.DisableTorchFunction():  # nothing here is an operation of the model, whatever the batch
            return output if self.agrees(module, args[0], output) else _computed(module, args[0])

    def agrees(self, module: nn.Module, given: Tensor, output: Tensor) -> bool:
        """Return whether the outputs of a batch add up to what the layer makes of the sum of its inputs."""
        sums = BatchSums.of(module, given, output)
        # Where the first is no bound, of inputs that cancel out, the magnitudes are added up too.
        return agree([sums]) or agree([replace(sums, most=added(given.abs()).amax())])

    def alarms(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the inputs for which a sum is off."""
        if _alone(module, output):
            return self.alarms(module, (args[0][None],), output[None])
        return self._wrong(module, args[0], output).flatten(1).any(1)

    def _wrong(self, module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        weight, bias, kind = module.weight, module.bias, wide(output)
        assert isinstance(weight, Tensor)
        if isinstance(module, nn.Conv2d):
            expected = _conv_sums(module, given)
        else:
            expected = F.linear(given.to(kind), weight.sum(0, dtype=kind)[None])
        if bias is not None:
            assert isinstance(bias, Tensor)
            expected = expected + (_positions(output, weight) * bias if weight.ndim == 4 else bias.sum())
        check = module.checksum
        assert isinstance(check, nn.Module)
        wrong: Tensor = check(given, output, weight, bias, expected)
        return wrong


def _fits(module: nn.Module) -> bool:
    if any(type(parameter) not in PLAIN for parameter in module.parameters(recurse=False)):
        return False
    if isinstance(module, nn.Linear | nn.MultiheadAttention):
        return True
    return isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"


def _alone(module: nn.Module, output: Tensor) -> bool:
    """Return whether a layer gave the output of one input without an axis for more."""
    return output.ndim == (3 if isinstance(module, nn.Conv2d) else 1)


def _computed(module: nn.Module, given: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        again: Tensor = module._conv_forward(given, module.weight, module.bias)
        return again
    assert isinstance(module, nn.Linear)
    return F.linear(given, module.weight, module.bias)


def _conv_sums(layer: nn.Conv2d, given: Tensor) -> Tensor:
    """Return the sum over all positions of each output channel without its bias, from sums of the input."""
    down, across = zip(layer.kernel_size, _pads(layer), layer.stride, layer.dilation, strict=True)
    rows = _windows(given, 2, *down)
    sums = torch.stack([torch.stack(_windows(row, 2, *across), dim=2) for row in rows], dim=2)
    return _by_groups(sums, layer.weight.to(sums.dtype))


def _by_groups(values: Tensor, weight: Tensor) -> Tensor:
    """Return the products of filters with the channels that each reads.

    *values* (n, channels, ...) and *weight* (filters, channels of a group, ...) give (n, filters).

    >>> _by_groups(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 1.0], [1.0, 10.0]]))
    tensor([[ 3., 43.]])
    """
    groups = values.shape[1] // weight.shape[1]
    if groups == 1:
        return F.linear(values.flatten(1), weight.flatten(1))
    parts, filters = values.unflatten(1, (groups, -1)).flatten(2), weight.unflatten(0, (groups, -1)).flatten(2)
    return torch.einsum("ngk,gok->ngo", parts, filters).flatten(1)


def _pads(layer: nn.Conv2d) -> list[tuple[int, int]]:
    """Return the zeros before and behind the image along each axis."""
    if not isinstance(layer.padding, str):
        return [(pad, pad) for pad in layer.padding]
    taps = zip(layer.kernel_size, layer.dilation, strict=True)
    every = [far * (size - 1) if layer.padding == "same" else 0 for size, far in taps]
    return [(pad // 2, pad - pad // 2) for pad in every]


def _windows(value: Tensor, axis: int, size: int, pads: tuple[int, int], step: int, far: int) -> list[Tensor]:
    """Return, for each of the *size* taps of a filter, the sum over *axis* of what it reads at all positions."""
    length = value.shape[axis]
    last = (length + sum(pads) - far * (size - 1) - 1) // step * step  # where the filter begins for the last time
    whole = value.sum(axis, dtype=wide(value)) if step == 1 else None
    found = []
    for tap in range(size):
        first, end = tap * far - pads[0], tap * far - pads[0] + last  # may lie in the padding, which adds nothing
        low, high = (first if first >= 0 else first % step), min(end, length - 1)
        if whole is None or high < low:
            read = value.narrow(axis, min(low, length), max(high + 1 - low, 0))
            found.append(read[(slice(None),) * axis + (slice(None, None, step),)].sum(axis, dtype=wide(value)))
            continue
        above = value.narrow(axis, high + 1, length - high - 1).sum(axis, dtype=whole.dtype)
        found.append(whole - value.narrow(axis, 0, low).sum(axis, dtype=whole.dtype) - above)
    return found
