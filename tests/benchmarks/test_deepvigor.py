"""The published method, kept beside the benchmark that compares it: each refinement off does what it says."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks.deepvigor import PUBLISHED, Refinements, analyse
from benchmarks.deepvigor.filters import operands
from tests.recipes.test_vulnerability import networks
from tests.support.vulnerability_networks import TINY
from torchfault import Data, Engine, Top1Change, run
from torchfault.recipes import layer_space, vulnerability
from torchfault.results import Results, factors

COMPLETE = {"weights": None, "neurons": None}


@cache
def campaign_of(name: str) -> Results:
    """Return the complete campaign."""
    return run(vulnerability(Engine(*TINY[name]()), audit=0.0, gate=False, **COMPLETE))


def truth_of(name: str) -> pd.DataFrame:
    """Return the factors of channels, without a refinement missing."""
    return factors(campaign_of(name), "channel")


class _Step(nn.Module):
    """Class 1, which has a weight of 1.0 to itself, wins from *threshold* on."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.linear, self.threshold = nn.Linear(1, 1, bias=False), threshold
        nn.init.ones_(self.linear.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(x, self.threshold), self.linear(x)], 1)


def threshold_case(**switches: bool) -> pd.Series:
    """Return the factors by bit of one weight of 1.0 whose class changes from 1.3 on."""
    engine = Engine(_Step(1.3).eval(), Data(torch.ones(1, 1)))
    space = layer_space(engine.space, target="weights")
    return analyse(engine, space, refinements=Refinements(**switches), **COMPLETE).bits.set_index("bit")["value"]


@pytest.mark.parametrize("name", ["linear", "half"])
def test_with_all_refinements_it_finds_what_the_campaign_finds(name):
    engine = Engine(*TINY[name]())
    found = analyse(engine, refinements=Refinements(), **COMPLETE)
    pd.testing.assert_frame_equal(found.channels, truth_of(name)[["site", "channel", "value"]])
    assert campaign_of(name).lanes == found.lanes


def test_without_exact_places_errors_count_by_octaves():
    assert threshold_case()[[20, 21, 22, 30]].tolist() == [0, 0, 1, 1]  # 1.125, 1.25, 1.5 and infinity
    octaves = threshold_case(exact=False)
    assert octaves[[20, 21, 22, 30]].tolist() == [0, 0, 1, 1]
    coarse = analyse(Engine(*TINY["linear"]()), refinements=Refinements(exact=False), **COMPLETE).channels
    fine, whole = truth_of("linear")["value"].mean(), coarse["value"].mean()
    assert 0.5 * fine < whole < 1.5 * fine
    assert whole != fine


def test_without_shape_a_value_is_added_to_the_whole_channel():
    """Where a channel is one value of one weight times 1, that is what the flips do."""
    published = threshold_case(shape=False)
    pd.testing.assert_series_equal(published, threshold_case())
    coarse = threshold_case(shape=False, exact=False, tails=False, per_image=False)
    assert coarse[[21, 22, 30, 31]].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "name", networks("conv1d-groups", "conv2d-depthwise", "conv2d-dilated", "conv3d", "linear", "half")
)
def test_the_published_method_runs_on_every_kind_of_layer(name):
    found = analyse(Engine(*TINY[name]()), refinements=PUBLISHED, fresh=False, **COMPLETE).channels
    truth = truth_of(name)
    assert found[["site", "channel"]].equals(truth[["site", "channel"]])
    assert found["value"].between(0, 1).all()
    assert found["value"].mean() == pytest.approx(truth["value"].mean(), abs=0.05)


def test_the_operands_of_a_filter_are_its_gradients():
    generator = torch.Generator().manual_seed(0)
    cases = (
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 9)),
        (nn.Conv2d(2, 4, (2, 3), dilation=2, padding="same", groups=2), (2, 7, 8)),
        (nn.Conv3d(1, 2, 2, padding=1, padding_mode="circular"), (1, 3, 4, 3)),
        (nn.Linear(5, 2), (3, 5)),
    )
    for module, shape in cases:
        x = torch.randn(2, *shape, generator=generator)
        out = module(x)
        channels_last = isinstance(module, nn.Linear)
        flat = out.flatten(1, -2) if channels_last else out.flatten(2).transpose(1, 2)
        count = flat.shape[1]
        met = operands(module, x, (np.tile(np.arange(count), (2, 1)) + 0.5) / count)
        for image, place, channel in ((0, 0, 0), (1, count - 1, 1), (0, count // 2, flat.shape[2] - 1)):
            (gradient,) = torch.autograd.grad(flat[image, place, channel], module.weight, retain_graph=True)
            group = channel * met.shape[1] // flat.shape[2]
            torch.testing.assert_close(met[image, group, :, place], gradient[channel].reshape(-1))


def test_pooled_errors_of_a_neuron_come_from_all_images():
    """The threshold is each image's own, the errors are those of both."""
    engine = Engine(_Step(2.0).eval(), Data(torch.tensor([[1.0], [0.25]])))
    space = layer_space(engine.space, target="activations")
    pooled = analyse(engine, space, refinements=Refinements(per_image=False), **COMPLETE)
    bits = torch.tensor([[1.0], [0.25]]).view(torch.int32) ^ (1 << torch.arange(32)).int()
    delta = bits.view(torch.float32).double() - torch.tensor([[1.0], [0.25]]).double()
    share = [
        ((delta >= threshold) | ~delta.isfinite()).double().mean() for threshold in (2**0.25, 2.0)
    ]  # more than 1 and 1.75 are needed; steps are a quarter of an octave
    assert pooled.channels["value"].item() == pytest.approx(float(sum(share) / 2))


def test_without_tails_what_is_not_finite_is_taken_for_harmful():
    class Deaf(nn.Module):
        """The second class never wins: huge values are clamped, NaN is replaced."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2, bias=False)
            with torch.no_grad():
                self.linear.weight.copy_(torch.tensor([[0.5, 1.0], [0.25, 1.5]]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x).nan_to_num().clamp(-1.0, 1.0) + torch.tensor([3.0, 0.0])

    engine = Engine(Deaf().eval(), Data(torch.tensor([[1.0, 0.0], [0.5, 2.0]])))
    space, criterion = layer_space(engine.space, target="weights"), Top1Change(axis=1)
    assumed = analyse(engine, space, refinements=Refinements(tails=False), criterion=criterion, **COMPLETE)
    share = assumed.bits.set_index("bit")["value"]
    assert share[30] == 0.5  # the weights of 1 and 1.5 become infinite and NaN
    assert share.sum() == 0.5
    assert not analyse(engine, space, refinements=Refinements(), criterion=criterion, **COMPLETE).bits["value"].any()


@pytest.mark.parametrize("stored", ["int8", "float16", "bfloat16"])
def test_words_stored_otherwise_fail_as_their_flips_do(stored):
    model, data = TINY["linear"]()
    engine = Engine(model, data)
    space = layer_space(engine.space, target="weights", layers="2")
    found = analyse(engine, space, stored=stored, refinements=Refinements(), **COMPLETE)
    weight = model[2].weight.detach().clone()
    scale = float(weight.abs().max()) / 127
    held = (weight / scale).round().to(torch.int8) if stored == "int8" else weight.to(getattr(torch, stored))
    integer = {1: torch.int8, 2: torch.int16}[held.itemsize]
    golden = model(data.inputs).argmax(1)
    bits = 8 * held.itemsize
    failed = np.zeros((3, 6, bits, len(data)), dtype=bool)
    for at in np.ndindex(3, 6):
        for bit in range(bits):
            flip = torch.tensor(-(1 << bit) if bit == bits - 1 else 1 << bit, dtype=integer)
            moved = (held[at].view(integer) ^ flip).view(held.dtype).double() - held[at].double()
            with torch.no_grad():
                model[2].weight[at] = weight[at] + (moved * (scale if stored == "int8" else 1)).float()
                out = model(data.inputs)
                model[2].weight[at] = weight[at]
            failed[at][bit] = ((out.argmax(1) != golden) | ~out.isfinite().all(1)).numpy()
    assert failed.any()
    np.testing.assert_allclose(found.channels["value"], failed.mean((1, 2, 3)), atol=1e-9)
