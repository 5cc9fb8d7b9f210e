"""The folder of a pack: evidence.json, its schema, the spreadsheet, and a manifest of their digests."""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torchfault.errors import StoreError
from torchfault.files import unreadable, written
from torchfault.report.evidence.sheets import write_sheets

__all__ = ["MANIFEST", "PACK", "SHEETS", "check_place", "digests", "read_pack", "schema", "write_folder"]

PACK, SCHEMA_FILE, SHEETS, MANIFEST = "evidence.json", "evidence.schema.json", "evidence.xlsx", "SHA256SUMS"


def check_place(folder: Path, *, force: bool) -> None:
    """Raise :class:`StoreError` where no pack can be written into *folder*: one that holds something is for *force*."""
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            raise StoreError(f"'{folder}' is no folder; choose another place")
        if folder.exists() and any(folder.iterdir()) and not force:
            raise StoreError(f"the folder '{folder}' holds something; choose another, or write over it with --force")
    except (OSError, ValueError) as error:
        raise _unwritable(folder, error) from None


def write_folder(held: Mapping[str, Any], folder: Path, *, force: bool) -> list[Path]:
    """Write the pack *held* into *folder*, which is made, and return the files; no link that lies there is followed.

    Without openpyxl (extra ``evidence``) there is no spreadsheet. Raises :class:`StoreError` by :func:`check_place`.
    """
    check_place(folder, force=force)
    texts = {name: json.dumps(of, indent=1, allow_nan=False) for name, of in ((PACK, held), (SCHEMA_FILE, schema()))}
    names = list(texts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with written(folder / name, force=force) as part:
                part.write_text(text + "\n", encoding="utf-8")
        if find_spec("openpyxl") is not None:
            with written(folder / SHEETS, force=force) as part:
                write_sheets(held, part)
            names.append(SHEETS)
        lines = [f"{digest}  {name}\n" for name, digest in digests(folder, names).items()]
        with written(folder / MANIFEST, force=force) as part:
            part.write_text("".join(lines), encoding="ascii")
    except OSError as error:
        raise _unwritable(folder, error) from None
    return [folder / name for name in (*names, MANIFEST)]


def _unwritable(folder: Path, error: OSError | ValueError) -> StoreError:
    why = getattr(error, "strerror", None) or "no such name"
    return StoreError(f"'{folder}' cannot be written to ({why}); choose another place")


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
