"""The work of every kind of layer, against torch's own counter and against formulas written by hand."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.thales.networks import lenet5, mnist
from torchfault.data import Data, call
from torchfault.engine import Engine
from torchfault.errors import HardwareError
from torchfault.hardware.layers import layers_in, layers_of
from torchfault.model.export import capture

# One layer each, so that torch's count of the whole is the layer's.
COUNTED = {
    "convolution": (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 9, 9)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, bias=False), (4, 10, 8)),
    "same": (nn.Conv2d(2, 4, (4, 3), padding="same"), (2, 6, 6)),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 5, 5)),
    "grouped": (nn.Conv2d(8, 12, 3, groups=4), (8, 5, 6)),
    "one axis": (nn.Conv1d(4, 6, 3), (4, 16)),
    "three axes": (nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(8, 4, 2, stride=2), (8, 4, 4)),
    "transposed, grouped": (nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, groups=2), (8, 4, 4)),
    "linear": (nn.Linear(12, 7), (12,)),
    "linear on tokens": (nn.Linear(12, 7), (5, 12)),
}


class Products(nn.Module):
    """Products of two activations: batched, by ``@``, by einsum, with a vector."""

    def forward(self, x):
        """Take (N, 5, 6)."""
        y = x @ x.transpose(1, 2)
        z = torch.bmm(y, x)
        return torch.einsum("bij,bkj->bik", z, x) @ x


@pytest.mark.parametrize("name", COUNTED)
def test_macs_are_those_of_torch(name):
    layer, shape = COUNTED[name]
    works = layers_of(layer.eval(), Data(torch.randn(3, *shape))).works
    assert [work.macs for work in works] == [counted(layer, torch.randn(1, *shape))]


def counted(model, inputs):
    """Return the multiply-accumulates that torch counts."""
    with FlopCounterMode(display=False) as counter:
        call(model, inputs)
    return counter.get_total_flops() // 2


def test_products_of_activations():
    works = layers_of(Products().eval(), Data(torch.randn(3, 5, 6))).works
    assert [work.macs for work in works] == [5 * 5 * 6] * 4
    assert sum(work.macs for work in works) == counted(Products(), torch.randn(1, 5, 6))
    assert [work.variables for work in works[:2]] == [(30, 30, 25), (25, 30, 30)]
    assert works[0].inputs + works[0].weights == ("matmul:input", "matmul:input1")
    assert [work.product is None for work in works] == [False, False, True, False]


def test_attention_is_two_products_per_head():
    layer = nn.MultiheadAttention(12, 3, batch_first=True).eval()

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = layer

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    works = {work.op: work for work in layers_of(Attend().eval(), Data(torch.randn(3, 7, 12))).works}
    attention = works["scaled_dot_product_attention"]
    assert attention.macs == 3 * (7 * 7 * 4 + 7 * 7 * 4)
    assert attention.variables == (84, 168, 84)
    assert len(attention.weights) == 2


@pytest.mark.parametrize(
    ("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), pytest.param(nn.RNN, 1, marks=pytest.mark.slow)]
)
def test_recurrent_layers_count_every_step_of_every_direction(kind, gates):
    layer = kind(6, 5, num_layers=2, bidirectional=True, batch_first=True).eval()
    (work,) = layers_of(layer, Data(torch.randn(3, 7, 6))).works
    first, second = 6 + 5, 10 + 5  # the second layer reads both directions
    assert work.macs == 7 * 2 * gates * 5 * (first + second)
    assert work.variables == (42, 2 * gates * 5 * (first + second), 70)
    assert len(work.weights) == 8


def test_the_networks_of_the_paper():
    for build, macs in ((mnist, [144_000, 320_000, 16_000, 500]), (lenet5, [117_600, 240_000, 48_000, 10_080, 840])):
        works = layers_of(*build()).works
        assert [work.macs for work in works] == macs
        for work in works:
            product = work.product
            assert product.groups * product.rows * product.depth * product.columns == work.macs


def test_variables_are_the_sizes_of_the_sites():
    model, data = mnist()
    layers = layers_of(model, data)
    for work in layers.works:
        for holds in ("input", "weight", "output"):
            sites = [layers.space.site(name) for name in work.sites(holds)]
            assert work.count(holds) == sum(math.prod(site.shape) for site in sites)
    assert layers.works[0].count("control") == 1


def test_a_model_without_layers_is_refused():
    with pytest.raises(HardwareError, match="none of them"):
        layers_of(nn.ReLU().eval(), Data(torch.randn(3, 4)))


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_an_engine_has_captured_its_layers_already(executor, monkeypatch):
    engines = [Engine(*build(), executor=executor) for build in (mnist, lenet5)]
    alone = [layers_of(engine.model, engine.data) for engine in engines]
    captured = []
    monkeypatch.setattr("torchfault.hardware.layers.capture", lambda *a: captured.append(a) or capture(*a))
    for engine, expected in zip(engines, alone, strict=True):
        layers = layers_in(engine)
        assert layers.works == expected.works
        assert layers.nbytes == expected.nbytes
        assert all(layers.space.site(site.name) == site for site in expected.space.sites)
    assert len(captured) == (2 if executor == "hooks" else 0)


def test_layers_of_models_with_time_steps_are_measured_without_these():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.cell = nn.Linear(4, 5), nn.LSTMCell(5, 3)

        def forward(self, x):
            state = None
            for step in range(3):
                state = self.cell(self.fc(x[:, step]), state)
            return state[0]

    data = Data(torch.randn(6, 3, 4))
    engine = Engine(Twice().eval(), data)
    assert layers_in(engine).works == layers_of(engine.model, data).works
