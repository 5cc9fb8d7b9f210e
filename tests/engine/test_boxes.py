"""Boxes of golden values, wherever these lie in memory."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from torchfault.engine.graph.boxes import LocalLanes


def laid_out(how: str) -> Tensor:
    """Return images of shape (5, 3, 6, 8)."""
    plain = torch.arange(5 * 3 * 12 * 16, dtype=torch.float32).reshape(5, 3, 12, 16)
    views = {
        "channels first": plain[:, :, :6, :8].contiguous(),
        "channels last": plain[:, :, :6, :8].contiguous(memory_format=torch.channels_last),
        "every second pixel": plain.contiguous(memory_format=torch.channels_last)[:, :, ::2, ::2],
        "a corner": plain[:, :, 3:9, 5:13],
    }
    return views[how]


@pytest.mark.parametrize("fill", [0.0, float("-inf")])
@pytest.mark.parametrize("how", ["channels first", "channels last", "every second pixel", "a corner"])
def test_a_box_is_cut_out_of_the_image_and_filled_outside_of_it(how, fill):
    value, rows = laid_out(how), torch.tensor([4, 0, 4])
    lanes = LocalLanes(SimpleNamespace(values={7: value}), rows, [])
    padded = pad(value, (4, 4, 4, 4), value=fill)
    for first in ([(0, 0), (2, 3), (4, 5)], [(-2, 0), (3, -1), (5, 7)]):
        found = lanes.box(7, torch.tensor(first), (2, 3), fill=fill)
        wanted = [padded[row, :, y + 4 : y + 6, x + 4 : x + 7] for row, (y, x) in zip(rows, first, strict=True)]
        assert torch.equal(found.movedim(-1, 1), torch.stack(wanted))


def test_a_box_of_a_view_copies_no_more_than_the_box():
    view = torch.ones(1, 1, 1, 1).expand(1 << 20, 64, 256, 256)  # 16 TiB, were they copied
    lanes = LocalLanes(SimpleNamespace(values={0: view}), torch.tensor([0, 1 << 19]), [])
    assert torch.equal(lanes.box(0, torch.tensor([[0, 0], [255, 3]]), (1, 2)), torch.ones(2, 1, 2, 64))
