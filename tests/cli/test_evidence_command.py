"""`torchfault evidence`: what it writes and prints, its check and exit status, bad input; it needs no torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchfault import MaxTrials
from torchfault.campaign import run
from torchfault.cli import main
from torchfault.cli.evidence import rates_of
from torchfault.errors import ConfigError
from torchfault.testing import example_campaign


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run every test in a folder with a store of one campaign."""
    monkeypatch.chdir(tmp_path)
    assert example_campaign(trials=300).stop == MaxTrials(300)
    run(example_campaign(trials=300), store="torchfault.db", name="linear")
    return tmp_path


def test_a_pack_is_written_shown_and_found_in_order(capfd):
    assert main(["evidence", "--fit-per-mbit", "700", "-o", "pack"]) == 0
    out, err = capfd.readouterr()
    assert re.search(r"^weight\s+300\s+[\d.]+\s+[\d.]+\s+0\.2563\s+[\d.]+\s+[\d.]+$", out, re.MULTILINE), out
    assert "No detector was named" in out
    assert "torchfault evidence --check pack" in err
    names = {"evidence.json", "evidence.schema.json", "evidence.xlsx", "SHA256SUMS"}
    assert {path.name for path in Path("pack").iterdir()} == names
    assert main(["evidence", "--check", "pack"]) == 0
    assert capfd.readouterr().out.startswith("ok: every number of pack follows from the trials in torchfault.db")


def test_what_was_changed_ends_with_status_3(capfd):
    assert main(["evidence", "linear", "--fit-per-mbit", "weight=700", "-o", "pack"]) == 0
    held = json.loads(Path("pack/evidence.json").read_text())
    held["campaigns"][0]["elements"][0]["failures"] += 1
    Path("pack/evidence.json").write_text(json.dumps(held))
    capfd.readouterr()
    assert main(["evidence", "--check", "pack"]) == 3
    assert "failures is" in capfd.readouterr().out
    assert main(["evidence", "--check", "pack", "--json"]) == 3
    told = json.loads(capfd.readouterr().out)
    assert (told["kind"], told["right"], told["folder"]) == ("check", False, "pack")
    assert len(told["wrong"]) == 2


def test_as_json_it_holds_what_the_file_holds(capfd):
    assert main(["evidence", "linear", "--detector", "due", "--json", "--confidence", "0.99"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["evidence"] == json.loads(Path("evidence/evidence.json").read_text())
    assert told["evidence"]["asked"]["confidence"] == 0.99


BAD = {
    "no folder": (["--check", "nowhere"], "does not exist"),
    "no campaign": (["third"], "no campaign"),
    "no rate": (["--fit-per-mbit", "weight=many"], "expected FIT or KIND=FIT"),
    "a negative rate": (["--fit-per-mbit=-1"], "expected FIT or KIND=FIT"),
    "no confidence": (["--confidence", "0.5"], "above 0.5"),
    "no such outcome": (["--detector", "watchdog"], "recorded the outcomes"),
    "a file": (["-o", "torchfault.db"], "is no folder"),
}


@pytest.mark.parametrize(("arguments", "told"), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(arguments, told, folder, capfd):
    before = sorted(folder.iterdir())
    assert main(["evidence", *arguments]) == 2
    out, err = capfd.readouterr()
    assert told in err
    assert (out, err.count("\n")) == ("", 1)
    assert sorted(folder.iterdir()) == before


def test_rates_are_of_everything_or_of_a_kind():
    assert rates_of(["weight=700", "conv*=1e3", "50"]) == {"weight": 700.0, "conv*": 1000.0, "*": 50.0}
    for wrong in ("=7", "nan", "inf", "0", "weight=", ""):
        with pytest.raises(ConfigError, match="--fit-per-mbit"):
            rates_of([wrong])


def test_neither_writing_nor_checking_loads_torch():
    for arguments in (["evidence", "linear", "--fit-per-mbit", "1", "-o", "p"], ["evidence", "--check", "p"]):
        program = (
            f"import sys; from torchfault.cli import main; status = main({arguments!r});"
            "sys.stderr.write(' '.join({'torch', 'matplotlib'} & set(sys.modules))); sys.exit(status)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not {"torch", "matplotlib"} & set(done.stderr.split())
