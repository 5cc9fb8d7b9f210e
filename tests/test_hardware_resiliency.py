"""Resiliency Accuracy against a network whose every upset is run: truth, bias, coverage, and what goes with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hardware_records import every_upset, record_all
from torch import nn

from torchfault.criteria import Misclassified
from torchfault.criteria.compose import judge
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import (
    FLAT,
    NVDLA_LIKE,
    OUTPUT_STATIONARY,
    WEIGHT_STATIONARY,
    Accelerator,
    FlipFlops,
    hardened,
)
from torchfault.hardware.fit import fit_summary
from torchfault.hardware.layers import layers_of
from torchfault.hardware.proposals import ESTIMATORS, Profile, cells_of, proposal
from torchfault.hardware.resiliency import (
    _pilot,
    _worths,
    profile_upsets,
    resiliency_accuracy,
    resiliency_of,
    software_accuracy,
)
from torchfault.hardware.strata import stratify
from torchfault.hardware.striking import target_of
from torchfault.hardware.upset_space import upset_space
from torchfault.hardware.upsets import Upset

ARRAY = replace(OUTPUT_STATIONARY, height=2, width=2, utilisation="tile")
ACCELERATORS = {"array": ARRAY, "flat": FLAT}
CHIPS = {**ACCELERATORS, "nvdla-like": NVDLA_LIKE, "weight-stationary": WEIGHT_STATIONARY}


@pytest.fixture(scope="module")
def small():
    """Return an engine on a network of 38 variables and 10 inputs, some of which it gets wrong, and its layers."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    inputs = 2 * torch.randn(10, 3)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    labels[:3] = (labels[:3] + 1) % 3
    data = Data(inputs, labels)
    return Engine(model, data), layers_of(model, data)


@pytest.fixture(scope="module", params=ACCELERATORS)
def known(request, small):
    """Return an accelerator and the true RA, SDC and DUE, from every upset on every input."""
    accelerator, (engine, layers) = ACCELERATORS[request.param], small
    space = upset_space(accelerator, layers.works, layers.space)
    index, cell, share = every_upset(space)
    mass = cells_of(space).mass[cell] * share
    inputs, rng = np.tile(np.arange(10), len(index)), np.random.default_rng(0)
    trials, kept = Upset(layers).trials(space, np.repeat(index, 10), inputs, rng=rng, engine=engine)
    assert kept.all()
    right, due, changed = (np.zeros(len(inputs), dtype=bool) for _ in range(3))
    for lanes in engine.run(trials):
        golden, faulty = lanes.golden, lanes.faulty
        labels = engine.data.labels[torch.from_numpy(lanes.inputs)]
        bad = ~faulty.isfinite().all(1)
        right[lanes.trial] = (~bad & (faulty.nan_to_num().argmax(1) == labels)).numpy()
        due[lanes.trial] = bad.numpy()
        changed[lanes.trial] = (~bad & (faulty.nan_to_num().argmax(1) != golden.argmax(1))).numpy()
    sa = 0.7
    control = 17.0 / 99.99 if accelerator is ARRAY else 315 / 1851
    accuracy = right.reshape(-1, 10).mean(1)
    ra = sa * (1 - control) - mass @ (sa - accuracy)
    return accelerator, {
        "ra": ra,
        "sdc": mass @ changed.reshape(-1, 10).mean(1),
        "due": mass @ due.reshape(-1, 10).mean(1) + control,
    }


def test_the_golden_accuracy_is_known(small):
    engine, _ = small
    golden = engine.golden()
    assert (~judge(Misclassified(), golden, golden, engine.data.labels).failed).mean() == pytest.approx(0.7)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_finds_the_truth_and_its_interval_covers_it(small, known, estimator):
    engine, layers = small
    accelerator, truth = known
    seeds = 30
    found = [
        resiliency_accuracy(engine, accelerator, estimator=estimator, faults=400, seed=seed, layers=layers)
        for seed in range(seeds)
    ]
    values = np.array([one.ra.value for one in found])
    error = values.std(ddof=1) / np.sqrt(seeds)
    assert abs(values.mean() - truth["ra"]) < 4.5 * error + 1e-6
    for what in ("ra", "sdc", "due"):
        covered = sum(getattr(one, what).low <= truth[what] <= getattr(one, what).high for one in found)
        assert covered >= 25, (what, covered)  # of 30; at 95 % fewer than 25 come once in two hundred


@pytest.mark.slow
@pytest.mark.parametrize(("faults", "images"), [(400, 1), (2000, 1), (150, None)])
def test_strata_are_unbiased_and_their_intervals_hold_their_level(small, known, faults, images):
    engine, layers = small
    accelerator, truth = known
    held = record_all(target_of(engine, accelerator, layers))
    runs = [resiliency_of(held, faults=faults, images=images, seed=seed) for seed in range(1000)]
    for what in ("ra", "sdc", "due"):
        found = [getattr(one, what) for one in runs]
        values = np.array([one.value for one in found])
        off = (values.mean() - truth[what]) / (values.std(ddof=1) / np.sqrt(len(values)))
        covered = np.mean([one.low <= truth[what] <= one.high for one in found])
        print(what, off, covered)
        assert abs(off) < 3.5
        assert covered >= 0.94
    widths = np.mean([one.ra.high - one.ra.low for one in runs])
    assert widths < 1.25 * 2 * 1.96 * np.std([one.ra.value for one in runs])  # of what would just do


def test_a_pilot_counts_by_what_its_other_half_saw(small):
    engine, layers = small
    target = target_of(engine, ARRAY, layers)
    one, two, main = (_pilot(target, trials=4, seed=seed)[0] for seed in (1, 2, 3))
    changed = replace(one, outcomes=1 - one.outcomes)
    before, after = (_worths(target.cells, (half, two), main) for half in (one, changed))
    assert before.sum() == after.sum() == pytest.approx(1)
    assert before[0] == after[0]
    assert before[1] != after[1]
    alone = _worths(target.cells, (one,), main)
    assert (alone == _worths(target.cells, (changed,), main)).all()


def test_the_drop_estimator_is_the_sharpest(small, known):
    engine, layers = small
    accelerator, truth = known

    def error(estimator):
        runs = (
            resiliency_accuracy(engine, accelerator, estimator=estimator, faults=300, seed=seed, layers=layers)
            for seed in range(12)
        )
        return np.sqrt(np.mean([(one.ra.value - truth["ra"]) ** 2 for one in runs]))

    errors = {estimator: error(estimator) for estimator in ESTIMATORS}
    print({name: round(float(value), 4) for name, value in errors.items()})
    assert min(errors, key=errors.get) == "drop"


def test_all_images_under_each_fault(small, known):
    engine, layers = small
    accelerator, truth = known
    found = resiliency_accuracy(engine, accelerator, faults=600, images=None, layers=layers)
    assert found.ra.low <= truth["ra"] <= found.ra.high
    assert abs(found.ra.value - truth["ra"]) < 0.02
    assert found.lanes == 600 * 10 + 8 * 96
    one = resiliency_accuracy(engine, accelerator, faults=600, images=1, layers=layers)
    assert found.sample.lost[-600:].std() < one.sample.lost[-600:].std()


def test_the_seed_decides(small):
    engine, layers = small
    one, two, other = (resiliency_accuracy(engine, FLAT, faults=200, seed=seed, layers=layers).ra for seed in (4, 4, 5))
    assert one == two
    assert one.value != other.value


def test_what_is_reported_fits_together(small):
    engine, layers = small
    for estimator in ESTIMATORS:
        found = resiliency_accuracy(engine, ARRAY, faults=300, estimator=estimator, layers=layers)
        assert found.sa == pytest.approx(0.7)
        assert found.ra.value == pytest.approx(found.sa - found.drop.value)
        assert found.samples.mean() == pytest.approx(found.ra.value)
        assert found.ra.low <= found.ra.value <= found.ra.high
        if estimator == "drop":
            for by in ("layer", "type", "bit"):
                assert found.table(by)["drop"].sum() == pytest.approx(found.drop.value)
    with pytest.raises(HardwareError, match="layer, type or bit"):
        found.table("channel")


def test_control_alone_hardly_needs_samples(small):
    engine, layers = small
    types = (replace(FLAT.types[2], share=1e-9), FlipFlops(name="c", holds="control", share=1.0, pattern="crash"))
    found = resiliency_accuracy(engine, Accelerator(name="c", types=types), faults=20, layers=layers)
    assert found.control == pytest.approx(1)
    assert found.ra.value == pytest.approx(0, abs=1e-6)
    assert found.due.value == pytest.approx(1)


def test_without_use_nothing_is_lost_but_by_control(small):
    engine, layers = small
    idle = replace(FLAT, utilisation=tuple((one.name, 1e-12) for one in FLAT.types if one.holds != "control"))
    found = resiliency_accuracy(engine, idle, faults=50, layers=layers)
    assert found.ra.value == pytest.approx(0.7 * (1 - 315 / 1851))
    assert found.ra.high - found.ra.low < 1e-9
    with pytest.raises(HardwareError, match="in use"):
        resiliency_accuracy(engine, replace(FLAT, utilisation=0.0), faults=50, layers=layers)


def test_proposals_sum_to_one_and_leave_nothing_out(small):
    _, layers = small
    cells = cells_of(upset_space(ARRAY, layers.works, layers.space))
    assert cells.p.sum() == pytest.approx(1, abs=1e-12)
    nothing = Profile(np.zeros(len(cells)), np.full(len(cells), 8.0))
    for estimator in ESTIMATORS:
        q = (
            stratify(cells.mass, nothing.rate(cells), 500).q
            if estimator == "drop"
            else proposal(estimator, cells, nothing)
        )
        assert q.sum() == pytest.approx(1)
        assert (q[~cells.control] > 0).all()
    with pytest.raises(HardwareError, match="needs a profile"):
        proposal("IS-B", cells)
    with pytest.raises(HardwareError, match="strata"):
        proposal("drop", cells, nothing)
    with pytest.raises(HardwareError, match="did you mean 'IS-B'"):
        proposal("ISB", cells)


def test_the_profile_shows_the_exponent(small):
    engine, layers = small
    target = target_of(engine, FLAT, layers)
    profile, cells = profile_upsets(target, trials=6), target.cells
    assert profile.trials.sum() == 6 * 96
    assert (profile.trials[cells.control] == 0).all()
    rate = profile.rate(cells)
    assert (rate > 0).all()
    assert rate[~cells.control & (cells.bit == 30)].min() > 5 * rate[~cells.control & (cells.bit < 16)].max()


def test_the_pilot_counts_by_how_sure_it_is(small, known):
    engine, layers = small
    accelerator, truth = known
    target = target_of(engine, accelerator, layers)
    given = profile_upsets(target, trials=64)
    alone = [resiliency_of(target, faults=300, profile=given, seed=seed) for seed in range(40)]
    both = [resiliency_of(target, faults=300, profile=64, seed=seed) for seed in range(40)]
    assert len(alone[0].sample.drawn) == alone[0].lanes == 300
    assert len(both[0].sample.drawn) == both[0].lanes == 300 + 64 * 96
    assert len(both[0].samples) == 300
    one, two = (np.array([found.ra.value for found in runs]) - truth["ra"] for runs in (alone, both))
    assert np.abs(two.mean()) < 4.5 * two.std() / np.sqrt(40)
    assert two.std() < 0.7 * one.std()


def test_cells_with_few_trials_take_after_their_type_and_bit(small):
    _, layers = small
    cells = cells_of(upset_space(FLAT, layers.works, layers.space))
    here = (cells.kind == 0) & (cells.bit == 30)
    profile = Profile(np.where(here, 4.0, 0.0), np.where(cells.control, 0.0, 4.0))
    rate = profile.rate(cells)
    assert rate[here].min() > 0.7
    others = ~cells.control & (cells.kind != 0) & (cells.bit == 30)
    assert rate[~cells.control & (cells.bit < 30)].max() < rate[others].min() < rate[here].min()


def test_strata_leave_nothing_out_and_go_by_mass_and_rate(rng):
    mass, rate = rng.dirichlet(np.ones(200)), rng.random(200) ** 4 + 1e-4
    plan = stratify(mass, rate, 1000)
    assert plan.draws.sum() == 1000
    assert plan.draws.min() >= 2
    assert plan.q.sum() == pytest.approx(1)
    assert (plan.q / mass).min() > 0.15  # one in five draws goes by mass, whatever the rate
    often, seldom = rate > np.quantile(rate, 0.9), rate < np.quantile(rate, 0.1)
    assert (plan.q / mass)[often].mean() > 3 * (plan.q / mass)[seldom].mean()
    for few in (2, 3, 30):
        assert stratify(mass, rate, few).draws.sum() == few
    with pytest.raises(HardwareError, match="in use"):
        stratify(np.zeros(3), np.ones(3), 10)


def test_draws_are_as_even_as_whole_numbers_allow_at_every_moment(rng):
    mass, rate = rng.dirichlet(np.ones(40)), rng.random(40)
    plan = stratify(mass, rate, 500)
    cell = plan.draw(rng=rng)
    counts = np.bincount(cell, minlength=40)
    assert (np.abs(counts - 500 * plan.q) < 1).all()
    assert (np.bincount(plan.stratum[cell]) == plan.draws).all()
    early = np.bincount(plan.stratum[cell][:100], minlength=len(plan.draws))
    assert (np.abs(early - 100 / 500 * plan.draws) <= 1 + len(plan.draws) / 10).all()


def test_software_accuracy_takes_all_bits_alike(small):
    engine, layers = small
    found = software_accuracy(engine, faults=800, layers=layers)
    assert found.low <= found.value <= found.high
    assert 0.5 < found.value < 0.7


def test_too_few_faults_are_refused(small):
    engine, layers = small
    with pytest.raises(HardwareError, match="2 faults"):
        resiliency_accuracy(engine, FLAT, faults=1, layers=layers)
    with pytest.raises(HardwareError, match="no estimator is called"):
        resiliency_accuracy(engine, FLAT, faults=10, estimator="best", layers=layers)


def test_fit_is_the_arithmetic_it_shows(small):
    engine, layers = small
    found = resiliency_accuracy(engine, ARRAY, faults=300, layers=layers)
    with pytest.raises(HardwareError, match="pass flip_flops="):
        fit_summary(ARRAY, found)
    fit = fit_summary(ARRAY, found, flip_flops=2**23)  # one megabyte, all at 600 FIT
    assert fit.chip == pytest.approx(600)
    assert [one.fit for one in fit.types] == pytest.approx([600 * s / 99.99 for s in (30.56, 30.56, 21.87, 17.0)])
    assert fit.sdc.value == pytest.approx(600 * found.sdc.value)
    assert (fit.due.low, fit.due.high) == pytest.approx((600 * found.due.low, 600 * found.due.high))
    assert fit.due.value >= 600 * 17.0 / 99.99
    text = str(fit)
    assert "control: 1,426,206 flip-flops / 2^23 x 600 FIT/MB = 102 FIT" in text
    assert f"SDC: 600 x {found.sdc.value:.4g} = {600 * found.sdc.value:.3g} FIT" in text


def test_hardening_control_lowers_the_chips_fit_and_raises_the_accuracy(small):
    engine, layers = small
    better = hardened(FLAT, "control")
    one, two = (resiliency_accuracy(engine, chip, faults=300, layers=layers) for chip in (FLAT, better))
    assert two.ra.value > one.ra.value
    before, after = fit_summary(FLAT, one), fit_summary(better, two)
    assert after.chip == pytest.approx(before.chip - 315 / 2**23 * 400)
    assert after.due.value < before.due.value


def test_less_memory_means_smaller_parts_and_the_same_result(small):
    engine, layers = small
    hungry = replace(layers, nbytes=2**40)
    one, two = (resiliency_accuracy(engine, FLAT, faults=100, layers=held) for held in (layers, hungry))
    assert one.ra == two.ra


@pytest.fixture(scope="module")
def deep():
    """Return an engine on a network whose first layer is nearly idle: hardly any of its upsets changes an answer."""
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


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_bounds_of_contributions_are_possible(deep, chip):
    """Whatever was drawn, of a layer, a type or a bit no more can be lost than the right answers that it may spoil."""
    engine, layers = deep
    cells = cells_of(upset_space(chip, layers.works, layers.space))
    masses = {
        "layer": dict(zip(("0", "2", "4"), np.bincount(cells.layer, cells.mass), strict=True)),
        "type": dict(zip([one.name for one in chip.types], np.bincount(cells.kind, cells.mass), strict=True)),
        "bit": dict(zip(range(-1, 32), np.bincount(cells.bit + 1, cells.mass), strict=True)),
    }
    for estimator in ESTIMATORS:
        for seed in range(3):
            found = resiliency_accuracy(engine, chip, estimator=estimator, faults=60, seed=seed, layers=layers)
            for one in (found.ra, found.sdc, found.due):
                assert -1 <= one.low <= one.value <= one.high <= 1 or estimator in ("UNIFORM", "IS-B"), estimator
            for by, mass in masses.items():
                for _, row in found.table(by).iterrows():
                    most, least = 0.8 * mass[row[by]], -0.2 * mass[row[by]]
                    assert row["data_low"] <= row["data"] <= row["data_high"]
                    assert row["data_high"] <= max(row["data"], most) + 1e-12, (estimator, by, row)
                    assert row["data_low"] >= min(row["data"], least) - 1e-12, (estimator, by, row)


def test_random_words_count_as_all_their_bits(small):
    """A type that leaves random words has one cell in each layer, and no less weight for that in a pilot."""
    engine, layers = small
    target = target_of(engine, NVDLA_LIKE, layers)
    cells, random = target.cells, target.cells.bits > 1
    assert cells.pairs == 6 * 32
    assert random.sum() == 2
    assert (cells.bit[random] == -1).all()
    profile = profile_upsets(target, trials=4)
    assert profile.trials[random].sum() == 4 * 32
    assert profile.trials.sum() == 4 * 6 * 32
    q = proposal("UNIFORM", cells)
    outputs = (cells.kind == 4) & (cells.layer == 0)  # of the same variables, at other bits
    alike = cells.part[outputs][0] / cells.part[random][0]
    assert q[outputs].sum() == pytest.approx(q[random & (cells.layer == 0)].sum() * alike)
