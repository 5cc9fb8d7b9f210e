"""Tables for machines: data frames as CSV, JSON or Markdown on standard output, in full."""

import sys
from typing import TYPE_CHECKING

from torchfault.errors import ConfigError, did_you_mean
from torchfault.text import visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "check_format", "print_frame"]

FORMATS = ("table", "markdown", "csv", "json")


def check_format(form: str) -> None:
    """Raise :class:`ConfigError` unless *form* is one of the formats."""
    if form not in FORMATS:
        raise ConfigError(f"--format: expected {', '.join(FORMATS)}, got '{form}'{did_you_mean(form, FORMATS)}")


def print_frame(frame: "pd.DataFrame", form: str) -> None:
    """Write a data frame to standard output; what does not print in its texts is written out."""
    plain = frame.map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
    if form == "csv":
        sys.stdout.write(plain.to_csv(index=False, lineterminator="\n"))
    elif form == "json":
        sys.stdout.write(plain.to_json(orient="records", indent=2, double_precision=15) + "\n")
    else:
        lines = [list(plain.columns), ["---"] * len(plain.columns)]
        lines += [[_cell(cell) for cell in row] for row in plain.itertuples(index=False)]
        sys.stdout.write("".join(f"| {' | '.join(line)} |\n" for line in lines))


def _cell(cell: object) -> str:
    if cell is None or cell != cell:
        return ""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell).replace("\\", "\\\\").replace("|", "\\|")
