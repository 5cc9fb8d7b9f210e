"""What `--json` prints: one object on standard output, with the keys that docs/command-line.md tells."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torchfault
from torchfault.cli.screen import result_stream

if TYPE_CHECKING:
    import pandas as pd

    from torchfault.results import Results
    from torchfault.statistics import Estimate
    from torchfault.store import Record

__all__ = ["campaign_told", "estimate_told", "print_object", "rows_of"]


def print_object(kind: str, told: Mapping[str, Any]) -> None:
    """Print an object of a *kind* as JSON (RFC 8259): NaN and infinity become null, text is ASCII by escapes."""
    whole = {"kind": kind, "torchfault": torchfault.__version__, **told}
    result_stream().write(json.dumps(_finite(whole), indent=2, allow_nan=False) + "\n")


def rows_of(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return the rows of a data frame, shares as fractions."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows


def campaign_told(record: "Record") -> dict[str, Any]:
    """Return the facts of a campaign that stand in its row of the store."""
    settings = record.configuration.get("settings") or {}
    names = ("name", "status", "reason", "trials", "inputs", "faults", "seconds", "seed", "created", "model", "data")
    return {"recipe": settings.get("recipe"), **{name: getattr(record, name) for name in names}}


def estimate_told(results: "Results", flag: str, *, level: float, method: str) -> dict[str, Any] | None:
    """Return the estimate of the whole campaign, ``None`` before its first trial."""
    if not len(results):
        return None
    found: Estimate = results.estimate(flag, level=level, method=method)
    return {"flag": flag, **asdict(found)}


def _finite(value: Any) -> Any:
    """Return *value* without NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))) else value
