"""Looks: whole numbers, spikes, what is the same in all calls, and ranges."""

import pytest
import torch

from torchfault.hardening.looks import Kept, Look, fine, wrong_rows

CALLS = [torch.randint(0, 2, (128, 48), generator=torch.Generator().manual_seed(seed)).float() for seed in range(10)]


def told(parts, *, whole=False, steady=False, low=-0.5, high=1.5):
    """Return whether a look finds *parts* fine, and in how many rows they are not."""
    kept = Kept((Look("a", "output", whole, steady),), {("a", "output"): list(parts)})
    ends = torch.tensor([low]), torch.tensor([high])
    return fine(kept, *ends), int(wrong_rows(kept, *ends).sum())


def struck(parts, value, call=4):
    found = [part.clone() for part in parts]
    found[call][3, 5] = value
    return found


@pytest.mark.parametrize("value", [0.5, 1.5, 2.0, -1.0, 1.01, 1e30, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("high", [1.5, 9.0], ids=["spikes", "counts"])
def test_what_is_not_whole_or_out_of_range_is_wrong(value, high):
    assert told(CALLS, whole=True, high=high) == (True, 0)
    right = value == 2 and high > 2
    assert told(struck(CALLS, value), whole=True, high=high) == (right, 0 if right else 1)
    assert told(struck(CALLS[:1], value, 0), whole=True, high=high) == (right, 0 if right else 1)


@pytest.mark.parametrize("value", [0.7, -0.4, 1.4, 3.0, float("inf"), float("nan")])
def test_what_is_to_be_the_same_in_all_calls_is(value):
    current = torch.rand(128, 48, generator=torch.Generator().manual_seed(1))
    calls = [current.clone() for _ in range(10)]
    assert told(calls, steady=True) == (True, 0)
    for call in (0, 9):
        assert told(struck(calls, value, call), steady=True) == (False, 1)
    assert told([struck([current], value, 0)[0]] * 10, steady=True)[0] is (-0.5 <= value <= 1.5)


def test_a_module_that_did_not_run_is_fine():
    kept = Kept((Look("a", "output", True, True),), {("a", "output"): []})
    assert fine(kept, torch.tensor([0.0]), torch.tensor([1.0]))
