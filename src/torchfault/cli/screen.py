"""What the user sees: two consoles, aligned facts, numbers as people write them, tables that fit the terminal.

Text that torchfault did not write (names of layers, campaigns, files) goes through :func:`torchfault.text.visible` at
this border, and is never taken for markup.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from torchfault.text import visible

__all__ = ["Column", "Table", "busy", "count", "duration", "facts", "next_steps", "note", "say", "share", "show_table"]

_PIPED_WIDTH = 160  # of what is not a terminal: wide enough for every table as it is
_SHORTEST = 12  # to which names may be cut for a narrow terminal
_LABEL = 9  # of facts: those that are told in parts stand below each other all the same


def stdout() -> Console:
    """Return the console of results: what a pipe or a file should get."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Return the console of everything else: facts, progress, errors."""
    return _console(sys.stderr)


def _console(stream: object) -> Console:
    console = Console(file=stream, highlight=False, soft_wrap=True, markup=False, emoji=False)  # type: ignore[arg-type]
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print one line of *parts*: text, or text and its style."""
    styled = [(part, "") if isinstance(part, str) else part for part in parts]
    console.print(Text.assemble(*((visible(text), style) for text, style in styled)))


def facts(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and what they are, one to a line, aligned; without those that are nothing."""
    for name, value in pairs:
        if value:
            say(console, (f"  {name:<{_LABEL}}  ", "dim"), value)


def note(console: Console, text: str, *, label: str = "note") -> None:
    """Print what a user should know."""
    say(console, (f"  {label}: {text}", "yellow"))


def next_steps(commands: Iterable[str]) -> None:
    """Say what to try next."""
    console = stderr()
    console.print()
    for place, command in enumerate(commands):
        say(console, ("  next  " if not place else "        ", "dim"), (command, "bold"))


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show that something is going on, on a terminal."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(f"{what} ...", spinner="dots"):
        yield


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
    if not math.isfinite(seconds):
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{count(whole // 3600)} h {whole % 3600 // 60} min"


def share(value: float, digits: int = 2) -> str:
    """Return a fraction in percent, without the sign.

    >>> share(0.0152), share(float("nan"))
    ('1.52', '-')
    """
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f}"


@dataclass(frozen=True)
class Column:
    """A column of a table: its *heading*, whether its text is on the *right*, and its *rank*: higher ones go first."""

    heading: str
    right: bool = False
    rank: int = 0


@dataclass(frozen=True)
class Table:
    """A table for people: *rows* of text, and *notes* that explain it; names stand in the first column."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = field(default_factory=tuple)


def show_table(console: Console, table: Table) -> None:
    """Print *table* in the width of *console*: what does not fit is left out, told below, and names are cut short.

    No figure is ever cut.
    """
    keep = [place for place, column in enumerate(table.columns)]
    gone: list[str] = []
    while _width(table, keep) > console.width and max(table.columns[place].rank for place in keep) > 0:
        worst = max(keep, key=lambda place: (table.columns[place].rank, place))
        keep.remove(worst)
        gone.insert(0, table.columns[worst].heading)
    over = _width(table, keep) - console.width
    names = max((len(visible(row[0])) for row in table.rows), default=0)
    most = names if over <= 0 else max(_SHORTEST, names - over)
    if table.title:
        say(console, (table.title, "bold"))
    _print_rows(console, table, keep, most)
    left = [heading for heading in gone if heading.strip("0123456789.- ")]
    if left:
        say(console, (f"left out for the width of the terminal: {', '.join(left)}; --format csv writes all", "dim"))
    for text in table.notes:
        say(console, (text, "dim"))


def _width(table: Table, keep: Sequence[int]) -> int:
    return sum(_widest(table, place) + 3 for place in keep) - 3


def _widest(table: Table, place: int) -> int:
    return max(len(table.columns[place].heading), *(len(visible(row[place])) for row in table.rows), 1)


def _print_rows(console: Console, table: Table, keep: Sequence[int], most: int) -> None:
    """Print the heading, a rule, and the rows, of the columns at *keep*; names take at most *most* places."""
    cells = [[visible(row[place]) for place in keep] for row in table.rows]
    for row in cells:
        row[0] = _cut(row[0], most)
    heads = [table.columns[place].heading for place in keep]
    widths = [max(len(head), *(len(row[i]) for row in cells), 1) for i, head in enumerate(heads)]

    def line(row: Sequence[str]) -> str:
        aligned = [
            f"{cell:>{width}}" if table.columns[place].right else f"{cell:<{width}}"
            for cell, width, place in zip(row, widths, keep, strict=True)
        ]
        return "   ".join(aligned).rstrip()

    console.print(Text(line(heads), style="dim"))
    console.print(Text("─" * (sum(widths) + 3 * (len(widths) - 1)), style="dim"))
    for row in cells:
        console.print(Text(line(row)))


def _cut(name: str, most: int) -> str:
    """Return a name with its middle left out where it is longer than *most*."""
    if len(name) <= most:
        return name
    begin = (most - 1) // 2
    return f"{name[:begin]}…{name[begin + 1 - most :]}"
