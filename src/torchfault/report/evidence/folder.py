"""The folder of a pack: evidence.json, its schema, the spreadsheet, and a manifest of their digests."""

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from torchfault.errors import StoreError
from torchfault.files import unreadable
from torchfault.report.evidence.sheets import write_sheets

__all__ = ["MANIFEST", "PACK", "SHEETS", "digests", "read_pack", "schema", "write_folder"]

PACK, SCHEMA_FILE, SHEETS, MANIFEST = "evidence.json", "evidence.schema.json", "evidence.xlsx", "SHA256SUMS"


def write_folder(held: Mapping[str, Any], folder: Path, *, force: bool) -> list[Path]:
    """Write the pack *held* into *folder*, which is made, and return the files.

    Without openpyxl (extra ``evidence``) there is no spreadsheet. Raises :class:`StoreError` for a folder that holds
    something, unless *force*.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"'{folder}' is no folder; choose another place")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise StoreError(f"the folder '{folder}' holds something; choose another, or write over it with --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PACK).write_text(json.dumps(held, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / SCHEMA_FILE).write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
        written = [folder / PACK, folder / SCHEMA_FILE]
        if write_sheets(held, folder / SHEETS):
            written.append(folder / SHEETS)
        lines = [f"{digest}  {name}\n" for name, digest in digests(folder, [path.name for path in written]).items()]
        (folder / MANIFEST).write_text("".join(lines), encoding="ascii")
    except OSError as error:
        raise StoreError(f"'{folder}' cannot be written to ({error.strerror}); choose another place") from None
    return [*written, folder / MANIFEST]


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of packs of this version.

    >>> schema()["properties"]["schema"]["const"]
    'torchfault-evidence/1'
    """
    held: dict[str, Any] = json.loads((files("torchfault.report.evidence") / "schema.json").read_text(encoding="utf-8"))
    return held


def digests(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of files in *folder*, by name."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def read_pack(folder: Path) -> dict[str, Any]:
    """Return the pack in *folder*, or raise :class:`StoreError`."""
    if why := unreadable(folder / PACK):
        raise StoreError(f"the evidence '{folder / PACK}' {why}; name a folder that torchfault evidence wrote")
    try:
        held = json.loads((folder / PACK).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"'{folder / PACK}' is no JSON ({error}); write the pack anew") from None
    if not isinstance(held, dict):
        raise StoreError(f"'{folder / PACK}' holds a {type(held).__name__}, expected an object; write the pack anew")
    return held
