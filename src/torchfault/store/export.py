"""A campaign as a flat file: Parquet or CSV, one row per fault, batch by batch in bounded memory."""

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import StoreError
from torchfault.space import FaultSpace
from torchfault.store.columns import Columns
from torchfault.store.record import Batch
from torchfault.text import visible

if TYPE_CHECKING:
    from torchfault.store.database import Store

__all__ = ["export_trials", "flat"]

Table = dict[str, NDArray[Any]]
Write = Callable[[Table], None]


def export_trials(store: "Store", name: str, path: Path) -> int:
    """Write the campaign *name* to *path*, by its suffix as ``.parquet`` or ``.csv``; return the number of rows.

    There is one row per fault, in order, with the columns of :func:`flat`: the faults of one trial share its number
    and its outcome. The file appears when it is complete. Raises :class:`StoreError` for another suffix, a place that
    cannot be written to, or Parquet without pyarrow.
    """
    writers = {".parquet": _parquet, ".csv": _csv}
    if path.suffix.lower() not in writers:
        raise StoreError(f"an export is a .parquet or a .csv file, got '{path.name}'; change its ending")
    space = store.campaign(name).space
    part = path.with_name(f"{path.name}.part")
    rows = 0
    try:
        with writers[path.suffix.lower()](part) as write:
            for batch in _at_least_one(store.batches(name)):
                table = flat(space, batch)
                rows += len(table["trial"])
                write(table)
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"the export {path} cannot be written ({reason}); choose another place") from None
    finally:
        part.unlink(missing_ok=True)
    return rows


def flat(space: FaultSpace, batch: Batch) -> Table:
    """Return one row per fault: trial, site, kind, layer, element, bit, channel, input, weight, stratum and outcome.

    *channel* is -1 in sites without channels and *input* -1 where the whole data set was run. Only there do the columns
    *value* (the drop of the metric) and *metric* appear. Where sites have time steps there is a column *step*, -1 in
    the others, and *element* counts within the step.
    """
    columns = batch.columns
    owner, where = columns.owner, space.locate(columns.faults)
    sites = space.sites
    table: Table = {
        "trial": owner + batch.first,
        "site": np.array([visible(site.name) for site in sites])[where.site],
        "kind": np.array([site.kind for site in sites])[where.site],
        "layer": np.array([visible(site.module) for site in sites])[where.site],
        "element": where.element,
        "bit": where.bit,
        "channel": space.channels(where),
        "input": columns.inputs[owner],
        "weight": np.ones(len(owner)) if columns.weights is None else columns.weights[owner],
        "stratum": np.zeros(len(owner), dtype=np.int32) if columns.strata is None else columns.strata[owner],
        "failed": columns.failed[owner],
        "due": columns.due[owner],
    }
    if any(site.steps for site in sites):
        table |= dict(zip(("step", "element"), space.steps(where), strict=True))
    if columns.values is not None and columns.metric is not None:
        table |= {"value": columns.values[owner], "metric": columns.metric[owner]}
    return table


def _at_least_one(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield an empty batch where there is none, so that the file has its columns all the same."""
    first = next(batches, None)
    yield first or Batch(0, Columns.empty(), 0.0)
    yield from batches


@contextmanager
def _csv(path: Path) -> Iterator[Write]:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")

        def write(table: Table) -> None:
            if not file.tell():
                writer.writerow(table)
            lists = [(c.astype(np.uint8) if c.dtype == np.bool_ else c).tolist() for c in table.values()]
            writer.writerows(zip(*lists, strict=True))

        yield write


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise StoreError(
            'Parquet needs pyarrow, which is not installed; pip install "torchfault[analytics]", or choose .csv'
        ) from None
    writer: Any = None

    def write(table: Table) -> None:
        nonlocal writer
        rows = arrow.table(table)
        if writer is None:
            writer = parquet.ParquetWriter(path, rows.schema, compression="zstd")
        writer.write_table(rows)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
