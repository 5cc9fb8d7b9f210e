"""The pack as a spreadsheet: rows for an FMEDA, totals, assumptions and traces, as numbers to reckon with."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchfault.text import visible

__all__ = ["COLUMNS", "fmeda_rows", "write_sheets"]

COLUMNS = (
    ("campaign", "the campaign that the trials are of"),
    ("element", "the site (tensor) or type of flip-flop that faults strike"),
    ("kind", "weight, bias, input, output, ..., or what flip-flops hold"),
    ("bits", "bits (or flip-flops) of the element"),
    ("trials", "trials that struck it"),
    ("failure mode", "SDC: a wrong answer without notice; DUE: no answer (NaN, infinity, exception)"),
    ("mode fraction", "estimated fraction of faults in the element with this failure mode"),
    ("mode upper", "its one-sided upper bound"),
    ("safe fraction", "fraction of faults without any failure"),
    ("safe lower", "its one-sided lower bound"),
    ("diagnostic coverage", "fraction of the failing faults that the detector tells; empty: no detector was named"),
    ("coverage lower", "its one-sided lower bound"),
    ("raw FIT", "raw rate of the element, failures in 10^9 hours; empty: no raw rate was given"),
    ("mode FIT", "raw FIT x mode fraction"),
    ("mode FIT upper", "raw FIT x mode upper"),
    ("residual FIT", "raw FIT x fraction of faults that fail undetected (single-point without a detector)"),
    ("residual FIT upper", "its one-sided upper bound"),
    ("failed trials SHA-256", "digest of the numbers of the failing trials, see trace"),
)


def fmeda_rows(held: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yield one row for each failure mode of each element, in the order of :data:`COLUMNS`."""
    for campaign in held["campaigns"]:
        for one in campaign["elements"]:
            coverage, residual = one["diagnostic_coverage"] or {}, one["residual_fit"] or {}
            for mode in one["failure_modes"]:
                fit = mode["fit"] or {}
                yield [
                    campaign["name"],
                    one["element"],
                    one["kind"],
                    one["bits"],
                    one["trials"],
                    mode["mode"],
                    mode["fraction"]["value"],
                    mode["fraction"]["upper"],
                    one["safe_fraction"]["value"],
                    one["safe_fraction"]["lower"],
                    coverage.get("value"),
                    coverage.get("lower"),
                    one["raw_fit"],
                    fit.get("value"),
                    fit.get("upper"),
                    residual.get("value"),
                    residual.get("upper"),
                    one["failed_sha256"],
                ]


def write_sheets(held: Mapping[str, Any], path: Path) -> None:
    """Write the spreadsheet to *path*; openpyxl has to be there."""
    from openpyxl import Workbook

    book = Workbook(write_only=False)
    for sheet in book.worksheets:
        book.remove(sheet)
    asked = held["asked"]
    about = [["claim", held["claim"]], ["schema", held["schema"]], ["torchfault", held["torchfault"]]]
    about += [["confidence of bounds", asked["confidence"]], ["detector", asked["detector"] or "none"]]
    about += [[f"raw FIT per Mbit of {one['of']}", one["fit_per_mbit"]] for one in asked["rates"]]
    _sheet(book, "About", ["what", "value"], about, widths=(34, 110))
    _sheet(book, "FMEDA", [name for name, _ in COLUMNS], list(fmeda_rows(held)))
    _sheet(book, "Totals", ["campaign", "quantity", "value", "lower", "upper"], list(_totals(held)), widths=(24, 34))
    sentences = [[one["name"], text] for one in held["campaigns"] for text in one["assumptions"]]
    _sheet(book, "Assumptions", ["campaign", "assumption"], sentences, widths=(24, 140))
    _sheet(book, "Trace", ["campaign", "what", "value"], list(_trace(held)), widths=(24, 24, 90))
    _sheet(book, "Columns", ["column", "meaning"], [list(pair) for pair in COLUMNS], widths=(26, 110))
    book.save(path)


def _totals(held: Mapping[str, Any]) -> Iterator[list[Any]]:
    for campaign in held["campaigns"]:
        for name, value in (campaign["totals"] or {}).items():
            if isinstance(value, Mapping):
                yield [campaign["name"], name, value["value"], value["lower"], value["upper"]]
            elif value is not None:
                yield [campaign["name"], name, value, None, None]


def _trace(held: Mapping[str, Any]) -> Iterator[list[Any]]:
    for campaign in held["campaigns"]:
        for name, value in campaign["trace"].items():
            if isinstance(value, Mapping):
                yield from ([campaign["name"], f"{name}.{key}", str(inner)] for key, inner in value.items())
            else:
                yield [campaign["name"], name, str(value) if isinstance(value, int) and abs(value) > 2**53 else value]


def _sheet(
    book: Any, title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], *, widths: Sequence[int] = ()
) -> None:
    """Add a sheet; text stays text, also where it begins as a formula would."""
    from openpyxl.styles import Alignment, Font
    from openpyxl.utils import get_column_letter

    sheet = book.create_sheet(title)
    for at, line in enumerate([heads, *rows], start=1):
        for column, value in enumerate(line, start=1):
            cell = sheet.cell(at, column)
            if isinstance(value, str):
                cell.value, cell.data_type = visible(value), "s"
                cell.alignment = Alignment(wrap_text=at > 1 and bool(widths), vertical="top")
            else:
                cell.value = value
            if at == 1:
                cell.font = Font(bold=True)
    for column in range(1, len(heads) + 1):
        width = widths[column - 1] if column <= len(widths) else 18
        sheet.column_dimensions[get_column_letter(column)].width = width
    sheet.freeze_panes = "A2"
