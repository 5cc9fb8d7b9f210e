"""The truth set: pieces hold what lanes say, appear whole, are made once, and estimators look them up."""

import json
from functools import cache

import numpy as np
import pytest
import torch

from benchmarks import truth as making
from benchmarks.truth_estimators import any_alone
from tests.support.enumerated import Enumerated
from tests.support.networks import NETWORKS
from torchfault.engine import Engine
from torchfault.faults import BitFlip
from torchfault.trials import strike

INPUTS = 6


@cache
def engine():
    return Engine(*NETWORKS["digits"]())


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Six images, pieces of 100 words, every eighth word enumerated."""
    for name, value in {"IMAGES": INPUTS, "WORDS": 100, "_EVERY": 8}.items():
        monkeypatch.setattr(making, name, value)


def lanes_of(space, index, inputs):
    """Return which flips fail on their inputs, a lane each."""
    trials = strike(space, space.locate(index), model=BitFlip(), rng=np.random.default_rng(0), inputs=inputs)
    return making.ran(engine(), trials)["failed"]


def test_a_piece_holds_what_lanes_say_and_marks_what_none_has_said():
    space = engine().space.select(["conv1.weight", "fc2.weight"])
    resolver = making.exact_first(engine(), space)
    part = making.settled(engine(), space, resolver, "conv1.weight", 100, 144)
    fail = np.unpackbits(part["fail"], axis=-1, count=INPUTS).astype(bool)
    index = np.arange(100 * 32, 144 * 32)
    lanes = lanes_of(space, np.repeat(index, INPUTS), np.tile(np.arange(INPUTS), len(index))).reshape(44, 32, INPUTS)
    assert lanes.any()
    exact = part["inferred"] == 0
    assert 0.3 < exact.mean() < 1
    assert (fail == lanes)[exact].all()
    assert (fail == lanes).mean() > 0.999
    ran, enumerated, refuted, disproved = part["counts"].tolist()
    assert enumerated % (32 * INPUTS) == 0 < enumerated < ran < fail.size / 2
    assert refuted <= enumerated
    assert disproved == 0


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "one/2"])
def test_shares_are_of_as_many_processes(text, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["truth", "make", "--share", text])
    with pytest.raises(SystemExit):
        making.main()
    assert f"expected a share such as 1/2, got '{text}'" in capsys.readouterr().err


def test_pieces_are_made_once_appear_whole_and_are_gathered_by_site(tmp_path):
    space, folder, path = engine().space.select(["conv1.weight", "fc2.weight"]), tmp_path / "pieces", tmp_path / "t.npz"
    assert [piece[0] for piece in making.pieces(space)] == ["fc2.weight"] * 7 + ["conv1.weight"] * 2
    assert making.make(folder, engine(), space, minutes=-1) == 9
    assert [making.make(folder, engine(), space, minutes=-1, share=(number, 2)) for number in (1, 2)] == [5, 4]
    assert making.make(folder, engine(), space, minutes=60, share=(2, 2)) == 0
    assert making.make(folder, engine(), space, minutes=-1) == 5
    (folder / "fc2.weight@000000.part").write_bytes(b"cut off by a kill")
    assert making.make(folder, engine(), space, minutes=60) == 0
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.glob("*.npz")}
    assert len(before) == 9
    assert not list(folder.glob("*.part"))
    lost = folder / "conv1.weight@000100.npz"
    lost.unlink()
    assert making.gather(folder, space, path) == ["fc2.weight"]
    assert making.make(folder, engine(), space, minutes=60) == 0
    assert lost.read_bytes() == before.pop(lost)[1]  # the same again, of the words that are enumerated too
    assert all(file.stat().st_mtime_ns == when for file, (when, _) in before.items())
    assert making.gather(folder, space, path) == ["conv1.weight", "fc2.weight"]
    held = making.load(path)
    assert held.fail["fc2.weight"].shape == (640, 32, INPUTS)
    told = making.told(held)
    assert told["faults"] == (144 + 640) * 32
    assert told["exact"] + told["by_monotony"] == pytest.approx(1)
    assert told["layers"]["fc2.weight"] == pytest.approx(held.fail["fc2.weight"].mean(), abs=1e-6)
    assert list(making.load(path, ["fc2.weight"]).fail) == ["fc2.weight"]
    json.dumps(told)
    for file in folder.glob("fc2.weight@*"):
        file.unlink()
    assert making.gather(folder, space, path) == ["conv1.weight"]
    assert making.told(making.load(path)) == told  # what the file held of others stays
    with pytest.raises(SystemExit, match=r"no site is complete in .*; make its pieces first"):
        making.gather(tmp_path / "none", space, path)
    assert making.told(making.load(path)) == told


def test_what_strikes_together_fails_where_any_of_it_fails_alone(rng):
    space = engine().space.select("fc2.weight")
    outcomes = rng.random((len(space), INPUTS)) < 0.3
    known = Enumerated(engine(), space, outcomes, any_alone)
    faults, inputs = rng.permutation(len(space))[:60], rng.integers(0, INPUTS, 20)
    trials = strike(space, space.locate(faults), model=BitFlip(), rng=rng, counts=np.full(20, 3), inputs=inputs)
    for lanes in known.table.run(trials):
        changed = (lanes.golden.argmax(1) != lanes.faulty.argmax(1)).numpy()
        alone = outcomes[faults.reshape(20, 3), inputs[:, None]].any(axis=1)
        assert changed.tolist() == alone[lanes.trial].tolist()
    assert isinstance(known.table.golden(), torch.Tensor)
