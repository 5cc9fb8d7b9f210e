"""Trials in columns, and the compact, self-describing bytes that one batch of them becomes; no pickle anywhere."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import StoreError

__all__ = ["Columns", "pack", "unpack"]

_MAGIC, _VERSION = b"TFB", 2
_MOST_BYTES = 1 << 29  # of a batch when inflated; a batch strikes at most some 2^20 faults
_LONGEST_HEADER = 1 << 20
_TYPES = {"f": "<f{}", "i": "<i{}", "u": "<u{}"}
Flags = NDArray[np.bool_] | NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Columns:
    """Finished trials, one entry each in every column but *faults*.

    *faults*, shape (faults,), holds fault numbers; *counts*, shape (trials,), how many consecutive ones each trial
    struck together, ``None`` for one each. *inputs*, *weights* (p/q; ``None``: all 1), *strata* (``None``: all 0) and
    *lanes* (how many ran, each counted at one of the trials that it served; ``None``: one each) have shape (trials,).
    *flags* are named outcomes (``failed``, ``due``, ``crash``, further verdicts) and how they came to be known
    (``vouched``, ``audited``, ...), bool (trials,); a flag left out is set nowhere. Where a metric over the whole data
    set was measured, *inputs* is -1, *values* holds its drop below golden and *metric* what it was. *words*, where the
    sampler knows them, are the words that were struck, as they are without faults; *answers*, where they were noted,
    the classes that faulty outputs named, -1 for none, and *changes* by how much these moved; *reach*, of a campaign
    with a monitor, how far errors came (:meth:`torchfault.engine.Monitor.reach`).

    With *unit* ``word`` a row is a whole word, named by its lowest fault, and flags are uint64 masks by bit position.
    Raises :class:`StoreError` where the lengths disagree.

    >>> done = Columns(np.array([7, 9]), np.array([0, 1]), {"failed": np.array([True, False])})
    >>> len(done), done.owner.tolist(), done.flag("due").tolist()
    (2, [0, 1], [False, False])
    """

    faults: NDArray[np.int64]
    inputs: NDArray[np.int64]
    flags: Mapping[str, Flags] = field(default_factory=dict)
    weights: NDArray[np.float64] | None = None
    strata: NDArray[np.int32] | None = None
    counts: NDArray[np.int64] | None = None
    values: NDArray[np.float64] | None = None
    metric: NDArray[np.float64] | None = None
    lanes: NDArray[np.int64] | None = None
    words: NDArray[np.uint64] | None = None
    answers: NDArray[np.int32] | None = None
    changes: NDArray[np.float32] | None = None
    reach: NDArray[np.int32] | None = None
    unit: Literal["fault", "word"] = "fault"

    def __post_init__(self) -> None:
        held = {name: getattr(self, name) for name in _OPTIONAL}
        lengths = {name: len(column) for name, column in (held | dict(self.flags)).items() if column is not None}
        faults = len(self) if self.counts is None else int(self.counts.sum())
        if len(self.faults) != faults or set(lengths.values()) - {len(self)}:
            raise StoreError(
                f"columns need one entry per trial and {faults} faults, got {len(self)} trials of {len(self.faults)} "
                f"faults and lengths {lengths}"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def flag(self, name: str) -> Flags:
        """Return a flag, unset where it is left out, shape (trials,)."""
        if name in self.flags:
            return self.flags[name]
        return np.zeros(len(self), dtype=np.bool_) if self.unit == "fault" else np.zeros(len(self), dtype=np.uint64)

    @property
    def failed(self) -> Flags:
        """Which trials failed."""
        return self.flag("failed")

    @property
    def due(self) -> Flags:
        """Which trials gave no answer: NaN, infinity, or an exception."""
        return self.flag("due")

    @property
    def owner(self) -> NDArray[np.int64]:
        """The trial of each fault, shape (faults,)."""
        trials = np.arange(len(self), dtype=np.int64)
        return trials if self.counts is None else np.repeat(trials, self.counts)

    @property
    def weight(self) -> NDArray[np.float64]:
        """The weight of each trial, also where all are 1."""
        return np.ones(len(self)) if self.weights is None else self.weights

    @property
    def stratum(self) -> NDArray[np.int64]:
        """The stratum of each trial, also where all are 0."""
        return np.zeros(len(self), dtype=np.int64) if self.strata is None else self.strata.astype(np.int64)

    def take(self, first: int, last: int) -> "Columns":
        """Return the trials from *first* up to *last*, exclusive.

        >>> Columns(np.arange(3), np.zeros(3, dtype=np.int64)).take(1, 3).faults.tolist()
        [1, 2]
        """
        begin, end = first, last
        if self.counts is not None:
            begin, end = int(self.counts[:first].sum()), int(self.counts[:last].sum())
        held = {name: getattr(self, name) for name in _OPTIONAL}
        cut: dict[str, Any] = {name: None if column is None else column[first:last] for name, column in held.items()}
        flags = {name: flag[first:last] for name, flag in self.flags.items()}
        return replace(self, faults=self.faults[begin:end], inputs=self.inputs[first:last], flags=flags, **cut)

    def where(self, chosen: NDArray[np.bool_]) -> "Columns":
        """Return the trials that are *chosen*, shape (trials,)."""
        held = {name: getattr(self, name) for name in _OPTIONAL}
        cut: dict[str, Any] = {name: None if column is None else column[chosen] for name, column in held.items()}
        flags = {name: flag[chosen] for name, flag in self.flags.items()}
        return replace(self, faults=self.faults[chosen[self.owner]], inputs=self.inputs[chosen], flags=flags, **cut)

    def flips(self, row: NDArray[np.int64], faults: NDArray[np.int64], bit: NDArray[np.int64]) -> "Columns":
        """Return words as single flips: *faults* of the words at *row* whose *bit* is struck, shape (n,) each."""
        shift = bit.astype(np.uint64)
        flags = {name: (mask[row] >> shift & np.uint64(1)).astype(np.bool_) for name, mask in self.flags.items()}
        return replace(self.at(row, faults), flags=flags)

    def at(self, row: NDArray[np.int64], faults: NDArray[np.int64]) -> "Columns":
        """Return single *faults* without outcomes; input, weight and stratum are those of the trial at *row*."""
        held = {name: getattr(self, name) for name in ("weights", "strata")}
        cut: dict[str, Any] = {name: None if column is None else column[row] for name, column in held.items()}
        return Columns(faults, self.inputs[row], **cut)

    @classmethod
    def empty(cls) -> "Columns":
        """Return no trials.

        >>> len(Columns.empty())
        0
        """
        whole = np.zeros(0, dtype=np.int64)
        return cls(whole, whole)

    @classmethod
    def join(cls, parts: Sequence["Columns"]) -> "Columns":
        """Return the trials of all *parts*, one after the other.

        >>> len(Columns.join([Columns.empty(), Columns.empty()]))
        0
        """
        parts = [part for part in parts if len(part)]
        if len(parts) < 2:
            return parts[0] if parts else cls.empty()
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in ("faults", "inputs")
        }
        for name in _OPTIONAL:
            if any(getattr(part, name) is not None for part in parts):
                joined[name] = np.concatenate([_filled(part, name) for part in parts])
        names = dict.fromkeys(name for part in parts for name in part.flags)
        flags = {name: np.concatenate([part.flag(name) for part in parts]) for name in names}
        return cls(**joined, flags=flags, unit=parts[0].unit)


_OPTIONAL = tuple(part.name for part in fields(Columns) if part.default is None)
_DEFAULTS: Mapping[str, tuple[int, type]] = {
    "weights": (1, np.float64),
    "strata": (0, np.int32),
    "counts": (1, np.int64),
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

    The bytes are ``TFB``, one byte with the version of the format (2), and a zlib stream, whose checksum covers all of
    it. Inflated, it is a little-endian 32-bit length, a JSON header of that length, and the arrays it lists, end to
    end: ``{"trials": n, "unit": "fault", "columns": [[name, type, length], ...], "flags": [...]}``, flags likewise by
    name, with NumPy's type strings, little-endian, each whole number in the narrowest type that holds its column.
    Flags of single faults are bits, the first trial in the highest bit of the first byte (type ``bits``, length in
    trials); those of words are masks. Left out: flags that are set nowhere, and columns that hold nothing but their
    default (weights, counts and lanes 1, strata 0).

    >>> done = Columns(np.array([7, 9]), np.array([0, 1]), {"failed": np.array([True, False])})
    >>> unpack(pack(done)).failed.tolist()
    [True, False]
    """
    named: dict[str, NDArray[Any]] = {"faults": columns.faults, "inputs": columns.inputs}
    for name in _OPTIONAL:
        column = getattr(columns, name)
        if column is not None and not (name in _DEFAULTS and np.all(column == _DEFAULTS[name][0])):
            named[name] = column
    arrays = {name: _narrow(column) for name, column in named.items()}
    table = [[name, array.dtype.str, len(array)] for name, array in arrays.items()]
    flags: list[list[Any]] = []
    parts = [array.tobytes() for array in arrays.values()]
    for name, flag in sorted(columns.flags.items()):
        if flag.any():
            bits = flag.dtype == np.bool_
            held = np.packbits(flag) if bits else _narrow(flag)
            flags.append([name, "bits" if bits else held.dtype.str, len(flag)])
            parts.append(held.tobytes())
    head = {"trials": len(columns), "unit": columns.unit, "columns": table, "flags": flags}
    header = json.dumps(head, separators=(",", ":")).encode()
    stream = zlib.compress(len(header).to_bytes(4, "little") + header + b"".join(parts), 6)
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
        return _columns(*_inflated(blob))
    except (zlib.error, ValueError, KeyError, TypeError, IndexError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"a batch of trials cannot be read ({error}); the store is damaged") from None


def _inflated(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a batch and what follows it; nothing is inflated beyond what a sound header announces."""
    reader = zlib.decompressobj()
    begin = reader.decompress(blob[4:], _LONGEST_HEADER)
    start = 4 + int.from_bytes(begin[:4], "little")
    header = json.loads(begin[4:start])
    trials, size = header["trials"], 0
    for name, dtype, length in (*header["columns"], *header["flags"]):
        if length != trials and name != "faults":
            raise ValueError(f"column '{name}' has {length} entries for {trials} trials")
        size += -(-length // 8) if dtype == "bits" else length * np.dtype(dtype).itemsize
    if not 0 <= size <= _MOST_BYTES:
        raise ValueError(f"it announces {size} bytes, more than the {_MOST_BYTES} that a batch can have")
    data = begin[start:]
    if reader.unconsumed_tail:
        data += reader.decompress(reader.unconsumed_tail, max(size - len(data), 0) + 1)
    if len(data) != size or not reader.eof:
        raise ValueError(f"it is cut off, or other than the {size} bytes that it announces")
    return header, data


_READ_AS: Mapping[str, type] = {
    "faults": np.int64,
    "inputs": np.int64,
    "counts": np.int64,
    "strata": np.int32,
    "answers": np.int32,
    "changes": np.float32,
    "reach": np.int32,
    "lanes": np.int64,
    "words": np.uint64,
}


def _columns(header: dict[str, Any], data: bytes) -> Columns:
    start, named, flags = 0, dict[str, Any](), dict[str, Flags]()
    for name, dtype, length in header["columns"]:
        column = np.frombuffer(data, dtype=np.dtype(dtype), count=length, offset=start)
        start += column.nbytes
        named[name] = column.astype(_READ_AS.get(name, np.float64))
    for name, dtype, length in header["flags"]:
        bits = dtype == "bits"
        count = -(-length // 8) if bits else length
        column = np.frombuffer(data, dtype=np.uint8 if bits else np.dtype(dtype), count=count, offset=start)
        start += column.nbytes
        flags[name] = np.unpackbits(column, count=length).astype(np.bool_) if bits else column.astype(np.uint64)
    return Columns(**named, flags=flags, unit=header["unit"])
