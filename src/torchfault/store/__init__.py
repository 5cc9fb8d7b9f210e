"""The store: facts about campaigns (draws, outcomes, seed, versions, digests) that survive a crash; needs no torch."""

from torchfault.store.columns import Columns, pack, unpack
from torchfault.store.database import Store
from torchfault.store.record import Batch, Record
from torchfault.store.schema import SCHEMA_VERSION

__all__ = ["SCHEMA_VERSION", "Batch", "Columns", "Record", "Store", "pack", "unpack"]
