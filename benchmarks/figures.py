"""Figures of the documents: measured by the benchmarks, kept with date, commit and machine, written into the tables.

``python -m benchmarks.figures measure resiliency`` runs a benchmark, keeps what it prints in docs/figures, and
writes its table anew; ``python -m benchmarks.figures write`` writes all tables from what is kept. A table stands in
its document between ``<!-- figure NAME -->`` and ``<!-- end of figure -->``, and a test holds it to the JSON.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "figures"


@dataclass(frozen=True)
class Figure:
    """A table of a *document*, made of what the *command* prints: JSON, which *table* turns into lines of Markdown."""

    document: str
    command: tuple[str, ...]
    table: Callable[[Mapping[str, Any]], list[str]]


def percent(one: Mapping[str, float]) -> str:
    """Return an estimate with its bounds, or alone where these are the same.

    >>> percent({"value": 0.5, "low": 0.5, "high": 0.5}), percent({"value": 0.5, "low": 0.25, "high": 0.75})
    ('50.0 %', '50.00 % [25.00, 75.00]')
    """
    if one["low"] == one["high"]:
        return f"{100 * one['value']:.1f} %"
    return f"{100 * one['value']:.2f} % [{100 * one['low']:.2f}, {100 * one['high']:.2f}]"


def accelerators(found: Mapping[str, Any]) -> list[str]:
    """Return what every accelerator makes of two networks."""
    lines = ["| network | accelerator | SA | RA | RA_SW |", "|---|---|---|---|---|"]
    named = {"resnet20": "ResNet-20", "resnet32": "ResNet-32"}
    for name, chips in found["ra"].items():
        for chip, ra in chips.items():
            cells = [percent(found["sa"][name][chip]), percent(ra), percent(found["ra_sw"][name][chip])]
            lines.append(f"| {named[name]} | `{chip}` | {' | '.join(cells)} |")
    return lines


def economy(found: Mapping[str, Any]) -> list[str]:
    """Return the lanes of every method for every width, and by how much these are fewer than layer-wise ones."""
    lines = [
        "| | every layer within 1 point | within 0.25 points | the model within 0.05 points |",
        "|---|---|---|---|",
    ]
    lanes, widths = found["lanes"], ("layer_1.0", "layer_0.25", "model_0.05")
    for method in lanes[widths[0]]:
        counts = [lanes[width][method] for width in widths]
        plain = [lanes[width]["layer-wise"] for width in widths]
        cells = [
            f"{count:,}" if count >= most else f"{count:,} ({most / count:.1f})"
            for count, most in zip(counts, plain, strict=True)
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


FIGURES: Mapping[str, Figure] = {
    "resiliency": Figure(
        "docs/hardware.md",
        ("benchmarks/resiliency.py", "--json", "--only", "accuracies", "--threads", "1"),
        accelerators,
    ),
    "economy": Figure("docs/economy.md", ("benchmarks/samplers_economy.py", "--json"), economy),
}


def machine() -> dict[str, Any]:
    """Return on what figures are measured."""
    model = platform.processor() or platform.machine()
    if (known := Path("/proc/cpuinfo")).is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", known.read_text(), re.MULTILINE)
        model = found[1] if found else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit that is measured."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def kept(name: str) -> dict[str, Any] | None:
    """Return what is kept of a figure, ``None`` where it has not been measured yet."""
    file = KEPT / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def keep(name: str, found: Mapping[str, Any]) -> None:
    """Keep what a benchmark has *found*, with where and when."""
    import torch

    held = {
        "command": " ".join(("python", *FIGURES[name].command)),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": {**machine(), "torch": torch.__version__},
        "found": found,
    }
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


def block(name: str, held: Mapping[str, Any]) -> str:
    """Return a figure as it stands in its document."""
    on = held["machine"]
    stamp = (
        f"*Measured {held['date']} at commit {held['commit'][:7]}, {on['cores']} cores of {on['processor']}, torch "
        f"{on['torch']}: `{held['command']}`.*"
    )
    lines = [f"<!-- figure {name} -->", *FIGURES[name].table(held["found"]), "", stamp, "<!-- end of figure -->"]
    return "\n".join(lines)


def written(name: str, text: str, held: Mapping[str, Any]) -> str:
    """Return a document's *text* with a figure in its place."""
    place = re.compile(rf"<!-- figure {name} -->.*?<!-- end of figure -->", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise SystemExit(f"{FIGURES[name].document} needs one place for '<!-- figure {name} -->'")
    return place.sub(lambda _: block(name, held), text)


def write(name: str) -> bool:
    """Write a figure into its document, if it has been measured."""
    held, path = kept(name), ROOT / FIGURES[name].document
    if held is None:
        return False
    path.write_text(written(name, path.read_text(encoding="utf-8"), held), encoding="utf-8")
    return True


def main() -> None:
    """Measure figures, or write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["measure", "write"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}; all unless told")
    options = parser.parse_args()
    for name in options.names or FIGURES:
        if options.action == "measure":
            command = [sys.executable, *FIGURES[name].command]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            keep(name, json.loads(done.stdout))
        print(f"{name}: {'written' if write(name) else 'not measured yet'}")


if __name__ == "__main__":
    main()
