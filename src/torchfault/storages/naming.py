"""Storages by name: ``int8``, ``int4:32``, ``bfp8:16``, ``mxfp4``, ``csr``, ``bsr:4x4``, ``q3.4``."""

import re
from collections.abc import Callable

from torchfault.errors import StorageError, WordError
from torchfault.storages.base import Storage
from torchfault.storages.dense import Affine, BlockFloat, Formatted
from torchfault.storages.microscaling import MICROSCALED, Microscaled
from torchfault.storages.sparse import Bsr, Coo, Csr

__all__ = ["NOTATION", "storage"]

NOTATION = (
    "int8 or int4 (a scale per channel), int8:tensor, int4:32 (groups), uint8 (with zero points), bfp8:16 (blocks), "
    "mxfp8_e4m3, mxfp4:32@1 or nvfp4 (blocks with a scale, along axis 1), coo, csr, bsr:4x4, or a number format such "
    "as q3.4, e4m3 or bfloat16"
)


def storage(name: str) -> Storage:
    """Return the storage called *name*, or raise :class:`StorageError` with the notation.

    >>> storage("uint8:tensor"), storage("bsr:8x1").name, storage("q3.4")
    (Affine(width=8, group=0, symmetric=False), 'bsr:8x1', Formatted(format='q3.4'))
    """
    for pattern, build in _PATTERNS:
        if found := pattern.fullmatch(name):
            return build(*found.groups())
    try:
        return Formatted(name)
    except WordError:
        raise StorageError(f"no storage is called '{name}'; use {NOTATION}") from None


def _affine(unsigned: str, width: str, group: str | None) -> Storage:
    size = 0 if group == "tensor" else int(group) if group else None
    return Affine(int(width), size, symmetric=not unsigned)


def microscaled(kind: str, block: str | None, axis: str | None, fixed: str | None) -> Microscaled:
    """Return blocks with a scale by the groups of :data:`BLOCKS`."""
    return Microscaled(kind, int(block or 0), int(axis) if axis else None, float(fixed) if fixed else None)


BLOCKS = re.compile(rf"({'|'.join(MICROSCALED)})(?::([1-9][0-9]*)(?:@([0-9]))?)?(?:\[([0-9.e+-]+)\])?")
"""The names of blocks with a scale: the kind, how many share one, the axis, and the scale of the tensor."""

_PATTERNS: tuple[tuple[re.Pattern[str], Callable[..., Storage]], ...] = (
    (re.compile(r"(u?)int([2-8])(?::(tensor|[1-9][0-9]*))?"), _affine),
    (re.compile(r"bfp([2-8]):([1-9][0-9]*)"), lambda width, block: BlockFloat(int(width), int(block))),
    (BLOCKS, microscaled),
    (re.compile(r"coo(?::(int[0-9]+))?"), lambda index: Coo(index or "int32")),
    (re.compile(r"csr(?::(int[0-9]+))?"), lambda index: Csr(index or "int32")),
    (
        re.compile(r"bsr:([0-9]+)x([0-9]+)(?::(int[0-9]+))?"),
        lambda height, width, index: Bsr(int(height), int(width), index or "int32"),
    ),
)
