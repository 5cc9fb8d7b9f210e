"""Sensitivities against finite differences and Captum, and the samplers that are made from them."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.enumerated import enumerated
from tests.support.networks import NETWORKS
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import ModelError, SamplingError
from torchfault.sampling import Importance, Population, score_mean, score_of
from torchfault.sensitivity import CODES, conductances, corrected, effect, gradients, held_values, isimdl, rising
from torchfault.sensitivity.watch import activations, logits, top_margins
from torchfault.space import FaultSpace


@pytest.fixture(scope="module")
def known():
    """Return the enumerated network, its weights and the inputs and outputs of its layers."""
    return enumerated()


@pytest.fixture(scope="module")
def weights(known):
    """Return the weights of convolutions and linear layers."""
    return known.engine.space.select(kinds="weight")


@pytest.fixture(scope="module")
def outputs(known):
    """Return the outputs of convolutions and linear layers."""
    return known.engine.space.select(kinds="output", types=["Conv2d", "Linear"])


def test_gradients_of_weights_are_differences_of_logits(known, weights):
    model, data = known.engine.model, known.data
    found = gradients(model, data, weights, images=20)
    assert {name: len(column) for name, column in found.items()} == {s.name: s.elements for s in weights.sites}
    wide = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name in ("conv1.weight", "fc.weight"):
            parameter = dict(model.named_parameters())[name]
            for element in (0, 7, 20):
                sums = []
                for step in (-1e-2, 1e-2):
                    parameter.flatten()[element] += step
                    sums.append(float(logits(model, data.take(slice(0, 20)).inputs).double().sum()))
                    parameter.flatten()[element] -= step
                assert found[name][element] == pytest.approx(abs(sums[1] - sums[0]) / 2e-2, rel=0.05, abs=0.05)
    model.load_state_dict(wide)


def test_gradients_of_activations_are_means_of_sizes_over_images(known, outputs):
    model, data = known.engine.model, known.data.take(slice(0, 5))
    found = gradients(model, data, outputs)
    each = [gradients(model, data.take(slice(k, k + 1)), outputs)["conv2:output"] for k in range(5)]
    np.testing.assert_allclose(found["conv2:output"], np.mean(each, axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["fc:output"], 1.0)


def test_watching_leaves_no_trace_and_changes_nothing(known, outputs):
    model, data = known.engine.model, known.data
    before, state = logits(model, data.inputs), {k: v.clone() for k, v in model.state_dict().items()}
    grads = [(p.requires_grad, p.grad) for p in model.parameters()]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    gradients(model, data, outputs)
    effect(model, data, outputs, images=2)
    assert all(not p.requires_grad and p.grad is g for p, (_, g) in zip(model.parameters(), grads, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for parameter, (was, _) in zip(model.parameters(), grads, strict=True):
        parameter.requires_grad_(was)
    assert torch.equal(logits(model, data.inputs), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_module_that_writes_into_its_input_is_watched_as_it_read_it():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).eval()
    nn.init.constant_(model[0].bias, -5.0)
    data = Data(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))
    space = Engine(model, data, executor="hooks").space.select(["0:output", "1:input"])
    values = held_values(model, data, space)
    with torch.no_grad():
        plain = model[0](data.inputs).mean(0).numpy()
    np.testing.assert_allclose(values["0:output"], plain, rtol=1e-6)
    np.testing.assert_allclose(values["1:input"], plain, rtol=1e-6)
    assert plain.min() < 0


def test_conductance_is_the_integral_of_the_gradient_along_the_path(known, outputs):
    """Conductance sums to the rise of the target's logit from zeros to the input, and fits a plain integral."""
    model, data = known.engine.model, known.data.take(slice(0, 6))
    found = conductances(model, data, outputs, steps=300, signed=True)
    target = data.labels
    with torch.no_grad():
        ends = [
            logits(model, x)[torch.arange(6), 0, target].mean() for x in (data.inputs, torch.zeros_like(data.inputs))
        ]
    for name, column in found.items():
        assert column.sum() == pytest.approx(float(ends[0] - ends[1]), rel=0.03), name
    site = outputs.site("conv1:output")
    before, total = None, torch.zeros(6, *site.shape)
    for alpha in torch.linspace(0, 1, 301).tolist():
        with activations(model, [site], 6) as kept:
            score = logits(model, alpha * data.inputs)[torch.arange(6), 0, target].sum()
            slope = torch.autograd.grad(score, kept[site.name])[0]
        now = kept[site.name].detach()
        total += 0 if before is None else slope * (now - before)
        before = now
    np.testing.assert_allclose(found[site.name], total.mean(0).flatten().numpy(), atol=0.02 * float(total.abs().max()))
    sizes = conductances(model, data, outputs.select("fc:output"), steps=20)
    assert (sizes["fc:output"] >= 0).all()


def test_without_captum_the_error_says_what_to_install(known, outputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ModelError, match=r"pip install torchfault\[isimdl\]"):
        conductances(known.engine.model, known.data, outputs)


def test_the_effect_is_what_a_small_change_does_to_the_margin(known, weights):
    model, data = known.engine.model, known.data.take(slice(0, 1))
    score = effect(model, data, weights, images=1)
    site = weights.site("fc.weight")
    low = score.rows(site, np.arange(10))[:, 20]
    margin = float(top_margins(logits(model, data.inputs)).amin().detach())
    from torchfault.engine import inject
    from torchfault.space import Fault

    for element in range(10):
        with inject(model, [Fault("fc.weight", element, 20)]):
            moved = logits(model, data.inputs)[0, 0].detach()
        golden = logits(model, data.inputs)[0, 0].detach()
        best = golden.topk(2).indices
        now = float(moved[best[0]] - moved[best[1]])
        assert low[element] == pytest.approx(abs(now - margin) / margin, rel=0.02, abs=1e-5)


def test_the_effect_predicts_which_faults_fail(known):
    score = effect(known.engine.model, known.data, known.space, images=20)
    predicted = score_of(score, known.space, np.arange(len(known.space)))
    assert np.corrcoef(predicted, known.by_fault)[0, 1] > 0.6
    assert score_mean(score, known.space) == pytest.approx(predicted.mean(), rel=1e-6)


@pytest.mark.parametrize("code", CODES)
def test_published_codes_choose_bits_as_published(known, weights, outputs, code):
    share = {"G": (0.494, 0.08), "E": (0.25, 0.02), "L": (31 / 528, 0.01), "R": (1 / 32, 0.01)}[code[0]]
    for space in (weights, outputs):
        sampler = isimdl(known.engine.model, known.data, space, code, images=4)
        draws = sampler.draw(Population(space), 20_000, rng=np.random.default_rng(0), start=0)
        where = space.locate(draws.index)
        assert np.mean(where.bit == 30) == pytest.approx(share[0], abs=share[1])
        assert np.bincount(where.site) / 20_000 == pytest.approx(1 / len(space.sites), abs=0.02)
        # pixels that are always black make gradients of 0, dead neurons conductances of 0
        assert (sampler.support(space) < 1) == (code[2] == "I")
        mixed = isimdl(known.engine.model, known.data, space, code, images=4, threshold=0.1)
        assert mixed.support(space) == 1


def test_sensitivity_reaches_the_bit_in_the_corrected_scheme_alone(known, weights):
    """Scaling one element's sensitivity up leaves the published shares of its bits, and moves the corrected ones."""
    model, data = known.engine.model, known.data
    for sampler, moves in ((isimdl(model, data, weights, "GBIN"), False), (corrected(model, data, weights), True)):
        rows = sampler.score.rows(weights.site("fc.weight"), np.arange(240))
        bit30 = rows[:, 30] / rows[:, 30].sum()
        own = rows.sum(1) / rows.sum()
        values = np.abs(dict(model.named_parameters())["fc.weight"].detach().numpy().ravel())
        by = gradients(model, data, weights)["fc.weight"] * (values if moves else 1)
        np.testing.assert_allclose(bit30, by / by.sum(), rtol=0.02, atol=1e-4)
        assert (np.abs(own - by / by.sum()).max() < 0.01) or moves


def test_rising_values_are_positive(known, weights):
    sampler = rising(known.engine.model, known.data, weights, floor=0.0)
    draws = sampler.draw(Population(weights), 500, rng=np.random.default_rng(0), start=0)
    where = weights.locate(draws.index)
    held = {n: p.detach().flatten() for n, p in known.engine.model.named_parameters()}
    values = [float(held[weights.names[s]][e]) for s, e in zip(where.site, where.element, strict=True)]
    assert min(values) > 0
    assert (where.bit == 30).all()


@pytest.mark.parametrize("code", ["GBXN", "gbin", "XBIN", ""])
def test_unknown_codes_are_refused(known, weights, code):
    with pytest.raises(SamplingError, match="a code of ISimDL is one of GBIN"):
        isimdl(known.engine.model, known.data, weights, code)


def test_sites_of_no_module_are_refused_with_a_remedy():
    model, data = NETWORKS["depthwise"]()
    space = Engine(model, data).space
    functional = space.select(
        [n for n in space.names if ":" in n and n.rpartition(":")[0] not in dict(model.named_modules())][:1]
    )
    with pytest.raises(ModelError, match="known at a module's first call"):
        gradients(model, data, functional)


def test_inputs_without_a_lead_are_left_out():
    model = nn.Linear(2, 2, bias=False).eval()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    space = FaultSpace((Engine(model, Data(torch.ones(1, 2)), executor="hooks").space.site("weight"),))
    assert len(effect(model, Data(torch.tensor([[1.0, 1.0], [2.0, 1.0]])), space).margins) == 1
    with pytest.raises(ModelError, match="one best class"):
        effect(model, Data(torch.ones(3, 2)), space)


def test_scores_are_the_same_every_time(known, weights):
    """A resumed campaign recognises its sampler by them."""
    from torchfault.campaign.identity import describe

    first, second = (Importance(effect(known.engine.model, known.data, weights)) for _ in range(2))
    assert describe(first) == describe(second)
