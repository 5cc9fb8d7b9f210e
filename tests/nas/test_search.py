"""Architecture search: its objectives are what campaigns and networks tell, and it goes on where it stopped."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from torchfault.data import Data
from torchfault.errors import CampaignError, ConfigError, DataError, ModelError
from torchfault.nas import (
    Architecture,
    Plan,
    Robustness,
    candidates,
    convolutional,
    front,
    network,
    search_architectures,
)
from torchfault.results import load, resiliency
from torchfault.store import Store

optuna = pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def data():
    images = torch.rand(160, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0, :4].mean((1, 2)) > images[:, 0, 4:].mean((1, 2))).long()
    images[:, 0, :4] += 0.5 * labels[:, None, None]
    return Data(images[:120], labels[:120]), Data(images[120:], labels[120:])


def dense(trial, data):
    """Return a space of the user's own: dense networks of one hidden layer."""
    width = trial.suggest_categorical("width", (4, 8, 16))
    bound = trial.suggest_categorical("bound", (False, True))
    hidden = (nn.Flatten(), nn.Linear(64, width), nn.Hardtanh(0.0, 1.0) if bound else nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(width, int(data.labels.max()) + 1))


@pytest.fixture(scope="module")
def plan(data):
    return Plan(*data, build=dense, robustness=Robustness("ra", trials=(2048, 3072)), epochs=3)


@pytest.fixture(scope="module")
def whole(plan, tmp_path_factory):
    store = str(tmp_path_factory.mktemp("nas") / "store.db")
    return search_architectures(plan, store=store, trials=6), store


def plain(found):
    return [(one.choices, one.accuracy, one.macs, one.robust, one.dominated) for one in found]


def test_it_finds_what_networks_and_campaigns_tell(whole):
    study, store = whole
    found = candidates(study)
    assert [one.number for one in found] == list(range(6))
    for one in found:
        assert one.macs == 64 * one.choices["width"] + 2 * one.choices["width"]
        with Store(store, access="read") as opened:
            kept = resiliency(load(opened, f"architectures-{one.number:03d}"), level=0.95)
        assert one.robust == kept.ra
        assert one.accuracy == pytest.approx(kept.sa)
        assert one.floor <= one.robust.low
        assert one.dominated == (one.robust.trials < 3072)
    for trial, one in zip(study.trials, found, strict=True):
        assert trial.values == [one.accuracy, one.robust.value, one.macs]


def test_an_interrupted_search_goes_on_as_if_it_had_never_stopped(whole, plan, tmp_path):
    store = str(tmp_path / "store.db")

    def stop(_, done):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_architectures(plan, store=store, trials=6, progress=stop)
    interrupted = search_architectures(plan, store=store, trials=4)
    interrupted.ask()  # one that was under way when the process died
    study = search_architectures(plan, store=store, trials=6)
    assert plain(candidates(study)) == plain(candidates(whole[0]))
    with Store(store, access="read") as opened:
        assert len(opened.campaigns()) == 6


def test_others_may_look_into_the_store_meanwhile(plan, tmp_path):
    store, seen = str(tmp_path / "store.db"), []
    look = f"import sqlite3; print(sqlite3.connect({store!r}).execute('select count(*) from trials').fetchone()[0])"

    def other(*_):
        done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
        seen.append(int(done.stdout))

    search_architectures(
        replace(plan, robustness=Robustness("mvf", trials=(50,))), store=store, trials=3, progress=other
    )
    assert seen == [1, 2, 3]


def test_the_front_holds_what_none_beats(whole):
    found = candidates(whole[0])
    kept = set(front(found)["number"])
    for one in found:
        mine = (one.accuracy, one.robust.value, -one.macs)
        beaten = any(
            (other.accuracy, other.robust.value, -other.macs) != mine
            and other.accuracy >= one.accuracy
            and other.robust.value >= one.robust.value
            and other.macs <= one.macs
            for other in found
        )
        assert (one.number in kept) is not beaten


@pytest.mark.parametrize("kind", ["ra_sw", "mvf", None])
def test_other_objectives(data, tmp_path, kind):
    robustness = None if kind is None else Robustness(kind, trials=(200, 400))
    plan = Plan(*data, build=dense, robustness=robustness, epochs=1)
    study = search_architectures(plan, store=str(tmp_path / "store.db"), trials=2)
    (first, second) = candidates(study)
    assert len(study.directions) == (2 if kind is None else 3)
    if kind is None:
        assert first.robust is None
        assert "robust" not in front([first, second])
    else:
        assert 0 < first.robust.low < first.robust.value < first.robust.high < 1
        most = first.accuracy if kind == "ra_sw" else 1.0
        assert most - 0.1 < first.robust.high < most + 0.1


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_the_convolutional_space_builds_networks_for_images(channels, size):
    images = Data(torch.rand(4, channels, size, size), torch.arange(4))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    shapes = set()
    for _ in range(12):
        model = convolutional(study.ask(), images)
        assert model(images.inputs).shape == (4, 4)
        shapes.add(tuple(parameter.shape for parameter in model.parameters()))
    assert len(shapes) > 6
    bounded = network(Architecture((8,), activation="unit"), channels=channels, classes=4)
    inputs = []
    bounded[-1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    bounded(100 * images.inputs)
    assert float(inputs[0].detach().max()) <= 1


def test_another_plan_is_no_continuation(whole, plan):
    for changed, said in (({"epochs": 4}, "epochs .was 3, is now 4"), ({"robustness": None}, "robustness")):
        with pytest.raises(CampaignError, match=f"was begun with another {said}"):
            search_architectures(replace(plan, **changed), store=whole[1], trials=7)
    assert len(search_architectures(plan, store=whole[1], trials=6).trials) == 6


def test_what_cannot_be_is_refused(data, plan, tmp_path, monkeypatch):
    train, test = data
    with pytest.raises(DataError, match="needs labels"):
        Plan(Data(train.inputs), test)
    with pytest.raises(DataError, match="labels that nothing to learn from has, 9 among them"):
        Plan(train, Data(test.inputs, torch.full_like(test.labels, 9)))
    with pytest.raises(CampaignError, match="got 'raa'; did you mean 'ra'"):
        Robustness("raa")
    with pytest.raises(CampaignError, match="grow from 1 up"):
        Robustness("ra", trials=(400, 200))
    study = optuna.create_study()
    with pytest.raises(DataError, match=r"labelled images .* of 8 x 8 pixels or more"):
        convolutional(study.ask(), Data(torch.rand(4, 9), torch.arange(4)))
    with pytest.raises(ModelError, match="returns a network, got a int"):
        search_architectures(replace(plan, build=lambda *_: 3), store=str(tmp_path / "none.db"))
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install torchfault\[search\]"):
        search_architectures(plan, store=str(tmp_path / "other.db"))


def test_the_first_of_equal_seeds_is_the_same(whole, plan, tmp_path):
    study = search_architectures(plan, store=str(tmp_path / "again.db"), trials=1)
    assert plain(candidates(study)) == plain(candidates(whole[0]))[:1]
    assert np.isfinite(study.trials[0].values).all()
