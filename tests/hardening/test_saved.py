"""Files of hardened models: what an earlier version wrote, and files that lack what they need."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from torchfault.errors import ModelError
from torchfault.hardening import InvariantBits, Parity, Ranges, Secded, harden, load_hardened, profile, save_hardened

DATA = torch.rand(9, 2, generator=torch.Generator().manual_seed(1))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


@pytest.fixture
def rewritten(tmp_path):
    """Return a function that saves a hardened model without the tensors whose names end in one of *without*."""

    def write(*without):
        file, golden = tmp_path / "safe.safetensors", profile(plain(), DATA)
        save_hardened(harden(plain(), Ranges(), profile=golden), file, profile=golden)
        with safe_open(file, framework="pt") as opened:
            told = opened.metadata()
            held = {name: opened.get_tensor(name) for name in opened.keys() if not name.endswith(without)}  # noqa: SIM118
        save_file(held, file, metadata=told)
        return file

    return write


def test_files_that_do_not_tell_of_whole_and_steady_values_are_read(rewritten):
    again = load_hardened(plain(), rewritten("/whole", "/steady"), Ranges())
    torch.testing.assert_close(again(DATA), plain()(DATA))


def test_files_of_models_without_golden_ranges_are_read(tmp_path):
    save_hardened(harden(plain(), InvariantBits()), tmp_path / "safe.safetensors")
    again = load_hardened(plain(), tmp_path / "safe.safetensors", InvariantBits())
    assert torch.equal(again(DATA), plain()(DATA))


@pytest.mark.parametrize(
    ("saved", "given"),
    [
        (Ranges(), Ranges(action="zero")),
        (Ranges(), Ranges("1:input")),
        (InvariantBits(), InvariantBits("0.weight")),
        (Parity(), Secded()),
    ],
)
def test_other_methods_than_those_of_the_file_are_refused(saved, given, tmp_path):
    golden, file = profile(plain(), DATA), tmp_path / "safe.safetensors"
    save_hardened(harden(plain(), saved, profile=golden), file, profile=golden)
    with pytest.raises(ModelError, match=r"of other methods|of methods with other options than"):
        load_hardened(plain(), file, given)
    load_hardened(plain(), file, saved)


def test_files_from_before_guards_were_told_are_read(tmp_path):
    golden, file = profile(plain(), DATA), tmp_path / "safe.safetensors"
    save_hardened(harden(plain(), Ranges(), profile=golden), file, profile=golden)
    with safe_open(file, framework="pt") as opened:
        told = {"torchfault_profile": opened.metadata()["torchfault_profile"]}
        held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(held, file, metadata=told)
    torch.testing.assert_close(load_hardened(plain(), file, Ranges())(DATA), plain()(DATA))


@pytest.mark.parametrize("told", ["[]", '{"axes": 3, "outer": {}, "inputs": 1}', '{"axes": {}}', "no JSON"])
def test_files_that_tell_something_else_are_refused_in_one_line(told, tmp_path):
    save_file({"a": DATA}, tmp_path / "a.safetensors", metadata={"torchfault_profile": told})
    with pytest.raises(ModelError, match=r"holds golden ranges in part only .*; save it anew") as caught:
        load_hardened(plain(), tmp_path / "a.safetensors", Ranges())
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_is_told_in_one_line(tmp_path):
    with pytest.raises(ModelError, match=r"cannot be written: .*; choose another place"):
        save_hardened(harden(plain(), InvariantBits()), tmp_path / "no" / "a.safetensors")


@pytest.mark.parametrize("part", ["low", "quantiles"])
def test_files_that_lack_a_part_of_the_ranges_are_refused_in_one_line(rewritten, part):
    with pytest.raises(ModelError, match=f"holds golden ranges in part only .*/{part}.*; save it anew"):
        load_hardened(plain(), rewritten(f"/{part}"), Ranges())
