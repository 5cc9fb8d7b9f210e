"""Tables of the documents are what was measured, with date, commit and machine; what is older says so."""

import re
from pathlib import Path

import pytest

from benchmarks.figures import FIGURES, KEPT, block, keep, kept, named, written

ROOT = Path(__file__).resolve().parents[2]
MEASURED = [name for name, figure in FIGURES.items() if kept(figure.section) is not None]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", MEASURED)
def test_a_table_is_what_was_measured(name):
    held = kept(FIGURES[name].section)
    text = (ROOT / FIGURES[name].document).read_text(encoding="utf-8")
    assert block(name, held) in text, "run python -m benchmarks.figures write"
    assert written(name, text, held) == text
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", held["date"])
    assert re.fullmatch(r"[0-9a-f]{40}", held["commit"])
    assert {"processor", "cores", "torch", "python"} <= set(held["machine"])


def test_other_numbers_make_another_table():
    one = {"value": 0.5, "low": 0.4, "high": 0.6}
    found = {key: {"resnet20": {"flat": one}} for key in ("sa", "ra", "ra_sw")}
    held = {"found": found, "date": "2026-01-01", "commit": "0" * 40, "command": "c"}
    held["machine"] = {"cores": 2, "processor": "p", "torch": "t"}
    first = block("resiliency", held)
    assert "| ResNet-20 | `flat` | 50.00 % [40.00, 60.00] |" in first
    assert "2026-01-01 at commit 0000000" in first
    text = f"before\n{first}\nafter"
    found["ra"] = {"resnet20": {"flat": {"value": 0.25, "low": 0.25, "high": 0.25}}}
    assert "25.0 %" in written("resiliency", text, held)
    assert written("resiliency", text, held).startswith("before\n")
    with pytest.raises(SystemExit, match="needs one place"):
        written("resiliency", "nowhere", held)


def test_every_place_has_its_figure_and_every_file_its_place():
    places = {
        name for path in DOCUMENTS for name in re.findall(r"^<!-- figure (\w+) -->$", path.read_text(), re.MULTILINE)
    }
    assert places == set(MEASURED)
    assert {path.stem for path in KEPT.glob("*.json")} == {FIGURES[name].section for name in MEASURED}


def test_what_no_commit_holds_is_not_kept():
    with pytest.raises(SystemExit, match="commit, then measure"):
        keep("engine", {"commit": "0" * 40 + "+"})


def test_figures_are_told_by_their_names_and_by_their_sections():
    assert named(["training", "engine"]) == ["engine", "drops", "trained"]
    assert named([]) == list(FIGURES)
