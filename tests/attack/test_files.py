"""Files that want to run code, fill the memory or be read for ever: refused in one line, and nothing of them runs."""

import io
import os
import pickle
import random
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


# What reads a file, by the ending of its name.
READERS = {
    "npz": ["run", *MODEL, "--data", "x.npz"],
    "npy": ["run", *MODEL, "--data", "x.npy"],
    "pt": ["run", *MODEL, *DATA, "--checkpoint", "x.pt"],
    "safetensors": ["run", *MODEL, *DATA, "--checkpoint", "x.safetensors"],
    "yaml": ["run", "x.yaml"],
    "db": ["show", "--store", "x.db"],
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


def harmful(rng, good):
    """Return what an adversary or a bad transfer makes of one of the files *good*, and the ending that it is given."""
    suffix = rng.choice(list(READERS))
    made = [pickled(), objects(), bomb(), saved_with_code()]
    content = bytearray(rng.choice([*made, *good.values(), good[suffix], good[suffix]]))
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(content)), rng.choice([1, 4, 64, len(content)])
        match rng.choice(["cut", "flip", "zero", "noise", "more", "header"]):
            case "cut":
                content = content[: max(at, 1)]
            case "flip":
                content[at] ^= 1 << rng.randrange(8)
            case "zero":
                content[at : at + length] = bytes(len(content[at : at + length]))
            case "noise":
                content[at : at + length] = rng.randbytes(len(content[at : at + length]))
            case "more":
                content += rng.choice([bytes(10**6), pickled(), b"\xff" * 1000, b"[" * 10**5])
            case "header":  # sizes stand there
                content[:16] = content[:8] + b"\xff" * 8
    return suffix, bytes(content)


def strike(seed, inside, good, capfd, tried):
    rng = random.Random(seed)
    suffix, content = harmful(rng, good)
    (inside / f"x.{suffix}").write_bytes(content)
    with tried("a file of any kind, harmed or harmful") as found:
        status = main([*READERS[suffix], *(["--trials", "20"] if suffix != "db" else [])])
        out, err = capfd.readouterr()
        unsafe = not all(line.isprintable() for line in (out + err).split("\n"))
        found.said(
            status, err, nonsense=unsafe or (status == 2 and not err.splitlines()[-1].startswith("error")), what=seed
        )
        found.changed((inside / "ran").exists())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return the content of a good file of every kind, by the ending of its name."""
    import torch
    from safetensors.torch import save_file

    from torchfault.zoo import digits_cnn

    here = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(here)
        images = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
        np.savez(here / "data.npz", images=images, labels=np.arange(4))
        np.save(here / "x.npy", images)
        torch.save(digits_cnn().state_dict(), here / "x.pt")
        save_file(digits_cnn().state_dict(), here / "x.safetensors")
        assert main(["run", *MODEL, *DATA, "--trials", "50", "--store", "x.db"]) == 0
        (here / "x.yaml").write_text("model: torchfault.zoo:digits_cnn\ndata: data.npz\nstop: 20\nexecutor: hooks\n")
        (here / "data.npz").rename(here / "x.npz")
    return {suffix: (here / f"x.{suffix}").read_bytes() for suffix in READERS}


@pytest.mark.parametrize("seed", range(12))
def test_files_that_are_harmed(seed, inside, good, capfd, tried):
    strike(seed, inside, good, capfd, tried)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(18))
def test_many_files_that_are_harmed(block, inside, good, capfd, tried):
    for seed in range(12 + 10 * block, 22 + 10 * block):
        strike(seed, inside, good, capfd, tried)


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


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("name", ["evidence.json", "evidence.schema.json", "evidence.xlsx", "SHA256SUMS"])
def test_a_pack_follows_no_link_in_its_folder(name, inside, capfd, tried):
    assert main(["run", *MODEL, *DATA, "--trials", "50", "--name", "a"]) == 0
    (inside / "mine").write_text("precious")
    (inside / "pack").mkdir()
    os.symlink("../mine", inside / "pack" / name)
    capfd.readouterr()
    with tried("an export or a plot over a file, or through a link") as found:
        status = main(["evidence", "a", "--output", "pack"])
        found.said(status, capfd.readouterr().err, nonsense=status != 2)
        status = main(["evidence", "a", "--output", "pack", "--force"])
        found.said(status, capfd.readouterr().err, nonsense=status != 0 or (inside / "pack" / name).is_symlink())
        found.changed((inside / "mine").read_text() != "precious")
    assert main(["evidence", "--check", "pack"]) == 0
    assert len(list((inside / "pack").iterdir())) == 4
