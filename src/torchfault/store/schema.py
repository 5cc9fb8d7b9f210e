"""The tables of a store, their version, and the way from every older version to this one."""

from collections.abc import Callable

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
    text,
    update,
)

from torchfault.errors import StoreError

__all__ = ["MIGRATIONS", "SCHEMA_VERSION", "batches", "campaigns", "create", "migrate", "version_of"]

metadata = MetaData()

schema = Table("torchfault_schema", metadata, Column("version", Integer, nullable=False))

campaigns = Table(
    "torchfault_campaigns",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("created", String(40), nullable=False),  # ISO 8601, UTC
    Column("configuration", JSON, nullable=False),
    Column("seed", String(80), nullable=False),  # decimal: seeds have no upper bound, the databases' integers do
    Column("versions", JSON, nullable=False),
    Column("model", String(64), nullable=False),  # SHA-256, as the next two
    Column("data", String(64), nullable=False),
    Column("space", String(64), nullable=False),
    Column("sites", JSON, nullable=False),  # so that a report needs no model
    Column("inputs", BigInteger, nullable=False),
    Column("status", String(20), nullable=False),
    # Since version 2.
    Column("reason", Text, nullable=False, server_default=""),
    Column("population", BigInteger),
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
)


def _why_it_ended(connection: Connection) -> None:
    """1 to 2: say why a campaign ended, and how many trials would enumerate everything."""
    connection.execute(text("ALTER TABLE torchfault_campaigns ADD COLUMN reason TEXT NOT NULL DEFAULT ''"))
    connection.execute(text("ALTER TABLE torchfault_campaigns ADD COLUMN population BIGINT"))


# Entry k leads from version k + 1 to k + 2. Never edit one that was released: append another, and change the tables.
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_why_it_ended,)
SCHEMA_VERSION = len(MIGRATIONS) + 1


def version_of(connection: Connection) -> int | None:
    """Return the version of the store behind *connection*, ``None`` where there is no store."""
    if not inspect(connection).has_table(schema.name):
        return None
    version = connection.execute(select(schema.c.version)).scalar()
    if not isinstance(version, int) or version < 1:
        raise StoreError(f"a store states its schema version, got {version!r}; the store is damaged")
    if version > SCHEMA_VERSION:
        raise StoreError(f"this torchfault reads schema 1 to {SCHEMA_VERSION}, got {version}; upgrade torchfault")
    return version


def create(connection: Connection) -> None:
    """Make the tables of an empty store, inside the transaction of *connection*."""
    metadata.create_all(connection)
    connection.execute(insert(schema).values(version=SCHEMA_VERSION))


def migrate(connection: Connection, version: int) -> None:
    """Bring a store of an older *version* up to this one, inside the transaction of *connection*."""
    for step in MIGRATIONS[version - 1 :]:
        step(connection)
    connection.execute(update(schema).values(version=SCHEMA_VERSION))
