"""Every built-in passes its conformance suite, and every suite catches what it is there to catch."""

import dataclasses
import itertools
import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.support.networks import NETWORKS
from torchfault.criteria import (
    BoxChange,
    FirstSpikeChange,
    MarginDrop,
    MaskChange,
    Misclassified,
    NonFinite,
    OutputError,
    PerplexityRise,
    SpikeCountChange,
    ThresholdChange,
    TokenChange,
    Top1Change,
    TopK,
)
from torchfault.engine.graph.executor import GraphExecutor
from torchfault.engine.hooks.executor import HooksExecutor
from torchfault.faults import BitFlip, Burst, Lasting, RandomWord, StuckAt, Value
from torchfault.hardware import samplers as upset_samplers
from torchfault.hardware.accelerator import FLAT, NVDLA_LIKE, OUTPUT_STATIONARY
from torchfault.hardware.measure import UpsetMeasure
from torchfault.hardware.samplers import PROPOSALS, ByCells, TwoPhase
from torchfault.hardware.upset_space import UpsetSpace
from torchfault.hardware.work import Product, Work
from torchfault.measures import ProductMeasure, draw, probability
from torchfault.sampling import (
    METHODS,
    Adaptive,
    BitErrorRate,
    BitFields,
    Design,
    Deviations,
    Draws,
    Exhaustive,
    Importance,
    Learned,
    Population,
    Search,
    Sensitivity,
    Statistical,
    Strata,
    Uniform,
    WholeWords,
)
from torchfault.space import FaultSpace, Site
from torchfault.testing import (
    check_criterion,
    check_executor,
    check_fault_model,
    check_sampler,
    check_word_format,
)
from torchfault.words import WORDS

# The table of built-ins: a new one gets a row.

P_OF_BITS = {"int8": (0.01, 0.1, 0.5, 0.0, 0.2, 0.2, 0.4, 0.5), "float32": (*[0.001] * 30, 0.5, 0.01)}
SAMPLERS = (
    Exhaustive(),
    Exhaustive(block=7),
    Uniform(),
    Uniform(faults=3),
    Uniform(faults=40, distinct=False),
    BitErrorRate(1e-4),
    BitErrorRate(0.01),
    *(Statistical(method, margin=0.03, bits=P_OF_BITS if method == "data-aware" else None) for method in METHODS),
    Adaptive(),
    Adaptive(BitFields((1, 1)), block=100),
    Adaptive(WholeWords(), block=256),
    Adaptive(pool=16, reserve=0.1),
    Importance(Sensitivity({}, bits="linear")),
    Importance(Sensitivity({}, bits="linear"), floor=0.2, shares="equal", threshold=0.5),
    Learned(Sensitivity({}, bits="linear")),
    Search(side=64, block=64),
)
UPSET_SAMPLERS = (*(ByCells(proposal) for proposal in PROPOSALS), TwoPhase(), TwoPhase(block=700))
FAULT_MODELS = (
    BitFlip(),
    StuckAt(0),
    StuckAt(1),
    Burst(1),
    Burst(3),
    Burst(64),
    RandomWord(),
    Lasting(StuckAt(1), steps=3),
    Value(0.0),
    Value(1.0),
    Value(-0.5),
    Value(float("inf")),
)
CRITERIA = (
    Top1Change(),
    TopK(1),
    TopK(3),
    Misclassified(),
    MarginDrop(0.5),
    OutputError(0.1),
    OutputError(0.1, norm="l2"),
    NonFinite(),
    Top1Change() & MarginDrop(0.5),
    TopK(2) | NonFinite(),
    ~Top1Change(),
)
_BOXES = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [5.0, 5.0, 9.0, 9.0]]]).repeat(4, 1, 1)
_SHIFTS = torch.tensor([0.0, 0.5, 3.0, math.nan])[:, None, None]
_SCORES = torch.tensor([[[3.0, 1.0], [0.0, 1.0], [2.0, 0.0]]]).repeat(4, 1, 1)
_TURNS = torch.tensor([1.0, 0.9, -1.0, math.inf])[:, None, None]
_SPIKES = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]]).repeat(4, 1, 1)
_SPIKED = torch.stack([_SPIKES[0], _SPIKES[0].flip(1), _SPIKES[0] * math.nan, _SPIKES[0] * 2])
_TOKENS = torch.tensor([[5, 7, 2, 9]]).repeat(4, 1)
STRUCTURED = {
    SpikeCountChange(): (_SPIKES, _SPIKED),
    SpikeCountChange(1): (_SPIKES, _SPIKED),
    FirstSpikeChange(): (_SPIKES, _SPIKED),
    FirstSpikeChange(steps=0): (_SPIKES, _SPIKED),
    ThresholdChange(): (_SCORES - 0.5, _SCORES * _TURNS - 0.5),
    ThresholdChange(1.5, share=0.5): (_SCORES, _SCORES * _TURNS),
    Misclassified(threshold=0.5): (_SCORES, _SCORES * _TURNS, (_SCORES > 0.5).long()),
    TokenChange(): (_TOKENS, _TOKENS + torch.arange(4)[:, None].clamp(min=1) - 1),
    TokenChange(0.5, output="ids"): ({"ids": _TOKENS}, {"ids": _TOKENS.triu()}),
    BoxChange(): tuple({"boxes": boxes, "scores": torch.ones(4, 2)} for boxes in (_BOXES, _BOXES + _SHIFTS)),
    MaskChange(iou=0.9, axis=2): (_SCORES, _SCORES * _TURNS),
    PerplexityRise(1.2): (_SCORES, _SCORES * _TURNS, torch.tensor([[0, 1, 0]] * 4)),
}
"""Criteria of outputs other than scores of classes, with golden and faulty outputs, and labels, for four lanes."""


@pytest.mark.parametrize("criterion", STRUCTURED, ids=repr)
def test_criteria_of_tasks(criterion):
    golden, faulty, labels = (*STRUCTURED[criterion], None)[:3]
    check_criterion(criterion, golden=golden, faulty=faulty, labels=labels)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samplers(sampler):
    check_sampler(sampler)


WORKS = (
    Work("fc", "linear", 24, ("fc:input",), ("fc.weight",), ("fc:output",), (6, 24, 4), Product(1, 1, 6, 4)),
    Work("rnn", "gru", 40, (), (), (), (4, 8, 5)),
)
CHIPS = {"flat": (FLAT, 32), "array": (replace(OUTPUT_STATIONARY, height=2, width=2), 16), "nvdla": (NVDLA_LIKE, 16)}


def upsets_of(chip):
    """Return the upsets of data in use while a chip computes a product and a recurrent layer."""
    accelerator, width = CHIPS[chip]
    return Population(UpsetSpace(accelerator, WORKS, ((width,) * 3,) * 2), UpsetMeasure(in_use=True), inputs=3)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("sampler", UPSET_SAMPLERS, ids=repr)
def test_samplers_of_upsets(sampler, chip):
    check_sampler(sampler, upsets_of(chip))


@dataclass(frozen=True)
class Upset:
    """A sampler of upsets with a *flaw*."""

    flaw: str
    block: int = 1024

    def design(self, population):
        """Return that of two phases."""
        design = TwoPhase(self.block).design(population)
        return replace(design, later=0) if self.flaw == "later strata untold" else design

    def draw(self, population, n, *, rng, start, tally=None):
        """Draw in two phases, and spoil the blocks after the pilot."""
        draws = TwoPhase(self.block).draw(population, n, rng=rng, start=start, tally=tally)
        if not start:
            return draws
        space, weight, index = population.space, draws.weight, draws.index
        if self.flaw == "no weights":
            weight = np.ones(n)
        if self.flaw == "one type":
            index = index[space.type[space.cell_of(index)] == space.type[space.cell_of(index)][0]]
            index = rng.choice(index, n)
        if self.flaw == "first places":
            index = space.number_of(space.cell_of(index), 0)
        return replace(draws, weight=weight, index=index)


@pytest.mark.parametrize(
    ("flaw", "rule"),
    [
        ("later strata untold", "strata are those of the design: got strata like"),
        ("no weights", "weights are p/q, .*: (layer|type|bit|kind) '.*' has"),
        ("one type", "weights are p/q, .*: (layer|type|kind) '.*' has"),
        ("first places", "weights are p/q, .*: places 0 to .* of layer 'fc', type 'input' has"),
    ],
)
@pytest.mark.parametrize("chip", ["flat", "array"])
def test_a_broken_sampler_of_upsets_is_told_its_rule(chip, flaw, rule):
    with pytest.raises(AssertionError, match=f"breaks the rule that .*{rule}"):
        check_sampler(Upset(flaw), upsets_of(chip))


def test_samplers_of_upsets_refuse_other_spaces():
    with pytest.raises(AssertionError, match=r"its design has strata .* from the space of an accelerator, got a F"):
        check_sampler(TwoPhase())


@pytest.mark.parametrize("name", WORDS)
def test_word_formats(name):
    check_word_format(WORDS[name])


@pytest.mark.parametrize("model", FAULT_MODELS, ids=repr)
def test_fault_models(model):
    check_fault_model(model)


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_criteria(criterion):
    check_criterion(criterion)


def test_criteria_on_outputs_of_ones_own(rng):
    golden = {"logits": torch.from_numpy(rng.normal(size=(6, 4, 3, 3))), "aux": torch.zeros(6)}
    faulty = {"logits": golden["logits"] + torch.linspace(0, 2, 6)[:, None, None, None], "aux": torch.zeros(6)}
    faulty["logits"][4:] *= -1
    labels = golden["logits"].argmax(1)
    check_criterion(Top1Change(axis=1), golden=golden, faulty=faulty)
    check_criterion(Misclassified(axis=1, share=0.5), golden=golden, faulty=faulty, labels=labels)

    def large(golden, faulty, labels):
        del golden, labels
        return faulty["logits"].amax((1, 2, 3)) > 3

    check_criterion(large, golden=golden, faulty=faulty)


@pytest.mark.parametrize("goals", [{"site": 0.05}, {"model": 0.05}, {"model": 0.05, "site": 0.1}, {"layer": 0.1}])
@pytest.mark.parametrize("margins", [False, True])
def test_a_sampler_that_knows_the_words(goals, margins, rng):
    sites = (Site("a.weight", (40,)), Site("b:output", (30,), kind="output"), Site("c.weight", (3, 5)))
    words = {
        site.name: rng.normal(size=(7 if site.is_activation else 1, site.elements)).astype(np.float32).view(np.uint32)
        for site in sites
    }
    cut = Deviations(words, margins=rng.random(7) if margins else None, unsure=(0.2,))
    check_sampler(Adaptive(cut, block=256), Population(FaultSpace(sites), inputs=7, goals=goals))


@pytest.mark.parametrize("goals", [{"model": 0.05}, {"bit": 0.1}, {"site": 0.05, "bit": 0.2}, {"kind": 0.05}])
def test_adaptive_samplers_draw_towards_any_goal(goals):
    sites = (Site("a", (4, 2, 3)), Site("b", (30,), word="int8", kind="bias"), Site("c", (9,), bits=(3, 30)))
    check_sampler(Adaptive(block=400), Population(FaultSpace(sites), goals=goals))


def test_a_sampler_on_a_space_of_ones_own():
    space = FaultSpace((Site("big", (2**20, 2**12)), Site("small", (1,))))
    check_sampler(Uniform(), Population(space))
    check_sampler(Adaptive(block=64), Population(space, goals={"model": 0.01}))


# Samplers that aim well with weights, and ones that break a rule.

EIGHTHS = np.array([8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plain:
    """Draws every fault alike; *flaw* says what it does wrong."""

    flaw: str = ""
    block: int = 2000

    def design(self, population):
        """Return one stratum."""
        return Design(Strata.one(len(population.space)), block=self.block)

    def draw(self, population, n, *, rng, start, tally=None):
        """Draw as it should."""
        return Uniform().draw(population, n, rng=rng, start=start, tally=tally)


@dataclass(frozen=True)
class Aimed(Plain):
    """Draws from another measure than the population's, and weighs by p/q."""

    def draw(self, population, n, *, rng, start, tally=None):
        """Draw with preference for the first elements of every site."""
        del start, tally
        if self.flaw == "global randomness":
            rng = np.random.default_rng()
        space = population.space
        sites = np.arange(len(space.sites), 0, -1.0)
        elements = {s.name: np.arange(s.elements, 0, -1.0) for s in space.sites}
        proposal = ProductMeasure(sites / sites.sum(), {name: p / p.sum() for name, p in elements.items()})
        index = draw(proposal, space, n, rng=rng)
        weight = probability(population.measure, space, index) / probability(proposal, space, index)
        stratum = np.zeros(n, dtype=np.int32)
        inputs = None
        match self.flaw:
            case "no weights":
                weight = np.ones(n)
            case "weights off by two per cent":
                weight *= 1.02
            case "negative weights":
                weight[0] = -1
            case "weights that are not finite":
                weight[0] = np.nan
            case "float faults":
                index = index.astype(float)
            case "negative strata":
                stratum -= 1
            case "strata beyond the last":
                stratum += 1
            case "an input too many":
                inputs = rng.integers(0, population.inputs + 1, size=n)
            case "one too few":
                index, weight, stratum = index[1:], weight[1:], stratum[1:]
            case "outside":
                index[0] = len(space)
            case "bare indices":
                return index
        return Draws(index, weight, stratum, None, inputs)


@dataclass(frozen=True)
class Designed(Plain):
    """Draws well, and has another design."""

    def design(self, population):
        """Return a design with a flaw."""
        size = len(population.space)
        one = Strata.one(size)
        match self.flaw:
            case "no design":
                return one
            case "mass that is missing":
                return Design(replace(one, mass=np.array([0.9])), block=self.block)
            case "no trials":
                return Design(one, block=self.block, total=0)
            case "another block":
                return Design(one, block=self.block + 1)
            case "nothing to look for":
                return Design(one, block=self.block, looks="every")
            case "what no store holds":
                return Design(one, block=self.block, targets={"site": np.float32(0.1)})
            case "weights that it exceeds":
                return Design(one, block=self.block, largest_weight=0.5)
        return Design(one, block=self.block, total=100 if self.flaw == "an end that never comes" else None)


@dataclass(frozen=True)
class Skewed(Plain):
    """Draws with weights of 1 from everywhere but a part of the space."""

    keeps: object = None
    block: int = 4000

    def draw(self, population, n, *, rng, start, tally=None):
        """Draw until all faults are of the part that is kept."""
        index = Uniform().draw(population, 40 * n, rng=rng, start=start, tally=tally).index
        return Draws.equal(index[self.keeps(population.space.locate(index))][:n])


class Forgetful(Uniform):
    """Makes other trials when asked again."""

    calls = itertools.count()

    def draw(self, population, n, *, rng, start, tally=None):
        """Draw depending on how often it was called."""
        rng.random(next(self.calls) % 7)
        return super().draw(population, n, rng=rng, start=start, tally=tally)


class NoDesign:
    """Has no design."""

    block = 10

    def draw(self, population, n, *, rng, start, tally=None):
        """Draw as it should."""
        return Uniform().draw(population, n, rng=rng, start=start, tally=tally)


class Hurried(Exhaustive):
    """Draws a full block where fewer trials are left, wrapping around."""

    def draw(self, population, n, *, rng, start, tally=None):
        """Draw modulo the size of the space."""
        del rng, tally
        return Draws.equal(np.arange(start, start + max(n, self.block)) % len(population.space))


class Skipping(Exhaustive):
    """Draws one fault twice and another never."""

    def draw(self, population, n, *, rng, start, tally=None):
        """Strike fault 0 in the place of the last of the space."""
        draws = super().draw(population, n, rng=rng, start=start, tally=tally)
        return Draws.equal(np.where(draws.index == len(population.space) - 1, 0, draws.index))


class Ending(Exhaustive):
    """Fails in its last trial."""

    def draw(self, population, n, *, rng, start, tally=None):
        """Refuse the end."""
        return super().draw(population, n + 1, rng=rng, start=start, tally=tally)


@dataclass(frozen=True)
class Heavy(Uniform):
    """Uniform trials of several faults, weighted wrongly."""

    faults: int = 3

    def draw(self, population, n, *, rng, start, tally=None):
        """Return weights of 0.9."""
        draws = super().draw(population, n, rng=rng, start=start, tally=tally)
        return replace(draws, weight=draws.weight * 0.9)


class Lumped(BitErrorRate):
    """Strikes several bits, never those of the last site."""

    def __init__(self):
        super().__init__(0.01)

    def draw(self, population, n, *, rng, start, tally=None):
        """Draw from the space without its last site."""
        sites = population.space.sites
        return super().draw(Population(FaultSpace(sites[:-1] or sites)), n, rng=rng, start=start, tally=tally)


@dataclass(frozen=True)
class Adapting(Plain):
    """Adapts to nothing, with a *flaw*."""

    block: int = 500
    calls = itertools.count()

    def design(self, population):
        """Return one stratum whose draws follow outcomes."""
        return replace(super().design(population), adapts=True)

    def draw(self, population, n, *, rng, start, tally=None):
        """Draw as it should, or as the flaw says once there are outcomes."""
        if not start:
            return super().draw(population, n, rng=rng, start=start)
        columns, space = tally.columns(), population.space
        match self.flaw:
            case "another plan":
                return (Aimed() if next(self.calls) % 2 else self).draw(population, n, rng=rng, start=0)
            case "writes":
                rng.random(int(columns.failed.sum()) % 7)
                columns.flags["failed"][:] = False
            case "no weights":
                highest = space.locate(columns.faults[columns.failed]).bit.max()
                return Skewed(keeps=lambda where: where.bit == highest).draw(population, n, rng=rng, start=start)
            case "one too few":
                return super().draw(population, n - 1, rng=rng, start=start)
        return super().draw(population, n, rng=rng, start=start)


BROKEN_SAMPLERS = {
    "Draws, also at the end": [Aimed("bare indices"), Ending()],
    "as many trials as asked for": [Aimed("one too few"), Hurried(), Adapting("one too few")],
    "inside the space": [Aimed("float faults"), Aimed("outside"), Aimed("an input too many")],
    "weights are finite": [
        Aimed("negative weights"),
        Aimed("weights that are not finite"),
        Aimed("negative strata"),
        Aimed("strata beyond the last"),
        Designed("weights that it exceeds"),
    ],
    "the random stream and their number alone": [Aimed("global randomness"), Forgetful()],
    "weights are p/q": [
        Aimed("no weights"),
        Aimed("weights off by two per cent"),
        Heavy(),
        Lumped(),
        Skewed(keeps=lambda where: where.bit != 30),
        Skewed(keeps=lambda where: where.site != 3),
        Skewed(keeps=lambda where: (where.element >= 5) | (where.site != 1)),
        Adapting("no weights"),
    ],
    "the outcomes so far and the random stream alone": [Adapting("writes"), Adapting("another plan")],
    "a block of one trial or more": [NoDesign(), Exhaustive(block=0), Aimed(block=2.5)],
    "strata that hold the measure": [
        Designed("no design"),
        Designed("mass that is missing"),
        Designed("no trials"),
        Designed("another block"),
        Designed("nothing to look for"),
    ],
    "plain data": [Designed("what no store holds")],
    "no fault is drawn twice": [Skipping()],
}


def rows_of(table):
    """Return (rule, broken implementation) pairs with readable names."""
    return [
        pytest.param(rule, broken, id=f"{getattr(broken, 'flaw', '') or type(broken).__name__}-{number}")
        for rule, column in table.items()
        for number, broken in enumerate(column)
    ]


@pytest.mark.parametrize(("rule", "broken"), rows_of(BROKEN_SAMPLERS))
def test_a_broken_sampler_is_told_its_rule(rule, broken):
    with pytest.raises(AssertionError, match=f"breaks the rule that .*{re.escape(rule)}"):
        check_sampler(broken, None if not isinstance(broken, Skewed) else SKEWED)


SKEWED = Population(FaultSpace((Site("a", (9, 4)), Site("b", (40,)), Site("c", (10, 8), word="int8"), Site("d", (3,)))))


def test_a_weighted_sampler_passes():
    check_sampler(Aimed())
    check_sampler(Adapting())
    check_sampler(Skewed(keeps=lambda where: where.bit >= 0))
    check_sampler(Designed())


def test_weights_may_aim_at_another_target():
    space = FaultSpace((Site("a", (8,)), Site("b", (24,))))
    halves = ProductMeasure([0.5, 0.5], elements={"a": EIGHTHS / EIGHTHS.sum()}, bits={"b": np.eye(32)[30]})

    @dataclass(frozen=True)
    class ByHardware(Plain):
        def draw(self, population, n, *, rng, start, tally=None):
            del start, tally
            return Draws.equal(draw(halves, population.space, n, rng=rng))

    for sampler in (ByHardware(), Uniform(), Exhaustive(), Aimed(), Adaptive(BitFields((1,)), block=64)):
        check_sampler(sampler, Population(space, halves, goals={"site": 0.1}))
    with pytest.raises(AssertionError, match=r"weights are p/q.*site 'a' has 0.25"):
        check_sampler(ByHardware(), Population(space))


def test_suites_refuse_what_is_no_implementation_at_all():
    with pytest.raises(AssertionError, match="block of one trial"):
        check_sampler(Uniform)
    with pytest.raises(AssertionError, match="breaks the rule"):
        check_fault_model(BitFlip)
    with pytest.raises(AssertionError, match="one bool per lane"):
        check_criterion(Top1Change)


# Word formats.


@dataclass(frozen=True)
class SpoiltCoding:
    """A coding with other conversions."""

    coding: object
    to_words: object
    to_values: object

    def round(self, values):
        """Return what the coding gives."""
        return self.coding.round(values)


def spoilt(name, *, to_words=None, to_values=None, **changes):
    """Return the built-in format *name* with changed parts."""
    coding = WORDS[name].coding
    changed = SpoiltCoding(coding, to_words or coding.to_words, to_values or coding.to_values)
    return replace(WORDS[name], coding=changed, **changes)


def quiet_nan(words, dtype):
    """Decode, and then let arithmetic make NaN payloads what it likes."""
    values = words.view(dtype)
    return torch.where(values.isnan(), torch.nan, values)


def in_place(words, dtype):
    """Decode, after having cleared the words."""
    values = words.clone().view(dtype)
    words.zero_()
    return values


def as_stored(values, dtype):
    """Encode in the order of memory, whatever the strides."""
    return torch.empty(0, dtype=dtype).set_(values.untyped_storage(), 0, values.shape)


BROKEN_FORMATS = {
    "1 to 64 bits": [
        spoilt("float32", width=0, fields={}),
        spoilt("int8", width=9),
        spoilt("float32", integer=torch.int16),
    ],
    "disjoint bits of the word": [
        spoilt("int8", fields={"all": tuple(range(8)), "sign": (7,)}),
        spoilt("int8", fields={"all": (8,)}),
        spoilt("int8", fields={"all": (1, 0)}),
    ],
    "comes back from its value": [
        spoilt("float32", to_values=quiet_nan),
        spoilt("float32", to_values=in_place),
        spoilt("float64", to_words=lambda values, dtype: values.to(dtype)),
        spoilt("float16", to_values=lambda words, dtype: words.view(dtype) + 0),
        spoilt("int8", to_values=lambda words, dtype: words.to(torch.int16)),  # noqa: ARG005
        spoilt("int16", to_words=lambda values, dtype: values.flatten()[:1].to(dtype)),
    ],
    "shape and layout": [
        spoilt("int16", to_words=lambda values, dtype: values.reshape(-1).to(dtype)),
        spoilt("int32", to_words=as_stored),
    ],
}


@pytest.mark.parametrize(("rule", "broken"), rows_of(BROKEN_FORMATS))
def test_a_broken_word_format_is_told_its_rule(rule, broken):
    with pytest.raises(AssertionError, match=f"{broken.name} breaks the rule that .*{re.escape(rule)}"):
        check_word_format(broken)


# Fault models.

FULL8, ONE = np.uint64(255), np.uint64(1)


@dataclass(frozen=True)
class Spoilt:
    """A bit flip with a *flaw*."""

    flaw: str

    def masks(self, word, bit, *, rng):
        """Return the masks of a bit flip, spoilt."""
        keep, toggle = BitFlip().masks(word, bit, rng=rng)
        match self.flaw:
            case "int64":
                return keep.astype(np.int64), toggle.astype(np.int64)
            case "lists":
                return keep.tolist(), toggle.tolist()
            case "one mask":
                return toggle
            case "one row":
                return keep[:1], toggle[:1]
            case "keep of 64 bits":
                return np.full_like(keep, 2**64 - 1), toggle
            case "uncut burst":
                return keep, np.uint64(7) << bit.astype(np.uint64)
            case "idle":
                return keep, np.where(bit == 0, np.uint64(0), toggle)
            case "global randomness":
                return keep, np.random.default_rng().permutation(toggle)
            case "writes its bits":
                bit[:] = 0
            case "neighbours":
                return keep, np.bitwise_or.accumulate(toggle)
            case "fits nothing":
                return Value(1e400).masks(WORDS["int8"], bit, rng=rng)
            case "crashes":
                raise ZeroDivisionError
        return keep, toggle


class Unhashable(BitFlip):
    """Has no hash."""

    __hash__ = None


class Unequal(BitFlip):
    """Equals only itself."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


BROKEN_MODELS = {
    "two uint64 arrays": [Spoilt("int64"), Spoilt("lists"), Spoilt("one mask"), Spoilt("one row")],
    "inside the word": [Spoilt("keep of 64 bits"), Spoilt("uncut burst")],
    "every row can change a word": [Spoilt("idle")],
    "randomness comes from rng alone, and bits are read, not written: asked twice": [Spoilt("global randomness")],
    "bits are read, not written: the given bits were altered": [Spoilt("writes its bits")],
    "its own bit alone": [Spoilt("neighbours")],
    "one word format at least": [Spoilt("fits nothing")],
    "a misfit raises FaultError": [Spoilt("crashes")],
    "hashable value": [Unhashable(), Unequal()],
}


@pytest.mark.parametrize(("rule", "broken"), rows_of(BROKEN_MODELS))
def test_a_broken_fault_model_is_told_its_rule(rule, broken):
    with pytest.raises(AssertionError, match=f"breaks the rule that .*{re.escape(rule)}"):
        check_fault_model(broken)


# Criteria.


def changed(golden, faulty):
    """Return where the top class changed."""
    return golden.argmax(1) != faulty.argmax(1)


def altering(golden, faulty, labels):
    """Judge rightly, and clear the outputs."""
    del labels
    failed = changed(golden, faulty)
    faulty.zero_()
    return failed


BROKEN_CRITERIA = {
    "one bool per lane": [
        lambda golden, faulty, labels: (golden != faulty).any(),  # noqa: ARG005
        lambda golden, faulty, labels: (golden != faulty).any(1).numpy(),  # noqa: ARG005
        lambda golden, faulty, labels: (golden - faulty).abs().amax(1),  # noqa: ARG005
        lambda golden, faulty, labels: changed(golden, faulty) & bool(golden[0, 0] == 0),  # noqa: ARG005
        lambda golden, faulty: changed(golden, faulty),
    ],
    "leaves its arguments": [altering],
    "some fail and some do not": [
        lambda golden, faulty, labels: torch.zeros(len(golden), dtype=torch.bool),  # noqa: ARG005
        lambda golden, faulty, labels: torch.ones(len(golden), dtype=torch.bool),  # noqa: ARG005
    ],
    "depends on that lane alone": [
        lambda golden, faulty, labels: faulty[:, 0] > faulty[:, 0].nanmedian(),  # noqa: ARG005
        lambda golden, faulty, labels: torch.arange(len(golden)) % 2 == 0,  # noqa: ARG005
        lambda golden, faulty, labels: changed(golden, faulty) & (len(golden) > 1),  # noqa: ARG005
    ],
}


@pytest.mark.parametrize(("rule", "broken"), rows_of(BROKEN_CRITERIA))
def test_a_broken_criterion_is_told_its_rule(rule, broken):
    with pytest.raises(AssertionError, match=f"breaks the rule that .*{re.escape(rule)}"):
        check_criterion(broken)


def test_the_tables_hold_every_built_in():
    from torchfault import criteria, faults, sampling

    frozen = lambda module: {  # noqa: E731
        name for name in module.__all__ if dataclasses.is_dataclass(getattr(module, name))
    }
    assert {type(model).__name__ for model in FAULT_MODELS} == frozen(faults) - {"Trials", "DEAD", "SATURATED"}
    samplers = {name for name in frozen(sampling) if hasattr(getattr(sampling, name), "draw")}
    # the clusters of two stages are chosen beforehand, and no draw leaves them: a test of its own holds it to its rules
    assert {type(sampler).__name__ for sampler in SAMPLERS} == samplers - {"TwoStage"}
    upset = {name for name in frozen(upset_samplers) if hasattr(getattr(upset_samplers, name), "draw")}
    assert {type(sampler).__name__ for sampler in UPSET_SAMPLERS} == upset
    assert {sampler.proposal for sampler in UPSET_SAMPLERS if isinstance(sampler, ByCells)} == set(PROPOSALS)
    assert {type(sampler.strata).__name__ for sampler in SAMPLERS if isinstance(sampler, Adaptive)} == {
        name for name in frozen(sampling) - {"Deviations"} if hasattr(getattr(sampling, name), "cut")
    }
    others = {"Outcomes", "Fitting", "Accuracy", "MeanIou", "Perplexity"}  # the last three are metrics of a data set
    assert {type(criterion).__name__ for criterion in (*CRITERIA, *STRUCTURED)} == frozen(criteria) - others


# Executors: one contract, and both of ours keep it on networks of every kind.


EXECUTORS = {"graph": GraphExecutor, "hooks": HooksExecutor}


@pytest.mark.parametrize("network", ["digits", "depthwise", "transformer", "lstm"])
@pytest.mark.parametrize("kind", EXECUTORS)
def test_executors(kind, network):
    model, data = NETWORKS[network]()
    check_executor(EXECUTORS[kind](model, data, memory=2**28), model, data)


class Tampering:
    """An executor that hands on another's lanes after something has gone wrong with them."""

    def __init__(self, wrong):
        self.model, self.data = NETWORKS["digits"]()
        self.model.register_buffer("spare", torch.zeros(1))
        self.inner, self.wrong = GraphExecutor(self.model, self.data, memory=2**28), wrong
        self.name, self.space = "tampering", self.inner.space

    def golden(self):
        return self.inner.golden() + (1.0 if self.wrong == "golden" else 0.0)

    def run(self, trials):
        for lanes in self.inner.run(trials):
            if self.wrong == "lost" and 0 in lanes.trial:
                continue
            if self.wrong == "input":
                lanes = replace(lanes, inputs=(lanes.inputs + 1) % len(self.data))
            if self.wrong == "silent":
                lanes = replace(lanes, faulty=lanes.golden)
            if self.wrong == "random":
                lanes = replace(lanes, faulty=lanes.faulty + torch.rand(1))
            yield lanes
            if self.wrong == "twice":
                yield lanes
        if self.wrong == "model":
            self.model.spare += 1


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ("golden", "golden outputs are those"),
        ("lost", "every trial comes out once"),
        ("twice", "every trial comes out once"),
        ("input", "every trial comes out once"),
        ("silent", "a fault in a parameter has the outcome"),
        ("random", "the same outcome again"),
        ("model", "the model is left as it was"),
    ],
)
def test_a_broken_executor_is_caught(wrong, rule):
    executor = Tampering(wrong)
    with pytest.raises(AssertionError, match=rule):
        check_executor(executor, executor.model, executor.data)
