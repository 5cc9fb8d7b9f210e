"""Checksums of attention: the products of queries with keys and of weights with values, and the projections before."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchfault.errors import ModelError
from torchfault.hardening.harden import check_free
from torchfault.hardening.rounding import rounding, wide

__all__ = ["check_attention", "checked_attention"]


class _Product(nn.Module):
    """The product of two batches of matrices: a module, so that it is struck as a site before it is checked."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


@dataclass(frozen=True)
class ProductGuard:
    """The hook that computes rows of a product again whose sums are off."""

    place: str = "output"

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        left, right = args
        if torch.compiler.is_compiling():
            return _mended(left, right, output)
        with torch._C.DisableTorchFunction():  # none of this is an operation of the model
            return _mended(left, right, output)

    def alarms(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the inputs for which a sum is off."""
        left, right = args
        return _off(left, right, output).flatten(1).any(1)


def _mended(left: Tensor, right: Tensor, output: Tensor) -> Tensor:
    off = _off(left, right, output)
    # A captured graph has no branches: it computes twice, and takes what is right.
    if not torch.compiler.is_compiling() and not bool(off.any()):
        return output
    return torch.where(off, left @ right, output)


def _off(left: Tensor, right: Tensor, output: Tensor) -> Tensor:
    """Return the rows whose sum is not the product of the row and the sums of what it is multiplied by, (..., n, 1)."""
    kind = wide(output)
    rows, found = left.to(kind), output.sum(-1, keepdim=True, dtype=kind)
    expected = rows @ right.sum(-1, keepdim=True, dtype=kind)
    terms = rows.abs() @ right.abs().sum(-1, keepdim=True, dtype=kind)
    most = rounding(terms, left.shape[-1] + right.shape[-1], output.dtype)
    return ~((found <= expected + most) & (found >= expected - most))


def checked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return ``scaled_dot_product_attention`` of the same arguments, of whose products wrong rows are computed again.

    For models that call the function: give it to them in its place. It computes the products one by one, so that their
    sums can be seen. Source of the sums: Huang and Abraham, IEEE TC 1984; the threshold is that of :class:`Checksums`.

    >>> q = torch.randn(2, 4, 5, 8)
    >>> torch.allclose(checked_attention(q, q, q), F.scaled_dot_product_attention(q, q, q), atol=1e-5)
    True
    """
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    left, right = query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1)
    scores = _mended(left, right, left @ right)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    share = F.dropout(scores.softmax(-1), dropout_p)
    return _mended(share, value, share @ value)


class _CheckedAttention(nn.MultiheadAttention):
    """Attention in single products, each a module with a guard behind it."""

    projected: nn.Module
    scored: nn.Module
    mixed: nn.Module

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise ModelError("is_causal is a hint about attn_mask, got none; give the mask too")
        alone = query.ndim == 2
        given = [
            one.unsqueeze(0) if alone else one if self.batch_first else one.transpose(0, 1)
            for one in (query, key, value)
        ]
        left, right, values = self._heads(given)
        scores = self.scored(left * self.head_dim**-0.5, right.transpose(-2, -1))
        if attn_mask is not None:
            shaped = attn_mask.view(-1, self.num_heads, *attn_mask.shape[-2:]) if attn_mask.ndim == 3 else attn_mask
            scores = scores + _added(shaped, scores)
        if key_padding_mask is not None:
            scores = scores + _added(key_padding_mask.view(-1, 1, 1, scores.shape[-1]), scores)
        share = F.dropout(scores.softmax(-1), self.dropout, self.training)
        mixed = self.mixed(share, values).transpose(1, 2).flatten(2)
        output = self.out_proj(mixed)
        weights = None if not need_weights else share.mean(1) if average_attn_weights else share
        if alone:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _heads(self, given: list[Tensor]) -> list[Tensor]:
        """Return queries, keys and values by head, (n, heads, length, width)."""
        packed: Tensor | None = getattr(self, "in_proj_weight", None)
        start: Tensor | None = getattr(self, "in_proj_bias", None)
        apart = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = apart if packed is None else packed.chunk(3)
        biases = (None,) * 3 if start is None else start.chunk(3)
        found = []
        for one, weight, bias in zip(given, weights, biases, strict=True):
            made = self.projected(one, weight.t())
            made = made if bias is None else made + bias
            found.append(made.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2))
        return found


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """Return what a *mask* adds to scores: minus infinity where one of booleans is true."""
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


def check_attention(module: nn.MultiheadAttention, path: str) -> None:
    """Have *module* compute its products one by one, each with a guard behind it.

    Raises :class:`ModelError` where it is checked already, or adds keys of its own.
    """
    if module.bias_k is not None or module.add_zero_attn:
        raise ModelError(f"'{path}' adds keys of its own, which checksums of attention do not know; choose other sites")
    guard = ProductGuard()
    if isinstance(module, _CheckedAttention):
        check_free(module.scored, f"{path}.scored", guard)
    # In place: parameters, buffers and hooks of other methods stay where they are.
    module.__class__ = _CheckedAttention
    for name in ("projected", "scored", "mixed"):
        product = _Product()
        product.register_forward_hook(guard)
        module.add_module(name, product)
