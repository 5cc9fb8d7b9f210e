"""The report as a file: its numbers are the store's, names do nothing, nothing is fetched, and it stays small."""

import os
import re
import resource
import subprocess
import sys
import time
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest

from tests.support.nasty_names import NAMES, printable
from tests.support.page import read_page
from tests.support.stored import NET, drawn
from torchfault.errors import StoreError
from torchfault.report import render, write_report
from torchfault.report.numbers import PERCENT
from torchfault.results import Results
from torchfault.results.differences import differ
from torchfault.space import FaultSpace, Site
from torchfault.statistics import Estimate
from torchfault.store import Columns, Store
from torchfault.text import visible

LAYERS = "Layers in network order: failing faults"


def percent(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-").replace(",", "")) / 100


def test_every_row_of_a_plot_says_what_the_results_say():
    results = drawn()
    page = read_page(render([results]))
    head, *rows = page.tables[LAYERS]
    assert head == ["layer", "plot", "weights %", "95 % interval", "layer inputs %", "95 % interval", "trials"]
    table = results.table(("layer", "kind")).set_index(["layer", "kind"])
    assert [row[0] for row in rows] == ["conv1", "fc"]
    for name, _, *cells, trials in rows:
        assert int(trials.removesuffix(" trials").replace(",", "")) == table.loc[name]["trials"].sum()
        for kind, value, bounds in (("weight", *cells[:2]), ("input", *cells[2:])):
            known = table.loc[name, kind]
            assert percent(value) == pytest.approx(known["value"], abs=6e-5)
            assert [percent(x) for x in bounds.strip("[]").split(", ")] == pytest.approx(
                [known["low"], known["high"]], abs=6e-5
            )


def test_places_in_a_plot_are_those_of_its_numbers():
    results = drawn()
    text = render([results])
    bits = text[text.index("Bits from the top of the word") :]
    places = [100 - float(y) for y in re.findall(r'<circle class="m" cx="[\d.]+%" cy="([\d.]+)%"', bits)[:32]]
    values = results.table("bit").sort_values("key", ascending=False)["value"].to_numpy()
    assert len(places) == 32
    assert np.corrcoef(places, values)[0, 1] == pytest.approx(1, abs=1e-6)
    assert min(places) == pytest.approx(1.5)


def test_files_in_the_page_hold_the_tables():
    results = drawn()
    page = read_page(render([results]))
    files = {
        held["download"]: unquote(held["href"].partition(",")[2]) for tag, held in page.tags if held.get("download")
    }
    known = results.table("bit").to_csv(index=False, float_format="%.6g")
    assert files["stored-bits.csv"] == known
    assert {"stored-layers.csv", "stored-layer-bit.csv", "stored-convergence.csv"} <= files.keys()


def test_answers_are_sentences_with_the_intervals_of_the_results():
    results = drawn()
    text = " ".join(read_page(render([results])).text.split())
    assert f"fails with a probability of {PERCENT.full(results.estimate())} (95 % interval from 4,000 trials)" in text
    assert "Bit 30 (exponent) is behind" in text
    assert "uniformly at random, from the seed 0" in text
    assert "nan" not in text.lower().replace("nan or infin", "").replace("are nan", "")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "a lone surrogate"])
def test_names_are_shown_and_do_nothing(name):
    text = NAMES[name]
    space = FaultSpace(tuple(replace(site, name=f"{site.name}{text}", module=text or "m") for site in NET.sites))
    page = read_page(render([drawn(text[:150], space), drawn(f"{text[:150]}!", space, failing=0.1)]))
    assert printable(page.text)
    assert visible(text)[:100] in page.text
    assert text.isprintable() or text not in page.text


def test_markup_in_names_is_text():
    bad = "<script>alert(1)</script><img src=x onerror=alert(1)>&amp;'\""
    space = FaultSpace(tuple(replace(site, name=f"{bad}{site.name}", module=bad) for site in NET.sites))
    page = read_page(render([drawn(bad, space)]))
    assert bad in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [
        tag for tag, held in page.tags if tag in ("img", "iframe", "object") or any(k.startswith("on") for k in held)
    ]


def test_nothing_reaches_out_of_the_page():
    text = render([drawn()])
    page = read_page(text)
    links = [held.get(key) or "" for _, held in page.tags for key in ("href", "src", "xlink:href", "action")]
    assert all(link == "" or link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text


def test_campaigns_of_the_same_faults_are_compared_by_pairs():
    one, two = drawn("before"), drawn("after", failing=0.1)
    found = differ(one, two)
    both = (one.columns.failed, two.columns.failed)
    assert found.pairs == 4000
    assert found.first_alone == (both[0] & ~both[1]).sum()
    text = " ".join(read_page(render([one, two])).text.split())
    assert f"{found.first_alone} failed in before alone and {found.second_alone} in after alone" in text
    digits = PERCENT.digits([(found.estimate.value, found.estimate.low, found.estimate.high)])
    less = PERCENT.text(-found.estimate.value, digits)
    assert f"after fails {less} points less than before" in text


def test_campaigns_of_other_faults_are_compared_as_two_samples():
    one, two = drawn("one"), drawn("two", seed=1)
    assert differ(one, two).pairs == 0
    assert "a difference of two samples" in " ".join(read_page(render([one, two])).text.split())


def test_the_size_does_not_grow_with_layers_beyond_what_a_page_shows():
    sites = [
        Site(f"block{n}.conv.weight", (64, 8), word="float64", module=f"block{n}.conv", channel=0) for n in range(900)
    ]
    space = FaultSpace(tuple(sites))
    pages = [drawn(f"run {n}", space, trials=20_000, seed=n) for n in range(2)]
    assert len(render(pages)) < 1_000_000, "six of them would not stay below 3 MB"


def test_a_campaign_without_trials_has_a_report():
    empty = drawn()
    page = read_page(render([Results(replace(empty.record, status="running"), Columns.empty())]))
    assert "no trials yet" in page.text


def test_reports_that_cannot_be_are_refused_in_one_line(tmp_path):
    with pytest.raises(StoreError, match="a report is of 1 to 6 campaigns, got 9"):
        render([drawn(trials=10)] * 9)
    (tmp_path / "taken.html").write_text("")
    with pytest.raises(StoreError, match=r"taken\.html' exists"):
        write_report(drawn(), tmp_path / "taken.html")
    assert write_report(drawn(), tmp_path / "taken.html", force=True) == (tmp_path / "taken.html").stat().st_size


def test_the_command_writes_a_page_from_the_store_without_torch(tmp_path):
    results = drawn()
    with Store(tmp_path / "torchfault.db") as store:
        store.create(replace(results.record, trials=0, seconds=0.0))
        store.append("stored", results.columns, first=0, seconds=2.0)
        store.finish("stored")
    program = (
        "import sys; from torchfault.cli import main; status = main(['report', '-o', 'page.html']); "
        "print(status, sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "0 []\n"
    assert "report written to page.html" in done.stderr
    assert percent(read_page((tmp_path / "page.html").read_text()).tables[LAYERS][1][2]) > 0


def test_an_estimate_reads_with_the_digits_that_its_interval_bears():
    assert PERCENT.full(Estimate(0.5, 0.25, 0.75, 4, "")) == "50.00 % [25.00, 75.00]"
    assert PERCENT.full(Estimate(0.00012, 0.0001, 0.00014, 4, "")) == "0.0120 % [0.0100, 0.0140]"
    assert PERCENT.full(Estimate(-0.00001, -0.1, 0.1, 4, "")) == "0.00 % [\N{MINUS SIGN}10.00, 10.00]"


@pytest.mark.slow
def test_ten_million_trials_take_not_much_longer_than_to_keep_them_and_no_more_room(tmp_path):
    results, began = drawn(trials=1 << 16), time.process_time()
    with Store(tmp_path / "torchfault.db") as store:
        store.create(replace(results.record, trials=0, seconds=0.0))
        for first in range(0, 10_000_000, 1 << 16):
            store.append("stored", results.columns, first=first, seconds=1.0)
        store.finish("stored")
    kept = time.process_time() - began  # on this machine, at this hour: two to three times this is usual
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "torchfault", "report", "-o", "page.html"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 6 * kept, "seconds of one core"
    assert (tmp_path / "page.html").stat().st_size < 300_000
