"""What the attacks tried and found, counted; `--reliability FILE` writes the table of it into a document."""

import datetime
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path

import pytest

BEGIN, END = "<!-- attacks: begin -->", "<!-- attacks: end -->"
KINDS = ("lost", "changed", "traceback", "nonsense")
HEADINGS = ("trials lost", "results changed", "tracebacks", "exit 0 with nonsense")


@dataclass
class Count:
    """How often an attack was tried, how often it was told in one line, and what came of it that should not have."""

    tries: int = 0
    told: int = 0
    lost: int = 0
    changed: int = 0
    traceback: int = 0
    nonsense: int = 0


@dataclass
class Found:
    """What one try of an attack found."""

    attack: str
    count: Count = field(default_factory=lambda: Count(tries=1))
    words: list[str] = field(default_factory=list)

    def noticed(self, noticed: bool = True) -> None:
        """Note whether the attack was told of, in one line."""
        self.count.told += noticed

    def lost(self, lost: bool = True) -> None:
        """Note whether trials were lost that a store had held."""
        self.count.lost += bool(lost)

    def changed(self, changed: bool = True) -> None:
        """Note whether the results are others."""
        self.count.changed += bool(changed)

    def said(self, status: int, err: str, *, nonsense: bool = False, what: object = "") -> None:
        """Note what a command said: its exit status and its standard error; *what* it was is shown where it fails."""
        self.words.append(f"{what}: {status} {err[-2000:]}")
        self.count.traceback += "Traceback" in err or "this is a bug" in err or status not in (0, 2, 130)
        self.count.nonsense += nonsense
        self.count.told += status != 0 and "Traceback" not in err


COUNTS = pytest.StashKey[dict[str, Count]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the document."""
    parser.addoption("--reliability", metavar="FILE", help="write the table of attacks into this document")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.stash[COUNTS] = {}


@pytest.fixture
def tried(request: pytest.FixtureRequest):
    """Return what counts one try of an attack, and fails where it was not withstood."""

    @contextmanager
    def attempt(attack: str) -> Iterator[Found]:
        found = Found(attack)
        yield found
        count = request.config.stash[COUNTS].setdefault(attack, Count())
        for name, value in asdict(found.count).items():
            setattr(count, name, getattr(count, name) + value)
        assert not any(getattr(found.count, kind) for kind in KINDS), "\n".join([str(found.count), *found.words])

    return attempt


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table, where it was asked for."""
    target = session.config.getoption("--reliability")
    if target:
        write(Path(target), session.config.stash[COUNTS])


def write(document: Path, counts: dict[str, Count]) -> None:
    """Put *counts* into the table between the marks of *document*: other attacks keep what they were measured to be."""
    root = Path(__file__).parents[2]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    held, _, after = rest.partition(END)
    rows = dict(map(_row, (line for line in held.splitlines() if line.endswith("` |"))))
    rows |= {attack: (*astuple(count), f"`{commit or 'unknown'}`") for attack, count in counts.items()}
    lines = [
        f"Measured up to {datetime.date.today().isoformat()}, each at the commit named last, with Python "
        f"{platform.python_version()} on {platform.system()} with {os.cpu_count()} cores.",
        "",
        f"| attack | tries | told in one line | {' | '.join(HEADINGS)} | commit |",
        f"|{' --- |' * 8}",
        *(_line(attack, row) for attack, row in sorted(rows.items())),
        _line("all", (*map(sum, zip(*(row[:-1] for row in rows.values()), strict=True)), "")),
    ]
    document.write_text("\n".join([before + BEGIN, *lines, END + after]), encoding="utf-8")


def _row(line: str) -> tuple[str, tuple[int | str, ...]]:
    """Return the attack and the numbers of a *line* of the table, and the commit."""
    attack, *numbers, commit = (part.strip() for part in line.strip("|").split("|"))
    return attack, (*(int(number.replace(",", "")) for number in numbers), commit)


def _line(attack: str, row: tuple[int | str, ...]) -> str:
    return f"| {attack} | {' | '.join(f'{part:,}' if isinstance(part, int) else part for part in row)} |"
