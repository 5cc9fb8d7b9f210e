"""What-ifs by reweighing: against the same change measured anew, exactly for what is known, and their intervals."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.hardware_records import record_all
from tests.support.small_network import small_network
from torchfault.campaign import run
from torchfault.engine import Engine
from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import FLAT, hardened, with_buffer
from torchfault.hardware.layers import layers_of
from torchfault.hardware.measure import UpsetMeasure
from torchfault.recipes import upsets
from torchfault.results import fit, resiliency
from torchfault.results.what_if import Change, add_ecc, harden, protect, usual_changes, what_if, what_if_table
from torchfault.statistics import MaxTrials

CHIP = with_buffer(FLAT, "cache", holds="weight", share=2000.0)


@pytest.fixture(scope="module")
def small():
    """Return an engine on a network of 38 variables, and its layers."""
    model, data = small_network()
    return Engine(model, data), layers_of(model, data)


@pytest.fixture(scope="module")
def known(small):
    """Return campaigns on records of every upset of CHIP on every input."""
    return record_all(small[0], CHIP, small[1])


def struck(small, chip, *, trials=1500, **options):
    """Return the results of the recipe on the engine itself."""
    engine, layers = small
    return run(upsets(engine, chip, layers=layers, stop=MaxTrials(trials), **options))


CHANGES = {
    "harden output": (harden(CHIP, "output"), {"output": 1 / 3}, ()),
    "harden control": (harden(CHIP, "control", fit=0.0), {"control": 0.0}, ()),
    "ECC": (add_ecc(CHIP, "cache"), {"cache": 0.0}, ()),
    "protect": (protect("2"), {}, (1,)),
}


def truth(known, factors, protected):
    """Return RA, and SDC and DUE in upsets of the chip as it was, from the definition."""
    space, answers = known.space, known.answers[known.records.row]
    labels, golden = np.asarray(known.engine.data.labels), known.engine.golden().argmax(1).numpy()
    outcomes = (
        (answers != labels).mean(1) - 0.3,
        ((answers != golden) & (answers >= 0)).mean(1),
        (answers < 0).mean(1),
    )
    drop, changed, due = (
        np.bincount(known.records.cell, known.records.share * of, len(space.cells)) for of in outcomes
    )
    p = UpsetMeasure().mass(space) * np.array([factors.get(one.name, 1.0) for one in CHIP.types])[space.type]
    live = np.where(space.is_control | np.isin(space.layer, protected), 0.0, p)
    control = p[space.is_control].sum()
    return 0.7 - (live @ drop + 0.7 * control) / p.sum(), live @ changed, live @ due + control


@pytest.mark.parametrize("name", CHANGES)
def test_reweighed_upsets_tell_what_the_change_does(known, name):
    change, factors, protected = CHANGES[name]
    before, after = truth(known, {}, ()), truth(known, factors, protected)
    chip = CHIP.flip_flops * 600 / 2**23
    covered = []
    values = []
    for seed in range(40):
        seen = what_if(run(known.campaign(stop=MaxTrials(1500), seed=seed)), change)
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
    results = struck(small, CHIP)
    found, seen = resiliency(results), what_if(results, harden(CHIP, "output"))
    assert seen.ra.value - found.ra.value == pytest.approx(seen.ra_change.value)
    assert seen.ra_change.high - seen.ra_change.low < 0.7 * (seen.ra.high - seen.ra.low + found.ra.high - found.ra.low)


def test_hardening_reweighed_is_hardening(small):
    results, anew = struck(small, FLAT), struck(small, hardened(FLAT, "control"), seed=1)
    seen, told = what_if(results, harden(FLAT, "control")), fit(anew)
    assert seen.chip == pytest.approx(told.chip)
    assert seen.ra.low < resiliency(anew).ra.value < seen.ra.high
    assert seen.due.low < told.due.value < seen.due.high


def test_no_change_changes_nothing(small):
    results = struck(small, CHIP)
    found, table = resiliency(results), what_if_table(results, [])
    assert table["change"].tolist() == ["as it is"]
    row = table.iloc[0]
    assert (row["ra"], row["ra_low"], row["ra_high"]) == pytest.approx((found.ra.value, found.ra.low, found.ra.high))
    assert [row[name] for name in row.index if "change_" in name or name.endswith("_change")] == pytest.approx([0] * 10)
    assert row["sdc_fit"] == pytest.approx(fit(results).sdc.value)


def test_usual_changes_are_those_that_can_be_made(small):
    names = [change.name for change in usual_changes(struck(small, hardened(CHIP, "input")))]
    assert "harden control: 600 to 200 FIT/MB" in names
    assert not any(name.startswith("harden input") for name in names)  # it is
    assert "ECC for cache" in names
    assert "harden cache" not in " ".join(names)
    assert any(name.startswith("protect ") for name in names)


def test_flip_flops_that_are_not_counted_leave_shares(small):
    results = struck(small, replace(FLAT, flip_flops=None))
    table = what_if_table(results)
    assert table["chip_fit"][0] == pytest.approx(1)
    assert table["sdc_fit"][0] == pytest.approx(resiliency(results).sdc.value)
    counted = what_if_table(results, flip_flops=2**23)
    assert counted["due_fit"].to_numpy() == pytest.approx(600 * table["due_fit"].to_numpy())


def test_what_cannot_be_said_is_refused(small):
    found = struck(small, hardened(CHIP, "cache", fit=0.0), trials=50)
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
