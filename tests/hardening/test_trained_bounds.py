"""Trained bounds are narrower, hold the accuracy, and leave weights alone."""

import pytest
import torch
from torch import nn

from torchfault.data import Data
from torchfault.errors import DataError, ModelError
from torchfault.hardening import InvariantBits, Ranges, harden, profile, train_bounds


@pytest.fixture(scope="module")
def trained():
    """A classifier of points by the sign of their product, and the points."""
    torch.manual_seed(0)
    inputs = torch.randn(400, 2)
    labels = (inputs.prod(1) > 0).long()
    model = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval().requires_grad_(False), Data(inputs, labels)


def accuracy(model, data):
    return float((model(data.inputs).argmax(1) == data.labels).float().mean())


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_bounds_become_narrower_at_the_same_accuracy(trained, per):
    model, data = trained
    safe = harden(model, InvariantBits(), Ranges("2:input", per=per), profile=profile(model, data))
    narrow = train_bounds(safe, data, epochs=4)
    assert (narrow[2].input_high <= safe[2].input_high).all()
    assert narrow[2].input_high.mean() < 0.9 * safe[2].input_high.mean()
    assert accuracy(narrow, data) >= accuracy(model, data) - 0.002
    assert torch.equal(narrow[0].weight, model[0].weight)
    assert not narrow[2].input_high.requires_grad
    assert torch.equal(train_bounds(safe, data, epochs=4)[2].input_high, narrow[2].input_high)
    assert narrow.state_dict().keys() == safe.state_dict().keys()


def test_an_epoch_that_costs_accuracy_is_taken_back(trained):
    model, data = trained
    safe = harden(model, Ranges("2:input"), profile=profile(model, data))
    same = train_bounds(safe, data, epochs=3, rate=1.0, pull=100.0)
    assert torch.equal(same[2].input_high, safe[2].input_high)
    assert accuracy(train_bounds(safe, data, epochs=3, rate=1.0, pull=100.0, drop=1.0), data) < 0.9


def test_bad_input_is_refused_in_one_line(trained):
    model, data = trained
    golden = profile(model, data)
    for call, error, message in (
        (lambda: train_bounds(model, data), ModelError, "without such guards"),
        (lambda: train_bounds(harden(model, Ranges(action="zero"), profile=golden), data), ModelError, "ranges clamp"),
        (lambda: train_bounds(harden(model, Ranges(), profile=golden), Data(data.inputs)), DataError, "with labels"),
        (lambda: train_bounds(harden(model, Ranges(), profile=golden), data, epochs=0), ModelError, "got epochs=0"),
        (
            lambda: train_bounds(harden(model, Ranges(), profile=golden), data, rate=float("nan")),
            ModelError,
            "rate=nan",
        ),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
