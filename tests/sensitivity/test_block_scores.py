"""Scores of faults in codes and scales: exact where the model is linear, against loops elsewhere, and unbiased."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import collect
from tests.support.torch_types import skip_without
from torchfault.adapters.represent import represent
from torchfault.campaign import Campaign, run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import ModelError
from torchfault.faults import BitFlip
from torchfault.sampling import Importance, Population
from torchfault.sensitivity import corrected, effect, gradients, held_values
from torchfault.statistics import MaxTrials
from torchfault.storages import activation_storage
from torchfault.trials import strike

WEIGHTS = ["mxfp4:4", "mxfp8_e4m3:5@1", "nvfp4:4", "int8", "uint4:4"]


def every(engine, space, which):
    """Return the scores of every fault of *space*, each on the input number *which*."""
    index = np.arange(len(space))
    inputs = np.full(len(index), which)
    trials = strike(space, space.locate(index), model=BitFlip(), rng=np.random.default_rng(0), inputs=inputs)
    return collect(engine._executor, trials)[0]


def linear(weights, activations=None):
    skip_without(weights or "", *(activations or {}).values())
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model, inputs = nn.Sequential(nn.Linear(10, 3)).eval(), torch.randn(2, 10)
    return Engine(represent(model, {"0.weight": weights} if weights else None, activations=activations), Data(inputs))


def scored(score, space):
    """Return the scores of every fault of *space*."""
    return np.concatenate([score.rows(site, np.arange(site.elements)).reshape(-1) for site in space.sites])


def check_exact(engine, space):
    """Hold the first-order effect of every fault to the lead that is really lost, on every input."""
    score, wanted = effect(engine.model, engine.data, space, images=2), 0
    for which in range(2):
        golden = engine.golden()[which]
        best, next_one = golden.topk(2).indices.tolist()
        lead = golden[best] - golden[next_one]
        faulty = every(engine, space, which).double()
        moved = (faulty[:, best] - faulty[:, next_one] - lead).abs() / lead
        wanted = wanted + moved.nan_to_num(nan=1.0).clamp(max=1.0).numpy() / 2
    found = scored(score, space)
    assert len(found) == len(space)
    assert np.allclose(found, wanted, atol=1e-4)
    assert 0 < found.min(initial=1.0, where=found > 0) < found.max() == 1


@pytest.mark.parametrize("weights", WEIGHTS)
def test_effects_of_codes_and_scales_are_exact_in_a_linear_model(weights):
    engine = linear(weights)
    space = engine.space.select("0.weight*")
    assert len(space.sites) > 1
    check_exact(engine, space)


@pytest.mark.parametrize("activations", ["mxfp4:4", "mxint8:3", "nvfp4:4[0.001]"])
def test_effects_in_activations_are_exact_in_a_linear_model(activations):
    engine = linear(None, {"0:input": activations})
    check_exact(engine, engine.space.select("0:input*"))


def small(weights, activations):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
        inputs = torch.randn(6, 2, 4, 4)
    return Engine(represent(model, weights, activations=activations), Data(inputs))


@pytest.mark.parametrize("how", ["mxfp6_e3m2:3", "nvfp4:2[0.01]", "mxfp6_e3m2:3@1", "nvfp4:2@1[0.01]"])
def test_gradients_of_activations_in_blocks_are_sums_over_their_blocks(how):
    skip_without(how)
    engine = small(None, {"0:output": how})
    model, data, kept = engine.model, engine.data, activation_storage(how).kept
    space = engine.space.select("0:output*")
    found, held = gradients(model, data, space), held_values(model, data, space)

    def turned(tensor):
        """Return four rows of four: pixels of a channel, or channels of a pixel; and back."""
        return tensor.reshape(6, 4, 4).mT.contiguous() if "@1" in how else tensor.reshape(6, 4, 4)

    plain = model[0]._conv_forward(data.inputs, model[0].weight, model[0].bias).detach()
    values = turned(kept.round(turned(plain).reshape(-1, 4))).reshape(6, 4, 2, 2).requires_grad_()
    slopes = turned(torch.autograd.grad(model[1:](values).sum(), values)[0])
    words = kept.encode(turned(values.detach()).reshape(-1, 4))
    elements, scales = words[""].reshape(6, 4, 4), words["scale"].float().reshape(6, 4, -1)
    whole = words.get("per_tensor_scale", torch.ones(()))
    by_element, by_scale = torch.zeros(6, 4, 4), torch.zeros_like(scales)
    for lane, row, place in np.ndindex(6, 4, 4):
        block = place // kept.block
        by_element[lane, row, place] = slopes[lane, row, place] * scales[lane, row, block] * whole
        by_scale[lane, row, block] += slopes[lane, row, place] * elements[lane, row, place] * whole
    assert np.allclose(found["0:output"], turned(by_element).abs().mean(0).reshape(-1), rtol=1e-4, atol=1e-6)
    assert np.allclose(found["0:output.scale"], by_scale.abs().mean(0).reshape(-1), rtol=1e-4, atol=1e-6)
    assert np.allclose(held["0:output"], turned(elements).mean(0).reshape(-1))
    assert np.allclose(held["0:output.scale"], scales.mean(0).reshape(-1))


@pytest.mark.parametrize("make", ["effect", "corrected"])
def test_importance_sampling_of_blocks_weighs_exactly(make):
    skip_without("mxfp4")
    engine = small("mxfp4:8", {"0:input": "mxfp8_e4m3:4"})
    space = engine.space.select(["0.weight*", "0:input*"])
    if make == "effect":
        sampler = Importance(effect(engine.model, engine.data, space), floor=0.25)
    else:
        sampler = corrected(engine.model, engine.data, space, bits="change", floor=0.25)
    population = Population(space)
    q = sampler.density(population, np.arange(len(space)))
    assert q.sum() == pytest.approx(1, abs=1e-9)
    draws = sampler.draw(population, 4000, rng=np.random.default_rng(1), start=0)
    assert np.allclose(draws.weight, 1 / len(space) / q[draws.index])
    counts = np.bincount(draws.index, minlength=len(space))
    groups = np.argsort(q)[:: len(space) // 8 or 1]
    for low, high in zip(q[groups][:-1], q[groups][1:], strict=True):
        chosen = (q > low) & (q <= high)
        share = q[chosen].sum()
        assert abs(counts[chosen].sum() / 4000 - share) < 4.5 * np.sqrt(share / 4000) + 1e-3
    golden = engine.golden().argmax(1)
    failing = [
        (every(engine, space, which).argmax(1) != golden[which]) | every(engine, space, which).isnan().any(1)
        for which in range(6)
    ]
    truth, covered = float(torch.stack(failing).double().mean()), 0
    assert truth > 0.001
    for seed in range(10):
        found = run(Campaign(engine, space, sampler=sampler, stop=MaxTrials(4096), seed=seed)).estimate()
        covered += found.low <= truth <= found.high
    assert covered >= 8


@pytest.mark.parametrize(
    ("weights", "activations", "named"), [("csr", None, "3.weight*"), (None, "bfp8:4", "0:output*")]
)
def test_words_that_are_no_factors_are_refused_by_name(weights, activations, named):
    engine = small(weights, activations)
    with pytest.raises(ModelError, match="are no factors of the values that they make"):
        effect(engine.model, engine.data, engine.space.select(named))


def test_codes_of_block_floating_point_have_effects():
    engine = linear("bfp8:4")
    check_exact(engine, engine.space.select(["0.weight"]))
