"""Sums over a batch: layers alike are checked together, and a wrong value in any of them shows."""

import pytest
import torch
from torch import nn

from torchfault.hardening.sums import BatchSums, added, agree


def layers(kind, bias):
    torch.manual_seed(0)
    if kind == "conv":  # two alike, and one of its own
        return [nn.Conv2d(3, 4, 3, padding=1, bias=bias) for _ in range(2)] + [nn.Conv2d(3, 4, 3, 2, bias=bias)]
    if kind == "depthwise":
        return [nn.Conv2d(3, 6, 3, padding="same", groups=3, bias=bias) for _ in range(2)] + [nn.Conv2d(3, 6, 1)]
    return [nn.Linear(6, 4, bias=bias) for _ in range(2)] + [nn.Linear(6, 5, bias=bias)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "shape"), [("conv", (3, 8, 7)), ("depthwise", (3, 8, 7)), ("linear", (6,)), ("linear", (5, 6))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_wrong_value_in_any_of_several_layers_shows(kind, shape, bias, dtype):
    every = [layer.to(dtype).requires_grad_(False) for layer in layers(kind, bias)]
    given = [torch.rand(20, *shape).to(dtype) + i for i in range(3)]  # other magnitudes in each
    right = [layer(x) for layer, x in zip(every, given, strict=True)]

    def sums(outputs):
        return [BatchSums.of(*parts) for parts in zip(every, given, outputs, strict=True)]

    assert agree([])
    assert agree(sums(right))
    for at in range(3):
        for value in (float("nan"), float("inf"), -300.0):
            wrong = [one.clone() for one in right]
            wrong[at][11].view(-1)[2] = value
            assert not agree(sums(wrong))


def test_layers_are_alike_by_shapes_steps_and_batch():
    one, other, strided = layers("conv", bias=True)
    images = torch.rand(20, 3, 8, 8)
    alike = [BatchSums.of(layer, x, layer(x)).alike for layer, x in ((one, images), (other, images + 1))]
    assert alike[0] == alike[1]
    assert BatchSums.of(strided, images, strided(images)).alike != alike[0]
    assert BatchSums.of(one, images[:16], one(images[:16])).alike != alike[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_batches_are_added_in_float32_at_least(dtype):
    batch = torch.rand(30, 2, 5).to(dtype)
    assert added(batch).dtype == torch.float32
    assert torch.allclose(added(batch).double(), batch.double().sum(0))
