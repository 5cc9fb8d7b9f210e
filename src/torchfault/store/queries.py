"""What is asked of the tables, and told to them, inside the transaction of a connection."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Select, cast, func, insert, inspect, select, update

from torchfault.store import schema

__all__ = ["batch", "latest", "records", "tell_workers", "tells_workers", "workers_of"]


def batch(connection: Connection, *, campaign: int, number: int) -> Any:
    """Return the row of a batch."""
    batches = schema.batches.c
    wanted = select(batches.first, batches.trials, batches.seconds, batches.data, batches.checksum)
    return connection.execute(wanted.where(batches.campaign == campaign, batches.number == number)).one()


def records() -> Select[Any]:
    """Return what selects every campaign, oldest first, with how many trials it has and how long they took."""
    batches = schema.batches.c
    # PostgreSQL sums whole numbers to decimal ones
    trials, seconds = cast(func.sum(batches.trials), BigInteger).label("trials"), func.sum(batches.seconds)
    held = select(batches.campaign, trials, seconds.label("seconds")).group_by(batches.campaign).subquery()
    joined = schema.campaigns.outerjoin(held, schema.campaigns.c.id == held.c.campaign)
    return select(schema.campaigns, held.c.trials, held.c.seconds).select_from(joined).order_by(schema.campaigns.c.id)


def latest(connection: Connection, *, campaign: int, batches: int) -> Sequence[Any]:
    """Return the trials and seconds of the last so many batches."""
    held = schema.batches.c
    last = select(held.trials, held.seconds).order_by(held.number.desc()).limit(batches)
    return connection.execute(last.where(held.campaign == campaign)).all()


def tells_workers(connection: Connection) -> bool:
    """Say whether a store has a place for the number of workers."""
    return bool(inspect(connection).has_table(schema.workers.name))


def tell_workers(connection: Connection, campaign: int, number: int) -> None:
    """Note that so many workers run the campaign of that number."""
    mine, held = schema.workers.c.campaign == campaign, workers_of(connection, campaign)
    if held is None:
        connection.execute(insert(schema.workers).values(campaign=campaign, number=number))
    elif held != number:
        connection.execute(update(schema.workers).where(mine).values(number=number))


def workers_of(connection: Connection, campaign: int) -> int | None:
    """Return how many workers run the campaign of that number, where it was told."""
    held = schema.workers.c
    return connection.execute(select(held.number).where(held.campaign == campaign)).scalar()
