"""The driver of all benchmarks: records with date, commit and machine, failures told, moves by pairs."""

import re
import subprocess
import sys

import pytest

from benchmarks import all as driver
from benchmarks.sections import ROOT, SECTIONS, SIZES, Section, commit, measured

PRINTS = "import json, sys; print('busy', file=sys.stderr); print(json.dumps({'a': 2.0, 'of': sys.argv[1:]}))"


@pytest.fixture
def _small(monkeypatch):
    """Two sections: one that prints its words, one that fails."""
    sections = {
        "fine": Section(("-c", PRINTS), ("--quick",), ("--usual",), ("--full",)),
        "broken": Section(("-c", "raise SystemExit('no data here')")),
    }
    for module in ("benchmarks.sections", "benchmarks.all"):
        monkeypatch.setattr(f"{module}.SECTIONS", sections)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("size", SIZES)
def test_a_record_says_what_ran_when_where_and_for_how_long(size):
    record = measured("fine", size)
    assert record["found"] == {"a": 2.0, "of": [f"--{size}"]}
    assert record["command"].startswith("python -c")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert re.fullmatch(r"[0-9a-f]{40}\+?", record["commit"])
    assert record["machine"]["cores"] >= 1
    assert record["seconds"] >= 0


@pytest.mark.usefixtures("_small")
def test_a_section_that_fails_is_told_and_the_others_go_on(capsys):
    found, failed = driver.run_all(["broken", "fine"], "quick")
    assert set(found) == {"fine"}
    assert "no data here" in failed["broken"]
    shown = capsys.readouterr().err
    assert "2 of 2  fine" in shown
    assert "busy" in shown.splitlines(), "progress of the section itself"


def test_changed_code_belongs_to_no_commit(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1")
    (tmp_path / "notes").write_text("1")
    git("add", ".")
    git("commit", "-qm", "a")
    assert len(commit(tmp_path)) == 40
    (tmp_path / "notes").write_text("2")
    assert len(commit(tmp_path)) == 40  # what is not measured may change
    (tmp_path / "src" / "a.py").write_text("2")
    assert commit(tmp_path).endswith("+")


def test_moves_are_medians_of_paired_ratios():
    pairs = [
        ({"t": 1.0, "n": 5}, {"t": 2.0, "n": 5}),
        ({"t": 4.0, "n": 5}, {"t": 4.0, "n": 5}),
        ({"t": 1.0}, {"t": 1.5}),
    ]
    assert driver.moves(pairs) == {"n": 1.0, "t": 1.5}
    shown = driver.moved_table({"s": {"n": 1.0, "t": 1.5, "u": 0.4}})
    assert shown.splitlines()[0] == "s: 2 of 3 figures moved by more than 5%"
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["u", "t"]


@pytest.mark.slow  # each imports torch
@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_is_a_script_that_takes_its_words(name):
    """Argument parsers refuse what they do not know before anything runs: --help behind the words shows that."""
    for size in SIZES:
        words = SECTIONS[name].words(size)
        assert (ROOT / words[0]).is_file()
        done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_it_refuses_what_it_does_not_know():
    done = subprocess.run([sys.executable, "benchmarks/all.py", "nosuch"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "a section is engine," in done.stderr
