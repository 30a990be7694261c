"""The web page in a real browser: what a person does, and what they read."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from serving import evidence
from serving.settings import Settings
from tests.conftest import ROOT
from tests.serving.conftest import Running, start_server

CAT = ROOT / "tests/cat.jpg"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# A map that speaks for a cat in its left half, for a dog at its lower right, and for neither at its upper right.
CAT_ON_THE_LEFT = [[-4.0, -8.0, -4.0, 0, 0, 0, 0]] * 4 + [[-2.0, -4.0, -2.0, 0, 0, 4.0, 4.0]] * 3
# What a browser's drop or paste event carries, built in the page from a file's bytes.
TRANSFER = """([data, name, type]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  return transfer;
}"""
CANVAS = """canvas => {
  const { width, height } = canvas;
  return [width, height, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
}"""


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    running, stop = start_server(Settings())
    yield running
    stop()


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


@pytest.fixture
def page(browser: Browser, service: Running) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    opened = context.new_page()
    faults: list[str] = []
    strangers: list[str] = []
    origin = f"http://127.0.0.1:{service.port}/"
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda request: strangers.append(request.url))
    opened.goto(origin)
    yield opened
    context.close()
    assert faults == []
    assert [url for url in strangers if not url.startswith((origin, "blob:", "data:"))] == []


def fulfil(answer: str, route: Route) -> None:
    route.fulfill(body=answer, content_type="application/json")


def transfer(page: Page, data: bytes, name: str, kind: str = "image/jpeg") -> "object":
    return page.evaluate_handle(TRANSFER, [base64.b64encode(data).decode(), name, kind])


def test_a_chosen_photo_gets_a_card_with_verdict_and_both_probabilities(page: Page, tmp_path: Path) -> None:
    page.set_input_files("#choose", CAT)
    card = page.locator(".card")
    expect(card.locator("h2")).to_have_text("It’s a cat")
    expect(card.locator(".shares .cats")).to_contain_text("%")
    expect(card.locator(".shares .dogs")).to_contain_text("%")
    expect(card.locator(".name")).to_have_text("cat.jpg")
    expect(page.locator("#status")).to_have_text("Done.")
    assert card.locator("img").evaluate("image => image.naturalWidth") == 451
    assert "cat" in (card.locator(".bar").get_attribute("aria-label") or "")
    page.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_a_dropped_photo(page: Page) -> None:
    page.dispatch_event("body", "drop", {"dataTransfer": transfer(page, CAT.read_bytes(), "dropped.jpg")})
    expect(page.locator(".card h2")).to_have_text("It’s a cat")


def test_a_pasted_photo(page: Page) -> None:
    data = transfer(page, CAT.read_bytes(), "pasted.jpg")
    page.evaluate("data => dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))", data)
    expect(page.locator(".card h2")).to_have_text("It’s a cat")


def test_many_photos_and_a_bad_one_among_them(page: Page, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("I am a cat")
    files = [shutil.copy(CAT, tmp_path / f"cat {number}.jpg") for number in range(12)]
    page.set_input_files("#choose", [*files, tmp_path / "text.jpg"])
    expect(page.locator("#status")).to_have_text("All 13 photos looked at.", timeout=30_000)
    assert page.locator(".card.verdict-cats").count() == 12
    bad = page.locator(".card.error")
    expect(bad.locator("h2")).to_have_text("No answer")
    expect(bad.locator(".why")).to_contain_text("not a picture I can read")


def test_unsure_is_said_plainly_with_its_reason(page: Page) -> None:
    for reason, words in (("close_call", "too close"), ("unfamiliar", "does not look like")):
        body = {
            "id": "1",
            "predicted_label": "cats",
            "probabilities": {"cats": 0.55, "dogs": 0.45},
            "verdict": "unsure",
            "unsure_because": reason,
            "familiarity": 0.2,
            "model": "m",
            "evidence": CAT_ON_THE_LEFT,
        }
        answer = json.dumps(body)
        page.route("**/predict*", partial(fulfil, answer))
        page.set_input_files("#choose", CAT)
        card = page.locator(".card").first
        expect(card.locator("h2")).to_have_text("I’m unsure")
        expect(card.locator(".why")).to_contain_text(words)
        expect(card.locator(".shares .cats")).to_have_text("cat 55.0 %")
        page.unroute("**/predict*")


def test_a_service_that_is_gone_is_said_in_words(page: Page) -> None:
    page.route("**/predict*", lambda route: route.abort())
    page.set_input_files("#choose", CAT)
    expect(page.locator(".card.error .why")).to_contain_text("cannot be reached")


def test_a_file_name_is_text_and_nothing_more(page: Page) -> None:
    name = "<img src=x onerror=document.title='broken'>.jpg"
    page.dispatch_event("body", "drop", {"dataTransfer": transfer(page, CAT.read_bytes(), name)})
    expect(page.locator(".card .name")).to_have_text(name)
    assert page.title() == "Cats or dogs?"


def test_the_keyboard_is_enough(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(CAT)
    expect(page.locator(".card h2")).to_have_text("It’s a cat")
    expect(page.get_by_role("switch")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "everywhere"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").startswith("card")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Show why")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".card canvas")).to_be_visible()


def test_a_button_shows_the_evidence_over_its_photo_and_hides_it_again(page: Page) -> None:
    page.set_input_files("#choose", [CAT, CAT])
    expect(page.locator("#status")).to_have_text("All 2 photos looked at.")
    first, second = page.locator(".card").all()
    why = first.get_by_role("button", name="Show why", pressed=False)
    expect(first.locator("canvas, .legend")).to_have_count(2)
    expect(first.locator("canvas")).to_be_hidden()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    why.click()
    expect(first.get_by_role("button", name="Show why", pressed=True)).to_be_visible()
    expect(first.locator("canvas")).to_be_visible()
    expect(first.locator(".legend")).to_have_text("catdog")
    expect(second.locator("canvas")).to_be_hidden()
    first.get_by_role("button", name="Show why").click()
    expect(first.locator("canvas")).to_be_hidden()
    assert asked == []


def test_a_switch_shows_it_on_every_photo_those_to_come_too(page: Page, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("I am a cat")
    switch = page.get_by_role("switch", name="Show why on every photo")
    expect(switch).to_be_hidden()
    page.set_input_files("#choose", [CAT, CAT, tmp_path / "text.jpg"])
    expect(page.locator("#status")).to_have_text("All 3 photos looked at.")
    switch.check()
    expect(page.locator(".card canvas:visible")).to_have_count(2)
    expect(page.locator(".card.error button")).to_be_hidden()
    page.set_input_files("#choose", CAT)
    expect(page.locator(".card canvas:visible")).to_have_count(3)
    page.locator(".card button").first.click()
    switch.uncheck()
    expect(page.locator(".card canvas:visible")).to_have_count(0)


def test_the_page_draws_what_the_service_draws(page: Page) -> None:
    with page.expect_response("**/predict?explain=true") as asked:
        page.set_input_files("#choose", CAT)
    of_chelsea = asked.value.json()
    page.route("**/predict*", lambda route: route.fulfill(json={**of_chelsea, "evidence": CAT_ON_THE_LEFT}))
    page.set_input_files("#choose", CAT)
    expect(page.locator("#status")).to_have_text("All 2 photos looked at.")
    page.get_by_role("switch").check()
    expect(page.locator(".card canvas:visible")).to_have_count(2)
    for place, map_ in ((0, CAT_ON_THE_LEFT), (1, of_chelsea["evidence"])):
        width, height, data = page.locator("canvas").nth(place).evaluate(CANVAS)
        assert (width, height) == (224, 149)  # of 451×300
        drawn = np.array(data).reshape(height, width, 4)
        expected = evidence.overlay(np.array(map_, np.float32), (width, height)).astype(int)
        opacity = float(page.locator("canvas").nth(place).evaluate("canvas => getComputedStyle(canvas).opacity"))
        assert np.abs(drawn[..., 3] * opacity - expected[..., 3]).max() <= 1.5
        strong = expected[..., 3] > 40  # where it is weak, a canvas keeps colours coarsely
        assert np.abs(drawn - expected)[strong][:, :3].max() <= 4
    assert (expected[..., 3] > 170).any()


def test_the_drawing_lies_on_what_it_is_about(page: Page, tmp_path: Path) -> None:
    tall = Image.open(CAT).crop((0, 0, 150, 300))
    tall.save(tmp_path / "tall.jpg")
    page.set_input_files("#choose", tmp_path / "tall.jpg")
    page.get_by_role("button", name="Show why").click()
    canvas, picture = page.locator("canvas"), page.locator(".card img")
    assert canvas.bounding_box() == picture.bounding_box()
    assert canvas.evaluate("canvas => canvas.width / canvas.height") == 0.5
    for shown in (canvas, picture):
        assert shown.evaluate("element => getComputedStyle(element).objectFit") == "contain"


def test_a_photo_that_the_browser_cannot_show_has_its_answer_and_its_map(page: Page, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8\xff and no more")
    answer = {
        "id": "1", "predicted_label": "cats", "probabilities": {"cats": 0.9, "dogs": 0.1}, "verdict": "cats",
        "unsure_because": None, "familiarity": 0.9, "model": "m", "evidence": CAT_ON_THE_LEFT,
    }  # fmt: skip
    page.route("**/predict*", lambda route: route.fulfill(json=answer))
    page.set_input_files("#choose", tmp_path / "cat.jpg")
    expect(page.locator(".card h2")).to_have_text("It’s a cat")
    page.get_by_role("button", name="Show why").click()
    assert page.locator("canvas").evaluate(CANVAS)[:2] == [224, 168]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_by_day_and_by_night(browser: Browser, service: Running, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740},
        color_scheme=scheme,  # type: ignore[arg-type]
        has_touch=True,
    )
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{service.port}/")
    page.set_input_files("#choose", CAT)
    expect(page.locator(".card h2")).to_have_text("It’s a cat")
    page.get_by_role("switch").check()
    expect(page.locator("canvas")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    red, *_ = map(int, page.evaluate("getComputedStyle(document.body).backgroundColor").strip("rgb()").split(","))
    assert (red < 60) == (scheme == "dark")
    context.close()


def test_the_documentation_shows_every_route(page: Page, service: Running) -> None:
    page.goto(f"http://127.0.0.1:{service.port}/docs")
    expect(page.locator(".opblock")).to_have_count(7)
    expect(page.locator(".opblock-summary-path", has_text="batch")).to_be_visible()
