"""From a stored description to the space that it describes."""

from torchfault.cells import Space
from torchfault.errors import SpaceError, StoreError
from torchfault.space import as_space
from torchfault.store import Record

__all__ = ["space_of"]


def space_of(record: Record) -> Space:
    """Return the space of a recorded campaign; raises :class:`StoreError` for one that cannot be read."""
    kind = record.space.get("kind")
    try:
        if kind == "faults":
            return as_space(record.space)
        if kind == "upsets":
            from torchfault.hardware.upset_space import read_upset_space

            return read_upset_space(record.space)
    except SpaceError as error:
        raise StoreError(f"the space of campaign '{record.name}' cannot be read ({error})") from None
    raise StoreError(f"a space is of faults or upsets, got '{kind}' for '{record.name}'; the store is damaged")
