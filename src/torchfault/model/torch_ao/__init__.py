"""All that knows torch's own quantisation (``torch.ao``, deprecated by torch): this folder can be deleted whole.

It is a room of :mod:`torchfault.model.foreign`, whose questions it answers.
"""

import torch
from torch import Tensor, nn

from torchfault.model.home import Home
from torchfault.model.torch_ao.channels import rows_of
from torchfault.model.torch_ao.packed import is_part, packed_homes, shares_ranges
from torchfault.model.torch_ao.quantised import (
    activation_word,
    alike,
    coded,
    codes,
    fake_quantised,
    like,
    packed,
    packs,
    word,
)

__all__ = [
    "activation_word",
    "alike",
    "always_alike",
    "coded",
    "codes",
    "has_operation",
    "home",
    "homes",
    "is_part",
    "is_whole",
    "like",
    "mixes",
    "owns",
    "parts",
    "rows_of",
    "shares_ranges",
    "values",
    "word",
]


def values(tensor: Tensor) -> Tensor:
    """Return what the codes of *tensor* stand for."""
    return tensor.dequantize()


def owns(module: nn.Module) -> bool:
    """Whether *module* is one of torch's quantised layers."""
    return type(module).__module__.startswith("torch.ao.")


def is_whole(module: nn.Module) -> bool:
    """Whether *module* fakes quantisation: its only child is an observer."""
    return hasattr(module, "fake_quant_enabled")


def always_alike(module: nn.Module) -> bool:
    """Whether *module* is quantised: it computes in one way only, and is born in training mode."""
    return type(module).__module__.startswith("torch.ao.nn.quantized.")


def homes(module: nn.Module, path: str, prefix: str, parts: frozenset[int]) -> list[Home]:
    """Return the homes of the words that *module* packs; those of a layer's part are given for the layer alone."""
    if found := packed_homes(module, path, prefix):
        return found
    return [packed(module, path, prefix)] if packs(module) and id(module) not in parts else []


def parts(module: nn.Module) -> list[nn.Module]:
    """Return the modules in which *module* holds the words that it packs."""
    return list(module.children()) if packs(module) else []


def home(module: nn.Module, path: str, full: str, parameter: Tensor) -> Home | None:
    """Return the home of the weight called *full* where *module* fakes its quantisation before each use."""
    return fake_quantised(module, path, full, parameter) if full.rpartition(".")[2] == "weight" else None


def has_operation(name: str) -> bool:
    """Whether a quantised operation is called *name*."""
    return hasattr(torch.ops.quantized, name)


def mixes(operation: str) -> bool:
    """Whether *operation* quantises what it reads by the range of the whole batch."""
    return operation.endswith("_dynamic")
