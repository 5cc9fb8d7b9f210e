"""The documentation site is built without a warning, leads nowhere outside of itself by mistake, and asks no host."""

import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import torchfault

pytest.importorskip("sphinx")
pytest.importorskip("furo")
pytest.importorskip("myst_parser")

ROOT = Path(__file__).resolve().parent.parent
PAGES = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the site, built from a copy of what it is made of."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("docs", "examples", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("generated", "_build", "__pycache__"))
    shutil.copy(ROOT / "CONTRIBUTING.md", source)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", source / "docs", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


class Links(HTMLParser):
    """Gathers what a page links to, what it loads, and the names that others may link to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links, self.loads, self.names = list[str](), list[str](), set[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.names |= {held[key] for key in ("id", "name") if held.get(key)}
        if tag == "a" and held.get("href"):
            self.links.append(held["href"])
        if tag in ("script", "img", "iframe", "source") and held.get("src"):
            self.loads.append(held["src"])
        if tag == "link" and held.get("rel") in ("stylesheet", "preload", "icon"):
            self.loads.append(held["href"])


@pytest.fixture(scope="module")
def pages(site):
    return {path: Links(path) for path in site.rglob("*.html")}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_page_is_built(site, page):
    assert (site / page).with_suffix(".html").is_file()


def test_every_public_name_is_explained(site):
    told = {path.stem for path in (site / "generated").glob("*.html")}
    assert {f"torchfault.{name}" for name in torchfault.__all__ if name != "__version__"} <= told


def test_links_within_the_site_lead_somewhere(site, pages):
    broken = []
    for page, held in pages.items():
        for link in held.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (
                parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names
            ):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []
    assert sum(len(held.links) for held in pages.values()) > 1000


def test_pages_ask_no_other_host(pages):
    assert [load for held in pages.values() for load in held.loads if urlsplit(load).netloc] == []
