"""Checksums: exact for stored words, within rounding for what layers compute; what is wrong is found and put right."""

import pytest
import torch
from torch import nn

from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import ModelError
from torchfault.hardening import Checksums, WeightChecksums, detecting, detection, guards, harden
from torchfault.hardening.checksums import _conv_sums
from torchfault.testing import check_hardening

LAYERS = [
    nn.Conv2d(3, 5, 3, padding=1),
    nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(2, 4, (1, 5), stride=(2, 3), padding=(0, 2)),
    nn.Conv2d(4, 3, 3, padding=2, dilation=2),
    nn.Conv2d(2, 2, 2, stride=3),
    nn.Conv2d(2, 2, 5, stride=2, padding=4),
    nn.Conv2d(2, 3, 1),
    nn.Conv2d(4, 6, 3, padding=1, groups=2),
    nn.Conv2d(4, 4, (3, 4), padding="same", dilation=(1, 2), groups=4),
    nn.Conv2d(3, 3, 3, stride=2, padding="valid", groups=3, bias=False),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_sums_of_the_input_give_the_sums_of_the_output(layer):
    given = torch.randn(3, layer.in_channels, 9, 11, dtype=torch.float64)
    layer = layer.double()
    with torch.no_grad():
        plain = layer._conv_forward(given, layer.weight, None)
        assert torch.allclose(_conv_sums(layer, given), plain.sum((2, 3)))
    layer.float()


SMALL = [
    nn.Conv2d(2, 3, 5, padding=2),
    nn.Conv2d(2, 3, 7, stride=2, padding=6, dilation=2),
    nn.Conv2d(2, 2, (4, 2), padding="same", groups=2),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("layer", SMALL, ids=repr)
def test_images_smaller_than_the_padding_are_added_up_too(layer, size):
    layer, given = layer.double(), torch.randn(3, 2, size, size, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(_conv_sums(layer, given), layer._conv_forward(given, layer.weight, None).sum((2, 3)))


class Around(nn.Module):
    """A module with one layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def _set(out, row, value):
    out = out.clone()
    out[row].view(-1)[3] = value
    return out


@pytest.mark.parametrize("layer", [*LAYERS[:2], *LAYERS[-3:], nn.Linear(11, 6), nn.Linear(11, 6, bias=False)], ids=repr)
@pytest.mark.parametrize("value", [1e30, 40.0, float("nan"), float("-inf")])
def test_a_wrong_result_is_found_and_computed_again(layer, value):
    torch.manual_seed(0)
    model = Around(layer).requires_grad_(False)
    given = torch.randn(4, layer.in_channels, 9, 11) if isinstance(layer, nn.Conv2d) else torch.randn(4, 11)
    safe, clean = harden(model, Checksums()), model(given)
    guard = next(guards(safe))[2]
    wrong = _set(clean, 2, value)
    assert guard.alarms(safe.layer, (given,), wrong).tolist() == [False, False, True, False]
    assert torch.equal(guard(safe.layer, (given,), wrong), clean)


@pytest.mark.parametrize("layer", [*LAYERS[:4], *LAYERS[-3:]], ids=repr)
def test_rounding_alone_raises_no_alarm(layer):
    torch.manual_seed(1)
    model = Around(layer).requires_grad_(False)
    safe = harden(model, Checksums())
    guard = next(guards(safe))[2]
    for scale in (1e-20, 1.0, 1e20):
        given = scale * torch.randn(500, layer.in_channels, 9, 11)
        assert not guard.alarms(safe.layer, (given,), model(given)).any()


def test_faults_in_what_a_layer_computes_are_seen_by_the_engine():
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval().requires_grad_(False)
    )
    data = Data(torch.rand(12, 1, 8, 8))
    engine = Engine(detecting(harden(model, Checksums()), mend=False), data, executor="hooks")
    space = engine.space.select("*conv2d:output", bits=[30])
    found = detection(engine, space=space, trials=150)
    assert found.coverage.trials > 20
    assert found.coverage.value > 0.95
    assert found.false_alarms.value == 0


@pytest.mark.parametrize("bits", [1, 7, 32])
def test_sums_of_words_put_any_word_right(bits, rng):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5)).requires_grad_(False)
    safe, clean = harden(model, WeightChecksums()), model(torch.eye(7))
    for _ in range(20):
        words = safe[0].weight.view(torch.int32)
        row, column, mask = (
            int(rng.integers(5)),
            int(rng.integers(7)),
            int(rng.integers(1, 2**bits)) - 2**31 * (bits > 31),
        )
        saved = words[row, column].clone()
        words[row, column] ^= mask
        assert torch.equal(safe(torch.eye(7)), clean)
        assert bool(next(guards(safe))[2].alarms(safe[0], (), None))
        words[row, column] = saved


def test_wrong_words_in_other_rows_and_columns_are_put_right_too():
    model = nn.Sequential(nn.Linear(7, 5)).requires_grad_(False)
    safe, clean = harden(model, WeightChecksums()), model(torch.eye(7))
    for row, column, value in ((0, 3, 1e30), (2, 5, float("nan")), (4, 0, -3.0)):
        safe[0].weight[row, column] = value
    assert torch.equal(safe(torch.eye(7)), clean)


@pytest.mark.parametrize("method", [Checksums(), WeightChecksums()], ids=repr)
def test_a_method_passes_the_suite(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    check_hardening(method, model, Data(torch.randn(5, 1, 6, 6)))


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ModelError, match="without any"):
        harden(nn.Sequential(nn.ReLU()), Checksums())
    with pytest.raises(ModelError, match="two or more axes"):
        harden(nn.Sequential(nn.LayerNorm(3)), WeightChecksums())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layer", [*LAYERS, nn.Linear(11, 6), nn.Linear(11, 6, bias=False)], ids=repr)
def test_sums_over_a_batch_tell_wrong_results_from_rounding(layer, dtype):
    torch.manual_seed(0)
    model = Around(layer).requires_grad_(False).to(dtype)
    shape = (64, layer.in_channels, 9, 11) if isinstance(layer, nn.Conv2d) else (64, 11)
    safe = harden(model, Checksums())
    guard = next(guards(safe))[2]
    for scale in (1.0, 1e-3, 0.0):
        given = scale * torch.randn(shape, dtype=dtype)
        clean = model(given)
        assert guard.agrees(safe.layer, given, clean)
        for value in (1e30, -90.0, float("nan"), float("inf")):
            wrong = _set(clean, 40, value)
            assert not guard.agrees(safe.layer, given, wrong)
            mended = guard(safe.layer, (given,), wrong)
            assert torch.equal(mended, clean)
    layer.float()


def test_sums_of_a_batch_need_no_bound_of_their_own_for_tokens():
    torch.manual_seed(0)
    model = Around(nn.Linear(8, 5)).requires_grad_(False)
    given = torch.randn(20, 7, 8)
    safe, clean = harden(model, Checksums()), model(given)
    guard = next(guards(safe))[2]
    assert guard.agrees(safe.layer, given, clean)
    wrong = clean.clone()
    wrong[3, 2, 1] = 99
    assert guard.alarms(safe.layer, (given,), wrong).nonzero().tolist() == [[3]]
    assert torch.allclose(guard(safe.layer, (given,), wrong), clean)


SHAPED = {"conv": nn.Conv2d(2, 3, 3), "many channels": nn.Conv2d(2, 20, 3), "linear": nn.Linear(8, 3)}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        *(("conv", shape) for shape in [(0, 2, 8, 8), (2, 8, 8)]),
        *(("many channels", shape) for shape in [(2, 8, 8), (20, 2, 8, 8)]),
        *(("linear", shape) for shape in [(0, 8), (20, 0, 8), (8,), (2, 8, 5, 8), (20, 2, 8, 8), (2, 3, 2, 5, 8)]),
    ],
)
def test_layers_are_checked_on_inputs_of_any_shape(layer, shape):
    plain, given = SHAPED[layer], torch.randn(shape)
    safe = harden(nn.Sequential(plain), Checksums())
    with torch.no_grad():
        right = plain(given)
        assert torch.equal(safe(given), right)
        if not given.numel():
            return
        assert not detecting(safe, mend=False)(given)["detected"].any()
        safe[0].register_forward_hook(
            lambda _, __, out: out + 1e9 * (torch.arange(out.numel()) == 1).view(out.shape), prepend=True
        )
        assert torch.equal(safe(given), right)
