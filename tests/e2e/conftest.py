"""A real browser on the page of a real server."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import Final

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serving.settings import Settings
from tests.conftest import ROOT
from tests.serving.conftest import Running, start_server

CAT: Final = ROOT / "tests/cat.jpg"
CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS: Final = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE: Final = 60_000  # milliseconds that a condition may take to come true on a machine that is busy

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    running, stop = start_server(Settings())
    yield running
    stop()


# Not for longer than a module: the event loop that Playwright keeps running would be in the way of others' tests.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium, and CI must not pass without the page's tests")
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def without_key(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


@pytest.fixture
def empty(browser: Browser) -> Iterator[Page]:
    """A tab that has been nowhere yet; wherever it goes, nothing may go wrong there."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    faults: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(without_key(request.url)))
    yield page
    origin = without_key(page.url).split("/", 3)[2]
    context.close()
    # Chromium itself notes an answer that is an error; a policy that was broken, or a script that threw, is a fault.
    assert [fault for fault in faults if not fault.startswith("Failed to load resource")] == []
    assert [url for url in asked if not url.startswith((f"http://{origin}/", "blob:", "data:"))] == []


@pytest.fixture
def page(empty: Page, service: Running) -> Page:
    """The page, opened."""
    empty.goto(f"http://127.0.0.1:{service.port}/")
    return empty
