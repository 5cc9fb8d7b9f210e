"""A campaign as a flat file: Parquet or CSV, one row per fault, batch by batch in bounded memory."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.errors import StoreError, did_you_mean
from torchfault.files import check_target, written
from torchfault.results.plausibility import sound_batches
from torchfault.space import FaultSpace
from torchfault.store import Batch, Columns, Record, Store
from torchfault.text import visible

__all__ = ["export_trials", "flat"]

Table = dict[str, NDArray[Any]]
Write = Callable[[Table], None]


def export_trials(store: Store, name: str, path: Path, *, only: str | None = None, force: bool = False) -> int:
    """Write the campaign *name* to *path*, by its suffix as ``.parquet`` or ``.csv``; return the number of rows.

    There is one row per fault, in order, with the columns of :func:`flat`: the faults of one trial share its number
    and its outcome. *only* leaves out all trials but those with a flag, such as ``failed``. The file appears when it is
    complete. Raises :class:`StoreError` for another suffix, a flag that was not recorded, a place that cannot be
    written to, a file that exists, unless *force*, and Parquet without pyarrow.
    """
    writers = {".parquet": _parquet, ".csv": _csv}
    if path.suffix.lower() not in writers:
        raise StoreError(f"an export is a .parquet or a .csv file, got '{path.name}'; change its ending")
    if why := check_target(path, force=force):
        raise StoreError(f"the file '{path}' {why}")
    (record, space, batches), rows = sound_batches(store, name), 0
    if only is not None and only not in (known := _flags(record)):
        raise StoreError(f"'{name}' recorded {', '.join(known)}, got '{only}'{did_you_mean(only, known)}")
    try:
        with written(path, force=force) as part, writers[path.suffix.lower()](part) as write:
            for batch in _at_least_one(batches):
                table = flat(space, batch, record)
                if only is not None:
                    table = {key: column[table[only].astype(bool)] for key, column in table.items()}
                rows += len(table["trial"])
                write(table)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"the export {path} cannot be written ({reason}); choose another place") from None
    return rows


def flat(space: Space, batch: Batch, record: Record) -> Table:
    """Return one row per fault: trial, where it struck, input, weight, stratum, and what came of it.

    Where it struck is told by the columns of the space (:meth:`torchfault.cells.Space.columns`). *input* is -1 where
    the whole data set was run; only there do the columns *value* (the drop of the metric) and *metric* appear. Outcomes
    are ``failed``, ``due``, ``crash``, the campaign's further verdicts, and how they came to be known where some were
    not seen. Where every lane was looked at there are the *golden_class* and the *faulty_class* (-1: no answer) of
    criteria by class, and the *change*: the largest difference of any output; with a monitor the *last_changed* site,
    ``output`` where the outputs differ and empty where no site did.
    """
    columns = batch.columns
    trial, owner = columns.owner, columns.owner
    if columns.unit == "word":
        assert isinstance(space, FaultSpace)
        trial, faults, bit = space.flips(columns.faults)
        columns = columns.flips(trial, faults, bit)
        owner = columns.owner
    table: Table = {"trial": trial + batch.first}
    table |= {key: _text(values) for key, values in space.columns(columns.faults).items()}
    table |= {"input": columns.inputs[owner], "weight": columns.weight[owner], "stratum": columns.stratum[owner]}
    table |= {flag: columns.flag(flag)[owner] for flag in _flags(record)}
    answers = record.golden.get("answers")
    if columns.answers is not None and answers is not None:
        table |= {"golden_class": np.array(answers)[columns.inputs[owner]], "faulty_class": columns.answers[owner]}
    table |= {} if columns.changes is None else {"change": columns.changes[owner]}
    if columns.reach is not None:
        names = _text(np.array([*record.golden["monitored"], "output", ""]))
        table |= {"last_changed": names[columns.reach[owner]]}
    if columns.values is not None and columns.metric is not None:
        table |= {"value": columns.values[owner], "metric": columns.metric[owner]}
    return table


def _flags(record: Record) -> list[str]:
    """Return the outcomes of a campaign that an export shows."""
    known = ["vouched", "audited", "refuted"] if record.configuration.get("assumption") else []
    return ["failed", "due", "crash", *record.configuration.get("verdicts", {}), *known]


def _text(values: NDArray[Any]) -> NDArray[Any]:
    """Return names with what does not print written out; other columns as they are."""
    return np.array([visible(value) for value in values.tolist()]) if values.dtype.kind in "UO" else values


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
