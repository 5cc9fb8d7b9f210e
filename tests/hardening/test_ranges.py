"""Golden ranges, and what becomes of activations that leave them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchfault.data import Data
from torchfault.errors import DataError, ModelError
from torchfault.hardening import Ranges, guards, harden, profile


class Block(nn.Module):
    """A layer with a shortcut around it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return F.relu(self.layer(x) + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.block = Block()
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.block(F.relu(self.first(x))))


@pytest.fixture
def net():
    torch.manual_seed(3)
    return Net().eval().requires_grad_(False)


def places(model):
    return [f"{path}:{guard.place}" for path, _, guard in guards(model)]


def test_a_profile_has_the_extremes_of_every_channel_over_all_batches():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU()).eval()
    inputs = torch.randn(10, 2, 4, 4)
    found = profile(model, inputs, batch=3)
    with torch.no_grad():
        out = model[0](inputs)
    for name, values in (("0:input", inputs), ("0:output", out), ("1:output", out.relu())):
        assert torch.allclose(found[name].low, values.amin((0, 2, 3)), atol=1e-6)
        assert torch.allclose(found[name].high, values.amax((0, 2, 3)), atol=1e-6)
        assert torch.allclose(found[name].mean, values.mean((0, 2, 3)), atol=1e-6)
    assert found.inputs == 10


def test_percentiles_lie_where_that_share_of_values_is():
    values = torch.arange(10_000.0).reshape(-1, 1)
    found = profile(nn.Sequential(nn.Identity()), values)["0:input"]
    low, high = found.bounds(share=0.98)
    assert low.item() == pytest.approx(100, abs=2)
    assert high.item() == pytest.approx(9899, abs=2)
    low, high = found.bounds(share=0.9)
    assert low.item() == pytest.approx(500, abs=2)


def test_the_outermost_reader_of_a_tensor_is_guarded_once(net):
    safe = harden(net, Ranges(), profile=profile(net, torch.randn(20, 3)))
    assert places(safe) == ["first:input", "block:input", "last:input"]


def test_a_value_that_reaches_a_shortcut_is_restricted_there_too(net):
    data = torch.randn(50, 3)
    safe = harden(net, Ranges(), profile=profile(net, data))
    limit = safe.block.input_high
    assert limit == pytest.approx(float(net.first(data).relu().max()), rel=1e-4)
    assert torch.equal(safe.block(torch.full((1, 3), 1e30)), net.block(limit.expand(1, 3)))


@pytest.mark.parametrize("bad", [1e30, -1e30, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_values_out_of_range_become_what_was_asked(net, bad, per):
    data = torch.randn(50, 3)
    found = profile(net, data)
    mean = found["last:input"].mean if per == "channel" else found["last:input"].mean.mean()
    struck = found["last:input"].mean.clone()[None]
    struck[0, 1] = bad
    near = torch.tensor(0.0) if math.isnan(bad) else torch.tensor(bad)
    at = lambda one: one.expand(3)[1]  # noqa: E731
    for action, expected in (
        ("clamp", None),
        ("zero", torch.tensor(0.0)),
        ("mean", at(mean)),
    ):
        safe = harden(net, Ranges("last:input", action=action, per=per), profile=found)
        given = struck.clone()
        low, high = safe.last.input_low, safe.last.input_high
        for bound, exact in zip((low, high), found["last:input"].bounds(per=per), strict=True):
            assert torch.allclose(bound, exact, rtol=0, atol=1e-4)
        given[0, 1] = near.clamp(at(low), at(high)) if expected is None else expected
        assert torch.equal(safe.last(struck), net.last(given)), action
        assert bool(next(guards(safe))[2].alarms(safe.last, (struck,), None)[0])


def test_a_guarded_model_trains_and_gradients_pass_the_guard(net):
    found = profile(net, torch.randn(20, 3))
    safe = harden(net, Ranges(), profile=found).requires_grad_(True)
    safe(torch.randn(4, 3)).sum().backward()
    assert safe.first.weight.grad.abs().sum() > 0


def test_a_margin_widens_and_zero_stays_the_lower_bound_of_what_is_never_negative(net):
    found = profile(net, torch.randn(200, 3))
    safe = harden(net, Ranges(margin=0.5), profile=found)
    low, high = found["last:input"].bounds()
    assert safe.last.input_low == low == 0
    assert safe.last.input_high == pytest.approx(float(high) * 1.5, rel=1e-4)
    assert safe.first.input_low < found["first:input"].low.min()


@pytest.mark.parametrize("action", ["zero", "mean"])
def test_rounding_alone_leaves_no_range(action):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(300, 40), nn.ReLU(), nn.Linear(40, 3)).eval().requires_grad_(False)
    data = torch.randn(64, 300)
    safe = harden(model, Ranges("2:input", action=action, per="channel"), profile=profile(model, data))
    alone = torch.cat([safe(row[None]) for row in data])
    assert torch.allclose(alone, model(data), atol=1e-4)


def test_the_callers_tensor_is_left_as_it_was(net):
    safe = harden(net, Ranges(), profile=profile(net, torch.randn(20, 3)))
    given = torch.full((2, 3), 100.0)
    safe(given)
    assert torch.equal(given, torch.full((2, 3), 100.0))


def test_attention_gets_one_tensor_for_query_key_and_value():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    model, data = nn.Sequential(layer), torch.randn(6, 5, 8)
    safe = harden(model, Ranges(), profile=profile(model, data))
    assert "0:input" in places(safe)
    assert torch.allclose(safe(data), model(data), atol=1e-5)


def test_bad_input_is_refused_in_one_line(net):
    found = profile(net, torch.randn(20, 3))
    for call, error, message in (
        (lambda: harden(net, Ranges()), ModelError, "needs golden ranges"),
        (lambda: harden(harden(net, Ranges(), profile=found), Ranges(), profile=found), ModelError, "guarded in this"),
        (lambda: Ranges(share=0.2), ModelError, "share from 0.5 to 1"),
        (lambda: Ranges(action="mend"), ModelError, "got 'mend'"),
        (lambda: profile(net, torch.full((2, 3), math.nan)), DataError, "no finite number"),
        (lambda: found["lst:input"], DataError, "did you mean 'last:input'"),
        (lambda: profile(nn.Dropout(), Data(torch.ones(2, 3))), ModelError, "training"),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 3, 2, 5, 6), (4, 7, 3), (4, 3)], ids=str)
@pytest.mark.parametrize("action", ["clamp", "zero", "mean"])
def test_every_channel_has_its_own_bounds_in_tensors_of_any_axes(shape, action):
    torch.manual_seed(4)
    model, scale = nn.Sequential(nn.Identity()), torch.tensor([1.0, 10.0, 100.0])
    axis = 1 if len(shape) > 3 else len(shape) - 1
    data = torch.rand(shape) * scale.reshape([3 if at == axis else 1 for at in range(len(shape))])
    safe = harden(model, Ranges("0:input", action=action, per="channel"), profile=profile(model, data))
    assert torch.equal(safe(data), data)
    for channel, far in enumerate((9.0, 99.0, 999.0)):
        struck = data.clone()
        struck.movedim(axis, -1)[(*[0] * (len(shape) - 1), channel)] = far
        changed = safe(struck)
        assert changed.movedim(axis, 0)[channel].max() <= data.movedim(axis, 0)[channel].max() * 1.01
        assert int((changed != struck).sum()) == 1


def test_an_empty_batch_passes(net):
    safe = harden(net, Ranges(per="channel"), profile=profile(net, torch.randn(20, 3)))
    assert safe(torch.empty(0, 3)).shape == (0, 2)


def test_golden_ranges_are_the_same_in_batches_of_any_size():
    class Twice(nn.Module):  # the sample of what is called twice outgrows its first memory
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(self.fc(x))

    torch.manual_seed(0)
    model, data = Twice().eval(), torch.randn(50, 3)
    whole = profile(model, data, batch=50)
    for batch in (7, 1):
        parts = profile(model, data, batch=batch)
        assert parts.ranges.keys() == whole.ranges.keys()
        for name, found in parts.ranges.items():
            for part in ("low", "high", "mean", "quantiles"):
                assert torch.allclose(getattr(found, part), getattr(whole[name], part), atol=1e-6), (name, part)
            assert (bool(found.whole), bool(found.steady)) == (bool(whole[name].whole), bool(whole[name].steady))
