"""The report in a browser: nothing asked of any host, no error, every plot drawn, accessible, whatever the screen."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.stored import NET, drawn
from torchfault.adapters.over_time import over_time
from torchfault.campaign import Campaign, run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.hardware.accelerator import FLAT
from torchfault.recipes import upsets, vulnerability
from torchfault.report import render
from torchfault.sampling import Search
from torchfault.space import FaultSpace
from torchfault.statistics import MaxTrials
from torchfault.zoo import digits_cnn

DESKTOP, PHONE = 1280, 390


class Leaky(nn.Module):
    """A spiking neuron that keeps its potential in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.mem = torch.zeros(1)

    def forward(self, current):
        self.mem = 0.9 * self.mem * (self.mem <= 1) + current
        return (self.mem > 1).float()


def accelerated():
    torch.manual_seed(0)
    engine = Engine(digits_cnn(), Data(torch.rand(4, 1, 8, 8), torch.arange(4)))
    return [run(upsets(engine, replace(FLAT, flip_flops=10_000), stop=MaxTrials(1100)), name="upsets")]


def factored():
    torch.manual_seed(0)
    engine = Engine(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), Data(torch.randn(5, 6)))
    return [run(vulnerability(engine, weights=None, neurons=None), name="factors")]


def spiking():
    torch.manual_seed(0)
    model = over_time(nn.Sequential(nn.Linear(4, 8), Leaky(), nn.Linear(8, 3)).eval(), steps=6, read="mean")
    engine = Engine(model, Data(torch.rand(6, 4)))
    return [run(Campaign(engine, engine.space.select(kinds=["weight", "state", "output"]), stop=MaxTrials(900)))]


def searched():
    torch.manual_seed(0)
    engine = Engine(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), Data(torch.randn(5, 6)))
    return [
        run(Campaign(engine, engine.space.select("*.weight"), sampler=Search(side=128, block=64), stop=MaxTrials(512)))
    ]


BAD = "<script>document.title='hit'</script>\x1b[31m\u202eאבג"


def named():
    sites = tuple(replace(site, name=f"{site.name}{BAD}", module=f"{site.module}{BAD}") for site in NET.sites)
    return [drawn(BAD, FaultSpace(sites)), drawn(f"{BAD}2", FaultSpace(sites), failing=0.1)]


REPORTS = {
    "one campaign": lambda: [drawn()],
    "before and after": lambda: [drawn("before"), drawn("after", failing=0.1)],
    "names": named,
    "an accelerator": accelerated,
    "factors": factored,
    "a spiking network": spiking,
    "a search": searched,
}


SLOW = {"an accelerator", "a search"}  # to run, not to look at


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in REPORTS]
)
def page_file(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("pages") / "report.html"
    file.write_text(render(REPORTS[request.param]()), encoding="utf-8")
    return file


@pytest.fixture
def opened(browser):
    """Open pages that are closed again, with lists of what they said and asked for."""
    contexts = []

    def open_page(file, *, width=DESKTOP, theme="light", **more):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **more)
        contexts.append(context)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


WITHOUT_A_PLOT = {
    "What makes it the same campaign",
    "What changes of the chip would do",
    "What injection would take",
    "After so many trials",
}
SIZES = """() => [...document.querySelectorAll('figure.chart')].map(figure => ({
  title: figure.getAttribute('aria-label') || '',
  marks: [...figure.querySelectorAll('.m, .line, .area, rect[class^=f-], .heat td')].map(mark => {
    const box = mark.getBoundingClientRect(); return [box.left, box.right, box.width, box.height]; }),
  rows: figure.querySelectorAll('tbody tr').length,
}))"""


def test_a_page_asks_for_nothing_says_nothing_and_draws_all(page_file, opened):
    for width, theme in ((DESKTOP, "light"), (PHONE, "dark")):
        page = opened(page_file, width=width, theme=theme)
        assert page.said == []
        assert page.asked == [page_file.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.title() != "hit"
        charts = page.evaluate(SIZES)
        assert len(charts) >= 4
        for chart in charts:
            drawn_ones = [mark for mark in chart["marks"] if mark[3] > 0]
            assert drawn_ones or chart["rows"] == 0 or chart["title"] in WITHOUT_A_PLOT
            assert all(left >= -1 and right <= width + 1 for left, right, _, _ in drawn_ones), chart["title"]


def test_the_two_themes_differ_and_the_button_changes_them(opened, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(render([drawn(trials=500)]), encoding="utf-8")
    light, dark = (opened(file, theme=theme) for theme in ("light", "dark"))
    paper = "getComputedStyle(document.body).backgroundColor"
    seen = [page.evaluate(paper) for page in (light, dark)]
    assert seen[0] != seen[1]
    light.get_by_role("button", name="Dark theme").click()
    assert light.evaluate(paper) == seen[1]
    light.get_by_role("button", name="Light theme").press("Enter")
    assert light.evaluate(paper) == seen[0]


def test_axe_finds_no_violation(page_file, opened):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    dark = "before" in page_file.read_text(encoding="utf-8")  # the other pages stand for light and wide
    width, theme = (PHONE, "dark") if dark else (DESKTOP, "light")
    found = axe.run(opened(page_file, width=width, theme=theme, bypass_csp=True))
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found.response["violations"]] == []


def test_the_numbers_that_a_reader_sees_are_those_of_the_results(opened, tmp_path):
    results, file = drawn(), tmp_path / "page.html"
    file.write_text(render([results]), encoding="utf-8")
    page = opened(file)
    figure = page.get_by_role("figure", name="Layers in network order: failing faults")
    cells = [row.split("\t") for row in figure.locator("tbody tr").all_inner_texts()]
    table = results.table(("layer", "kind")).set_index(["layer", "kind"])["value"]
    assert [float(cells[0][2]), float(cells[0][4])] == pytest.approx(
        [100 * table["conv1", "weight"], 100 * table["conv1", "input"]], abs=6e-3
    )
    with page.expect_download() as saved:
        figure.get_by_role("link").click()
    assert saved.value.suggested_filename == "stored-layers.csv"
    assert saved.value.path().read_text().splitlines()[0] == "layer,kind,trials,failures,due,value,low,high"


def test_the_keyboard_alone_suffices(opened, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(render([drawn()]), encoding="utf-8")
    page = opened(file)
    focused = "document.activeElement.textContent"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to the findings"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate(focused).startswith("CSV")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_a_page_prints_to_a_pdf(opened, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(render([drawn()]), encoding="utf-8")
    paper = opened(file, theme="dark").pdf(format="A4", prefer_css_page_size=True)
    assert paper.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 8
