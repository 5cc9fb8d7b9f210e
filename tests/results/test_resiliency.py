"""Resiliency Accuracy against a network whose every upset is run: truth, bias, coverage, and what goes with it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.campaign.test_resume import trials_in
from tests.support.hardware_records import record_all
from tests.support.small_network import small_network
from torchfault.campaign import Campaign, run
from torchfault.criteria import Misclassified, Top1Change
from torchfault.criteria.compose import judge
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import CampaignError, CriterionError, HardwareError, SamplingError, SpaceError
from torchfault.hardware.accelerator import (
    FLAT,
    NVDLA_LIKE,
    OUTPUT_STATIONARY,
    WEIGHT_STATIONARY,
    Accelerator,
    FlipFlops,
    hardened,
)
from torchfault.hardware.layers import layers_of
from torchfault.hardware.measure import UpsetMeasure, hardware_space
from torchfault.hardware.profile import Profile
from torchfault.hardware.samplers import PROPOSALS, ByCells, TwoPhase, halves_of
from torchfault.hardware.upset_space import upset_space
from torchfault.hardware.upsets import Upset
from torchfault.measures import UNIFORM
from torchfault.recipes import upsets
from torchfault.results import Results, export_trials, fit, load, resiliency, what_if_table
from torchfault.results.upset_sample import _worths, sample_of
from torchfault.sampling.protocol import Population
from torchfault.statistics import HalfWidth, MaxTrials
from torchfault.store import Store

ARRAY = replace(OUTPUT_STATIONARY, height=2, width=2, utilisation="tile")
ACCELERATORS = {"array": ARRAY, "flat": FLAT}
CHIPS = {**ACCELERATORS, "nvdla-like": NVDLA_LIKE, "weight-stationary": WEIGHT_STATIONARY}
DRAWN = ("strata", *PROPOSALS)
IN_USE = UpsetMeasure(in_use=True)


@pytest.fixture(scope="module")
def small():
    """Return an engine on the small network, and its layers."""
    model, data = small_network()
    return Engine(model, data), layers_of(model, data)


@pytest.fixture(scope="module", params=ACCELERATORS)
def known(request, small):
    """Return campaigns on records of every upset on every input, and the true RA, SDC and DUE."""
    engine, layers = small
    held = record_all(engine, ACCELERATORS[request.param], layers)
    return held, held.truth()


def found_on(small, chip, **options):
    """Return the results of the recipe on the engine itself."""
    engine, layers = small
    return run(upsets(engine, chip, layers=layers, **options))


def holds(one, true):
    return one.low <= true <= one.high


def test_the_golden_accuracy_is_known(small, known):
    engine, _ = small
    golden = engine.golden()
    assert (~judge(Misclassified(), golden, golden, engine.data.labels).failed).mean() == pytest.approx(0.7)
    assert known[1]["sa"] == pytest.approx(0.7)


@pytest.mark.parametrize("proposal", DRAWN)
def test_every_proposal_finds_the_truth_and_its_interval_covers_it(known, proposal):
    held, truth = known
    seeds = 30
    found = [
        resiliency(run(held.campaign(proposal=proposal, stop=MaxTrials(2048), seed=seed))) for seed in range(seeds)
    ]
    for what in ("ra", "sdc", "due"):
        values = np.array([getattr(one, what).value for one in found])
        error = values.std(ddof=1) / np.sqrt(seeds)
        assert abs(values.mean() - truth[what]) < 4.5 * error + 1e-6, what
        covered = sum(holds(getattr(one, what), truth[what]) for one in found)
        assert covered >= 25, (what, covered)  # of 30; at 95 % fewer than 25 come once in two hundred


@pytest.mark.parametrize("chip", ACCELERATORS)
@pytest.mark.parametrize("inputs", [1, 4, None])
def test_what_the_engine_runs_is_what_is_recorded(small, chip, inputs):
    engine, layers = small
    truth = record_all(engine, ACCELERATORS[chip], layers).truth()
    stop = MaxTrials(2048 * (inputs or 10))
    found = resiliency(found_on(small, ACCELERATORS[chip], inputs_per_fault=inputs, stop=stop, seed=5))
    for what in ("ra", "sdc", "due"):
        assert holds(getattr(found, what), truth[what]), what
    assert abs(found.ra.value - truth["ra"]) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "inputs"), [(2048, 1), (4096, 1), (4096, None)])
def test_strata_are_unbiased_and_their_intervals_hold_their_level(known, draws, inputs):
    held, truth = known
    trials = MaxTrials(draws * (inputs or 10))
    runs = [resiliency(run(held.campaign(inputs_per_fault=inputs, stop=trials, seed=seed))) for seed in range(1000)]
    for what in ("ra", "sdc", "due"):
        found = [getattr(one, what) for one in runs]
        values = np.array([one.value for one in found])
        off = (values.mean() - truth[what]) / (values.std(ddof=1) / np.sqrt(len(values)))
        covered = np.mean([holds(one, truth[what]) for one in found])
        print(what, off, covered)
        assert abs(off) < 3.5
        assert covered >= 0.94
    widths = np.mean([one.ra.high - one.ra.low for one in runs])
    most = 1.25 if inputs == 1 else 1.35  # times what would just do
    assert widths < most * 2 * 1.96 * np.std([one.ra.value for one in runs])


def test_a_pilot_counts_by_what_its_other_half_saw(known):
    held, _ = known
    sampler, population = TwoPhase(), Population(held.space, IN_USE)
    columns, first = run(held.campaign(stop=MaxTrials(1024))).columns, halves_of(1024)[0]
    one, two = columns.take(0, first), columns.take(first, 1024)
    reflected = replace(one, flags={"failed": ~one.failed})

    def worths(*halves):
        profiles = [Profile.of(held.space, half) for half in halves[::-1]]
        plans = [sampler.plan(population, profile) for profile in profiles]
        counts = np.array([first, 1024 - first, 300])
        return _worths(IN_USE.mass(held.space), sampler.halves(population), counts, plans, profiles)

    before, after = worths(one, two), worths(reflected, two)
    assert before.sum() == pytest.approx(1)
    assert after.sum() == pytest.approx(1)
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_draws_that_another_pilot_directed_have_no_stages(known):
    """Strata of later blocks follow from the pilot: where they do not, another sampler drew them."""
    held, _ = known
    results = run(held.campaign(stop=MaxTrials(1500)))
    assert sample_of(results).stages is not None
    pilot = np.arange(1500) < 512
    flags = {name: np.where(pilot, ~values, values) for name, values in results.columns.flags.items()}
    other = sample_of(Results(results.record, replace(results.columns, flags=flags)))
    assert other.stages is None
    assert other.weight == pytest.approx(other.known.in_use * results.columns.weight)


def test_the_pilot_counts_too(known):
    """The whole is sharper than what came after the pilot, by itself."""
    held, truth = known
    whole, alone = [], []
    for seed in range(60):
        results = run(held.campaign(stop=MaxTrials(2048), seed=seed))
        sample, columns = sample_of(results), results.columns.take(1024, 2048)
        whole.append(sample.drop(sample.p, control=sample.known.control).value)
        lost = sample.known.in_use * columns.weight * (sample.lost - sample.gained)[1024:]
        alone.append(sample.known.control * 0.7 + lost.mean())
    for drops in (whole, alone):
        assert abs(np.mean(drops) - 0.7 + truth["ra"]) < 4.5 * np.std(drops) / np.sqrt(60)
    assert np.std(whole) < 0.95 * np.std(alone)


def test_strata_are_the_sharpest(known):
    held, truth = known

    def error(proposal):
        runs = (
            resiliency(run(held.campaign(proposal=proposal, stop=MaxTrials(4096), seed=seed))) for seed in range(20)
        )
        return np.sqrt(np.mean([(one.ra.value - truth["ra"]) ** 2 for one in runs]))

    errors = {proposal: error(proposal) for proposal in DRAWN}
    print({name: round(float(value), 5) for name, value in errors.items()})
    assert min(errors, key=errors.get) == "strata"


def test_several_inputs_under_each_fault(known):
    held, truth = known
    every = run(held.campaign(inputs_per_fault=None, stop=MaxTrials(20_480)))
    one = run(held.campaign(stop=MaxTrials(2048)))
    for results, lanes in ((every, 20_480), (one, 2048)):
        assert results.lanes == lanes
        assert len(sample_of(results)) == 2048
        assert abs(resiliency(results).ra.value - truth["ra"]) < 0.01
    assert sample_of(every).lost.std() < sample_of(one).lost.std()
    cut = run(held.campaign(inputs_per_fault=None, stop=MaxTrials(20_475)))  # the last upset has met five inputs
    assert len(sample_of(cut)) == 2048
    assert holds(resiliency(cut).ra, truth["ra"])


def test_the_seed_decides(small):
    one, two, other = (resiliency(found_on(small, FLAT, stop=MaxTrials(1200), seed=seed)).ra for seed in (4, 4, 5))
    assert one == two
    assert one.value != other.value


@pytest.mark.parametrize("proposal", DRAWN)
def test_what_is_reported_fits_together(small, proposal):
    results = found_on(small, ARRAY, proposal=proposal, stop=MaxTrials(1300))
    found = resiliency(results)
    assert found.sa == pytest.approx(0.7)
    assert found.control == pytest.approx(17.0 / 99.99)
    assert found.ra.value == pytest.approx(found.sa - found.drop.value)
    assert found.ra.low <= found.ra.value <= found.ra.high
    for by in ("layer", "type", "bit", "kind", "model"):
        table = found.table(by)
        assert table.columns.tolist() == [by, "data", "data_low", "data_high", "control", "drop"]
        assert table["control"].sum() == pytest.approx(0.7 * found.control)
        if proposal == "strata":
            assert table["drop"].sum() == pytest.approx(found.drop.value)
    with pytest.raises(SpaceError, match="layer, type, bit"):
        found.table("channel")
    wide, narrow = (resiliency(results, level=level).ra for level in (0.99, 0.8))
    assert wide.low < found.ra.low < narrow.low < found.ra.value < narrow.high < found.ra.high < wide.high
    assert resiliency(found_on(small, ARRAY, proposal=proposal, stop=MaxTrials(1300), level=0.8)).ra == narrow


def test_before_anything_is_drawn_everything_is_possible(small):
    results = found_on(small, ARRAY, stop=MaxTrials(10))
    none = Results(results.record, results.columns.take(0, 0))
    found, few = resiliency(none), resiliency(results)
    control = 17.0 / 99.99
    in_use = sample_of(none).known.in_use
    assert np.isnan(found.ra.value)
    assert (found.ra.low, found.ra.high) == pytest.approx(
        (0.7 * (1 - control - in_use), 0.7 * (1 - control) + 0.3 * in_use)
    )
    assert (found.due.low, found.due.high) == pytest.approx((control, control + in_use))
    assert found.ra.low <= few.ra.low <= few.ra.high <= found.ra.high


def test_control_alone_hardly_needs_samples(small):
    types = (replace(FLAT.types[2], share=1e-9), FlipFlops(name="c", holds="control", share=1.0, pattern="crash"))
    found = resiliency(found_on(small, Accelerator(name="c", types=types), stop=MaxTrials(200)))
    assert found.control == pytest.approx(1)
    assert found.ra.value == pytest.approx(0, abs=1e-6)
    assert found.due.value == pytest.approx(1)


def test_without_use_nothing_is_lost_but_by_control(small):
    idle = replace(FLAT, utilisation=tuple((one.name, 1e-12) for one in FLAT.types if one.holds != "control"))
    found = resiliency(found_on(small, idle, stop=MaxTrials(1100)))
    assert found.ra.value == pytest.approx(0.7 * (1 - 315 / 1851))
    assert found.ra.high - found.ra.low < 1e-9
    with pytest.raises(HardwareError, match="in use"):
        found_on(small, replace(FLAT, utilisation=0.0))


def test_software_accuracy_takes_all_bits_alike(small):
    engine, layers = small
    space = hardware_space(layers.works, engine.space)
    found = run(Campaign(engine, space, criterion=Misclassified(), stop=MaxTrials(800))).estimate()
    assert 0.5 < 1 - found.high < 1 - found.low < 0.7


def test_what_cannot_be_measured_is_refused(small):
    engine, layers = small
    with pytest.raises(SamplingError, match="no proposal is called 'best'; known: UNIFORM"):
        upsets(engine, FLAT, proposal="best", layers=layers)
    with pytest.raises(CampaignError, match="1 to 10 inputs"):
        upsets(engine, FLAT, inputs_per_fault=11, layers=layers)
    plain = Engine(engine.model, Data(engine.data.inputs))
    with pytest.raises(CriterionError, match="labels"):
        run(upsets(plain, FLAT, layers=layers, stop=MaxTrials(10)))


def test_the_resiliency_of_other_campaigns_is_refused(small):
    engine, layers = small
    space, stop = upset_space(FLAT, layers.works, layers.space), MaxTrials(30)
    words = run(Campaign(engine, engine.space, verdicts={"wrong": Misclassified()}, stop=stop))
    others = {
        "did not strike": [words],
        "no wrong answers": [
            run(Campaign(engine, space, measure=IN_USE, sampler=ByCells(), fault=Upset(layers), stop=stop)),
            run(
                Campaign(
                    engine,
                    space,
                    measure=IN_USE,
                    sampler=ByCells(),
                    fault=Upset(layers),
                    verdicts={"wrong": Top1Change()},
                    stop=stop,
                )
            ),
        ],
    }
    for message, found in others.items():
        for results in found:
            for asked in (sample_of, resiliency, fit, what_if_table):
                with pytest.raises(HardwareError, match=message):
                    asked(results)
    record = run(upsets(engine, FLAT, layers=layers, stop=stop)).record
    uniform = replace(record, configuration={**record.configuration, "measure": {"class": type(UNIFORM).__name__}})
    with pytest.raises(HardwareError, match="did not strike the data in use"):
        sample_of(Results(uniform, words.columns))


def test_an_interval_may_end_the_campaign(small):
    results = found_on(small, FLAT, stop=HalfWidth(0.02) | MaxTrials(30_000))
    assert results.record.reason != "30000 trials run"
    assert results.estimate().high - results.estimate().low <= 0.04 + 1e-9


def test_fit_is_the_arithmetic_it_shows(small):
    results = found_on(small, ARRAY, stop=MaxTrials(1300))
    found = resiliency(results)
    with pytest.raises(HardwareError, match="pass flip_flops="):
        fit(results)
    told = fit(results, flip_flops=2**23)  # one megabyte, all at 600 FIT
    assert told.chip == pytest.approx(600)
    assert [one.fit for one in told.types] == pytest.approx([600 * s / 99.99 for s in (30.56, 30.56, 21.87, 17.0)])
    assert told.sdc.value == pytest.approx(600 * found.sdc.value)
    assert (told.due.low, told.due.high) == pytest.approx((600 * found.due.low, 600 * found.due.high))
    assert told.due.value >= 600 * 17.0 / 99.99
    text = str(told)
    assert "control: 1,426,206 flip-flops / 2^23 x 600 FIT/MB = 102 FIT" in text
    assert f"SDC: 600 x {found.sdc.value:.4g} = {600 * found.sdc.value:.3g} FIT" in text
    assert fit(results, flip_flops=2**23, level=0.8).sdc.high < told.sdc.high


def test_hardening_control_lowers_the_chips_fit_and_raises_the_accuracy(small):
    better = hardened(FLAT, "control")
    one, two = (found_on(small, chip, stop=MaxTrials(1300)) for chip in (FLAT, better))
    assert resiliency(two).ra.value > resiliency(one).ra.value
    before, after = fit(one), fit(two)
    assert after.chip == pytest.approx(before.chip - 315 / 2**23 * 400)
    assert after.due.value < before.due.value


def test_less_memory_means_smaller_parts_and_the_same_result(small):
    engine, layers = small
    hungry = replace(layers, nbytes=2**40)
    one, two = (run(upsets(engine, FLAT, layers=held, stop=MaxTrials(1100))) for held in (layers, hungry))
    assert resiliency(one).ra == resiliency(two).ra
    assert all((one.columns.flag(name) == two.columns.flag(name)).all() for name in ("failed", "due", "wrong"))


@pytest.fixture(scope="module")
def deep():
    """Return an engine on a network whose first layer is nearly idle: hardly any of its upsets changes an answer."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
        with torch.no_grad():
            model[2].weight[:, 1:] = 0
            model[2].bias.uniform_(1, 2)
        inputs = torch.randn(10, 3)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    labels[:2] = (labels[:2] + 1) % 3
    data = Data(inputs, labels)
    return Engine(model, data), layers_of(model, data)


@pytest.mark.parametrize("proposal", DRAWN)
@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_bounds_of_contributions_are_possible(deep, chip, proposal):
    """Whatever was drawn, of a layer, a type or a bit no more can be lost than the right answers that it may spoil."""
    for seed, trials in enumerate((60, 700, 1100)):
        found = resiliency(found_on(deep, chip, proposal=proposal, stop=MaxTrials(trials), seed=seed))
        space, sample = found.sample.space, found.sample
        for one in (found.ra, found.sdc, found.due):
            assert -1 <= one.low <= one.value <= one.high <= 1 or proposal in ("UNIFORM", "MAC", "IS-B")
        codes = {"layer": space.layer, "type": space.type, "bit": space.cells.bit + 1}
        for by, code in codes.items():
            masses = np.bincount(code, sample.p)[np.unique(code)]
            for mass, (_, row) in zip(masses, found.table(by).iterrows(), strict=True):
                if not len(sample):
                    continue
                assert row["data_low"] <= row["data"] <= row["data_high"]
                assert row["data_high"] <= max(row["data"], 0.8 * mass) + 1e-12, (by, row)
                assert row["data_low"] >= min(row["data"], -0.2 * mass) - 1e-12, (by, row)


PROGRAM = """
import sys
from tests.results.test_resiliency import ARRAY
from tests.support.small_network import small_network
from torchfault.campaign import run
from torchfault.engine import Engine
from torchfault.recipes import upsets
from torchfault.statistics import MaxTrials
engine = Engine(*small_network())
run(upsets(engine, ARRAY, proposal={proposal!r}, stop=MaxTrials(40_000), seed=7), store=sys.argv[1], batch=256)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process")
@pytest.mark.parametrize("proposal", ["strata", "IS-B"])
def test_a_killed_campaign_goes_on_to_the_same_accuracy(small, tmp_path, proposal, rng):
    program, store = tmp_path / "program.py", tmp_path / "parts.db"
    program.write_text(PROGRAM.format(proposal=proposal))
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    whole = found_on(small, ARRAY, proposal=proposal, stop=MaxTrials(40_000), seed=7)
    for _ in range(2):
        process = subprocess.Popen([sys.executable, program, store], env=paths)
        while not trials_in(store) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0.05, 0.4)))
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL)
    with Store(store, access="read") as held:
        assert 0 < held.campaign("campaign").trials < 40_000
    engine, layers = small
    parts = run(upsets(engine, ARRAY, proposal=proposal, layers=layers, stop=MaxTrials(40_000), seed=7), store=store)
    assert resiliency(parts).ra == resiliency(whole).ra
    with Store(store, access="read") as held:
        again = load(held, "campaign")
    for name in ("faults", "inputs", "weight", "stratum"):
        assert (getattr(again.columns, name) == getattr(whole.columns, name)).all(), name
    for name in ("failed", "due", "wrong"):
        assert (again.columns.flag(name) == whole.columns.flag(name)).all(), name
    pd.testing.assert_frame_equal(what_if_table(again), what_if_table(whole))


def test_the_store_alone_tells_everything(small, tmp_path):
    engine, layers = small
    path = tmp_path / "results.db"
    whole = run(upsets(engine, NVDLA_LIKE, layers=layers, stop=MaxTrials(1300)), store=path, name="nvdla")
    with Store(path, access="read") as store:
        again = load(store, "nvdla")
        assert export_trials(store, "nvdla", tmp_path / "nvdla.csv") == 1300
    assert resiliency(again).ra == resiliency(whole).ra
    for by in ("layer", "type", "bit"):
        pd.testing.assert_frame_equal(resiliency(again).table(by), resiliency(whole).table(by))
    assert str(fit(again)) == str(fit(whole))
    rows = pd.read_csv(tmp_path / "nvdla.csv")
    assert {"layer", "type", "holds", "bit", "element", "row", "step", "wrong", "failed", "due"} <= set(rows.columns)
    assert rows["wrong"].sum() == whole.columns.flag("wrong").sum()
    assert set(rows["layer"]) == {"0", "2"} or set(rows["layer"]) == {0, 2}


def test_the_store_is_read_without_torch(small, tmp_path):
    engine, layers = small
    path = tmp_path / "results.db"
    run(upsets(engine, FLAT, layers=layers, stop=MaxTrials(1100)), store=path)
    program = (
        "import sys\nfrom torchfault.results import fit, load, resiliency, what_if_table\n"
        "from torchfault.store import Store\n"
        f"with Store({str(path)!r}, access='read') as store:\n    found = load(store, 'campaign')\n"
        "resiliency(found).table('bit'), fit(found), what_if_table(found)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
