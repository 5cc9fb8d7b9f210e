"""What samplers are worth: coverage of their intervals, what answers cost, and what else stands in SECTIONS, as JSON.

Sections live in files of their own, ``samplers_*.py``; each is a function from a size to its part of the figures: a
minute (``--quick``), some minutes, or what the documents print (``--full``).
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "2")

from benchmarks.samplers_coverage import coverage
from benchmarks.samplers_economy import economy
from benchmarks.samplers_precision import precision
from benchmarks.samplers_record import record
from benchmarks.sections import Size, add_sizes

SECTIONS: dict[str, Callable[[Size], Mapping[str, Any]]] = {
    "coverage": coverage,
    "economy": economy,
    "precision": precision,
    "record": record,
}


def show(name: str, figures: Any, indent: int = 0) -> None:
    """Print nested figures, one line a number."""
    if isinstance(figures, Mapping):
        print(f"{'  ' * indent}{name}")
        for key, inner in figures.items():
            show(str(key), inner, indent + 1)
    else:
        print(f"{'  ' * indent}{name}: {figures:.4g}")


def main() -> None:
    """Run the sections asked for, and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all unless told")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_sizes(parser)
    options = parser.parse_args()
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"a section is {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    found: dict[str, Any] = {}
    for name in options.sections or SECTIONS:
        found.update(SECTIONS[name](options.size))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for key, figures in found.items():
            show(key, figures)


if __name__ == "__main__":
    main()
