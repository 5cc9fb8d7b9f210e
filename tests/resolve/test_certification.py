"""Certified masking: what is proven comes out as golden in every run, near the radius and on images of tiny margin."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.ecosystem import missing
from benchmarks.networks import NETWORKS as LARGE
from tests.support.networks import NETWORKS
from torchfault.campaign import Campaign, run
from torchfault.criteria import (
    MarginDrop,
    Misclassified,
    NonFinite,
    OutputError,
    Top1Change,
    TopK,
    accuracy,
    by_top_class,
)
from torchfault.data import Data, leaves
from torchfault.engine import Engine
from torchfault.errors import CampaignError
from torchfault.faults import Burst, StuckAt
from torchfault.model.gains import Gains
from torchfault.resolve import Certified, Direct, Monotone, Pooled, certified, certifies
from torchfault.sampling import Exhaustive
from torchfault.statistics import MaxTrials
from torchfault.trials import Trials
from torchfault.words.deltas import values_of, words_of


class Mixed(nn.Module):
    """Everything that has a bound: strides, dilation, groups, a residual branch, both poolings, padding, slices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.split = nn.Conv2d(6, 6, 3, stride=2, padding=2, dilation=2, groups=3, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.back = nn.Conv2d(6, 6, 1)
        self.wide = nn.Conv2d(6, 8, 3, padding=1)
        self.hidden = nn.Linear(8 * 4, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.norm2(self.split(x)))
        x = F.relu(self.back(y) + F.pad(x[:, ::2, ::2, ::2], (0, 0, 0, 0, 2, 1)))
        x = F.relu6(self.wide(F.max_pool2d(x, 3, 1, 1)) * 0.5)
        x = F.avg_pool2d(x, 3, 1)
        x = F.adaptive_avg_pool2d(x, 2)
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


class Residual(nn.Module):
    """Two residual blocks without strides, the second one without batch norms and of dilated convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.first, self.norm = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.third, self.fourth = nn.Conv2d(4, 3, 3, padding=2, dilation=2), nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.norm2(self.second(F.relu(self.norm(self.first(x))))) + x)
        x = F.relu(x + self.fourth(torch.tanh(self.third(x))))
        return self.head(x.mean((2, 3)))


class Sequence(nn.Module):
    """A convolution over time whose features go through a linear layer step by step: (N, 3, 9) to logits (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 3, padding=1)
        self.each = nn.Linear(5, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.each(F.relu(self.conv(x)).transpose(1, 2)))
        return self.head(x.mean(1))


def seeded(build, *shape, inputs=6):
    """Return a network with random batch norms, and random inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
                nn.init.uniform_(module.running_var, 0.3, 2.0)
                nn.init.uniform_(module.weight, -1.5, 1.5)
        return model, Data(torch.randn(inputs, *shape))


def thin(build):
    """Return a network whose first two inputs have margins of about a hundredth: the bias of its head moves them."""
    model, data = build()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        for image in range(2):
            best, next_ = model(data.inputs[image : image + 1])[0].topk(2).indices.tolist()
            gap = model(data.inputs[image : image + 1])[0, best] - model(data.inputs[image : image + 1])[0, next_]
            head.bias[next_] += gap - 0.01
    return model, data


BUILDS = {
    "mixed": lambda: thin(lambda: seeded(Mixed, 2, 12, 12)),
    "residual": lambda: thin(lambda: seeded(Residual, 2, 6, 6)),
    "sequence": lambda: thin(lambda: seeded(Sequence, 3, 9)),
    "digits": lambda: thin(NETWORKS["digits"]),
    "depthwise": NETWORKS["depthwise"],
}


@cache
def engine_of(name, executor="graph"):
    """Return the engine of one of BUILDS."""
    return Engine(*BUILDS[name](), executor=executor)


@cache
def resolver_of(name):
    """Return the resolver that certifies the layers of one of BUILDS."""
    return certified(engine_of(name), layers(engine_of(name)))


def stored(engine):
    """Return the weights and biases of an engine's model."""
    return engine.space.select([name for name in engine.space.names if ":" not in name])


def layers(engine):
    """Return the weights, biases and inputs of convolutions and linear layers."""
    return engine.space.select(kinds=["weight", "bias", "input"], types=["Conv*", "Linear"])


def edits(space, site, element, words, inputs):
    """Return trials that each put one of *words* into an element of a site."""
    n, position = len(element), list(space.names).index(site.name)
    full = np.zeros(n, dtype=np.uint64)
    where = np.full(n, position, dtype=np.int32)
    return Trials(space.sites, np.arange(n + 1), inputs, where, element, full, words.astype(np.uint64))


def changed(engine, trials):
    """Return which trials change the top class, or give what is not finite."""
    found = np.zeros(len(trials), dtype=bool)
    for lanes in engine.run(trials):
        golden, faulty = leaves(lanes.golden)[0], leaves(lanes.faulty)[0]
        found[lanes.trial] = ((golden.argmax(1) != faulty.argmax(1)) | ~faulty.isfinite().all(1)).numpy()
    return found


EVERY = pytest.param(10**9, marks=pytest.mark.slow)


@pytest.mark.parametrize("most_words", [25, EVERY], ids=["some", "every"])
@pytest.mark.parametrize("name", [*list(BUILDS)[:-1], pytest.param("depthwise", marks=pytest.mark.slow)])
@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_no_change_inside_the_radius_changes_the_class(name, executor, most_words, rng):
    """The largest change that is proven, up and down, of words on every input: far more hostile than flips."""
    engine, proofs = engine_of(name, executor), resolver_of(name).proofs
    space, data, words = layers(engine), engine.data, resolver_of(name).words
    assert set(proofs) == set(space.names)
    for site in space.sites:
        proof = proofs[site.name]
        some = rng.permutation(site.elements)[:most_words]
        element, inputs = (part.reshape(-1) for part in np.meshgrid(some, np.arange(len(data))))
        met = proof.met[np.minimum(inputs, len(proof.met) - 1), proof.operand[element]]
        with np.errstate(divide="ignore"):
            most = np.minimum(proof.radius[inputs, proof.column[element]] * 0.999 / met, 1e6)
        held = words[site.name][np.minimum(inputs, len(words[site.name]) - 1), element].astype(np.uint64)
        held = values_of(held, "float32")
        for sign in (1, -1):
            moved = words_of(held + sign * most, "float32")
            change = values_of(moved, "float32") - held
            proven = proof.proves(change, element, inputs)
            assert proven.mean() > 0.9  # rounding to float32 may step out of the radius
            assert not changed(engine, edits(space, site, element, moved, inputs))[proven].any(), site.name


def test_a_bound_that_forgets_half_of_a_network_would_be_noticed():
    """The test above fails for radii that are ten times as large."""
    engine, proofs, failing = engine_of("mixed"), resolver_of("mixed").proofs, 0
    space = stored(engine).select("*.weight", types=["Conv2d", "Linear"])
    for site in space.sites:
        proof, element = proofs[site.name], np.arange(site.elements)
        for image in range(2):
            inputs = np.full(site.elements, image)
            most = 10 * proof.radius[image, proof.column] / np.maximum(proof.met[image, proof.operand], 1e-9)
            held = dict(engine.model.named_parameters())[site.name].detach().reshape(-1).double().numpy()
            for sign in (1, -1):
                words = words_of(held + sign * np.minimum(most, 1e6), "float32")
                failing += changed(engine, edits(space, site, element, words, inputs)).sum()
    assert failing > 100


@pytest.mark.parametrize("name", ["mixed", "digits"])
def test_certified_flips_of_a_whole_network_are_masked(name):
    """Flips of weights, biases and inputs: those that are proven have the outcomes of their lanes."""
    engine = engine_of(name)
    space = layers(engine).select(bits=range(8, 32, 2))
    campaign = Campaign(engine, space, stop=MaxTrials(2500), seed=3)
    plain = run(campaign)
    proven = run(replace(campaign, resolver=replace(resolver_of(name), audit=0.1)))
    columns = proven.columns
    assert columns.failed.tolist() == plain.columns.failed.tolist()
    assert columns.flag("proven").mean() > 0.5
    assert 0.02 < columns.flag("checked").mean() < 0.2
    assert not columns.flag("disproved").any()
    ran = ~columns.flag("proven") | columns.flag("checked")
    assert columns.lanes.tolist() == ran.astype(int).tolist()
    assert proven.audit() is None
    told = proven.proofs()
    assert (told.trials, told.lanes, told.disproved) == (2500, ran.sum(), 0)
    assert (told.proven, told.checked) == (columns.flag("proven").sum(), columns.flag("checked").sum())
    assert plain.proofs() is None
    assert proven.table("site").equals(plain.table("site"))  # exact: nothing widens


def test_without_a_graph_the_proofs_are_the_same():
    engine = engine_of("sequence", "hooks")
    found = certified(engine, layers(engine)).proofs
    for name, proof in resolver_of("sequence").proofs.items():
        np.testing.assert_allclose(found[name].radius, proof.radius, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("mobilenet_v2", 224), ("resnet50", 64)])
def test_networks_of_real_size_are_certified_layer_by_layer(name, size):
    if missing("torchvision"):
        pytest.skip("torchvision is not installed here")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = LARGE[name]()
    engine = Engine(model.eval(), Data(data.inputs[:2, :, :size, :size].contiguous()))
    space = engine.space.select(kinds="weight", types=["Conv2d", "Linear"])
    resolver = certified(engine, space, audit=1.0)
    assert set(resolver.proofs) == set(space.names)
    proofs = run(Campaign(engine, space, resolver=resolver, stop=MaxTrials(200))).proofs()
    assert proofs.checked == proofs.proven > 80
    assert proofs.disproved == 0


def test_residual_blocks_are_bounded_as_a_whole(monkeypatch):
    """Of what is in front of both blocks, and of the second one alone, more is proven than by each layer's own norm."""
    engine = engine_of("residual")
    space = engine.space.select(["stem.weight", "second.weight", "third.weight"])
    whole = certified(engine, space).proofs
    monkeypatch.setattr(Gains, "_block", lambda *_: None)
    apart = certified(engine, space).proofs
    gained = {name: (whole[name].radius / np.maximum(apart[name].radius, 1e-300)).max() for name in space.names}
    assert gained["stem.weight"] > 1.2
    assert gained["stem.weight"] > gained["second.weight"] > 1.05
    assert gained["third.weight"] == 1


def test_linear_layers_alone_are_certified_to_their_very_radius():
    """Of one linear layer the bound is exact: half as much again, and the class does change."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).eval()
    model[0].weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    engine = Engine(model, Data(torch.tensor([[2.0, 1.0, 0.5], [1.0, 4.0, -2.0]])))
    proof = certified(engine, engine.space.select("0.weight")).proofs["0.weight"]
    element, inputs = np.array([0, 2, 4, 2]), np.array([0, 0, 0, 1])
    exact = np.array([0.5, 2.0, 1.0, 1.5])  # a lead of 1 over inputs of 2, 0.5 and 1; of 3 over 2
    assert proof.proves(0.98 * exact, element, inputs).all()
    assert proof.proves(-0.98 * exact, element, inputs).all()
    assert not proof.proves(1.02 * exact, element, inputs).any()
    assert not proof.proves(np.array([np.nan, np.inf, -np.inf, np.nan]), element, inputs).any()


def test_radii_shrink_by_what_the_machine_rounds():
    """A lead of fewer roundings than the slack proves nothing at all."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).eval()
    model[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    lead = 20 * 1.2e-7 * 1000
    engine = Engine(model, Data(torch.tensor([[1000.0, 1000.0 - lead], [1000.0, 900.0]])))
    proof = certified(engine, engine.space.select("0.weight")).proofs["0.weight"]
    assert proof.radius[0].max() == 0
    assert proof.radius[1, :2].min() > 90
    assert proof.radius[1, 2] > 90 / 2**0.5  # a change of both classes


@pytest.mark.parametrize("inner", [Direct, lambda: Pooled(16, audit=0.2)], ids=["direct", "pooled"])
def test_certified_nests_with_the_others(inner):
    engine, proofs = engine_of("digits"), resolver_of("digits")
    space = engine.space.select("conv2.weight")
    words = engine.words(space)
    campaign = Campaign(engine, space, stop=MaxTrials(2000), seed=1)
    plain = run(campaign)
    for resolver in (replace(proofs, inner=inner()), Monotone(words, replace(proofs, inner=inner()))):
        found = run(replace(campaign, resolver=resolver))
        assert certifies(resolver)
        right = found.columns.failed == plain.columns.failed
        assert right[found.columns.flag("proven")].all()
        assert right.all() or (inner is not Direct and right.mean() > 0.99)  # pools may hide failures
        assert found.lanes < len(plain) / 2


def test_other_fault_models_are_certified_by_what_they_change():
    engine = engine_of("digits")
    space = engine.space.select("fc1.weight")
    for fault in (StuckAt(1), Burst(2)):
        campaign = Campaign(engine, space, fault=fault, stop=MaxTrials(500))
        plain, found = run(campaign), run(replace(campaign, resolver=replace(resolver_of("digits"), audit=1.0)))
        assert found.columns.failed.tolist() == plain.columns.failed.tolist()
        assert found.columns.flag("checked").sum() == found.columns.flag("proven").sum() > 200


def test_a_disproved_outcome_counts_as_its_lane_says():
    """Wrong proofs, of everything: what the audit runs is told, and marked."""
    engine, right = engine_of("digits"), replace(resolver_of("digits"), audit=1.0)
    space = engine.space.select("conv1.weight", bits=[30])
    wrong = {name: replace(proof, radius=np.full_like(proof.radius, np.inf)) for name, proof in right.proofs.items()}
    campaign = Campaign(engine, space, sampler=Exhaustive())
    plain, found = run(campaign), run(replace(campaign, resolver=replace(right, proofs=wrong)))
    assert plain.columns.failed.any()
    assert found.columns.failed.tolist() == plain.columns.failed.tolist()
    assert found.columns.flag("disproved").tolist() == found.columns.failed.tolist()
    assert f"{found.columns.failed.sum():,} of {len(found):,} that were run" in str(found.proofs())


@cache
def labelled():
    """Return an engine with labels, and the resolver that certifies its last layer."""
    model, data = NETWORKS["digits"]()
    engine = Engine(model, Data(data.inputs, torch.arange(6)))
    return engine, certified(engine, engine.space.select("fc2.weight"))


@pytest.mark.parametrize(
    ("criterion", "fits"),
    [
        (Top1Change(), True),
        (Misclassified() | NonFinite(), True),
        (~Top1Change(), True),
        (TopK(1), True),
        (TopK(2), False),
        (MarginDrop(0.1), False),
        (OutputError(0.1) & Top1Change(), False),
        (Misclassified(threshold=0.5), False),
    ],
    ids=str,
)
def test_only_criteria_of_the_top_class_are_certified(criterion, fits):
    assert by_top_class(criterion) == fits
    engine, resolver = labelled()
    space = engine.space.select("fc2.weight")
    for given in ({"criterion": criterion}, {"verdicts": {"mine": criterion}}):
        campaign = Campaign(engine, space, resolver=resolver, stop=MaxTrials(50), **given)
        if fits:
            assert len(run(campaign)) == 50
        else:
            with pytest.raises(CampaignError, match="says nothing of"):
                run(campaign)


def test_a_metric_and_a_monitor_are_refused():
    engine, resolver = labelled()
    campaign = Campaign(engine, engine.space.select("fc2.weight"), resolver=resolver, stop=MaxTrials(50))
    with pytest.raises(CampaignError, match="a monitor would follow"):
        run(replace(campaign, monitor=True))
    with pytest.raises(CampaignError, match="finds failures, not a metric"):
        run(Campaign(engine, campaign.space, metric=accuracy, resolver=resolver, stop=MaxTrials(50)))


class Softmax(nn.Module):
    """A network with an operation that has no bound behind its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.first(x).softmax(1))


class Double(nn.Module):
    """A layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(torch.relu(self.first(x))))


@pytest.mark.parametrize(
    ("build", "left", "why"),
    [(Softmax, {"last.weight", "last.bias"}, "softmax"), (Double, {"last.weight", "last.bias"}, "read as it is")],
    ids=["softmax", "twice"],
)
def test_what_has_no_bound_is_told_and_has_lanes(build, left, why):
    model, data = seeded(build, 4)
    engine = Engine(model, data)
    with pytest.warns(UserWarning, match=f"nothing is certified.*{why}"):
        resolver = certified(engine, stored(engine))
    assert set(resolver.proofs) == left
    campaign = Campaign(engine, stored(engine), stop=MaxTrials(300))
    assert run(replace(campaign, resolver=resolver)).columns.failed.tolist() == run(campaign).columns.failed.tolist()


def test_half_precision_is_not_certified():
    model, data = seeded(Softmax, 4)
    engine = Engine(model.to(torch.bfloat16), Data(data.inputs.to(torch.bfloat16)))
    with pytest.warns(UserWarning, match="float32 or float64"):
        assert not certified(engine, stored(engine)).proofs


def test_an_audit_is_a_share():
    with pytest.raises(CampaignError, match="a share from 0 to 1, got 2"):
        Certified({}, {}, audit=2)
