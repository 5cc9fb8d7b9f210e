"""Storages: how a parameter is kept in memory, as named tensors of words, and what value these words stand for."""

from torchfault.storages.base import Part, Storage, Stored, keep
from torchfault.storages.dense import Affine, BlockFloat, Formatted
from torchfault.storages.naming import storage
from torchfault.storages.sparse import Bsr, Coo, Csr

__all__ = ["Affine", "BlockFloat", "Bsr", "Coo", "Csr", "Formatted", "Part", "Storage", "Stored", "keep", "storage"]
