"""Checkpoints: what torch itself loads is loaded, nothing runs code, and what is damaged or misfits leaves no trace."""

import argparse
import collections
import io
import os
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from torchfault.adapters.checkpoint import load_checkpoint, read_checkpoint
from torchfault.errors import ModelError


def saved(path, held):
    torch.save(held, path)
    return path


def filled(model, value=0.5):
    """Return *model* with another value in every word."""
    with torch.no_grad():
        for i, tensor in enumerate(model.state_dict().values()):
            tensor.fill_(i + value)
    return model


def assert_same(one, other):
    for (name, a), (twin, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == twin
        assert torch.equal(a, b), name


# What the modules' own hooks translate.


class Frozen(nn.BatchNorm2d):
    """A batch norm without its counter, as detectors have it."""

    def __init__(self, channels):
        super().__init__(channels)
        del self.num_batches_tracked

    def _load_from_state_dict(self, state, prefix, *rest):
        state.pop(prefix + "num_batches_tracked", None)
        nn.Module._load_from_state_dict(self, state, prefix, *rest)


class Renamed(nn.Linear):
    """A layer whose weight was once called kernel, transposed."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self._register_load_state_dict_pre_hook(self._translate)

    def _translate(self, state, prefix, *_):
        if prefix + "kernel" in state:
            state[prefix + "weight"] = state.pop(prefix + "kernel").T


def test_weight_norm_of_old_is_read_by_that_of_now(tmp_path):
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.Sequential(nn.Conv1d(2, 3, 2), nn.utils.weight_norm(nn.Linear(4, 3)))
    filled(old)
    new = nn.Sequential(nn.Conv1d(2, 3, 2), nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    load_checkpoint(new, saved(tmp_path / "a.pt", {"state_dict": old.state_dict()}))
    assert torch.equal(new[1].parametrizations.weight.original0, old[1].weight_g)
    assert torch.equal(new[0].bias, old[0].bias)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_a_hook_drops_or_renames_fits(tmp_path, prefix):
    frozen, plain = nn.Sequential(nn.Conv2d(1, 3, 1), Frozen(3)), nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    filled(plain)
    load_checkpoint(frozen, saved(tmp_path / "a.pt", {prefix + k: v for k, v in plain.state_dict().items()}))
    assert torch.equal(frozen[1].running_mean, plain[1].running_mean)
    kernel = torch.arange(6.0).reshape(3, 2)
    model = nn.Sequential(Renamed(3, 2))
    load_checkpoint(model, saved(tmp_path / "b.pt", {prefix + "0.kernel": kernel, prefix + "0.bias": torch.ones(2)}))
    assert torch.equal(model[0].weight, kernel.T)


class Versioned(nn.Linear):
    """A layer that writes its weight doubled since version 2."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version", 1) >= 2:
            state[prefix + "weight"] = state[prefix + "weight"] / 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("inside", [lambda net: net, lambda net: nn.ModuleDict({"module": net}), nn.DataParallel])
def test_the_versions_that_modules_wrote_are_kept(tmp_path, inside):
    model = nn.Sequential(nn.ReLU(), Versioned(2, 2))
    with torch.no_grad():
        model[1].weight.fill_(4.0)
    again = nn.Sequential(nn.ReLU(), Versioned(2, 2))
    load_checkpoint(again, saved(tmp_path / "a.pt", inside(model).state_dict()))
    assert again[1].weight.unique().tolist() == [2.0]


def test_a_module_may_keep_a_state_that_is_no_tensor(tmp_path):
    class Counted(nn.Linear):
        seen = 0

        def get_extra_state(self):
            return {"seen": self.seen}

        def set_extra_state(self, state):
            self.seen = state["seen"]

    one, other = Counted(2, 2), Counted(2, 2)
    one.seen = 7
    load_checkpoint(other, saved(tmp_path / "a.pt", {**one.state_dict(), "epoch": 3}))
    assert other.seen == 7
    assert torch.equal(one.weight, other.weight)


# Names that stand for one tensor.


class Tied(nn.Module):
    """A language model whose head is its embedding, under three names."""

    def __init__(self):
        super().__init__()
        self.embed, self.head, self.again = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.Linear(3, 5)
        self.head.weight = self.again.weight = self.embed.weight


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight", "again.weight"])
def test_one_of_several_tied_names_is_enough(tmp_path, kept):
    from safetensors.torch import save_file, save_model

    one, other = filled(Tied()), Tied()
    state = {kept: one.embed.weight.detach(), "again.bias": one.again.bias.detach()}
    for path, write in ((tmp_path / "a.safetensors", save_file), (tmp_path / "a.pt", torch.save)):
        if write is save_file:
            save_file(state, path)
        else:
            torch.save(state, path)
        load_checkpoint(other, path)
        assert_same(one, other)
    save_model(one, tmp_path / "b.safetensors")
    load_checkpoint(fresh := Tied(), tmp_path / "b.safetensors")
    assert_same(one, fresh)


def test_names_that_are_not_tied_are_missed(tmp_path):
    model = Tied()
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    path = saved(tmp_path / "a.pt", {"embed.weight": torch.ones(5, 3), "again.bias": torch.ones(5)})
    with pytest.raises(ModelError, match=r"1 missing: head.weight$"):
        load_checkpoint(model, path)


# More in the file than the network.


BESIDE = {"criterion.pos_weight": torch.ones(2), "metric.total": torch.tensor(3)}


@pytest.mark.parametrize("name", ["model.", "net.", "backbone.", "model.net."])
@pytest.mark.parametrize("given", [False, True])
def test_the_network_is_found_among_further_keys(tmp_path, name, given):
    net = filled(nn.Linear(3, 2))
    state = {**BESIDE, **{name + k: v for k, v in net.state_dict().items()}}
    path = saved(tmp_path / "a.ckpt", {"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 1e-3}})
    if name == "model.net." and not given:
        with pytest.raises(ModelError, match="2 missing: weight, bias; 4 unexpected"):
            load_checkpoint(nn.Linear(3, 2), path)
        return
    load_checkpoint(again := nn.Linear(3, 2), path, prefix=name if given else None)
    assert_same(net, again)


def test_two_networks_in_one_file_are_no_guess(tmp_path):
    one, other = filled(nn.Linear(3, 2), 1), filled(nn.Linear(3, 2), 2)
    state = {f"{part}{k}": v for part, net in (("model.", one), ("net.", other)) for k, v in net.state_dict().items()}
    path = saved(tmp_path / "a.pt", state)
    with pytest.raises(ModelError, match=r"the weights after model\., net\. all fit; choose them by their prefix"):
        load_checkpoint(nn.Linear(3, 2), path)
    load_checkpoint(again := nn.Linear(3, 2), path, prefix="net.")
    assert_same(other, again)


def test_a_layer_of_another_network_is_not_taken_for_it(tmp_path):
    path = saved(tmp_path / "a.pt", nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1), "fc": nn.Linear(3, 2)}).state_dict())
    with pytest.raises(ModelError, match="2 missing: weight, bias"):
        load_checkpoint(nn.Linear(3, 2), path)


# What is no tensor.


@pytest.mark.parametrize(
    "beside",
    [
        {"best": np.float64(91.2), "seen": np.int32(4), "on": np.bool_(True)},
        {"curve": np.linspace(0, 1, 5), "classes": np.array([3, 1], np.uint8)},
        {"args": argparse.Namespace(lr=0.1, layers=[1, 2]), "epoch": 3, "note": "good", "done": None},
        {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}},
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_numbers_beside_the_weights_are_left_out(tmp_path, beside, flat):
    net = filled(nn.Linear(3, 2))
    held = {**net.state_dict(), **beside} if flat else {"model": net.state_dict(), **beside}
    load_checkpoint(again := nn.Linear(3, 2), saved(tmp_path / "a.pt", held))
    assert_same(net, again)
    assert list(read_checkpoint(tmp_path / "a.pt")) == ["weight", "bias"]


class Runs:
    """An object that would run code when it is built."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (Runs(), "'(posix|os|nt).system'"),
        (nn.ReLU(), "'torch.nn.modules.activation.ReLU'"),
        (collections.defaultdict(list), "'collections.defaultdict'"),
        (np.array([Runs()], dtype=object), "'numpy.*'"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_objects_are_named_and_not_built(tmp_path, monkeypatch, beside, named, legacy):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "b": beside}, "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match=rf"holds more than tensors, such as {named}, and loading it could run code"):
        read_checkpoint("a.pt")
    assert not (tmp_path / "ran").exists()


# Damage.


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path, rng):
    """torch reads a changed weight without a word: in 345 of 400 flips."""
    weights = {"w": torch.arange(2000.0), "b": torch.ones(3)}
    torch.save(weights, tmp_path / "whole.pt")
    whole, noticed = (tmp_path / "whole.pt").read_bytes(), 0
    for place in rng.integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.pt").write_bytes(damaged)
        try:
            held = read_checkpoint(tmp_path / "a.pt")
        except ModelError as error:
            noticed += "cut short or damaged" in str(error)
        else:
            assert all(torch.equal(held[name], tensor) for name, tensor in weights.items())
    assert noticed > 150


def test_files_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert not any(member.CRC for member in zipfile.ZipFile(tmp_path / "a.pt").infolist())
    assert read_checkpoint(tmp_path / "a.pt")["w"].tolist() == [1, 1]


def test_a_file_of_before_torch_1_6_is_read_or_damaged(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "a.pt")["w"].tolist() == [1, 1]
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-5])
    with pytest.raises(ModelError, match="cut short or damaged"):
        read_checkpoint(tmp_path / "a.pt")


def test_another_archive_is_no_checkpoint(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(3))
    with pytest.raises(ModelError, match=r"not a checkpoint that torch.save wrote"):
        read_checkpoint(tmp_path / "a.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's newest
        program = torch.jit.script(nn.Linear(2, 2))
    program.save(str(tmp_path / "b.pt"))
    with pytest.raises(ModelError, match="is a TorchScript program; save the model's state_dict"):
        read_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("path", "message"),
    [("/dev/zero", "special file"), ("/proc/self/mem", "cannot be read"), ("a\0.pt", "name that no file can have")],
)
def test_special_files_are_refused(path, message):
    with pytest.raises(ModelError, match=message):
        read_checkpoint(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(ModelError, match="special file"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("1.weight"),
        lambda state: state.update({"1.bias": torch.ones(9)}),
        lambda state: state.update(extra=torch.ones(1)),
    ],
)
def test_a_misfit_leaves_the_model_as_it_was(tmp_path, change):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = io.BytesIO()
    torch.save(model.state_dict(), before)
    state = filled(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))).state_dict()
    change(state)
    with pytest.raises(ModelError, match=r"does not fit the model: 1 (missing|unexpected|of another shape)"):
        load_checkpoint(model, saved(tmp_path / "a.pt", state))
    before.seek(0)
    for name, tensor in torch.load(before).items():
        assert torch.equal(model.state_dict()[name], tensor)
