"""What the attacks tried and found, counted; `--reliability FILE` writes the table of it into a document."""

import datetime
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
    """Put the table of *counts* between the marks of *document*."""
    root = Path(__file__).parents[2]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    head = f"| attack | tries | told in one line | {' | '.join(HEADINGS)} |"
    rows = [
        f"| {attack} | {count.tries:,} | {count.told:,} | {' | '.join(str(getattr(count, kind)) for kind in KINDS)} |"
        for attack, count in sorted(counts.items())
    ]
    total = {name: sum(getattr(count, name) for count in counts.values()) for name in asdict(Count())}
    rows.append(f"| all | {total['tries']:,} | {total['told']:,} | {' | '.join(str(total[kind]) for kind in KINDS)} |")
    made = (
        f"Measured on {datetime.date.today().isoformat()} at commit {commit or 'unknown'}, Python "
        f"{platform.python_version()}, {platform.system()}, {os.cpu_count()} cores."
    )
    table = "\n".join([BEGIN, made, "", head, f"|{' --- |' * 7}", *rows, END])
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    document.write_text(before + table + rest.partition(END)[2], encoding="utf-8")
