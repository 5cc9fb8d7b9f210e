"""Edits of one tensor's words: the right words and no others, in any layout, of any format; and what comes back."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchfault.errors import FaultError
from torchfault.model.lane_axis import LaneAxis, by_sample
from torchfault.words import Edits, decode, encode, masks_to_words, word


def bits(tensor):
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


def flips(fmt, element, bit, **given):
    """Return the edits that flip *bit* of each *element*."""
    element = np.array(element)
    keep = np.full(len(element), (1 << fmt.width) - 1, dtype=np.uint64)
    toggle = np.left_shift(np.uint64(1), np.full(len(element), bit, dtype=np.uint64))
    return Edits.of("t", fmt, element, keep, toggle, **given)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_edits_equal_a_plain_loop_in_any_layout(data):
    fmt = word(data.draw(st.sampled_from(["float32", "float16", "float64", "int8", "uint8"])))
    inner = data.draw(st.lists(st.integers(1, 4), min_size=0, max_size=3))
    lanes, axis = data.draw(st.integers(1, 4)), data.draw(st.integers(0, len(inner)))
    outer, tail = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    shape = (*inner[:axis], outer * lanes * tail, *inner[axis:])
    tensor = torch.randint(-100, 100, shape).to(fmt.dtype)
    if data.draw(st.booleans()) and len(shape) > 1:
        tensor = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    elements = tensor.numel() // lanes
    rows = data.draw(st.lists(st.integers(0, elements - 1), min_size=1, max_size=8, unique=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    top = 2**fmt.width - 1
    keep = rng.integers(0, top, len(rows), dtype=np.uint64, endpoint=True) if data.draw(st.booleans()) else None
    keep = np.full(len(rows), top, dtype=np.uint64) if keep is None else keep
    toggle = rng.integers(0, top, len(rows), dtype=np.uint64, endpoint=True)
    sample = rng.integers(0, lanes, len(rows)) if data.draw(st.booleans()) else None
    edits = Edits.of("t", fmt, np.array(rows), keep, toggle, lane=sample)
    layout = LaneAxis(axis, outer, tail)
    before = bits(tensor)
    result = edits.copied(by_sample(tensor, layout))
    assert bits(tensor) == before
    edits.write(by_sample(tensor, layout))
    assert bits(result) == bits(by_sample(tensor, layout))
    words = np.frombuffer(before, dtype=f"u{fmt.width // 8}").reshape(*inner[:axis], outer, lanes, tail, *inner[axis:])
    apart = np.moveaxis(words, axis + 1, 0).reshape(lanes, -1).copy()
    for i, element in enumerate(rows):
        for lane in range(lanes) if sample is None else [sample[i]]:
            apart[lane, element] = (int(apart[lane, element]) & int(keep[i])) ^ int(toggle[i])
    back = np.moveaxis(apart.reshape(lanes, *inner[:axis], outer, tail, *inner[axis:]), 0, axis + 1)
    assert bits(tensor) == np.ascontiguousarray(back).tobytes()


@pytest.mark.parametrize("name", ["e3m2fn", "e5m2", "q3.4", "uint8[0.02:128]", "bfloat16"])
@pytest.mark.parametrize("count", [1, 24])
def test_words_that_are_not_the_memory_are_edited_one_by_one(name, count, rng):
    fmt = word(name)
    values = torch.from_numpy(rng.normal(0, 3, (4, 24)).astype(np.float32))  # float32 holds the words of all of them
    element = np.sort(rng.permutation(24)[:count])
    edits = flips(fmt, element, fmt.width - 2)
    struck = edits.copied(values)
    for lane in range(4):
        for place in range(24):
            old = values[lane, place]
            held = old.to(torch.bfloat16) if name == "bfloat16" else old
            new = decode(encode(held, fmt) ^ (1 << fmt.width - 2), fmt).float()
            assert bits(struck[lane, place]) == bits(new if place in element else old)


def test_saved_words_come_back_bit_for_bit_nan_payloads_among_them():
    fmt = word("float32")
    patterns = np.array([0x7FA00001, 0xFFFFFFFF, 0x80000000, 1, 0x3F800000], dtype=np.uint64)
    tensor = decode(masks_to_words(patterns, fmt), fmt)
    edits = flips(fmt, [0, 1, 2, 3], 30)
    saved, before = edits.read(tensor[None]), bits(tensor)
    edits.write(tensor[None])
    assert encode(tensor, fmt).numpy().view(np.uint32).tolist() == [
        *(int(p) ^ 1 << 30 for p in patterns[:4]),
        0x3F800000,
    ]
    edits.put(tensor[None], saved)
    assert bits(tensor) == before


def test_an_element_or_lane_that_is_not_there_is_refused():
    fmt = word("float32")
    with pytest.raises(FaultError, match="element 3 is outside 't', which has 3 per sample here"):
        flips(fmt, [3], 31).write(torch.zeros(2, 3))
    with pytest.raises(FaultError, match="sample 2 is outside the batch of 2 that reached 't'"):
        flips(fmt, [0], 31, lane=np.array([2])).check(torch.zeros(2, 3))
    flips(fmt, [3], 31).write(torch.zeros(0, 3))  # nobody is there to be struck


def test_edits_of_every_lane_can_name_the_lanes():
    fmt = word("int8")
    tensor = torch.arange(12, dtype=torch.int8).view(3, 4)
    edits = flips(fmt, [1, 3], 7)
    assert torch.equal(edits.copied(tensor), edits.on_lanes(3).copied(tensor))
    assert edits.on_lanes(3).lane.tolist() == [0, 0, 1, 1, 2, 2]
