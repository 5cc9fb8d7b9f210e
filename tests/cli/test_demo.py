"""The demo: trained once, the same on every machine, and ended with tables, a plot and the next command."""

import re
import time
from pathlib import Path

import pytest
import torch

from tests.support.page import read_page
from torchfault import demo
from torchfault.cli import main
from torchfault.zoo import digits_cnn


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return a cache folder that the module shares, so that the network is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def folder(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capfd, *arguments: str) -> tuple[str, str]:
    status = main(["demo", *arguments])
    out, err = capfd.readouterr()
    assert status == 0, err
    return out, err


def test_the_demo_ends_with_tables_a_plot_and_the_next_command(capfd, folder):
    began = time.process_time()
    out, err = run(capfd, "--trials", "3000")
    assert time.process_time() - began < 60
    for site in ("conv1.weight", "conv1:output", "fc2.weight", "fc2:output"):
        assert re.search(rf"^{site}\s+\d.*\[\s*[\d.]+,\s+[\d.]+\]", out, re.MULTILINE), out
    assert re.search(r"^30     exponent\s+\d.*\[\s*[\d.]+,\s+[\d.]+\]", out, re.MULTILINE), out
    assert re.search(r"golden\s+9[5-9]\.\d % accuracy on 297 inputs", err), err
    assert (folder / "torchfault-demo.png").read_bytes().startswith(b"\x89PNG")
    assert "report written to torchfault-demo.html" in err
    table = read_page((folder / "torchfault-demo.html").read_text()).tables["Layers in network order: failing faults"]
    assert [row[0] for row in table] == ["layer", "conv1", "conv2", "fc1", "fc2"]
    assert {path.name for path in folder.iterdir()} == {"torchfault-demo.png", "torchfault-demo.html"}, (
        "the demo leaves a plot and a page and nothing else"
    )
    assert re.search(r"next  torchfault sites --model torchfault.demo:model", err)


def test_the_next_commands_work(capfd):
    _, err = run(capfd, "--trials", "100")
    commands = re.findall(r"torchfault ((?:sites|run) .*)", err)
    assert len(commands) == 2
    for command in commands:
        assert main([*command.split(), *(["--trials", "50"] if command.startswith("run") else [])]) == 0


def test_the_demo_is_the_same_by_seed_and_says_so_once(capfd):
    first, _ = run(capfd, "--trials", "500", "--plot", "a.svg")
    again, err = run(capfd, "--trials", "500", "--plot", "b.pdf")
    other, _ = run(capfd, "--trials", "500", "--seed", "1")
    tables = [re.sub(r"after [\d.]+ s\n", "\n", text) for text in (first, again, other)]
    assert tables[0] == tables[1] != tables[2]
    assert "learns" not in err, "the second time the network comes from the cache"


def test_no_plot_is_written_over(capfd, folder):
    for _ in range(3):
        run(capfd, "--trials", "100")
    names = {f"torchfault-demo{which}.{kind}" for which in ("", "-2", "-3") for kind in ("png", "html")}
    assert {path.name for path in folder.iterdir()} == names
    assert main(["demo", "--trials", "100", "--plot", "torchfault-demo.png"]) == 2
    assert "exists; choose another name, or write over it with --force" in capfd.readouterr().err
    run(capfd, "--trials", "100", "--plot", "torchfault-demo.png", "--force")


def test_training_is_deterministic_and_leaves_the_process_alone(cache):
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    one, kept = demo.train(), demo.model()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), kept.state_dict().values(), strict=True))
    assert len(list((cache / "torchfault").iterdir())) == 1


def test_a_broken_cache_is_made_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "torchfault").mkdir()
    monkeypatch.setattr(demo, "train", digits_cnn)
    demo.model()
    (file,) = (tmp_path / "torchfault").iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:100])
    demo.model()
    assert len(file.read_bytes()) == len(good)


def test_a_cache_that_cannot_be_written_to_is_no_obstacle(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(demo, "train", digits_cnn)
    assert demo.model().fc2.weight.shape == (10, 64)
    assert not demo.is_trained()


def test_the_cache_is_below_home_unless_told(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(demo, "train", digits_cnn)
    demo.model()
    assert list((tmp_path / ".cache" / "torchfault").iterdir())


def test_the_test_images_are_not_learnt():
    images, _ = demo._digits()
    data = demo.data()
    learnt, kept = images[:-297], data.inputs
    assert len(data) == 297
    assert len(learnt) + len(kept) == 1797
    assert kept.data_ptr() != images.data_ptr()
    assert float(kept.min()) >= 0
    assert float(kept.max()) <= 1
