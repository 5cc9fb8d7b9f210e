"""What a store says of a campaign and of one batch of its trials, and how that becomes rows and comes back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchfault.errors import SpaceError, StoreError
from torchfault.space import FaultSpace, Site
from torchfault.store.columns import Columns

__all__ = ["Batch", "Record", "from_row", "to_row"]


@dataclass(frozen=True)
class Record:
    """What a store knows of a campaign besides its trials.

    *model* and *data* are SHA-256 digests, *inputs* counts the inputs, *population* the trials that enumerate
    everything (``None`` where faults are sampled). *created* (ISO 8601, UTC), *status* (``running``, also after a
    ``kill -9``; ``interrupted``, ``failed``, ``finished``), *reason*, *trials* and *seconds* are kept by the store.

    >>> from torchfault.space import Site
    >>> record = Record("first", space=FaultSpace((Site("fc.weight", (4,)),)), inputs=100)
    >>> record.status, len(record.space)
    ('running', 128)
    """

    name: str
    space: FaultSpace
    inputs: int
    configuration: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    data: str = ""
    population: int | None = None
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


def to_row(record: Record) -> dict[str, Any]:
    """Return *record* as a row of the store."""
    return {
        "name": record.name,
        "created": record.created,
        "configuration": dict(record.configuration),
        "seed": str(record.seed),
        "versions": dict(record.versions),
        "model": record.model,
        "data": record.data,
        "space": record.space.digest(),
        "sites": [_row(site) for site in record.space.sites],
        "inputs": record.inputs,
        "status": record.status,
        "reason": record.reason,
        "population": record.population,
    }


def from_row(row: Any) -> Record:
    """Return the record that a row of the store holds, with the sums over its batches."""
    try:
        space = FaultSpace(tuple(Site(**_fields(site)) for site in row.sites))
    except (SpaceError, TypeError, KeyError) as error:
        raise StoreError(f"the sites of campaign '{row.name}' cannot be read ({error}); the store is damaged") from None
    if space.digest() != row.space:
        raise StoreError(f"the sites of campaign '{row.name}' do not fit their digest; the store is damaged")
    return Record(
        name=row.name,
        space=space,
        inputs=row.inputs,
        configuration=row.configuration,
        seed=int(row.seed),
        versions=row.versions,
        model=row.model,
        data=row.data,
        population=row.population,
        created=row.created,
        status=row.status,
        reason=row.reason,
        trials=int(row.trials or 0),
        seconds=float(row.seconds or 0.0),
    )


def _row(site: Site) -> dict[str, Any]:
    row = {
        "name": site.name,
        "shape": list(site.shape),
        "word": site.word,
        "width": site.width,
        "kind": site.kind,
        "module": site.module,
        "module_type": site.module_type,
        "channel": site.channel,
    }
    row |= {} if site.bits == tuple(range(site.width)) else {"bits": list(site.bits)}
    return row if site.steps is None else row | {"steps": list(site.steps), "duration": site.duration}


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    steps = tuple(row["steps"]) if "steps" in row else None
    return row | {"shape": tuple(row["shape"]), "bits": tuple(row.get("bits", ())), "steps": steps}
