"""The tables of a store, and their version."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
)

from torchfault.errors import StoreError

__all__ = ["SCHEMA_VERSION", "batches", "campaigns", "create", "version_of", "workers"]

SCHEMA_VERSION = 3

metadata = MetaData()

schema = Table("torchfault_schema", metadata, Column("version", Integer, nullable=False))

campaigns = Table(
    "torchfault_campaigns",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("created", String(40), nullable=False),  # ISO 8601, UTC
    Column("configuration", JSON, nullable=False),
    Column("design", JSON, nullable=False),
    Column("golden", JSON, nullable=False),
    Column("seed", String(80), nullable=False),  # decimal: seeds have no upper bound, the databases' integers do
    Column("versions", JSON, nullable=False),
    Column("model", String(64), nullable=False),  # SHA-256, as the next one
    Column("data", String(64), nullable=False),
    Column("space", JSON, nullable=False),  # so that a report needs no model
    Column("faults", BigInteger, nullable=False),
    Column("inputs", BigInteger, nullable=False),
    Column("status", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("total", BigInteger, nullable=True),  # trials in all once it ended: batches that are lost would be missed
    Column("checksum", String(64), nullable=False),
)

batches = Table(
    "torchfault_batches",
    metadata,
    Column("campaign", ForeignKey("torchfault_campaigns.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("first", BigInteger, nullable=False),
    Column("trials", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("checksum", String(64), nullable=False),
)

# How many run a campaign at the moment; stores of before this was told lack the table, and do without.
workers = Table(
    "torchfault_workers",
    metadata,
    Column("campaign", ForeignKey("torchfault_campaigns.id"), primary_key=True, autoincrement=False),
    Column("number", Integer, nullable=False),
)


def version_of(connection: Connection) -> int | None:
    """Return the version of the store behind *connection*, ``None`` where there is no store.

    Raises :class:`StoreError` for stores of another version: what is missing in older ones (the designs from which
    intervals follow) cannot be made up.
    """
    if not inspect(connection).has_table(schema.name):
        return None
    version = connection.execute(select(schema.c.version)).scalar()
    if not isinstance(version, int) or version < 1:
        raise StoreError(f"a store states its schema version, got {version!r}; the store is damaged")
    if version > SCHEMA_VERSION:
        raise StoreError(f"this torchfault reads schema {SCHEMA_VERSION}, got {version}; upgrade torchfault")
    if version < SCHEMA_VERSION:
        raise StoreError(
            f"this torchfault reads schema {SCHEMA_VERSION}, got {version}, written before 0.2; "
            "read it with 'pip install torchfault==0.1.0', or run the campaigns again into another file"
        )
    return version


def create(connection: Connection) -> None:
    """Make the tables of an empty store, inside the transaction of *connection*."""
    metadata.create_all(connection)
    connection.execute(insert(schema).values(version=SCHEMA_VERSION))
