"""Everything that is printed: lines, aligned facts, tables, frames; what others wrote is escaped here, and only here.

Names of layers and campaigns, paths and messages of errors are anybody's text: markup, control characters and escape
sequences in them stay visible text. Nothing else in the package prints.
"""

import contextlib
import math
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from torchfault.errors import ConfigError, did_you_mean
from torchfault.text import count, duration, markdown, masked, visible

if TYPE_CHECKING:
    import pandas as pd
    from rich.live import Live

__all__ = [
    "FORMATS",
    "Column",
    "Table",
    "check_format",
    "complain",
    "count",
    "duration",
    "facts",
    "is_terminal",
    "live_line",
    "next_steps",
    "note",
    "print_frame",
    "result_stream",
    "say",
    "share",
    "show_table",
    "strays_aside",
    "told",
    "traced",
    "warned",
    "working",
]

FORMATS = ("table", "markdown", "latex", "csv", "json")
_PIPED_WIDTH = 160  # of what is not a terminal: wide enough for every table as it is
_GAP = "   "  # between columns
_SHORTEST = 12  # to which names may be cut for a narrow terminal
_LABEL = 8  # the least width of names of facts: those that are told in parts stand below each other all the same
_ENDLESS = re.compile(r"\S{400,}")  # a name in a message, shown by its ends

Piece = str | tuple[str, str]
"""Text, or text and its style."""

_results: list[TextIO] = []  # where results go while `sys.stdout` is turned aside


def result_stream() -> TextIO:
    return _results[-1] if _results else sys.stdout


def _stdout() -> Console:
    """Return the console of results: what a pipe or a file should get."""
    return _console(result_stream())


def _stderr() -> Console:
    """Return the console of everything else: facts, progress, errors."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    console = Console(file=stream, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


@contextlib.contextmanager
def strays_aside() -> Iterator[None]:
    """Keep what models and factories print in this scope out of the results: it goes to standard error."""
    _results.append(result_stream())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()


def is_terminal() -> bool:
    """Return whether somebody watches standard error as it comes."""
    return _stderr().is_terminal


def told(*pieces: Piece) -> Text:
    """Return pieces of text, some with a style, as one that prints as it is."""
    parts = [piece if isinstance(piece, tuple) else (piece, "") for piece in pieces]
    return Text.assemble(*((visible(text), style) for text, style in parts))


def say(*pieces: Piece, out: bool = False) -> None:
    """Print a line of one or more pieces, on standard error unless it is *out* with the results."""
    (_stdout() if out else _stderr()).print(told(*pieces))


def complain(label: str, message: object, *, style: str = "bold red") -> None:
    """Print one line about what went wrong, behind what was printed before."""
    result_stream().flush()
    said = masked(" ".join(str(message).split()))
    say((f"{label}:", style), " ", _ENDLESS.sub(lambda found: f"{found[0][:200]}...{found[0][-100:]}", said))


def warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line; takes the place of :func:`warnings.showwarning`."""
    del category, filename, lineno, file, line
    complain("warning", message, style="bold yellow")


def traced() -> None:
    """Print the exception at hand with its traceback."""
    for line in traceback.format_exc().splitlines():
        say(masked(line))


def facts(pairs: Iterable[tuple[str, str]], *, out: bool = False) -> None:
    """Print names and what they are, one to a line, aligned; those that are nothing are left out."""
    rows = [(visible(name), value) for name, value in pairs if value]
    across = max(_LABEL, *(len(name) for name, _ in rows), 0)
    for name, value in rows:
        say((f"  {name:<{across}}  ", "dim"), value, out=out)


def note(text: str, *, label: str = "note") -> None:
    """Print what a user should know."""
    say((f"  {label}: {' '.join(text.split())}", "yellow"))


def next_steps(commands: Iterable[str]) -> None:
    """Say what to try next."""
    say()
    for place, command in enumerate(commands):
        say(("  next  " if not place else "        ", "dim"), (command, "bold"))


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show that something is going on, on a terminal."""
    console = _stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(told(f"{what} ..."), spinner="dots"):
        yield


def live_line() -> "Live":
    """Return a line that changes as long as it is shown; update it by :func:`told`."""
    from rich.live import Live

    return Live(Text(), console=_stderr(), transient=True, auto_refresh=False)


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


def show_table(table: Table) -> None:
    """Print *table* in the width of the terminal: what does not fit is left out, told below, and names are cut short.

    No figure is ever cut.
    """
    columns, room = table.columns, _stdout().width
    head = [visible(column.heading) for column in columns]
    cells = [[visible(text) for text in row] for row in table.rows]
    widths = [max(1, *map(len, texts)) for texts in zip(head, *cells, strict=True)]
    keep, gone = list(range(len(columns))), list[str]()

    def over() -> int:
        return sum(widths[place] + len(_GAP) for place in keep) - len(_GAP) - room

    while over() > 0 and max(columns[place].rank for place in keep) > 0:
        keep.remove(worst := max(keep, key=lambda place: (columns[place].rank, place)))
        gone.insert(0, head[worst])
    if over() > 0:
        most = max(_SHORTEST, widths[0] - over())
        cells = [[_cut(row[0], most), *row[1:]] for row in cells]
        widths[0] = max(len(row[0]) for row in (head, *cells))

    def line(row: Sequence[str]) -> str:
        return _GAP.join(f"{row[i]:{'>' if columns[i].right else '<'}{widths[i]}}" for i in keep).rstrip()

    if table.title:
        say((table.title, "bold"), out=True)
    say((line(head), "dim"), out=True)
    say(("─" * (over() + room), "dim"), out=True)
    for row in cells:
        say(line(row), out=True)
    if left := [heading for heading in gone if heading.strip("0123456789.- ")]:
        say((f"left out for the width of the terminal: {', '.join(left)}; --format csv writes all", "dim"), out=True)
    for text in table.notes:
        say((text, "dim"), out=True)


def _cut(name: str, most: int) -> str:
    """Return a name with its middle left out where it is longer than *most*."""
    if len(name) <= most:
        return name
    begin = (most - 1) // 2
    return f"{name[:begin]}…{name[begin + 1 - most :]}"


def check_format(form: str, *, as_json: bool = False) -> None:
    """Raise :class:`ConfigError` unless *form* is one of the formats, and the only one where `--json` is given."""
    if as_json and form != "table":
        raise ConfigError(f"--json prints one object of everything, --format {form} one table; give one of them")
    if form not in FORMATS:
        raise ConfigError(f"--format: expected {', '.join(FORMATS)}, got '{form}'{did_you_mean(form, FORMATS)}")


def print_frame(frame: "pd.DataFrame", form: str, *, level: float = 0.95) -> None:
    """Write a data frame to standard output in full, as ``csv``, ``json``, ``markdown`` or ``latex``.

    *level* is that of its intervals.
    """
    plain = frame.map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
    plain.columns = [visible(name) for name in frame.columns]
    stream = result_stream()
    if form == "csv":
        stream.write(plain.to_csv(index=False, lineterminator="\n"))
    elif form == "json":
        stream.write(plain.to_json(orient="records", indent=2, double_precision=15) + "\n")
    elif form == "latex":
        from torchfault.report.tables import latex_table

        stream.write(latex_table(plain, level=level) + "\n")
    else:
        lines = [[_marked(name) for name in plain.columns], ["---"] * len(plain.columns)]
        lines += [[_marked(cell) for cell in row] for row in plain.itertuples(index=False)]
        stream.write("".join(f"| {' | '.join(line)} |\n" for line in lines))


def _marked(cell: object) -> str:
    """Return a cell of a Markdown table."""
    if cell != cell:
        return ""
    return f"{cell:.6g}" if isinstance(cell, float) else markdown(str(cell))
