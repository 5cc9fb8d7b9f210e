"""The checker: is a pack what its store says? Recomputed from the trials, compared number by number."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchfault.errors import TorchfaultError, first_line
from torchfault.report.evidence.folder import MANIFEST, PACK, SHEETS, digests, read_pack, schema
from torchfault.report.evidence.pack import SCHEMA, Asked, pack
from torchfault.report.evidence.sheets import COLUMNS, fmeda_rows
from torchfault.store import Store
from torchfault.text import visible

__all__ = ["check_folder"]

_TOLERANCE = 1e-9  # relative: another SciPy may round the last digits of a bound otherwise


def check_folder(folder: Path, store: Store) -> list[str]:
    """Return in words whatever of the pack in *folder* is not what *store* says; nothing where all of it is.

    It needs the store and this package, neither the model nor torch. The schema is checked where jsonschema is
    installed, the spreadsheet where openpyxl is. Raises :class:`torchfault.errors.StoreError` for a folder without one.
    """
    held = read_pack(folder)
    if held.get("schema") != SCHEMA:
        return [f"{PACK}: schema is {held.get('schema')!r}, expected '{SCHEMA}'"]
    wrong = [*_manifest(folder), *_against_schema(held)]
    try:
        names = [one["name"] for one in held["campaigns"]]
        again = pack(store, names, _asked(held["asked"]))
    except (KeyError, TypeError, AttributeError) as error:
        return [*wrong, f"{PACK}: {type(error).__name__} at {error}; it is no pack of this version"]
    except TorchfaultError as error:
        return [*wrong, f"it cannot be recomputed: {first_line(error)}"]
    again["torchfault"] = held.get("torchfault")  # the version that wrote it
    wrong += [f"{PACK}: {difference}" for difference in _differences(held, again, "")]
    return [*wrong, *_sheets(folder, again)]


def _asked(told: Mapping[str, Any]) -> Asked:
    rates = {str(one["of"]): float(one["fit_per_mbit"]) for one in told["rates"]}
    return Asked(float(told["confidence"]), told["detector"], rates, told["flip_flops"])


def _manifest(folder: Path) -> Iterator[str]:
    """Yield which files are not those of the manifest."""
    if not (folder / MANIFEST).is_file():
        yield f"{MANIFEST} is missing"
        return
    lines = [line.split(maxsplit=1) for line in (folder / MANIFEST).read_text(encoding="utf-8").splitlines()]
    named = {line[1]: line[0] for line in lines if len(line) == 2 and Path(line[1]).name == line[1]}
    if PACK not in named:
        yield f"{MANIFEST} does not name {PACK}"
    for name, digest in named.items():
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif digests(folder, [name])[name] != digest:
            yield f"{name}: its SHA-256 is not that of {MANIFEST}"


def _against_schema(held: Mapping[str, Any]) -> Iterator[str]:
    try:
        import jsonschema
    except ModuleNotFoundError:
        return
    for error in jsonschema.Draft202012Validator(schema()).iter_errors(held):
        yield f"{PACK}: {error.json_path} does not fit the schema ({first_line(error)})"


def _differences(held: Any, again: Any, path: str) -> Iterator[str]:
    """Yield every place at which two JSON values differ."""
    if isinstance(held, Mapping) and isinstance(again, Mapping):
        for key in (*again, *(one for one in held if one not in again)):
            here = f"{path}.{key}".lstrip(".")
            if key in held and key in again:
                yield from _differences(held[key], again[key], here)
            else:
                yield f"{here} is {'missing' if key in again else 'not of this pack'}"
    elif isinstance(held, list) and isinstance(again, list):
        if len(held) != len(again):
            yield f"{path} has {len(held)} entries, expected {len(again)}"
        for at, (one, other) in enumerate(zip(held, again, strict=False)):
            named = other.get("element") or other.get("name") if isinstance(other, Mapping) else None
            yield from _differences(one, other, f"{path}[{at if named is None else visible(named)}]")
    elif not _same(held, again):
        yield f"{path} is {visible(held)}, the store says {visible(again)}"


def _same(one: Any, other: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    if numbers and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-15)
    return type(one) is type(other) and bool(one == other)


def _sheets(folder: Path, again: Mapping[str, Any]) -> Iterator[str]:
    """Yield which cells of the FMEDA sheet are not the numbers of the store."""
    if not (folder / SHEETS).is_file():
        return
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError:
        return
    try:
        book = load_workbook(folder / SHEETS)
        cells = [list(row) for row in book["FMEDA"].iter_rows(values_only=True)]
    except Exception as error:  # a file that is no spreadsheet fails in as many ways as there are
        yield f"{SHEETS} cannot be read ({first_line(error)})"
        return
    expected = [[visible(cell) if isinstance(cell, str) else cell for cell in row] for row in fmeda_rows(again)]
    expected.insert(0, [name for name, _ in COLUMNS])
    if len(cells) != len(expected):
        yield f"{SHEETS}: FMEDA has {len(cells)} rows, expected {len(expected)}"
    for at, (row, right) in enumerate(zip(cells, expected, strict=False), start=1):
        for (name, _), one, other in zip(COLUMNS, row, right, strict=False):
            if not _same(one, other) and not (isinstance(one, int | float) and _same(float(one), other)):
                yield f"{SHEETS}: FMEDA row {at}, {name} is {visible(one)}, the store says {visible(other)}"
