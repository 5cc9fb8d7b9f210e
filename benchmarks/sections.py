"""The benchmarks as sections of one record: what prints each as JSON, in three sizes, and on what it was measured."""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "ROOT",
    "SECTIONS",
    "SIZES",
    "Section",
    "Size",
    "add_sizes",
    "bounds",
    "commit",
    "machine",
    "measured",
    "tell",
]

ROOT = Path(__file__).resolve().parent.parent
Size = Literal["quick", "usual", "full"]
SIZES: tuple[Size, ...] = ("quick", "usual", "full")


@dataclass(frozen=True)
class Section:
    """A benchmark that prints one JSON object: its *command*, and what is added to it for each size.

    *quick* shows within a minute that it works, *usual* takes at most ten minutes on two cores, *full* is what the
    documents print.
    """

    command: tuple[str, ...]
    quick: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()
    full: tuple[str, ...] = ()

    def words(self, size: Size) -> tuple[str, ...]:
        """Return the command for a *size*, after ``python``."""
        return (*self.command, *getattr(self, size))


_HARDENING = ("benchmarks/hardening.py", "--json")


def _samplers(name: str) -> Section:
    return Section(("benchmarks/samplers.py", name, "--json"), ("--quick",), (), ("--full",))


def _leaderboard(network: str) -> Section:
    command = (*_HARDENING, "--only", "leaderboard", "--network", network)
    return Section(command, ("--trials", "20", "--repeats", "1"), (), ("--trials", "4000"))


_ENGINE = ("benchmarks/engine.py", "--json")
_FEW = ("--lanes", "1024", "--repeats", "1", "--trials", "200")
_RESILIENCY = ("benchmarks/resiliency.py", "--json", "--threads", "1")
SECTIONS: Mapping[str, Section] = {
    "engine": Section(_ENGINE, _FEW, ("--lanes", "4096", "--repeats", "5", "--trials", "2000")),
    "coverage": _samplers("coverage"),
    "economy": _samplers("economy"),
    "precision": _samplers("precision"),
    "record": _samplers("record"),
    "resiliency": Section((*_RESILIENCY, "--only", "accuracies"), ("--faults", "512"), (), ()),
    "upset_costs": Section((*_RESILIENCY, "--only", "cost"), ("--campaigns", "1")),
    "estimators": Section(
        (*_RESILIENCY, "--only", "convergence"),
        ("--rounds", "1", "--truth", "2000", "--seeds", "2", "--repeats", "5"),
        ("--rounds", "1", "--truth", "10000", "--seeds", "5", "--repeats", "50"),
        ("--seeds", "10", "--repeats", "100"),
    ),
    "vulnerability": Section(
        ("benchmarks/vulnerability.py", "--json"),
        ("--words", "2", "--parts", "closure"),
        ("--words", "4", "--parts", "closure", "accuracy"),
        ("--parts", "all"),
    ),
    "representations": Section(
        ("benchmarks/representations.py", "--json", "--threads", "1"),
        ("--lanes", "256", "--trials", "20", "--repeats", "0"),
        ("--lanes", "1024", "--trials", "100", "--repeats", "0"),
    ),
    "formats": Section(
        ("benchmarks/formats.py", "--json"),
        ("--trials", "200", "--networks", "transformer", "--formats", "float32", "int8", "mxfp4"),
    ),
    "networks": Section(
        ("benchmarks/networks.py", "--json"),
        ("--only", "mobilenet_v2", "--lanes", "16", "--repeats", "1", "--trials", "4"),
    ),
    "hardening_resnet20": _leaderboard("ResNet-20"),
    "hardening_int8": _leaderboard("int8 ResNet-20"),
    "hardening_spiking": _leaderboard("spiking digits"),
    "hardening_digits": _leaderboard("digits CNN"),
    "protection": Section((*_HARDENING, "--only", "protection"), ("--trials", "100"), (), ("--trials", "4000")),
    "checksums": Section((*_HARDENING, "--only", "abft"), ("--trials", "200", "--clean", "2000")),
    "training": Section(("benchmarks/training.py", "--json"), ("--seeds", "2", "--trials", "500", "--repeats", "1")),
    "architectures": Section(
        ("benchmarks/architecture.py", "--json"), ("--data", "digits", "--trials", "2"), ("--data", "digits")
    ),
    "certify": Section(
        ("benchmarks/certify.py", "--json"),
        ("--images", "4", "--lanes", "1024", "--repeats", "1", "--checks", "20"),
        ("--images", "20"),
    ),
    "truth": Section(("benchmarks/truth.py", "--json"), ("--repetitions", "5"), ("--repetitions", "50")),
    "scaling": Section(("benchmarks/scaling.py", "--json"), ("--quick",)),
}


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Let *parser* take ``--quick`` or ``--full`` as the ``size``, which is ``usual`` without them."""
    sizes = parser.add_mutually_exclusive_group()
    for size, told in (("quick", "a minute each: to see that it works"), ("full", "what the documents print")):
        sizes.add_argument(f"--{size}", dest="size", action="store_const", const=size, default="usual", help=told)


def tell(found: Mapping[str, Any], part: str, *, as_json: bool) -> None:
    """Print what was *found* as one JSON object, or a *part* of it, one line a figure."""
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found[part].items():
        print(f"{name}: {value}")


def bounds(one: Any, digits: int | None = None) -> dict[str, float]:
    """Return an estimate, or a row of a table, as it stands in a record, rounded to *digits* if told.

    >>> from torchfault.statistics import proportion
    >>> bounds(proportion(12, 1000), 4)
    {'value': 0.012, 'low': 0.0069, 'high': 0.0209}
    """
    shown = {"value": float(one.value), "low": float(one.low), "high": float(one.high)}
    return shown if digits is None else {name: round(value, digits) for name, value in shown.items()}


def machine() -> dict[str, Any]:
    """Return on what is measured."""
    model = platform.processor() or platform.machine()
    if (known := Path("/proc/cpuinfo")).is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", known.read_text(), re.MULTILINE)
        model = found[1] if found else model
    told = {"processor": model, "cores": os.cpu_count(), "system": platform.system()}
    return {**told, "python": platform.python_version()}


def commit(root: Path = ROOT) -> str:
    """Return the commit of the checkout at *root*, with a ``+`` where what is measured has been changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "src", "benchmarks") else "")


def measured(name: str, size: Size = "usual", *, root: Path = ROOT) -> dict[str, Any]:
    """Return the record of a section, measured now by the checkout at *root*: command, when, on what, what it found.

    What it says of its progress is shown. Raises :class:`RuntimeError`, with the last line of that, where it fails.
    """
    import torch

    words, began = SECTIONS[name].words(size), time.monotonic()
    paths = {"PYTHONPATH": os.pathsep.join((str(root / "src"), str(root)))}
    said, command = "it said nothing", [sys.executable, *words]
    with (
        tempfile.TemporaryFile("w+") as printed,
        subprocess.Popen(
            command, cwd=root, env=os.environ | paths, stdout=printed, stderr=subprocess.PIPE, text=True
        ) as running,
    ):
        assert running.stderr is not None
        for line in running.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            said = line.strip() or said
        if running.wait():
            raise RuntimeError(f"{' '.join(words)} ended with {running.returncode}: {said}")
        printed.seek(0)
        found = json.load(printed)
    return {
        "command": " ".join(("python", *words)),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(root),
        "machine": {**machine(), "torch": torch.__version__},
        "seconds": round(time.monotonic() - began, 1),
        "found": found,
    }
