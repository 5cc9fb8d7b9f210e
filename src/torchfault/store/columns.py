"""Trials in columns, and the compact, self-describing bytes that one batch of them becomes; no pickle anywhere."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import StoreError

__all__ = [
    "AUDITED",
    "CONTROLLED",
    "HIDDEN",
    "POOLED",
    "VOUCHED",
    "WRONG",
    "Columns",
    "pack",
    "unpack",
]

_MAGIC = b"TFB"
_VERSION = 1
_FAILED, _DUE = 1, 2

# What a mark says of a trial's outcome, where shortcuts were taken (:mod:`torchfault.campaign.shortcuts`).
VOUCHED = 4  # no lane of its own showed it: other lanes vouch for it
AUDITED = 8  # a lane of its own has checked what others vouched for
WRONG = 16  # and found another outcome, which stands now
CONTROLLED = 32  # it fails alone, and was struck once more amid a masked pool
HIDDEN = 64  # which was masked all the same
POOLED = 128  # it was struck in a pool
_MARKS = VOUCHED | AUDITED | WRONG | CONTROLLED | HIDDEN | POOLED
_TYPES = {"f": "<f8", "i": "<i{}", "u": "<u{}"}


@dataclass(frozen=True, eq=False)
class Columns:
    """Finished trials, one entry each in every column but *faults*.

    *faults*, shape (faults,), holds fault numbers; *counts*, shape (trials,), how many consecutive ones each trial
    struck together, ``None`` for one each. *inputs*, *failed*, *due*, *weights* (p/q; ``None``: all 1) and *strata*
    (``None``: all 0) have shape (trials,). Where a metric over the whole data set was measured, *inputs* is -1,
    *values* holds its drop below golden and *metric* what it was; otherwise both are ``None``. *marks* say how an
    outcome came to be known (``VOUCHED``, ``AUDITED``, ...; ``None``: by a lane of its own), and *lanes* how many lanes
    ran, each counted at one of the trials that it served (``None``: one each). Raises :class:`StoreError` where the
    lengths disagree.

    >>> done = Columns(np.array([7, 9]), np.array([0, 1]), np.array([True, False]), np.array([False, False]))
    >>> len(done), done.owner.tolist()
    (2, [0, 1])
    """

    faults: NDArray[np.int64]
    inputs: NDArray[np.int64]
    failed: NDArray[np.bool_]
    due: NDArray[np.bool_]
    weights: NDArray[np.float64] | None = None
    strata: NDArray[np.int32] | None = None
    counts: NDArray[np.int64] | None = None
    values: NDArray[np.float64] | None = None
    metric: NDArray[np.float64] | None = None
    marks: NDArray[np.uint8] | None = None
    lanes: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        lengths = {part.name: len(column) for part in fields(self) if (column := getattr(self, part.name)) is not None}
        faults = len(self) if self.counts is None else int(self.counts.sum())
        if lengths.pop("faults") != faults or set(lengths.values()) != {len(self)}:
            raise StoreError(f"columns need one entry per trial and {faults} faults, got lengths {lengths}")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def owner(self) -> NDArray[np.int64]:
        """The trial of each fault, shape (faults,)."""
        trials = np.arange(len(self), dtype=np.int64)
        return trials if self.counts is None else np.repeat(trials, self.counts)

    def take(self, first: int, last: int) -> "Columns":
        """Return the trials from *first* up to *last*, exclusive.

        >>> done = Columns(np.arange(3), np.zeros(3, dtype=np.int64), np.zeros(3, dtype=bool), np.zeros(3, dtype=bool))
        >>> done.take(1, 3).faults.tolist()
        [1, 2]
        """
        begin, end = first, last
        if self.counts is not None:
            begin, end = int(self.counts[:first].sum()), int(self.counts[:last].sum())
        held = {part.name: getattr(self, part.name) for part in fields(self)[1:]}
        cut: dict[str, Any] = {name: None if column is None else column[first:last] for name, column in held.items()}
        return Columns(self.faults[begin:end], **cut)

    @classmethod
    def empty(cls) -> "Columns":
        """Return no trials.

        >>> len(Columns.empty())
        0
        """
        whole, flag = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
        return cls(whole, whole, flag, flag)

    @classmethod
    def join(cls, parts: Sequence["Columns"]) -> "Columns":
        """Return the trials of all *parts*, one after the other.

        >>> len(Columns.join([Columns.empty(), Columns.empty()]))
        0
        """
        parts = [part for part in parts if len(part)]
        if len(parts) < 2:
            return parts[0] if parts else cls.empty()
        joined: dict[str, Any] = {}
        for name in (part.name for part in fields(cls)):
            if any(getattr(part, name) is not None for part in parts):
                joined[name] = np.concatenate([_filled(part, name) for part in parts])
        return cls(**joined)


_DEFAULTS = {
    "weights": (1, np.float64),
    "strata": (0, np.int32),
    "counts": (1, np.int64),
    "marks": (0, np.uint8),
    "lanes": (1, np.int64),
}


def _filled(part: Columns, name: str) -> NDArray[Any]:
    """Return a column, with what it stands for where it is left out."""
    column = getattr(part, name)
    if column is None:
        if name not in _DEFAULTS:
            raise StoreError(f"either all batches of a campaign hold '{name}' or none, got some; measure them alike")
        value, dtype = _DEFAULTS[name]
        return np.full(len(part), value, dtype=dtype)
    return np.asarray(column)


def pack(columns: Columns) -> bytes:
    """Return *columns* as bytes that any reader can take apart without this library.

    The bytes are ``TFB``, one byte with the version of the format (1), and a zlib stream, whose checksum covers all of
    it. Inflated, it is a little-endian 32-bit length, a JSON header of that length, and the arrays it lists, end to
    end: ``{"trials": n, "columns": [[name, type, length], ...]}``, with NumPy's type strings, little-endian, each
    whole number in the narrowest type that holds its column. *failed* and *due* are bits 0 and 1 of the column
    ``flags``, whose higher bits are the *marks*. Left out: weights that are all 1, strata that are all 0, counts and
    lanes that are all 1.

    >>> done = Columns(np.array([7, 9]), np.array([0, 1]), np.array([True, False]), np.array([False, False]))
    >>> unpack(pack(done)).faults.tolist()
    [7, 9]
    """
    flags = columns.failed.astype(np.uint8) * _FAILED | columns.due.astype(np.uint8) * _DUE
    if columns.marks is not None:
        flags |= columns.marks & np.uint8(_MARKS)
    named: dict[str, NDArray[Any]] = {"faults": columns.faults, "inputs": columns.inputs, "flags": flags}
    for name, (default, _) in _DEFAULTS.items():
        column = None if name == "marks" else getattr(columns, name)
        if column is not None and not np.all(column == default):
            named[name] = column
    for name in ("values", "metric"):
        if getattr(columns, name) is not None:
            named[name] = getattr(columns, name)
    arrays = {name: _narrow(column) for name, column in named.items()}
    table = [[name, array.dtype.str, len(array)] for name, array in arrays.items()]
    header = json.dumps({"trials": len(columns), "columns": table}, separators=(",", ":")).encode()
    body = b"".join(array.tobytes() for array in arrays.values())
    stream = zlib.compress(len(header).to_bytes(4, "little") + header + body, 6)
    return _MAGIC + bytes([_VERSION]) + stream


def _narrow(column: NDArray[Any]) -> NDArray[Any]:
    """Return *column* little-endian, whole numbers in the narrowest type."""
    kind, size = column.dtype.kind, column.dtype.itemsize
    if kind in "iu" and column.size:
        lowest, highest = int(column.min()), int(column.max())
        narrow = np.result_type(np.min_scalar_type(lowest), np.min_scalar_type(highest))
        if narrow.kind in "iu":  # uint64 beside a negative number would become a float
            kind, size = narrow.kind, narrow.itemsize
    return column.astype(_TYPES[kind].format(size))


def unpack(blob: bytes) -> Columns:
    """Return the columns that :func:`pack` made into *blob*; raises :class:`StoreError` for damaged or newer ones.

    >>> unpack(b"junk")
    Traceback (most recent call last):
    torchfault.errors.StoreError: a batch begins with b'TFB', got b'jun'; the store is damaged
    """
    if blob[:3] != _MAGIC:
        raise StoreError(f"a batch begins with {_MAGIC!r}, got {bytes(blob[:3])!r}; the store is damaged")
    if blob[3:4] != bytes([_VERSION]):
        raise StoreError(
            f"this torchfault reads batches of format {_VERSION}, got {blob[3:4].hex()}; upgrade torchfault"
        )
    try:
        named = _arrays(zlib.decompress(blob[4:]))
        flags = named.pop("flags")
        failed, due = (flags & _FAILED).astype(np.bool_), (flags & _DUE).astype(np.bool_)
        marks = flags & np.uint8(_MARKS)
        return Columns(failed=failed, due=due, marks=marks if marks.any() else None, **named)
    except (zlib.error, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise StoreError(f"a batch of trials cannot be read ({error}); the store is damaged") from None


_READ_AS = {
    "faults": np.int64,
    "inputs": np.int64,
    "counts": np.int64,
    "strata": np.int32,
    "flags": np.uint8,
    "lanes": np.int64,
}


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    start = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:start])
    named: dict[str, NDArray[Any]] = {}
    for name, dtype, length in header["columns"]:
        column = np.frombuffer(data, dtype=np.dtype(dtype), count=length, offset=start)
        start += column.nbytes
        named[name] = column.astype(_READ_AS.get(name, np.float64))
    return named
