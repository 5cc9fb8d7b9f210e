"""A browser for the tests of pages: Debian's Chromium, driven by Playwright; without it they are skipped."""

import os
import shutil
import tempfile

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser():
    """Return a running browser; the test is skipped where there is none, or fails where CI=true."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        reason = "no Chromium found; install Debian's chromium to test pages in a browser"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    with tempfile.TemporaryDirectory() as home:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS, env={**os.environ, "HOME": home})
        yield started
        started.close()
    playwright.stop()
