"""Storages: how parameters and activations are kept, as named tensors of words, and what values these stand for."""

from torchfault.storages.activations import (
    ActivationStorage,
    EachValue,
    InBlocks,
    activation_storage,
    needs_range,
)
from torchfault.storages.base import Part, Storage, Stored, keep
from torchfault.storages.dense import Affine, BlockFloat, Formatted
from torchfault.storages.microscaling import MICROSCALED, Microscaled
from torchfault.storages.naming import storage
from torchfault.storages.sparse import Bsr, Coo, Csr

__all__ = [
    "MICROSCALED",
    "ActivationStorage",
    "Affine",
    "BlockFloat",
    "Bsr",
    "Coo",
    "Csr",
    "EachValue",
    "Formatted",
    "InBlocks",
    "Microscaled",
    "Part",
    "Storage",
    "Stored",
    "activation_storage",
    "keep",
    "needs_range",
    "storage",
]
