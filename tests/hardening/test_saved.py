"""Files of hardened models: what an earlier version wrote, and files that lack what they need."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from torchfault.errors import ModelError
from torchfault.hardening import Ranges, harden, load_hardened, profile, save_hardened

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


@pytest.mark.parametrize("part", ["low", "quantiles"])
def test_files_that_lack_a_part_of_the_ranges_are_refused_in_one_line(rewritten, part):
    with pytest.raises(ModelError, match=f"holds golden ranges in part only .*/{part}.*; save it anew"):
        load_hardened(plain(), rewritten(f"/{part}"), Ranges())
