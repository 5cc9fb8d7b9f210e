"""Statistical fault injection: published sample sizes, draws without replacement, and intervals that hold."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.doubles import SPACE, Double, truth_table
from tests.support.residual_shapes import RESNETS
from torchfault.campaign import Campaign, run
from torchfault.errors import SamplingError
from torchfault.measures import ProductMeasure
from torchfault.results import Results
from torchfault.sampling import METHODS, Population, Statistical, bit_probabilities, plan, stream
from torchfault.space import FaultSpace, Site
from torchfault.statistics import HalfWidth, MaxTrials, leveugle_sample_size
from torchfault.store import Columns, Record


def total(sampler, space):
    """Return the size of the sample from *space*."""
    return sampler.design(Population(space)).total


def drawn(sampler, n, *, rng, start=0):
    """Return *n* trials of a sample from the doubles' space."""
    return sampler.draw(Population(SPACE), n, rng=rng, start=start)


# Published sizes, from shapes alone.


@pytest.mark.parametrize(
    ("depth", "weights", "inputs"), [(18, 357_341_184, 69_844_992), (34, 680_564_736, 109_985_792)]
)
def test_the_published_spaces_come_out(depth, weights, inputs):
    assert [len(space) for space in RESNETS[depth]] == [weights, inputs]


@pytest.mark.parametrize(
    ("what", "method", "published"),
    [
        (0, "layer-wise", 190_896),
        (0, "data-unaware", 5_358_315),
        (1, "layer-wise", 191_205),
        (1, "data-unaware", 5_407_659),
    ],
)
def test_the_published_sizes_of_resnet18_come_out(what, method, published):
    space = RESNETS[18][what]
    sampler = Statistical(method)
    assert total(sampler, space) == published
    assert plan(space).set_index("method")["trials"][method] == published


@pytest.mark.parametrize("what", [0, 1])
def test_sizes_of_resnet34_are_the_floor_of_the_unrounded_sum(what):
    """The analogue for ResNet-34, by the formula of the paper written out once more."""
    space = RESNETS[34][what]

    def size(faults):
        return faults / (1 + 0.01**2 * (faults - 1) / (1.96**2 * 0.25))

    assert total(Statistical("network-wise"), space) == math.floor(size(len(space)))
    assert total(Statistical("layer-wise"), space) == math.floor(sum(size(s.size) for s in space.sites))
    assert total(Statistical("data-unaware"), space) == math.floor(sum(32 * size(s.elements) for s in space.sites))


def test_the_plan_tells_lanes_and_time():
    table = plan(RESNETS[18][0], inputs=100, rate=1e4, bits={"float32": (0.1,) * 31 + (0.5,)}).set_index("method")
    assert list(table.index) == [*METHODS, "exhaustive"]
    assert table["lanes"]["layer-wise"] == 19_089_600
    assert table["seconds"]["layer-wise"] == pytest.approx(1908.96)
    assert table["trials"]["exhaustive"] == len(RESNETS[18][0])
    assert table["strata"].tolist() == [1, 20, 640, 640, 1]
    assert table["trials"]["data-aware"] < table["trials"]["data-unaware"]
    assert plan(SPACE)["seconds"].isna().all()


@pytest.mark.parametrize("wrong", [{"inputs": 0}, {"rate": 0.0}, {"rate": math.nan}])
def test_a_plan_refuses_impossible_numbers(wrong):
    with pytest.raises(SamplingError, match="one input or more and a rate above 0, got"):
        plan(SPACE, **wrong)


# Allocation and draws.

P = tuple(np.linspace(0, 0.5, 32).tolist())
BITS = {"int8": P[::4], "float32": P}


def sampler_of(method, **options):
    """Return a sampler; the data-aware one with probabilities for both words of the doubles."""
    return Statistical(method, bits=BITS if method == "data-aware" else None, **options)


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any),
    st.sampled_from(METHODS),
    st.floats(0.005, 0.3),
)
def test_every_stratum_gets_its_size_but_for_rounding(elements, method, margin):
    space = FaultSpace(tuple(Site(f"s{i}", (n,), bits=(3, 30, 31)) for i, n in enumerate(elements)))
    sampler = sampler_of(method, margin=margin)
    sizes, draws = sampler.strata(space).sizes, sampler.allocation(space)
    assert sizes.sum() == len(space)
    assert (draws <= sizes).all()
    assert ((draws > 0) == (sizes > 0)).all()
    if method != "data-aware":
        unrounded = np.array([leveugle_sample_size(int(n), margin=margin) for n in sizes])
        kept = unrounded >= 1
        assert (np.abs(draws - unrounded)[kept] < 1 + 1e-6).all()


def test_data_aware_sizes_follow_the_bits_own_probability():
    space = FaultSpace((Site("a", (10_000,)),))
    draws = sampler_of("data-aware").allocation(space)
    expected = [max(leveugle_sample_size(10_000, p=p), 1) if p else 1 for p in P]
    assert np.abs(draws - expected).max() <= 1
    assert draws[0] == 1


@pytest.mark.parametrize("method", METHODS)
def test_draws_are_distinct_and_in_their_stratum(method):
    sampler = sampler_of(method, margin=0.05)
    size = total(sampler, SPACE)
    draws = drawn(sampler, size, rng=stream(5))
    assert len(np.unique(draws.index)) == size
    site, _, bit = SPACE.locate(draws.index)
    strata = sampler.strata(SPACE)
    names = {(s, b): k for s, b, k in zip(strata.group, strata.bit, strata.stratum, strict=True)}
    assert draws.stratum.tolist() == [names[pair] for pair in zip(site, bit, strict=True)]
    assert np.bincount(draws.stratum, minlength=len(strata.sizes)).tolist() == sampler.allocation(SPACE).tolist()
    held = np.bincount(draws.stratum, weights=draws.weight, minlength=len(strata.sizes)) / size
    assert held == pytest.approx(strata.sizes / len(SPACE))
    parts = [drawn(sampler, 10, rng=stream(5), start=start).index for start in (30, 0)]
    assert parts[1].tolist() == draws.index[:10].tolist()
    assert parts[0].tolist() == draws.index[30:40].tolist()


def test_every_fault_of_a_stratum_is_drawn_equally_often():
    sampler, seen = Statistical("layer-wise", margin=0.1), np.zeros(len(SPACE))
    for seed in range(400):
        seen += np.bincount(drawn(sampler, total(sampler, SPACE), rng=stream(seed)).index, minlength=len(SPACE))
    sizes, draws = SPACE.sizes, sampler.allocation(SPACE)
    share = np.repeat(draws / sizes, sizes)
    z = (seen - 400 * share) / np.sqrt(400 * share * (1 - share) + 1e-12)
    assert np.abs(z).max() < 4.5
    assert z.std() == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize(("n", "start"), [(1, 10**6), (-1, 0), (10**6, 0)])
def test_a_sample_ends(n, start):
    with pytest.raises(SamplingError, match=r"the sample ends at \d+, got"):
        drawn(Statistical(), n, rng=stream(0), start=start)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Statistical("layerwise"), "did you mean 'layer-wise'"),
        (lambda: Statistical(margin=0.0), "margin=0.0"),
        (lambda: Statistical(p=1.0), "p=1.0"),
        (lambda: Statistical("data-aware"), "make them by bit_probabilities"),
        (lambda: Statistical("layer-wise", bits=BITS), "with no other"),
        (lambda: Statistical("data-aware", bits={"int8": (0.7,) * 8}), "got 0.7"),
        (lambda: total(Statistical("data-aware", bits={"int8": P[::4]}), SPACE), "nothing"),
        (lambda: total(Statistical("data-aware", bits=BITS | {"int8": P}), SPACE), "32 numbers"),
        (lambda: bit_probabilities([]), "got none"),
    ],
)
def test_impossible_samplers_are_refused(make, message):
    with pytest.raises(SamplingError, match=message):
        make()


# The p of bits.


def test_bit_probabilities_of_integers_are_their_places():
    p = bit_probabilities(np.arange(-50, 50), "int8")
    assert p[7] == 0.5
    inside = np.array(p[:6])
    assert inside == pytest.approx((2.0 ** np.arange(6) - 1) * inside[5] / 31)


@settings(max_examples=20)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30))
def test_bit_probabilities_agree_with_flips_one_by_one(values):
    held = np.array(values, dtype=np.float32)
    distances = []
    for bit in range(32):
        with np.errstate(invalid="ignore", over="ignore"):
            moved = (held.view(np.uint32) ^ np.uint32(1 << bit)).view(np.float32).astype(np.float64)
        gap = np.abs(moved - held)
        distances.append(np.where(np.isnan(gap), np.inf, gap).mean())
    distances = np.array(distances)
    p = np.array(bit_probabilities(held))
    assert ((p >= 0) & (p <= 0.5)).all()
    assert p.max() == 0.5
    rising = np.argsort(distances, kind="stable")
    assert (np.diff(p[rising]) >= -1e-12).all()
    assert p[rising[0]] == 0 or distances[rising[0]] == distances[rising[-1]]


# Estimates: unbiased, and intervals that hold, by repetition on an enumerated population.

INPUTS = 10
TRUTH = truth_table(INPUTS)


def results_of(sampler, seed, share=1.0):
    """Return the results of a campaign, or of its first part, judged by the table."""
    size = total(sampler, SPACE)
    n = math.ceil(size * share)
    draws = drawn(sampler, n, rng=stream(seed, 0, 0))
    inputs = stream(seed, 2, 0).integers(INPUTS, size=size)[:n]
    failed = TRUTH[draws.index, inputs]
    columns = Columns(draws.index, inputs, {"failed": failed}, weights=draws.weight, strata=draws.stratum)
    design = sampler.design(Population(SPACE, inputs=INPUTS))
    record = Record("repeated", space=SPACE.plain(), faults=len(SPACE), inputs=INPUTS, design=design.plain())
    return Results(record, columns)


def repeat(sampler, repetitions, share=1.0):
    """Return bias of the model's estimate in standard errors, and the coverage for the model, sites and bits."""
    values, model, sites, bits = [], [], [], []
    where = SPACE.locate(np.arange(len(SPACE)))
    by_site = np.array([TRUTH[where.site == s].mean() for s in range(len(SPACE.sites))])
    by_bit = {b: TRUTH[where.bit == b].mean() for b in range(32)}
    for seed in range(repetitions):
        results = results_of(sampler, seed, share)
        one = results.estimate()
        values.append(one.value)
        model.append(one.low <= TRUTH.mean() <= one.high)
        table = results.table("site")
        sites.append((table["low"] <= by_site) & (by_site <= table["high"]))
        if seed < repetitions // 4:
            table = results.table("bit")
            right = np.array([by_bit[key] for key in table["key"]])
            bits.append((table["low"] <= right) & (right <= table["high"]))
    off = (np.mean(values) - TRUTH.mean()) / (np.std(values) / math.sqrt(repetitions))
    return off, np.mean(model), np.mean(sites), np.mean(bits)


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("method", METHODS)
def test_estimates_are_unbiased_and_their_intervals_hold(method, share):
    off, model, sites, bits = repeat(sampler_of(method, margin=0.06), 200, share)
    assert abs(off) < 3.5
    assert min(model, sites, bits) > 0.92


@pytest.mark.slow
@pytest.mark.parametrize("margin", [0.03, 0.06, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_over_a_thousand_repetitions(method, margin):
    off, model, sites, bits = repeat(sampler_of(method, margin=margin), 1000)
    assert abs(off) < 3.5
    print(f"{method} {margin}: bias {off:+.2f} se, coverage {model:.3f} model, {sites:.3f} sites, {bits:.3f} bits")
    assert min(model, sites, bits) >= 0.94


def test_knowing_the_population_narrows_intervals():
    """The more of the lanes were drawn, the narrower; draws with replacement leave endless populations."""
    results = results_of(Statistical("layer-wise", margin=0.02), 1)
    endless = replace(results.record, design=replace(results.design, replacement=True).plain())
    records = (replace(results.record, inputs=1), results.record, endless)
    estimates = [Results(record, results.columns).estimate() for record in records]
    assert len({round(one.value, 12) for one in estimates}) == 1
    widths = [one.half_width for one in estimates]
    assert widths[0] < 0.5 * widths[1]
    assert widths[1] < 0.98 * widths[2]


# Campaigns.


def test_a_campaign_ends_with_its_sample_whatever_the_batches(tmp_path):
    engine = Double(inputs=INPUTS)
    campaign = Campaign(engine, SPACE, sampler=Statistical(margin=0.06), seed=3)
    whole = run(campaign)
    assert len(whole) == total(Statistical(margin=0.06), SPACE)
    assert len(np.unique(whole.columns.faults)) == len(whole)
    store = tmp_path / "results.sqlite"
    run(replace(campaign, stop=MaxTrials(123)), store=store, name="sample", batch=50)
    resumed = run(replace(campaign, engine=Double(inputs=INPUTS)), store=store, name="sample", batch=70)
    for part in ("faults", "inputs", "failed", "weights", "strata"):
        assert getattr(resumed.columns, part).tolist() == getattr(whole.columns, part).tolist()
    assert resumed.estimate() == whole.estimate()
    assert whole.estimate().method == "stratified-beta"
    expected = results_of(Statistical(margin=0.06), 3)
    assert whole.columns.failed.tolist() == expected.columns.failed.tolist()
    assert whole.table("site").equals(expected.table("site").assign(due=whole.table("site")["due"]))


@pytest.mark.parametrize(
    ("method", "by", "h"),
    [("network-wise", "model", 0.05), ("layer-wise", "model", 0.03), ("layer-wise", "site", 0.12)],
)
def test_a_half_width_ends_a_sample_before_its_end_with_intervals_as_narrow(method, by, h):
    campaign = Campaign(Double(), SPACE, sampler=Statistical(method), seed=2, stop=HalfWidth(h, by=by))
    results = run(campaign, batch=50)
    assert len(results) < total(Statistical(method), SPACE)
    table = results.table(by)
    assert ((table["high"] - table["low"]) / 2 <= h).all()
    assert f"reached by {by}" in results.record.reason
    before = Results(results.record, results.columns.take(0, len(results) - 50)).table(by)
    assert ((before["high"] - before["low"]) / 2 > h).any()


def test_a_sample_that_ends_before_it_is_narrow_ends_all_the_same():
    results = run(Campaign(Double(), SPACE, sampler=Statistical(margin=0.2), stop=HalfWidth(0.001)))
    assert results.record.reason == f"all {total(Statistical(margin=0.2), SPACE)} trials run"


def test_samples_are_of_equally_likely_faults():
    population = Population(SPACE, ProductMeasure(np.eye(len(SPACE.sites))[0]))
    with pytest.raises(SamplingError, match="statistical injection samples equally likely faults, got another space"):
        Statistical().design(population)
