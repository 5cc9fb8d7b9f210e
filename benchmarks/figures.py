"""Figures of the documents: measured by the benchmarks, kept with date, commit and machine, written into the tables.

``python -m benchmarks.figures measure resiliency`` runs a section of benchmarks/sections.py in full, keeps what it
prints in docs/figures, and writes its table anew; ``python -m benchmarks.figures write`` writes all tables from what is
kept. A table stands in its document between ``<!-- figure NAME -->`` and ``<!-- end of figure -->``, and a test holds
it to the JSON.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import factor_rows, format_rows, rows, training_rows
from benchmarks.sections import ROOT, measured

KEPT = ROOT / "docs" / "figures"


@dataclass(frozen=True)
class Figure:
    """A table of a *document*: lines of Markdown that *table* makes of what a section found."""

    section: str
    document: str
    table: Callable[[Mapping[str, Any]], list[str]]


FIGURES: Mapping[str, Figure] = {
    "engine": Figure("engine", "README.md", rows.engine),
    "coverage": Figure("coverage", "docs/sampling.md", rows.coverage),
    "resolvers": Figure("coverage", "docs/sampling.md", rows.resolvers),
    "economy": Figure("economy", "docs/economy.md", rows.economy),
    "certify": Figure("certify", "docs/economy.md", rows.certify),
    "truth": Figure("truth", "docs/sampling.md", rows.truth),
    "precision": Figure("precision", "docs/importance.md", rows.precision),
    "record": Figure("record", "docs/economy.md", rows.record),
    "resiliency": Figure("resiliency", "docs/hardware.md", rows.accelerators),
    "networks": Figure("networks", "docs/engine.md", rows.networks),
    "upset_costs": Figure("upset_costs", "docs/hardware.md", rows.upset_costs),
    "estimators": Figure("estimators", "docs/hardware.md", rows.estimators),
    "closure": Figure("vulnerability", "docs/vulnerability.md", factor_rows.closure),
    "factors": Figure("vulnerability", "docs/vulnerability.md", factor_rows.factors),
    "factor_costs": Figure("vulnerability", "docs/vulnerability.md", factor_rows.factor_costs),
    "shares": Figure("vulnerability", "docs/vulnerability.md", factor_rows.shares),
    "refinements": Figure("vulnerability", "docs/vulnerability.md", factor_rows.refinements),
    "stability": Figure("vulnerability", "docs/vulnerability.md", factor_rows.stability),
    "representations": Figure("representations", "docs/representations.md", rows.representations),
    "formats": Figure("formats", "docs/representations.md", format_rows.formats),
    "format_bits": Figure("formats", "docs/representations.md", format_rows.format_bits),
    "scaling": Figure("scaling", "docs/scale-out.md", rows.scaling),
    "hardening_resnet20": Figure("hardening_resnet20", "docs/hardening.md", rows.hardening),
    "hardening_int8": Figure("hardening_int8", "docs/hardening.md", rows.hardening),
    "hardening_spiking": Figure("hardening_spiking", "docs/hardening.md", rows.hardening),
    "hardening_digits": Figure("hardening_digits", "docs/hardening.md", rows.hardening),
    "protection": Figure("protection", "docs/hardening.md", rows.hardening),
    "checksums": Figure("checksums", "docs/hardening.md", rows.checksums),
    "drops": Figure("training", "docs/fault-aware-training.md", training_rows.drops),
    "trained": Figure("training", "docs/fault-aware-training.md", training_rows.trained),
    "architectures": Figure("architectures", "docs/architecture-search.md", training_rows.architectures),
}


def kept(section: str) -> dict[str, Any] | None:
    """Return what is kept of a section, ``None`` where it has not been measured yet."""
    file = KEPT / f"{section}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def keep(section: str, record: Mapping[str, Any]) -> None:
    """Keep the *record* of a section; refuse what belongs to no commit."""
    if record["commit"].endswith("+"):
        raise SystemExit("what is measured has been changed since the last commit; commit, then measure")
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{section}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


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
    """Write a figure into its document, if its section has been measured."""
    held, path = kept(FIGURES[name].section), ROOT / FIGURES[name].document
    if held is None:
        return False
    path.write_text(written(name, path.read_text(encoding="utf-8"), held), encoding="utf-8")
    return True


def named(names: Sequence[str]) -> list[str]:
    """Return the figures that are told by *names*, their own or their sections', all of them where none is told."""
    return [name for name, figure in FIGURES.items() if not names or {name, figure.section} & set(names)]


def main() -> None:
    """Measure sections, or write figures."""
    known = {*FIGURES, *(figure.section for figure in FIGURES.values())}
    listed = ", ".join(sorted(known))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["measure", "write", "take"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"figures or sections, of {listed}; all unless told")
    parser.add_argument("--record", type=Path, metavar="FILE", help="with take: what benchmarks/all.py --json printed")
    options = parser.parse_args()
    if unknown := set(options.names) - known:
        parser.error(f"a figure or its section is {listed}, got {', '.join(sorted(unknown))}")
    names = named(options.names)
    if (options.action == "take") != (options.record is not None):
        parser.error("take goes with --record FILE")
    held = json.loads(options.record.read_text(encoding="utf-8"))["sections"] if options.record else {}
    for section in dict.fromkeys(FIGURES[name].section for name in names):
        if options.action == "measure":
            keep(section, measured(section, "full"))
        elif section in held:
            keep(section, held[section])
    for name in names:
        print(f"{name}: {'written' if write(name) else 'not measured yet'}")


if __name__ == "__main__":
    main()
