"""Lanes are found, taken, joined and written wherever the batch axis is, also when it is merged with its neighbours."""

import pytest
import torch
from torch import Tensor

from torchfault.model.lane_axis import (
    LaneAxis,
    find_axis,
    join,
    lanes_first,
    per_sample,
    put,
    same_values,
    take,
    write_back,
)

LAYOUTS = [LaneAxis(a, o, i) for a in (0, 1) for o in (1, 2) for i in (1, 3)]


def build(layout: LaneAxis, lanes: int) -> tuple[Tensor, Tensor]:
    """Return a tensor in *layout*, and the same numbers lanes first, made by plain transposition."""
    outer = torch.arange(lanes * layout.outer * layout.inner * 20.0).view(lanes, 4, layout.outer, layout.inner, 5)
    if layout.axis:
        merged = outer.permute(1, 2, 0, 3, 4).reshape(4, -1, 5)
        return merged.clone(), outer.reshape(lanes, *per_sample(merged.shape, layout, lanes=lanes))
    merged = outer.permute(2, 0, 3, 1, 4).reshape(-1, 4, 5)
    return merged.clone(), outer.permute(0, 2, 3, 1, 4).reshape(lanes, *per_sample(merged.shape, layout, lanes=lanes))


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_lanes_are_where_the_layout_says(layout):
    value, first = build(layout, 3)
    assert torch.equal(lanes_first(value, layout), first)
    assert find_axis(value, take(value, layout, torch.tensor([1])), lanes=3, lane=1) == layout


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_take_and_join_select_lanes(layout):
    value, first = build(layout, 4)
    picked = take(value, layout, torch.tensor([2, 0, 2]))
    assert torch.equal(lanes_first(picked, layout), first[[2, 0, 2]])
    both = join([picked, value], layout)
    assert torch.equal(lanes_first(both, layout), torch.cat([first[[2, 0, 2]], first]))


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_put_and_write_back_reach_the_memory(layout):
    value, first = build(layout, 4)
    new = -take(value, layout, torch.tensor([1, 3]))
    put(value, layout, torch.tensor([3, 0]), new)
    expected = first.clone()
    expected[3], expected[0] = -first[1], -first[3]
    assert torch.equal(lanes_first(value, layout), expected)
    edited = lanes_first(value, layout)
    edited[2] = 7
    write_back(value, layout, edited)
    expected[2] = 7
    assert torch.equal(lanes_first(value, layout), expected)


def test_channels_last_survives_taking():
    image = torch.randn(3, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    picked = take(image, LaneAxis(0), torch.tensor([2, 1]))
    assert picked.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(picked, image[[2, 1]])


def test_lanes_that_mix_have_no_layout():
    x = torch.randn(3, 4)
    assert find_axis(x - x.mean(0), x[1:2] - x[1:2].mean(0), lanes=3, lane=1) is None


INF, NAN = torch.inf, torch.nan
PAIRS = [
    ([1.0, 2.0], [1.001, 2.0], True),
    ([1.0, 2.0], [1.02, 2.0], False),
    ([1.0, 1e6], [9.0, 1e6], True),  # small beside the largest
    ([NAN, INF, -INF], [NAN, INF, -INF], True),
    ([1.0, 5.0], [1.0, INF], False),
    ([INF, 5.0], [1.0, 5.0], False),
    ([NAN, 1.0], [0.0, 1.0], False),
    ([INF, 1.0], [-INF, 1.0], False),
    ([3e38, 1.0], [-3e38, 1.0], False),  # their distance is no float
    ([INF, 1.0], [INF, 1.02], False),
]


@pytest.mark.parametrize(("a", "b", "same"), PAIRS, ids=range(len(PAIRS)))
def test_values_are_the_same_up_to_the_order_of_additions(a, b, same):
    assert same_values(torch.tensor(a), torch.tensor(b)) is same


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_what_is_not_finite_is_only_like_itself_in_every_type(dtype):
    for a, b, same in PAIRS[3:8]:
        assert same_values(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)) is same
