"""Benchmarks find other libraries beside the environment, behind the environment's own."""

import sys

from benchmarks.ecosystem import missing


def test_packages_beside_the_environment_are_found_behind_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TORCHFAULT_ECOSYSTEM", str(tmp_path))
    for name in ("lies_beside", "numpy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    assert missing("lies_beside", "numpy", "lies_nowhere") == ["lies_nowhere"]
    assert missing("lies_beside") == []
    assert sys.path.count(str(tmp_path)) == 1
    assert sys.path[-1] == str(tmp_path)
