"""Lanes are judged in larger parts than engines give them, with the same verdicts."""

import numpy as np
import pytest
import torch

from torchfault.campaign import judging
from torchfault.campaign.judging import _together
from torchfault.engine.executor import Lanes


def lanes(first: int, count: int, *, classes: int = 3) -> Lanes:
    """Return lanes whose every number tells which trial they are."""
    trial = np.arange(first, first + count)
    golden = {"y": torch.arange(first, first + count).float().unsqueeze(1).expand(-1, classes), "scale": 2.0}
    faulty = {"y": -golden["y"], "scale": 2.0}
    return Lanes(trial, trial % 7, golden, faulty, trial % 2 == 0, trial % 3 == 0)


@pytest.mark.parametrize(
    ("sizes", "classes", "parts"),
    [
        ([3, 1, 5, 2, 4], 3, [9, 6]),  # eight lanes are enough
        ([20, 1, 1], 3, [20, 2]),
        ([1, 1, 1, 1], 64, [2, 2]),  # or 512 bytes
        ([], 3, []),
    ],
)
def test_small_parts_come_together_and_nothing_is_lost(sizes, classes, parts, monkeypatch):
    monkeypatch.setattr(judging, "_ENOUGH", 8)
    monkeypatch.setattr(judging, "_ENOUGH_BYTES", 512)
    starts = np.cumsum([0, *sizes])
    given = [lanes(int(first), size, classes=classes) for first, size in zip(starts, sizes, strict=False)]
    seen: list[int] = []
    found = list(_together(iter(given), seen.append))
    assert seen == sizes
    assert [len(part.trial) for part in found] == parts
    for part in found:
        wanted = lanes(int(part.trial[0]), len(part.trial), classes=classes)
        for name in ("trial", "inputs", "masked", "crashed"):
            assert (getattr(part, name) == getattr(wanted, name)).all()
        for mine, theirs in ((part.golden, wanted.golden), (part.faulty, wanted.faulty)):
            assert torch.equal(mine["y"], theirs["y"])
            assert mine["scale"] == 2.0
    assert sum(len(part.trial) for part in found) == sum(sizes)
