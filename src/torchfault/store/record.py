"""What a store says of a campaign and of one batch of its trials, and how that becomes rows and comes back."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchfault.errors import StoreError
from torchfault.store.columns import Columns

__all__ = ["Batch", "Record", "batch_checksum", "from_row", "row_checksum", "to_row"]


@dataclass(frozen=True)
class Record:
    """What a store knows of a campaign besides its trials.

    *space* and *design* are those of the campaign in plain JSON, *faults* the number of faults in the space and
    *inputs* that of inputs; *golden* are facts about the model without faults. *model* and *data* are SHA-256 digests.
    *created* (ISO 8601, UTC), *status* (``running``, also after a ``kill -9``; ``interrupted``, ``failed``,
    ``finished``), *reason*, *trials* and *seconds* are kept by the store.

    >>> record = Record("first", space={}, faults=128, inputs=100)
    >>> record.status, record.faults
    ('running', 128)
    """

    name: str
    space: Mapping[str, Any]
    faults: int
    inputs: int
    design: Mapping[str, Any] = field(default_factory=dict)
    golden: Mapping[str, Any] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    data: str = ""
    created: str = ""
    status: str = "running"
    reason: str = ""
    trials: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Batch:
    """Trials *first* to *first + len(columns)* of a campaign, and the seconds that they took.

    >>> len(Batch(0, Columns.empty(), 0.0).columns)
    0
    """

    first: int
    columns: Columns
    seconds: float


_JSON = ("space", "design", "golden", "configuration", "versions")
_TEXT = ("name", "created", "seed", "model", "data", "status", "reason")
_NUMBERS = ("faults", "inputs")
_STATUS = ("running", "interrupted", "failed", "finished")


def to_row(record: Record) -> dict[str, Any]:
    """Return *record*, of a campaign that has not ended, as a row of the store, with its checksum."""
    row: dict[str, Any] = {name: dict(getattr(record, name)) for name in _JSON}
    row |= {name: getattr(record, name) for name in (*_TEXT, *_NUMBERS)} | {"seed": str(record.seed), "total": None}
    return row | {"checksum": row_checksum(row)}


def row_checksum(row: Mapping[str, Any]) -> str:
    """Return a SHA-256 over all that a campaign's row says."""
    held = {name: row[name] for name in (*_JSON, *_TEXT, *_NUMBERS, "total")}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def batch_checksum(first: int, trials: int, seconds: float, data: bytes) -> str:
    """Return a SHA-256 over all that a batch's row says."""
    return hashlib.sha256(f"{first} {trials} {seconds!r} ".encode() + data).hexdigest()


def from_row(row: Any) -> Record:
    """Return the record that a row of the store holds, with the sums over its batches."""
    held = {name: getattr(row, name) for name in (*_JSON, *_TEXT, *_NUMBERS)}
    if row_checksum(held | {"total": row.total}) != row.checksum:
        raise StoreError(f"the row of campaign '{row.name}' does not fit its checksum; the store is damaged")
    _check(held, row)
    counted = {"trials": int(row.trials or 0), "seconds": float(row.seconds or 0.0)}
    if row.total not in (None, counted["trials"]):
        raise StoreError(
            f"campaign '{row.name}' ended with {row.total} trials, got {counted['trials']}; the store is damaged"
        )
    return Record(**{**held, "seed": int(row.seed), **counted})


def _check(held: Mapping[str, Any], row: Any) -> None:
    """Refuse what no campaign can say: a checksum tells damage, not who has signed it."""
    whole = {name: held[name] for name in _NUMBERS} | {"trials": row.trials or 0}
    wrong = [name for name in _JSON if not isinstance(held[name], dict)]
    wrong += [name for name in _TEXT if not isinstance(held[name], str)]
    wrong += [name for name, value in whole.items() if not isinstance(value, int) or value < 0]
    wrong += [] if str(held["seed"]).removeprefix("-").isdecimal() else ["seed"]
    wrong += [] if held["status"] in _STATUS else ["status"]
    if not math.isfinite(float(row.seconds or 0.0)):
        wrong.append("seconds")
    if wrong:
        raise StoreError(f"the {wrong[0]} of campaign '{row.name}' cannot be; the store is damaged")
