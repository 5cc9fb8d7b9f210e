"""Every benchmark in one run and one JSON object: ``python benchmarks/all.py [--quick | --full] [--json] [NAME ...]``.

Each section takes at most ten minutes on two cores, a minute with ``--quick``; ``--full`` is what the documents print.
A section that fails is told and left out, and the others go on. ``--against COMMIT`` runs each section here and at that
commit by turns, and tells by how much each figure has moved (medians of pairs), those most moved first.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.sections import ROOT, SECTIONS, Size, add_sizes, measured

SCHEMA = 1
MOVED = 0.05  # of a figure, below which it counts as the same


def numbers(found: Any, path: str = "") -> dict[str, float]:
    """Return every number in nested figures by its path.

    >>> numbers({"a": {"b": 1.5}, "c": [2, "x", True]})
    {'a.b': 1.5, 'c.0': 2.0}
    """
    if isinstance(found, bool) or found is None:
        return {}
    if isinstance(found, int | float):
        return {path: float(found)}
    inner = found.items() if isinstance(found, Mapping) else enumerate(found) if isinstance(found, list) else ()
    held: dict[str, float] = {}
    for key, value in inner:
        held |= numbers(value, f"{path}.{key}" if path else str(key))
    return held


def moves(pairs: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """Return by path the median, over *pairs* of what was found before and now, of the ratio of the two numbers.

    >>> moves([({"a": 2.0, "b": 1}, {"a": 3.0, "b": 1}), ({"a": 2.0, "b": 0}, {"a": 5.0, "b": 1})])
    {'a': 2.0, 'b': 1.0}
    """
    ratios: dict[str, list[float]] = {}
    for before, now in pairs:
        old, new = numbers(before), numbers(now)
        for path in old.keys() & new.keys():
            if old[path] and math.isfinite(ratio := new[path] / old[path]):
                ratios.setdefault(path, []).append(ratio)
    return {path: statistics.median(ratios[path]) for path in sorted(ratios)}


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Check out a *revision* beside this one for the time of this scope."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "before"
        done = subprocess.run(
            ["git", "worktree", "add", "--detach", str(place), revision], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"--against needs a commit, got '{revision}' ({done.stderr.strip().splitlines()[-1]})")
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(place)], cwd=ROOT, check=False)


def run_all(names: Sequence[str], size: Size) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the records of sections by name, and why others have none; tell the progress on the way."""
    found, failed = dict[str, Any](), dict[str, str]()
    for number, name in enumerate(names, 1):
        _tell(f"{number} of {len(names)}  {name} ...")
        try:
            found[name] = measured(name, size)
        except (RuntimeError, ValueError) as error:
            failed[name] = str(error)
            _tell(f"{name} failed: {error}")
        else:
            _tell(f"{name}: {found[name]['seconds']:.0f} s")
    return found, failed


def compared(names: Sequence[str], size: Size, revision: str, *, pairs: int) -> dict[str, dict[str, float]]:
    """Return by section how its figures have moved since *revision*: each side first in turn."""
    found = {}
    with checkout(revision) as before:
        for name in names:
            held = []
            for turn in range(pairs):
                order = (before, ROOT) if turn % 2 == 0 else (ROOT, before)
                _tell(f"{name}, pair {turn + 1} of {pairs}")
                sides = {place: measured(name, size, root=place)["found"] for place in order}
                held.append((sides[before], sides[ROOT]))
            found[name] = moves(held)
    return found


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def table(found: Mapping[str, Any]) -> str:
    """Return the figures of all sections, one line each."""
    lines = []
    for name, record in found.items():
        lines.append(f"{name}  ({record['seconds']:g} s, {record['date']}, commit {record['commit'][:7]})")
        lines += [f"  {path:60} {value:.6g}" for path, value in numbers(record["found"]).items()]
    return "\n".join(lines)


def moved_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return what moved by more than 5 % since the other commit, the most moved first."""
    lines = []
    for name, ratios in found.items():
        moved = {path: ratio for path, ratio in ratios.items() if abs(ratio - 1) > MOVED}
        lines.append(f"{name}: {len(moved)} of {len(ratios)} figures moved by more than {MOVED:.0%}")
        ranked = sorted(moved, key=lambda path: -abs(math.log(abs(moved[path]) or 1e-9)))
        lines += [f"  {path:60} x {moved[path]:.3g}" for path in ranked]
    return "\n".join(lines)


def main() -> int:
    """Run the sections that were asked for, all of them unless named; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SECTIONS)}; all unless told")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    add_sizes(parser)
    parser.add_argument("--against", metavar="COMMIT", help="tell how the figures have moved since then")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side with --against (3)")
    options = parser.parse_args()
    if unknown := set(options.names) - SECTIONS.keys():
        parser.error(f"a section is {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    names = options.names or list(SECTIONS)
    if options.against:
        moved = compared(names, options.size, options.against, pairs=options.pairs)
        print(
            json.dumps({"schema": SCHEMA, "against": options.against, "moved": moved})
            if options.json
            else moved_table(moved)
        )
        return 0
    found, failed = run_all(names, options.size)
    record = {"schema": SCHEMA, "size": options.size, "sections": found, "failed": failed}
    print(json.dumps(record) if options.json else table(found))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
