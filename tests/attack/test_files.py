"""Files that want to run code, fill the memory or be read for ever: refused in one line, and nothing of them runs."""

import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest

from torchfault.cli import main

DATA = ["--data", "data.npz"]
MODEL = ["--model", "torchfault.zoo:digits_cnn"]


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


def pickled():
    return pickle.dumps(Evil())


def objects():
    held = io.BytesIO()
    np.savez(held, images=np.array([Evil()], dtype=object))
    return held.getvalue()


def bomb():
    """Return an archive whose array says that it has 2^50 bytes, and one that inflates to 256 MiB of zeros."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**47, 1)})
        archive.writestr("images.npy", header.getvalue() + bytes(1 << 22))
    return held.getvalue()


def saved_with_code():
    import torch

    held = io.BytesIO()
    torch.save({"state_dict": Evil()}, held)
    return held.getvalue()


FILES = {
    "a pickle as data": ("x.npz", pickled, ["run", *MODEL, "--data", "x.npz"]),
    "an array of objects": ("x.npz", objects, ["run", *MODEL, "--data", "x.npz"]),
    "an archive that inflates": ("x.npz", bomb, ["run", *MODEL, "--data", "x.npz"]),
    "a pickle as a checkpoint": ("x.pt", pickled, ["run", *MODEL, *DATA, "--checkpoint", "x.pt"]),
    "a checkpoint with code": ("x.pt", saved_with_code, ["run", *MODEL, *DATA, "--checkpoint", "x.pt"]),
    "a pickle as a store": ("x.db", pickled, ["show", "--store", "x.db"]),
    "a pickle as a configuration": ("x.yaml", pickled, ["run", "x.yaml"]),
    "a YAML tag": ("x.yaml", lambda: b"model: !!python/object/apply:open [ran, w]\n", ["run", "x.yaml"]),
    "YAML aliases": ("x.yaml", lambda: b"a: &a [x, x]\nb: [*a, *a]\n", ["sites", "x.yaml"]),
    "deep YAML": ("x.yaml", lambda: b"a: " + b"[" * 900 + b"]" * 900, ["run", "x.yaml"]),
    "a YAML of 20 MB": ("x.yaml", lambda: b"a: " + b"x" * 20_000_000, ["run", "x.yaml"]),
}


@pytest.fixture
def inside(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", images=rng.random((4, 1, 8, 8), dtype=np.float32), labels=np.arange(4))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_files_that_want_more_than_to_be_read(inside, capfd, tried, name):
    file, make, command = FILES[name]
    (inside / file).write_bytes(make())
    (inside / "ran").unlink(missing_ok=True)
    with tried("a malicious file") as found:
        status = main(command)
        _, err = capfd.readouterr()
        found.said(status, err, nonsense=status == 0 or err.count("\n") != 1, what=name)
        found.changed((inside / "ran").exists())


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names, no devices")
@pytest.mark.parametrize("place", ["pipe", "/dev/zero", "/proc/self/mem", "loop", "."])
def test_places_that_are_no_files(inside, capfd, tried, place):
    os.mkfifo(inside / "pipe")
    os.symlink("loop", inside / "loop")
    for command in (["run", *MODEL, "--data"], ["run", *MODEL, *DATA, "--checkpoint"], ["run"], ["show", "--store"]):
        with tried("a pipe, a device or a loop in the place of a file") as found:
            status = main([*command, place])
            _, err = capfd.readouterr()
            found.said(status, err, nonsense=status == 0 or err.count("\n") != 1, what=(command, place))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_exports_follow_no_link_and_overwrite_nothing(inside, capfd, tried):
    assert main(["run", *MODEL, *DATA, "--trials", "50", "--name", "a"]) == 0
    (inside / "mine.csv").write_text("precious")
    os.symlink("mine.csv", inside / "link.csv")
    os.symlink("nowhere", inside / "dangling.csv")
    for target in ("mine.csv", "link.csv", "dangling.csv", "/nowhere/x.csv", "."):
        for command in (["export", "a"], ["show", "a", "--plot"]):
            with tried("an export or a plot over a file, or through a link") as found:
                option = ["--output", target] if command[0] == "export" else [target.replace("csv", "png")]
                if command[0] == "show" and target in ("link.csv", "mine.csv"):
                    (inside / option[0]).write_text("precious")
                status = main([*command, *option])
                capfd.readouterr()
                found.said(status, "", nonsense=status == 0 and target != "dangling.csv")
                found.changed((inside / "mine.csv").read_text() != "precious" or (inside / "nowhere").exists())
    assert main(["export", "a", "--output", "link.csv", "--force"]) == 0
    assert (inside / "mine.csv").read_text() == "precious"
    assert not (inside / "link.csv").is_symlink()
