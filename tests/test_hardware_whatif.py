"""What-ifs by reweighing: against the same change measured anew, exactly for what is known, and their intervals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hardware_records import every_upset
from torch import nn

from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import FLAT, hardened, with_buffer
from torchfault.hardware.fit import fit_summary
from torchfault.hardware.layers import layers_of
from torchfault.hardware.objective import resiliency_objective
from torchfault.hardware.resiliency import resiliency_accuracy
from torchfault.hardware.striking import target_of
from torchfault.hardware.whatif import Change, add_ecc, harden, protect, usual_changes, what_if, what_if_table

CHIP = with_buffer(FLAT, "cache", holds="weight", share=2000.0)


@pytest.fixture(scope="module")
def small():
    """Return an engine on a network of 38 variables, and its layers."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
        inputs = 2 * torch.randn(10, 3)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    labels[:3] = (labels[:3] + 1) % 3
    return Engine(model, Data(inputs, labels)), layers_of(model, Data(inputs, labels))


@pytest.fixture(scope="module")
def known(small):
    """Return the cells of CHIP, and the true drop, P(changed) and P(due) of each, from every upset on every input."""
    engine, layers = small
    target = target_of(engine, CHIP, layers)
    index, cell, share = every_upset(target.space)
    words = np.zeros(len(index), dtype=np.uint64)
    fates = target.run(index, np.tile(np.arange(10), (len(index), 1)), words=words)
    assert np.bincount(cell, share, len(target.cells))[~target.cells.control] == pytest.approx(1)
    values = (fates.wrong.mean(1) - target.before.mean(), (fates.changed & ~fates.due).mean(1), fates.due.mean(1))
    return target.cells, [np.bincount(cell, share * value, len(target.cells)) for value in values]


CHANGES = {
    "harden output": (harden(CHIP, "output"), {"output": 1 / 3}, ()),
    "harden control": (harden(CHIP, "control", fit=0.0), {"control": 0.0}, ()),
    "ECC": (add_ecc(CHIP, "cache"), {"cache": 0.0}, ()),
    "protect": (protect("2"), {}, (1,)),
}


def truth(known, factors, protected):
    """Return RA, and SDC and DUE in upsets of the chip as it was, from the definition."""
    cells, (drop, changed, due) = known
    factor = np.array([factors.get(one.name, 1.0) for one in CHIP.types])[cells.kind]
    p = cells.p * factor
    live = np.where(cells.control | np.isin(cells.layer, protected), 0.0, p)
    control = p[cells.control].sum()
    return 0.7 - (live @ drop + 0.7 * control) / p.sum(), live @ changed, live @ due + control


@pytest.mark.parametrize("name", CHANGES)
def test_reweighed_upsets_tell_what_the_change_does(small, known, name):
    engine, layers = small
    change, factors, protected = CHANGES[name]
    before, after = truth(known, {}, ()), truth(known, factors, protected)
    chip = CHIP.flip_flops * 600 / 2**23
    covered = []
    values = []
    for seed in range(40):
        found = resiliency_accuracy(engine, CHIP, faults=600, seed=seed, layers=layers)
        seen = what_if(found, change)
        rows = [
            (seen.ra, after[0]),
            (seen.ra_change, after[0] - before[0]),
            (seen.sdc, chip * after[1]),
            (seen.sdc_change, chip * (after[1] - before[1])),
            (seen.due, chip * after[2]),
            (seen.due_change, chip * (after[2] - before[2])),
        ]
        covered.append([one.low - 1e-12 <= true <= one.high + 1e-12 for one, true in rows])
        values.append([one.value - true for one, true in rows])
    errors = np.array(values)
    assert (np.abs(errors.mean(0)) <= 4.5 * errors.std(0, ddof=1) / np.sqrt(40) + 1e-9).all()
    assert (np.sum(covered, axis=0) >= 34).all(), np.sum(covered, axis=0)  # of 40; fewer come once in 150


def test_a_change_is_sharper_than_two_intervals_side_by_side(small):
    engine, layers = small
    found = resiliency_accuracy(engine, CHIP, faults=600, layers=layers)
    seen = what_if(found, harden(CHIP, "output"))
    assert seen.ra.value - found.ra.value == pytest.approx(seen.ra_change.value)
    assert seen.ra_change.high - seen.ra_change.low < 0.7 * (seen.ra.high - seen.ra.low + found.ra.high - found.ra.low)


def test_hardening_reweighed_is_hardening(small):
    engine, layers = small
    better = hardened(FLAT, "control")
    found = resiliency_accuracy(engine, FLAT, faults=400, layers=layers)
    anew = resiliency_accuracy(engine, better, faults=400, layers=layers)
    seen, fit = what_if(found, harden(FLAT, "control")), fit_summary(better, anew)
    assert seen.chip == pytest.approx(fit.chip)
    assert seen.ra.low < anew.ra.value < seen.ra.high
    assert seen.due.low < fit.due.value < seen.due.high


def test_no_change_changes_nothing(small):
    engine, layers = small
    found = resiliency_accuracy(engine, CHIP, faults=300, layers=layers)
    table = what_if_table(found, [])
    assert table["change"].tolist() == ["as it is"]
    row = table.iloc[0]
    assert (row["ra"], row["ra_low"], row["ra_high"]) == pytest.approx((found.ra.value, found.ra.low, found.ra.high))
    assert [row[name] for name in row.index if "change_" in name or name.endswith("_change")] == pytest.approx([0] * 10)
    assert row["sdc_fit"] == pytest.approx(fit_summary(CHIP, found).sdc.value)


def test_usual_changes_are_those_that_can_be_made(small):
    engine, layers = small
    found = resiliency_accuracy(engine, hardened(CHIP, "input"), faults=300, layers=layers)
    names = [change.name for change in usual_changes(found)]
    assert "harden control: 600 to 200 FIT/MB" in names
    assert not any(name.startswith("harden input") for name in names)  # it is
    assert "ECC for cache" in names
    assert "harden cache" not in " ".join(names)
    assert any(name.startswith("protect ") for name in names)


def test_flip_flops_that_are_not_counted_leave_shares(small):
    engine, layers = small
    found = resiliency_accuracy(engine, replace(FLAT, flip_flops=None), faults=100, layers=layers)
    table = what_if_table(found)
    assert table["chip_fit"][0] == pytest.approx(1)
    assert table["sdc_fit"][0] == pytest.approx(found.sdc.value)
    counted = what_if_table(found, flip_flops=2**23)
    assert counted["due_fit"].to_numpy() == pytest.approx(600 * table["due_fit"].to_numpy())


def test_what_cannot_be_said_is_refused(small):
    engine, layers = small
    found = resiliency_accuracy(engine, hardened(CHIP, "cache", fit=0.0), faults=50, layers=layers)
    with pytest.raises(HardwareError, match="did you mean 'control'"):
        harden(CHIP, "contrl")
    with pytest.raises(HardwareError, match="'output' is none; memories: cache"):
        add_ecc(CHIP, "output")
    with pytest.raises(HardwareError, match="no layer is called '3'"):
        what_if(found, protect("3"))
    with pytest.raises(HardwareError, match="never upsets"):
        what_if(found, harden(CHIP, "cache"))
    with pytest.raises(HardwareError, match="no flip-flop that upsets"):
        what_if(found, Change("all", tuple((one.name, 0.0) for one in CHIP.types)))


def test_the_objective_depends_on_its_arguments_alone(small):
    engine, _ = small
    model, data = engine.model, engine.data
    one, two, other = (resiliency_objective(model, data, FLAT, budget=800, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert other != one
    assert one.low < one.value < one.high
    assert one.trials == 800  # the pilot counts, and is counted
    with pytest.raises(HardwareError, match="96 pairs of type and bit need 192 lanes"):
        resiliency_objective(model, data, FLAT, budget=100)
