"""What trials say of groups: draws of several faults on several inputs, and words, averaged as if listed one by one."""

import numpy as np
import pytest

from torchfault.results.observations import observe
from torchfault.space import FaultSpace, Site
from torchfault.store import Columns

SPACE = FaultSpace((Site("a", (4,), word="int8"), Site("b", (3,), word="int8", bits=(0, 6, 7))))


def test_draws_of_several_faults_on_several_inputs_count_once_in_each_group_that_they_strike():
    faults = np.array([1, 33, 33, 2, 3])  # three draws: of sites a and b, of b alone, twice in a
    counts, failed = np.array([2, 1, 2]), np.array([True, False, True, True, False, False])
    columns = Columns(
        np.concatenate([np.tile(part, 2) for part in np.split(faults, np.cumsum(counts)[:-1])]),
        np.tile([0, 1], 3),
        {"failed": failed},
        counts=np.repeat(counts, 2),
    )
    seen = observe(SPACE, columns, SPACE.axis("site"), repeats=2)
    assert seen.draws == 3
    assert list(zip(seen.group.tolist(), seen.failed.tolist(), seen.share.tolist(), strict=True)) == [
        (0, 0.5, 1.0),
        (1, 0.5, 1.0),
        (1, 1.0, 1.0),
        (0, 0.0, 1.0),
    ]
    assert seen.trials.tolist() == [4, 4]


@pytest.mark.parametrize("by", ["model", "site", "bit"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_words_are_averaged_over_their_bits_and_inputs(by, repeats):
    rng, index = np.random.default_rng(0), np.repeat([0, 8, 32, 35, 24], repeats)
    full = np.where(index < 32, 0xFF, 0b11000001).astype(np.uint64)
    masks = rng.integers(0, 256, size=len(index), dtype=np.uint64) & full
    draw_of = (np.arange(len(index)) // repeats).astype(np.int32)  # as strata, to tell them apart
    columns = Columns(index, np.zeros(len(index), dtype=np.int64), {"failed": masks}, strata=draw_of, unit="word")
    axis = SPACE.axis(by)
    seen = observe(SPACE, columns, axis, repeats=repeats)
    row, faults, bit = SPACE.flips(index)
    fails, group = (masks[row] >> bit.astype(np.uint64)) & np.uint64(1), axis.code(faults)
    for code, share, failed, draw in zip(seen.group, seen.share, seen.failed, seen.stratum, strict=True):
        mine = (group == code) & (row // repeats == draw)
        assert failed == pytest.approx(fails[mine].mean())
        assert share == pytest.approx(mine.sum() / (row // repeats == draw).sum())
    assert seen.trials.tolist() == np.bincount(group, minlength=len(axis)).tolist()
