"""What the user sees: two consoles, aligned facts, numbers as people write them, tables without lines."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["count", "duration", "facts", "print_table", "share", "simple_table", "stderr", "stdout"]

_PIPED_WIDTH = 160  # of what is not a terminal: wide enough for every table as it is


def stdout() -> Console:
    """Return the console of results: what a pipe or a file should get."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Return the console of everything else: facts, progress, errors."""
    return _console(sys.stderr)


def _console(stream: object) -> Console:
    console = Console(file=stream, highlight=False, soft_wrap=True)  # type: ignore[arg-type]
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


def facts(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and what they are, one to a line, aligned."""
    rows = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        console.print(Text(f"  {name:<{width}}  ", style="dim") + Text(value))


def count(number: int) -> str:
    """Return a whole number with its thousands apart, and very large ones in powers of ten.

    >>> count(20000), count(3 * 10**13)
    ('20,000', '3.00e+13')
    """
    return f"{number:,}" if abs(number) < 10**12 else f"{number:.2e}"


def duration(seconds: float) -> str:
    """Return a time in the two largest units that matter.

    >>> duration(4.26), duration(75), duration(7260)
    ('4.3 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def share(value: float, digits: int = 2) -> str:
    """Return a fraction in percent, without the sign.

    >>> share(0.0152), share(float("nan"))
    ('1.52', '-')
    """
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f}"


def print_table(console: Console, table: "Table") -> None:
    """Print a table in full: a narrow terminal may break its lines, but no figure is ever cut short."""
    width, natural = console.width, console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.width = max(natural, width)
    console.print(table, crop=False)
    console.width = width


def simple_table(columns: Mapping[str, str], rows: Iterable[Sequence[str]], *, title: str = "") -> "Table":
    """Return a table without lines; *columns* gives each heading its alignment, ``left`` or ``right``."""
    from rich.box import Box
    from rich.table import Table

    rule = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
    table = Table(
        box=rule,
        show_edge=False,
        title=title or None,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.border_style = table.header_style = "dim"
    for heading, alignment in columns.items():
        table.add_column(heading, justify="right" if alignment == "right" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
