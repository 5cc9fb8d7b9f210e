"""The examples run in a clone alone; what a clone cannot hold is asked for in one line."""

import runpy
from pathlib import Path

import pytest
import yaml

from torchfault.cli import main

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATIONS = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in a folder without data, as a newcomer would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHFAULT_DATA", raising=False)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_nothing_lies_outside_the_repository(path):
    held = yaml.safe_load(path.read_text())
    if checkpoint := held.get("checkpoint"):
        assert (path.parent / checkpoint).resolve().is_relative_to(ROOT)
        assert (path.parent / checkpoint).is_file()
    assert "path" not in (held["data"] if isinstance(held["data"], dict) else {})


def test_the_digits_run_at_once(capfd):
    assert main(["run", str(ROOT / "examples" / "digits.yaml"), "--trials", "300"]) == 0
    assert "digits  " in capfd.readouterr().out


@pytest.mark.parametrize("name", ["resnet20.yaml", "resnet20_layers.yaml"])
def test_images_that_lack_are_asked_for_in_one_line(name, capfd):
    assert main(["run", str(ROOT / "examples" / name)]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "examples/digits.yaml" in err


def test_with_images_resnet20_runs(capfd, data_dir, monkeypatch):
    monkeypatch.setenv("TORCHFAULT_DATA", str(data_dir))
    assert main(["run", str(ROOT / "examples" / "resnet20.yaml"), "--trials", "64", "--limit", "8"]) == 0
    assert "of 64 trials fail" in capfd.readouterr().out


def test_shipped_weights_are_those_that_the_notice_names(data_dir):
    shipped = ROOT / "examples" / "weights" / "resnet20-12fca82f.th"
    assert shipped.read_bytes() == (data_dir / shipped.name).read_bytes()
    assert "Yerlan Idelbayev" in (ROOT / "NOTICE").read_text()
    assert "Redistributions in binary form" in (shipped.parent / "LICENSE").read_text()


def test_the_accelerator_of_ones_own_keeps_the_rules(capfd):
    runpy.run_path(str(ROOT / "examples" / "dot_engine.py"), run_name="__main__")
    assert "keeps the rules" in capfd.readouterr().out
