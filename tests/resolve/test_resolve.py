"""Resolvers: what they find is what injection one by one finds, lanes are counted, and audits say what is left open."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from tests.support.doubles import SPACE, Double
from torchfault.campaign import Campaign, run
from torchfault.criteria import Misclassified, NonFinite, accuracy
from torchfault.errors import CampaignError
from torchfault.faults import BitFlip, Lasting, RandomWord, StuckAt
from torchfault.model.golden_words import golden_words
from torchfault.resolve import Block, Direct, Gated, Monotone, Pooled, Resolver
from torchfault.resolve.chains import chains
from torchfault.resolve.expectation import Expectation
from torchfault.resolve.groups import search
from torchfault.results import Results, load
from torchfault.results.assumptions import AuditCounts, widened, widening
from torchfault.sampling import Adaptive, BitErrorRate, Deviations, Population, Uniform, WholeWords
from torchfault.sampling.tally import Tally
from torchfault.space import FaultSpace, Site
from torchfault.statistics import Estimate, HalfWidth, MaxTrials, upper_at_every_look
from torchfault.store import Columns, Store, pack, unpack
from torchfault.trials import strike


def words_of(known):
    return golden_words(known.engine.model, known.data, known.space)


# Group testing.


@dataclass
class Lanes:
    """Runs trials on faults of which *bad* fail, errors adding up without cancelling; keeps what each lane struck."""

    bad: np.ndarray
    struck: list = field(default_factory=list)

    def __call__(self, trials):
        self.struck += [np.sort(part) for part in np.split(trials.element, trials.offsets[1:-1])]
        failed = np.array([self.fails(part) for part in self.struck[len(self.struck) - len(trials) :]], dtype=bool)
        return {"failed": failed, "due": failed & (np.diff(trials.offsets) == 1)}

    def fails(self, lane):
        """Tell whether a lane that strikes these faults fails."""
        return self.bad[lane].any()


class Crowded(Lanes):
    """Lanes that fail where many faults meet, though none of them does alone."""

    def fails(self, lane):
        return len(lane) > 5


def block_of(lanes, inputs=None):
    """Return a block of one trial for each fault of a space of bits."""
    n = len(lanes.bad)
    space = FaultSpace((Site("a", (max(n, 1),), word="bool"),))
    given = np.zeros(n, dtype=np.int64) if inputs is None else inputs
    trials = strike(space, space.locate(np.arange(n)), model=BitFlip(), rng=np.random.default_rng(0), inputs=given)
    return Block(space, np.arange(n), trials, lanes, dict, np.zeros(n), np.zeros(n, dtype=bool))


def searched(bad, *, rates=None, inputs=None, words=None, pool=32, kind=Lanes):
    """Search faults of which *bad* fail; return what was found, and what the lanes struck."""
    n, own = len(bad), np.arange(len(bad))
    lanes = kind(np.asarray(bad, dtype=bool))
    block = block_of(lanes, inputs)
    rates = np.full(n, 0.01) if rates is None else rates
    found = search(own, block.trials.inputs, own if words is None else words, rates, block, pool=pool)
    assert block.lanes.sum() == len(lanes.struck)
    assert block.flags["due"].tolist() == found.failing.tolist()  # those that fail have a lane of their own
    return found, lanes.struck


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("pool", [2, 7, 64])
def test_a_search_finds_every_failing_fault_and_runs_each_of_them_alone(share, pool, rng):
    for n in (0, 1, 2, 3, 65):
        bad, inputs = rng.random(n) < share, rng.integers(0, 3, n)
        words = rng.integers(0, max(n // 2, 1), n)
        found, lanes = searched(bad, rates=rng.random(n) * 0.2 + 1e-4, inputs=inputs, words=words, pool=pool)
        assert found.failing.tolist() == bad.tolist()
        assert found.alone[bad].all()
        alone = np.sort(np.concatenate([lane for lane in lanes if len(lane) == 1] or [np.zeros(0, dtype=int)]))
        assert alone.tolist() == np.flatnonzero(found.alone).tolist()
        for lane in lanes:
            assert len(lane) <= pool
            assert len(set(inputs[lane])) == 1
            assert len(set(words[lane])) == len(lane)


def test_a_search_of_rare_failures_costs_about_the_entropy_of_the_outcomes(rng):
    bad = rng.random(20_000) < 0.005
    _, lanes = searched(bad, rates=np.full(20_000, 0.005), inputs=np.repeat(np.arange(100), 200), pool=256)
    entropy = -(0.005 * np.log2(0.005) + 0.995 * np.log2(0.995)) * 20_000
    assert entropy < len(lanes) < 1.5 * entropy


def test_a_pool_that_fails_though_no_fault_of_it_does_makes_none_fail():
    found, lanes = searched(np.zeros(8, dtype=bool), pool=8, kind=Crowded)
    assert not found.failing.any()
    assert any(len(lane) > 5 for lane in lanes)


# Monotone closure.


@pytest.mark.parametrize("failing", [0, 1, 2, 5, 13, 31, 32])
def test_closure_finds_the_border_between_failing_and_masked_flips(failing):
    rng = np.random.default_rng(failing)
    index, inputs = np.tile(np.arange(88), 2), rng.integers(0, 4, 176)
    word, change = index // 8, rng.normal(size=176) * 2.0 ** rng.integers(-30, 30, 176)
    found = chains(word, inputs, change)
    borders = np.append(found.first[1:], len(index))
    truth = np.zeros(len(index), dtype=bool)
    for first, last in zip(found.first, borders, strict=True):
        truth[found.order[first : min(first + failing, last)]] = True
    lanes = 0
    while len(probes := found.probes()):
        lanes += len(probes)
        found.settle(probes, truth[probes])
    assert found.failing().tolist() == truth.tolist()
    assert lanes <= len(borders) * 6


def test_chains_go_from_the_largest_flip_down_and_never_mix_words_inputs_or_directions():
    rng = np.random.default_rng(0)
    word, inputs = rng.integers(0, 200, 3000), rng.integers(0, 5, 3000)
    change = rng.normal(size=3000)
    change[::50] = np.nan
    found = chains(word, inputs, change)
    assert np.sort(found.order).tolist() == list(range(3000))
    for first, last in zip(found.first, np.append(found.first[1:], 3000), strict=True):
        mine = found.order[first:last]
        assert len({(int(word[i]), int(inputs[i]), bool(change[i] > 0)) for i in mine}) == 1
        assert (np.diff(np.abs(change[mine])) <= 0).all()
        assert len(mine) == 1 or not np.isnan(change[mine]).any()
    assert len(found.first) > 1500


# Campaigns.

SHORT = {
    "pooled": lambda words: Pooled(24, audit=0.05),  # noqa: ARG005
    "closure": lambda words: Monotone(words, audit=0.05),
    "pooled, the rest by closure": lambda words: Pooled(24, Monotone(words, audit=0.05), audit=0.05),
    "closure, its lanes pooled": lambda words: Monotone(words, Pooled(24, audit=0.05), audit=0.05),
}


@pytest.mark.parametrize("name", SHORT)
def test_resolvers_find_what_a_campaign_finds_lane_by_lane(known, name):
    resolver = SHORT[name](words_of(known))
    plain = run(Campaign(known.table, known.space, seed=3, stop=MaxTrials(6000)))
    short = run(Campaign(known.table, known.space, seed=3, stop=MaxTrials(6000), resolver=resolver))
    assert isinstance(resolver, Resolver)
    assert short.columns.faults.tolist() == plain.columns.faults.tolist()
    alone = ~short.columns.flag("vouched") | short.columns.flag("audited")
    assert short.columns.failed[alone].tolist() == plain.columns.failed[alone].tolist()
    assert short.columns.due[alone].tolist() == plain.columns.due[alone].tolist()
    assert (short.columns.failed != plain.columns.failed).mean() < 0.003
    assert short.lanes < len(plain)
    estimate = short.estimate()
    assert estimate.assumption == resolver.assumption == short.audit().assumption
    assert estimate.low <= plain.estimate().value <= estimate.high
    assert short.table("site")["high"].ge(plain.table("site")["high"] - 1e-12).mean() > 0.8


def test_every_lane_is_counted_and_every_flag_told(known):
    table = known.table
    campaign = Campaign(table, known.space, seed=1, stop=MaxTrials(16384), resolver=Pooled(32, audit=0.02))
    results = run(campaign)
    audit = results.audit()
    assert results.lanes == audit.lanes == table.lanes < 7000
    assert audit.trials == 16384
    assert 0.01 < audit.audited / audit.vouched < 0.03
    assert audit.controlled > 50
    assert audit.hidden <= 0.3 * audit.controlled
    assert audit.missed >= audit.hidden / audit.controlled
    assert str(audit).startswith("16,384 outcomes from")
    columns, back = results.columns, unpack(pack(results.columns))
    flag = {name: columns.flag(name) for name in ("vouched", "audited", "refuted", "pooled", "controlled", "hidden")}
    for name, held in flag.items():
        assert back.flag(name).tolist() == held.tolist()
        assert held.sum() == getattr(audit, name, held.sum())
    assert back.lanes.tolist() == columns.lanes.tolist()
    assert not (flag["audited"] & ~flag["vouched"]).any()
    assert not (flag["refuted"] & ~flag["audited"]).any()
    assert not (flag["hidden"] & ~flag["controlled"]).any()
    assert columns.failed[flag["controlled"]].all()
    assert not flag["pooled"][known.space.locate(columns.faults).bit == 30].any()


def counted(columns):
    """Return the counts of audits of trials on one site, in one group."""
    space = FaultSpace((Site("a", (4,)),))
    counts = AuditCounts(space, Uniform().design(Population(space)), space.axis("model"))
    counts.add(columns)
    return counts


def shifted(one, columns, *, above=0.0):
    """Return an estimate moved by what audits of *columns* found and leave open."""
    shifts = counted(columns).shifts(0.95, above=np.array([above]))
    return widened(one, tuple(float(part[0]) for part in shifts), "of the test")


def test_wrong_vouchers_move_the_value_and_the_bounds():
    """By hand: 100 trials, 90 vouched for by pools, of 10 audited one fails; of the 80 others a tenth may be wrong."""
    number, zero = np.arange(100), np.zeros(100, dtype=np.int64)
    flags = {
        "failed": (number < 5) | (number == 10),
        "vouched": number >= 10,
        "pooled": number >= 10,
        "audited": (number >= 10) & (number < 20),
        "refuted": number == 10,
    }
    columns = Columns(zero, zero, flags, lanes=zero + 1)
    one = shifted(Estimate(0.06, 0.03, 0.12, 100, "wilson"), columns)
    most = float(upper_at_every_look(1, 10))
    assert one.value == pytest.approx(0.06 + 0.1 * 0.8)
    assert (one.low, one.high) == pytest.approx((0.03, 0.12 + most * 0.8))
    seen = replace(columns, flags={"failed": flags["failed"]})
    assert shifted(Estimate(0.06, 0.03, 0.12, 100, "wilson"), seen).high == 0.12


def test_what_pools_hide_is_in_proportion_to_what_they_may_show():
    """By hand: 90 of 100 trials vouched for by pools, which showed four failing faults and hid none of them again."""
    number, zero = np.arange(100), np.zeros(100, dtype=np.int64)
    failed = number < 4
    flags = {
        "failed": failed,
        "vouched": number >= 10,
        "pooled": (number >= 10) | failed,
        "controlled": failed,
        "audited": (number >= 10) & (number < 70),
    }
    columns = Columns(zero, zero, flags, lanes=zero + 1)
    missed = float(upper_at_every_look(0, 4))
    odds, audited = missed / (1 - missed), 0.3 * float(upper_at_every_look(0, 60))
    for above in (0.05, 0.0):  # an interval of one look leaves room for chance to have shown few, as others do not
        one = shifted(Estimate(0.04, 0.01, 0.09, 100, "any"), columns, above=above)
        assert one.high == pytest.approx(0.09 + min(odds * (0.04 + above), audited))


def test_wrong_closure_moves_bounds_on_the_side_that_it_may_be_wrong_on():
    """By hand: 50 trials that larger masked flips vouch for, 50 that smaller failing ones do; 10 of each audited."""
    number, zero = np.arange(100), np.zeros(100, dtype=np.int64)
    above = number >= 50
    flags = {
        "failed": (above & (number != 50)) | (number == 0),
        "vouched": zero == 0,
        "audited": number % 50 < 10,
        "refuted": number % 50 == 0,
    }
    one = shifted(Estimate(0.5, 0.4, 0.6, 100, "any"), Columns(zero, zero, flags))
    most = float(upper_at_every_look(1, 10))
    assert one.value == pytest.approx(0.5 + 0.1 * 0.4 - 0.1 * 0.4)
    assert (one.low, one.high) == pytest.approx((0.4 - most * 0.4, 0.6 + most * 0.4))


def test_what_failed_so_far_decides_what_is_pooled():
    zero, n = np.zeros(400, dtype=np.int64), np.arange(400)
    space = Double().space.select("conv:input")
    failed = (n % 2 == 0) & (n < 200)
    for strata in (0, 3):
        expectation = Expectation(space, strata=strata)
        expectation.add(Columns(np.full(400, 5), zero + (n < 200), {"failed": failed}))
        calm, fragile = expectation.of(Columns(np.full(2, 5), np.array([0, 1])))
        assert calm < 0.01
        assert fragile > 0.4


def test_what_is_expected_of_words_is_what_their_flips_showed():
    space = FaultSpace((Site("a", (50,)),))
    first = np.arange(50) * 32
    words = Columns(first, first * 0, {"failed": np.full(50, 1 << 3, dtype=np.uint64)}, unit="word")
    row, faults, bit = space.flips(words.faults)
    by_word, by_flip = Expectation(space, strata=0), Expectation(space, strata=0)
    by_word.add(words)
    by_flip.add(words.flips(row, faults, bit))
    asked = Columns(np.arange(32), np.zeros(32, dtype=np.int64))
    np.testing.assert_array_equal(by_word.of(asked), by_flip.of(asked))
    assert by_word.of(asked)[3] > 0.3 > by_word.of(asked)[4]


@pytest.mark.parametrize("name", ["uniform", "deviations", "words"])
def test_a_campaign_with_resolvers_goes_on_as_if_it_had_never_stopped(name, known, tmp_path):
    held = words_of(known)
    sampler, stop, cuts = {
        "uniform": (Uniform(), MaxTrials(10_000), (200, 700, 1024)),
        "deviations": (Adaptive(Deviations(held), block=512, pool=16), HalfWidth(0.04, by="site"), (200, 700, 1024)),
        "words": (Adaptive(WholeWords(), block=16), HalfWidth(0.04, by="site"), (5, 22, 40)),
    }[name]
    campaign = Campaign(known.table, known.space, sampler=sampler, seed=2, resolver=Pooled(16, Monotone(held)))
    whole = run(replace(campaign, stop=stop | MaxTrials(cuts[-1])))
    with Store(tmp_path / "a.sqlite") as store:
        for trials in cuts:
            run(replace(campaign, stop=stop | MaxTrials(trials)), store=store, name="a")
        pieces = load(store, "a")
    assert len(pieces) == cuts[-1]
    assert pack(pieces.columns) == pack(whole.columns)
    assert str(pieces.estimate()) == str(whole.estimate())


@pytest.mark.parametrize("reserve", [0.0, 0.125])
def test_a_campaign_stops_once_its_intervals_are_narrow_with_all_that_audits_leave_open(reserve, known):
    held = words_of(known)
    sampler = Adaptive(Deviations(held), block=512, pool=16, reserve=reserve)
    resolver = Pooled(16, Monotone(held, audit=0.2), audit=0.02)
    stop = HalfWidth(0.08, by="site")
    results = run(Campaign(known.table, known.space, sampler=sampler, resolver=resolver, seed=5, stop=stop))
    bare = {key: value for key, value in results.record.configuration.items() if key != "assumption"}
    unaudited = Results(replace(results.record, configuration=bare), results.columns)
    whole, plain = results.table("site"), unaudited.table("site")
    wide, narrow = whole["high"] - whole["low"], plain["high"] - plain["low"]
    assert wide.max() <= 2 * 0.08
    tally = Tally(results.space, results.design, widening=widening)
    tally.add(results.columns)
    added = tally.widened("site", 0.95)
    assert (added > 0).any()
    assert (wide <= narrow + added + 1e-12).all()
    assert (wide > narrow).any()
    earlier = Results(results.record, results.columns.take(0, len(results) - 512)).table("site")
    assert (earlier["high"] - earlier["low"]).max() > 2 * 0.08


@pytest.mark.parametrize("wrong", [{"size": 1}, {"audit": 2.0}, {"control": -0.1}, {"quiet": 0.0}, {"quiet": 0.6}])
def test_impossible_pools_are_refused(wrong):
    with pytest.raises(CampaignError, match="a pool has 2 faults or more"):
        Pooled(**wrong)


def test_impossible_closures_are_refused():
    with pytest.raises(CampaignError, match=r"audit is a share from 0 to 1, got 1\.5"):
        Monotone({}, audit=1.5)


STEPPED = FaultSpace((Site("lif:state.v", (4, 3), kind="state", steps=(0, 4)),))
REFUSED = {
    "trials of several": {"sampler": Uniform(faults=2)},
    "trials of several; take Direct": {"sampler": BitErrorRate(0.01), "resolver": Gated(lambda *_: np.zeros(0, bool))},
    "not a metric": {"metric": accuracy},
    "words of 'conv.weight', got none": {"resolver": Monotone({})},
    r"words of 'conv.weight', got shape \(1, 3\)": {"resolver": Monotone({"conv.weight": np.zeros((1, 3), np.uint8)})},
    "single bit flips, got other changes": {"resolver": Monotone({}), "fault": StuckAt(1)},
    "single bit flips, got other": {"resolver": Monotone({}, Pooled(8)), "fault": RandomWord()},
    "changes of single words apart, got faults of several": {"fault": Lasting(BitFlip(), steps=2), "space": STEPPED},
    "leaves lanes out, so that wrong stay unknown": {"verdicts": {"wrong": Misclassified()}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_resolver_cannot_tell_is_refused_before_anything_is_kept(message, tmp_path):
    options = {"space": SPACE, "resolver": Pooled(8), "stop": MaxTrials(10)} | REFUSED[message]
    engine = Double(space=options["space"])
    with pytest.raises(CampaignError, match=message):
        run(Campaign(engine, **options), store=tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_trials_that_were_found_together_all_count_where_a_width_is_reached_and_not_where_their_number_is_given():
    """They were paid for; and an interval with audits is asked for once they are complete."""
    for stop, trials in ((HalfWidth(0.2), 4096), (MaxTrials(5000) | HalfWidth(0.001), 5000), (MaxTrials(128), 128)):
        results = run(Campaign(Double(), SPACE, stop=stop, resolver=Pooled(8)))
        assert len(results) == trials
    assert run(Campaign(Double(), SPACE, stop=HalfWidth(0.2), resolver=Pooled(8))).estimate().half_width <= 0.2


# Proofs.


def nothing_fails(known):
    """Return a proof of what the table says changes no answer on any input."""
    harmless = ~known.outcomes.any(axis=1)
    return lambda space, index, inputs: harmless[index] & (inputs >= 0)  # noqa: ARG005


@pytest.mark.parametrize("inner", [Direct(), Pooled(16, audit=0.1)], ids=lambda inner: type(inner).__name__)
def test_what_is_proven_takes_no_lane_and_changes_nothing(known, inner):
    campaign = Campaign(known.table, known.space, seed=3, stop=MaxTrials(4096), resolver=inner)
    plain, gated = run(campaign), run(replace(campaign, resolver=Gated(nothing_fails(known), inner)))
    proven = gated.columns.flag("proven")
    assert proven.tolist() == nothing_fails(known)(known.space, gated.columns.faults, gated.columns.inputs).tolist()
    assert 0.3 < proven.mean() < 1
    assert not gated.columns.flag("vouched")[proven].any()
    assert gated.lanes < plain.lanes
    if not inner.assumption:
        assert gated.columns.lanes.tolist() == (~proven).tolist()
        assert gated.columns.failed.tolist() == plain.columns.failed.tolist()
        for by in ("model", "site", "bit", "channel"):
            assert gated.table(by).equals(plain.table(by))  # exact: nothing widens
        assert gated.audit() is None


def test_what_is_proven_has_the_verdicts_of_golden_even_where_these_fail():
    """Misclassified inputs stay so, whatever harmless flip strikes; further verdicts are golden's too."""
    verdicts = {"wrong": Misclassified(), "never": NonFinite()}
    campaign = Campaign(Double(), SPACE, criterion=Misclassified(), verdicts=verdicts, seed=3, stop=MaxTrials(2000))
    gated = run(replace(campaign, resolver=Gated(lambda space, index, inputs: inputs % 3 == 0)))  # noqa: ARG005
    plain, columns = run(campaign), gated.columns
    proven, labels = columns.inputs % 3 == 0, np.asarray(Double().data.labels)
    assert columns.flag("proven").tolist() == proven.tolist()
    for flag in ("failed", "wrong"):
        assert columns.flag(flag)[proven].tolist() == (labels[columns.inputs[proven]] != 0).tolist()
        assert columns.flag(flag)[~proven].tolist() == plain.columns.flag(flag)[~proven].tolist()
    assert columns.failed[proven].any()
    assert not columns.flag("never")[proven].any()
    assert not columns.due[proven].any()


# Whole words.


def test_whole_words_need_few_lanes_and_count_as_one_draw_each(known):
    space = known.space.select(kinds="weight")
    stop = HalfWidth(0.06, by="site")
    campaign = Campaign(known.table, space, sampler=Adaptive(WholeWords(), block=96), seed=1, stop=stop)
    plain = run(campaign)
    short = run(replace(campaign, resolver=Monotone(words_of(known), audit=0.005)))
    assert plain.lanes == 32 * len(plain)
    assert short.lanes < 32 * len(short) / 6
    assert "reached by site" in plain.record.reason
    truth = [known.truth("site")[known.space.position(name)] for name in space.names]
    for results in (plain, short):
        rows = results.table("site")
        assert rows["low"].le(truth).all()
        assert rows["high"].ge(truth).all()
        assert results.estimate().trials == len(results)
        assert rows["trials"].sum() == 32 * len(results)


def test_sites_are_unbiased_where_the_model_decides_when_it_is_enough(known):
    """All trials together are 5 standard errors too low: the fewer fail, the fewer are drawn later."""
    sampler = Adaptive(Deviations(words_of(known)), block=512)
    errors = []
    for seed in range(100):
        results = run(Campaign(known.table, known.space, sampler=sampler, seed=seed, stop=HalfWidth(0.005)))
        errors.append(results.table("site")["value"] - known.truth("site"))
    assert (np.abs(np.mean(errors, axis=0)) < 3.3 * np.std(errors, axis=0) / 10).all()


# Coverage, over many campaigns on the enumerated network.


def covered(known, campaign, seeds):
    """Return by site the share of campaigns whose interval holds the truth, and the mean error of the model's value."""
    truth, whole = known.truth("site"), known.truth()[0]
    holds, errors = np.zeros(len(truth)), []
    for seed in seeds:
        results = run(replace(campaign, seed=seed))
        rows = results.table("site")
        holds += ((rows["low"] <= truth) & (truth <= rows["high"])).to_numpy()
        errors.append(results.estimate().value - whole)
    return holds / len(seeds), np.array(errors)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [0, 16])
def test_intervals_by_deviation_hold_the_truth_pooled_or_not(known, pool):
    sampler = Adaptive(Deviations(words_of(known)), reserve=0.05 if pool else 0.0, block=512, pool=pool)
    resolver = Pooled(pool, audit=0.02) if pool else Direct()
    seeds, stop = range(1000 if pool == 0 else 300), HalfWidth(0.06, by="site")
    campaign = Campaign(known.table, known.space, sampler=sampler, resolver=resolver, stop=stop)
    share, errors = covered(known, campaign, seeds)
    bias = errors.mean() / errors.std() * len(errors) ** 0.5
    print(f"pool {pool}: coverage by site {share.round(3)}, bias {errors.mean():+.5f} of {known.truth()[0]:.4f}")
    assert share.min() >= 0.94
    assert abs(bias) < 3.6


@pytest.mark.slow
def test_intervals_by_closure_hold_the_truth(known):
    resolver = Monotone(words_of(known), audit=0.1)
    campaign = Campaign(known.table, known.space, sampler=Uniform(), resolver=resolver, stop=MaxTrials(2000))
    share, errors = covered(known, campaign, range(300))
    print(f"closure: coverage by site {share.round(3)}, bias {errors.mean():+.5f}")
    assert share.min() >= 0.93
