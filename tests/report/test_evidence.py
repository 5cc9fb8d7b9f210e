"""The evidence pack: each number recomputed from the trials by other means, and every tampering found."""

import hashlib
import json
import math
import shutil
import sqlite3
from pathlib import Path

import jsonschema
import numpy as np
import openpyxl
import pytest
from scipy.stats import beta

from torchfault import Campaign, Data, Engine, MaxTrials
from torchfault.campaign import run
from torchfault.errors import CampaignError, ConfigError, StoreError
from torchfault.hardware.accelerator import FLAT
from torchfault.recipes import upsets
from torchfault.report.evidence import Asked, check_folder, pack, write_folder
from torchfault.resolve import Pooled
from torchfault.results import fit, load, resiliency
from torchfault.statistics import HalfWidth
from torchfault.store import Store
from torchfault.store.columns import unpack
from torchfault.zoo import digits_cnn

RATES = {"weight": 700.0, "conv1:input": 30.0}
ASKED = Asked(confidence=0.9, detector="due", rates=RATES)


@pytest.fixture(scope="module")
def engine():
    """Return a small CNN on random images, whose faults fail now and then."""
    import torch

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        model = digits_cnn()
        return Engine(model, Data(torch.rand(8, 1, 8, 8), torch.arange(8)))


@pytest.fixture(scope="module")
def place(engine, tmp_path_factory):
    """Return the path of a store with two campaigns of faults and one of upsets."""
    path = tmp_path_factory.mktemp("store") / "torchfault.db"
    space = engine.space.select("*", kinds=("weight", "input"), types=("Conv2d", "Linear"))
    with Store(path) as store:
        run(Campaign(engine, space, seed=1, stop=MaxTrials(2400)), store=store, name="first")
        top = engine.space.select("conv*", kinds="weight", bits=[30])
        run(Campaign(engine, top, seed=2, stop=MaxTrials(500)), store=store, name="=second")
        run(upsets(engine, FLAT, stop=MaxTrials(1500)), store=store, name="upsets")
    return path


@pytest.fixture
def folder(place, tmp_path):
    with Store(place, access="read") as store:
        write_folder(pack(store, ["first", "=second"], ASKED), tmp_path / "pack", force=False)
    return tmp_path / "pack"


def trials_of(place, name):
    """Return the fault numbers and flags of a campaign, by sqlite3 and the documented bytes alone."""
    with sqlite3.connect(place) as opened:
        number, space = opened.execute("select id, space from torchfault_campaigns where name = ?", [name]).fetchone()
        query = "select data from torchfault_batches where campaign = ? order by first"
        parts = [unpack(row[0]) for row in opened.execute(query, [number])]
    flags = {flag: np.concatenate([part.flag(flag) for part in parts]) for flag in ("failed", "due")}
    return np.concatenate([part.faults for part in parts]), flags, json.loads(space)["sites"]


def test_every_number_follows_from_the_trials(place, folder):
    held = json.loads((folder / "evidence.json").read_text())
    for campaign, name in zip(held["campaigns"], ("first", "=second"), strict=True):
        faults, flags, sites = trials_of(place, name)
        sizes = [int(np.prod(site["shape"])) * len(site.get("bits") or range(site["width"])) for site in sites]
        owner = np.searchsorted(np.cumsum(sizes), faults, side="right")
        assert [one["element"] for one in campaign["elements"]] == [site["name"] for site in sites]
        for at, (one, site) in enumerate(zip(campaign["elements"], sites, strict=True)):
            mine = np.flatnonzero(owner == at)
            n, k = len(mine), int(flags["failed"][mine].sum())
            due = int((flags["failed"] & flags["due"])[mine].sum())
            assert (one["trials"], one["failures"], one["due"], one["bits"]) == (n, k, due, sizes[at])
            assert one["safe_fraction"]["value"] == pytest.approx(1 - k / n)
            upper = beta.ppf(0.9, k + 1, n - k) if k < n else 1.0
            assert one["safe_fraction"]["lower"] == pytest.approx(1 - upper, abs=1e-12)
            sdc_upper = beta.ppf(0.9, k - due + 1, n - k + due)
            assert one["failure_modes"][0]["fraction"]["upper"] == pytest.approx(sdc_upper)
            assert one["failure_modes"][1]["fraction"]["value"] == pytest.approx(due / n)
            covered = one["diagnostic_coverage"]
            assert covered["value"] == (pytest.approx(due / k) if k else None)
            assert covered["lower"] == pytest.approx(beta.ppf(0.1, due, k - due + 1) if due else 0.0)
            rate = 700.0 if site["kind"] == "weight" else 30.0 if site["name"] == "conv1:input" else None
            raw = None if rate is None else rate * sizes[at] / 2**20
            assert one["raw_fit"] == (None if raw is None else pytest.approx(raw))
            if raw is not None:
                assert one["residual_fit"]["value"] == pytest.approx(raw * (k - due) / n)
                assert one["residual_fit"]["upper"] == pytest.approx(raw * sdc_upper)
            failed = mine[flags["failed"][mine]]
            assert one["failed_sha256"] == hashlib.sha256(failed.astype("<i8").tobytes()).hexdigest()
            assert one["first_failed"] == failed[:20].tolist()


def test_totals_are_those_of_bits_of_one_rate(place, folder):
    held = json.loads((folder / "evidence.json").read_text())["campaigns"][0]
    faults, flags, sites = trials_of(place, "first")
    sizes = np.array([int(np.prod(site["shape"])) * site["width"] for site in sites])
    owner = np.searchsorted(np.cumsum(sizes), faults, side="right")
    undetected = flags["failed"] & ~flags["due"]
    weights = np.array([site["kind"] == "weight" for site in sites])
    first = np.array([site["name"] == "conv1:input" for site in sites])
    value = upper = raw = 0.0
    for rate, chosen in ((700.0, weights), (30.0, first)):
        n, k = int(chosen[owner].sum()), int(undetected[chosen[owner]].sum())
        fit_of = rate * sizes[chosen].sum() / 2**20
        raw += fit_of
        value += fit_of * k / n
        upper += fit_of * beta.ppf(1 - 0.1 / 2, k + 1, n - k)
    assert held["totals"]["raw_fit"] == pytest.approx(raw)
    assert held["totals"]["single_point_or_residual_fit"]["value"] == pytest.approx(value)
    assert held["totals"]["single_point_or_residual_fit"]["upper"] == pytest.approx(upper)
    assert held["totals"]["spfm_of_these_elements"]["lower"] == pytest.approx(1 - upper / raw)
    assert held["totals"]["elements_without_rate"] == int((~weights & ~first).sum()) > 0


def test_upsets_have_the_rates_of_their_accelerator(place):
    with Store(place, access="read") as store:
        held = pack(store, ["upsets"], Asked(confidence=0.95))["campaigns"][0]
        results = load(store, "upsets")
    told, chip = resiliency(results, level=0.9), fit(results, level=0.9)
    raw = {f"flat/{one.name}": one.fit for one in chip.types}
    assert {one["element"]: one["raw_fit"] for one in held["elements"]} == pytest.approx(raw)
    modes = zip(*([mode["fit"] for mode in one["failure_modes"]] for one in held["elements"]), strict=True)
    sdc, due = (sum(mode["value"] for mode in of_types) for of_types in modes)
    assert sdc == pytest.approx(chip.sdc.value)
    assert due == pytest.approx(chip.due.value)
    failing = held["totals"]["single_point_or_residual_fit"]
    assert failing["value"] == pytest.approx(chip.sdc.value + chip.due.value)
    assert failing["upper"] >= chip.chip * told.sdc.value
    assert sum(one["trials"] for one in held["elements"]) == 1500


def test_a_verdict_may_be_the_detector(engine, tmp_path):
    def out_of_range(golden, faulty, _):
        return ~(faulty.abs().amax(1) <= 1e36 * golden.abs().max())

    space = engine.space.select("*", kinds="weight", bits=range(24, 32))
    watched = Campaign(engine, space, seed=5, verdicts={"alarm": out_of_range}, stop=MaxTrials(800))
    with Store(tmp_path / "c.db") as store:
        columns = run(watched, store=store, name="watched").columns
        held = pack(store, ["watched"], Asked(detector="alarm", rates={"*": 2.0**20 / len(space)}))["campaigns"][0]
        without = pack(store, ["watched"], Asked(rates={"*": 2.0**20 / len(space)}))["campaigns"][0]
    alarm, failed = columns.flag("alarm"), columns.failed
    k, missed = int(failed.sum()), int((failed & ~alarm).sum())
    assert 0 < missed < k < int((failed | alarm).sum()) < 800
    assert held["totals"]["raw_fit"] == pytest.approx(1.0)
    residual = held["totals"]["single_point_or_residual_fit"]
    assert residual["value"] == pytest.approx(missed / 800)
    assert residual["upper"] == pytest.approx(beta.ppf(0.95, missed + 1, 800 - missed))
    assert held["totals"]["detected_fit"]["value"] == pytest.approx((k - missed) / 800)
    assert without["totals"]["single_point_or_residual_fit"]["value"] == pytest.approx(k / 800)
    assert without["totals"]["detected_fit"] is None
    told = [one for one in held["elements"] if one["failures"]]
    assert sum(round(one["diagnostic_coverage"]["value"] * one["failures"]) for one in told) == k - missed


def test_without_rates_and_detector_these_are_absent_and_it_says_so(place):
    with Store(place, access="read") as store:
        held = pack(store, ["first"], Asked())["campaigns"][0]
    assert held["totals"] is None
    for one in held["elements"]:
        assert one["raw_fit"] is one["residual_fit"] is one["diagnostic_coverage"] is one["detected_fit"] is None
        assert one["residual_fraction"]["upper"] == pytest.approx(1 - one["safe_fraction"]["lower"])
    assert any(text.startswith("No detector was named") for text in held["assumptions"])


def test_the_schema_takes_the_pack_and_refuses_others(folder):
    held = json.loads((folder / "evidence.json").read_text())
    schema = json.loads((folder / "evidence.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(held, schema)
    for broken in (
        {**held, "compliant": True},
        {**held, "schema": "torchfault-evidence/2"},
        {**held, "campaigns": []},
        {**held, "asked": {**held["asked"], "confidence": 1.5}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)
    assert "no compliance" in held["claim"].replace("claims no", "no")


def test_the_spreadsheet_holds_the_same_numbers_and_no_formula(folder):
    held = json.loads((folder / "evidence.json").read_text())
    book = openpyxl.load_workbook(folder / "evidence.xlsx")
    heads, *rows = book["FMEDA"].iter_rows(values_only=True)
    table = [dict(zip(heads, row, strict=True)) for row in rows]
    elements = [(one["name"], held_one) for one in held["campaigns"] for held_one in one["elements"]]
    assert len(table) == 2 * len(elements)
    for row, (name, one) in zip(table[::2], elements, strict=True):
        assert (row["campaign"], row["element"], row["failure mode"]) == (name, one["element"], "SDC")
        assert row["safe fraction"] == one["safe_fraction"]["value"]
        upper = (one["residual_fit"] or {}).get("upper")
        assert row["residual FIT upper"] == (None if upper is None else pytest.approx(upper, rel=1e-14))
    assert {cell.data_type for sheet in book for row in sheet for cell in row} <= {"s", "n"}
    assert len(list(book["Assumptions"].iter_rows())) == 1 + sum(len(one["assumptions"]) for one in held["campaigns"])


def test_the_checker_finds_nothing_wrong_in_what_was_written(place, folder):
    with Store(place, access="read") as store:
        assert check_folder(folder, store) == []


def resealed(folder):
    """Sign the files anew, as somebody would who changes them on purpose."""
    names = ("evidence.json", "evidence.schema.json", "evidence.xlsx")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def safer(held):
    held["campaigns"][0]["elements"][2]["safe_fraction"]["lower"] = 0.9999


def fewer_failures(held):
    held["campaigns"][1]["elements"][0]["failures"] -= 1


def quieter(held):
    del held["campaigns"][0]["assumptions"][0]


def other_rate(held):
    held["asked"]["rates"][0]["fit_per_mbit"] = 70.0


def other_seed(held):
    held["campaigns"][0]["trace"]["seed"] = 5


def without_element(held):
    del held["campaigns"][0]["elements"][0]


@pytest.mark.parametrize("change", [safer, fewer_failures, quieter, other_rate, other_seed, without_element])
def test_a_number_that_is_changed_is_found_also_where_it_is_signed_anew(place, folder, change):
    held = json.loads((folder / "evidence.json").read_text())
    change(held)
    (folder / "evidence.json").write_text(json.dumps(held))
    with Store(place, access="read") as store:
        wrong = check_folder(folder, store)
        assert any("SHA-256 is not that" in one for one in wrong)
        resealed(folder)
        wrong = check_folder(folder, store)
    assert wrong
    assert not any("SHA-256 is not that" in one for one in wrong)
    if change is safer:
        assert any("safe_fraction.lower is 0.9999, the store says" in one for one in wrong)


def test_a_cell_that_is_changed_is_found(place, folder):
    book = openpyxl.load_workbook(folder / "evidence.xlsx")
    book["FMEDA"]["J4"] = 1.0
    book.save(folder / "evidence.xlsx")
    resealed(folder)
    with Store(place, access="read") as store:
        (wrong,) = check_folder(folder, store)
    assert "FMEDA row 4, safe lower is 1," in wrong


def test_another_store_is_found(place, folder, engine, tmp_path):
    other = tmp_path / "other.db"
    with Store(other) as store:
        space = engine.space.select("*", kinds=("weight", "input"), types=("Conv2d", "Linear"))
        run(Campaign(engine, space, seed=4, stop=MaxTrials(2400)), store=store, name="first")
    with Store(other, access="read") as store:
        assert "cannot be recomputed" in check_folder(folder, store)[0]
    shutil.copy(place, tmp_path / "longer.db")
    with Store(tmp_path / "longer.db", access="write") as store:
        space = engine.space.select("*", kinds=("weight", "input"), types=("Conv2d", "Linear"))
        run(Campaign(engine, space, seed=1, stop=MaxTrials(2450)), store=store, name="first")
    with Store(tmp_path / "longer.db", access="read") as store:
        assert any("trials_sha256" in one for one in check_folder(folder, store))


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "torchfault-evidence/1"}', '{"schema": 1}', "[" * 10**5])
def test_what_is_no_pack_is_told(place, folder, text):
    (folder / "evidence.json").write_text(text)
    with Store(place, access="read") as store:
        try:
            assert check_folder(folder, store)
        except StoreError as error:
            assert "write the pack anew" in str(error)  # noqa: PT017


def test_weighted_and_pooled_campaigns_keep_their_own_bounds(engine, tmp_path):
    space = engine.space.select("conv*", kinds="weight")
    with Store(tmp_path / "a.db") as store:
        adaptive = Campaign(
            engine, space, seed=1, resolver=Pooled(32), stop=HalfWidth(0.05, by="site") | MaxTrials(1500)
        )
        run(adaptive, store=store, name="pooled")
        held = pack(store, ["pooled"], Asked(detector="due", rates={"*": 100.0}))["campaigns"][0]
        results = load(store, "pooled")
    table = results.table("site", level=0.9, method="clopper-pearson")
    lower = [one["safe_fraction"]["lower"] for one in held["elements"]]
    assert lower == pytest.approx((1 - table["high"]).tolist())
    assert any(text.startswith("Not every outcome was run") for text in held["assumptions"])


def test_what_is_no_evidence_is_refused(engine, place, tmp_path):
    from torchfault.criteria import accuracy
    from torchfault.sampling import Uniform

    space = engine.space.select("fc2.weight")
    with Store(tmp_path / "b.db") as store:
        run(Campaign(engine, space, metric=accuracy, stop=MaxTrials(3)), store=store, name="metric")
        run(Campaign(engine, space, sampler=Uniform(faults=3), stop=MaxTrials(30)), store=store, name="several")
        for name, why in (("metric", "measured a metric"), ("several", "several faults together")):
            with pytest.raises(CampaignError, match=why):
                pack(store, [name], Asked())
    with Store(place, access="read") as store:
        with pytest.raises(ConfigError, match=r"above 0\.5"):
            pack(store, ["first"], Asked(confidence=0.5))
        with pytest.raises(CampaignError, match="recorded the outcomes"):
            pack(store, ["first"], Asked(detector="watchdog"))
        with pytest.raises(StoreError, match="no campaign"):
            pack(store, ["third"], Asked())


@pytest.mark.parametrize("rate", [1e308, math.inf, math.nan, 0.0, -1.0, 1e-320])
def test_rates_that_cannot_be_are_refused(place, rate):
    with Store(place, access="read") as store, pytest.raises(ConfigError, match=r"expected 1e-09 to 1e\+15 FIT"):
        pack(store, ["first"], Asked(rates={"weight": rate}))


@pytest.mark.parametrize(
    ("names", "asked", "why"),
    [
        (["first"], Asked(rates={"wieght": 700.0}), "'wieght' is no kind .* did you mean 'weight'"),
        (["=second"], Asked(rates={"weight": 700.0, "fc*": 1.0}), r"'fc\*' is no kind or glob of the sites"),
        (["upsets"], Asked(rates={"*": 700.0}), r"'\*' is no kind or glob of the sites; leave it out"),
        (["first", "=second"], Asked(flip_flops=1000), "expected a campaign of upsets"),
    ],
)
def test_rates_of_nothing_are_refused(place, names, asked, why):
    with Store(place, access="read") as store, pytest.raises(ConfigError, match=why):
        pack(store, names, asked)


def test_a_folder_that_holds_something_is_kept(place, folder):
    with Store(place, access="read") as store:
        held = pack(store, ["first"], Asked())
    with pytest.raises(StoreError, match="--force"):
        write_folder(held, folder, force=False)
    assert Path(folder / "evidence.json").exists()
    write_folder(held, folder, force=True)
    with Store(place, access="read") as store:
        assert check_folder(folder, store) == []
