"""The web page in a real browser: what a person does, and what they read."""

import base64
import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from serving.http import auth
from serving.settings import Settings
from tests.e2e.conftest import CAT
from tests.ops.watched import free_port
from tests.serving.conftest import Running, start_server

KEY, DIGEST = auth.make()
# What a browser's drop or paste event carries, built in the page from a file's bytes.
TRANSFER = """([data, name, type]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  return transfer;
}"""


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


def test_who_has_no_photo_at_hand_tries_an_example(page: Page) -> None:
    examples = page.locator(".examples")
    examples.get_by_role("button", name="A cup of coffee").click()
    expect(page.locator(".card h2")).to_have_text("I’m unsure")
    expect(examples).to_be_hidden()
    for name in ("cat", "dog"):
        page.reload()
        examples.get_by_role("button", name=f"A {name}").click()
        expect(page.locator(".card h2")).to_have_text(f"It’s a {name}")


def test_unsure_is_said_plainly_with_its_reason(page: Page) -> None:
    for reason, words in (("close_call", "too close"), ("unfamiliar", "does not look like a cat or dog I know")):
        body = {
            "id": "1",
            "predicted_label": "cats",
            "probabilities": {"cats": 0.55, "dogs": 0.45},
            "verdict": "unsure",
            "unsure_because": reason,
            "familiarity": 0.2,
            "model": "m",
            "evidence": [[0.0] * 7] * 7,
        }
        answer = json.dumps(body)
        page.route("**/predict*", partial(fulfil, answer))
        page.set_input_files("#choose", CAT)
        card = page.locator(".card").first
        expect(card.locator("h2")).to_have_text("I’m unsure")
        expect(card.locator(".why")).to_contain_text(words)
        # A full bar beside "unsure" would be a contradiction.
        expect(card.locator(".likely")).to_be_visible(visible=reason == "close_call")
        page.unroute("**/predict*")


def test_a_file_name_is_text_and_nothing_more(page: Page) -> None:
    name = "<img src=x onerror=document.title='broken'>.jpg"
    page.dispatch_event("body", "drop", {"dataTransfer": transfer(page, CAT.read_bytes(), name)})
    expect(page.locator(".card .name")).to_have_text(name)
    assert page.title() == "Cats or dogs?"


def test_the_keyboard_is_enough(page: Page) -> None:
    def tab_to(selector: str) -> None:
        page.keyboard.press("Tab")
        expect(page.locator(selector)).to_be_focused()

    page.on("filechooser", lambda _: None)  # early: until the browser knows, it opens one of its own
    tab_to("#about")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#about")).to_be_focused()
    tab_to("#choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(CAT)
    expect(page.locator(".card h2")).to_have_text("It’s a cat")
    expect(page.get_by_role("switch")).to_be_visible()
    page.locator("#choose").focus()  # where a closed file chooser leaves it is the browser's business
    for selector in ("#folder", "#everywhere", "#sort", "#export", "#clear", ".enlarge", ".why-button"):
        tab_to(selector)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Show why")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".card canvas")).to_be_visible()
    tab_to(".feedback button >> nth=0")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Right")).to_have_attribute("aria-pressed", "true")
    tab_to(".feedback button >> nth=1")


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
    page.set_input_files("#choose", CAT)
    expect(page.locator("#tally")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(TOO_LOW) == []
    red, *_ = map(int, page.evaluate("getComputedStyle(document.body).backgroundColor").strip("rgb()").split(","))
    assert (red < 60) == (scheme == "dark")
    context.close()


# What a finger may miss: everything to press that is not 44 pixels high.
TOO_LOW = """() => [...document.querySelectorAll("button, select, a, main label")]
  .filter((element) => element.checkVisibility() && element.getBoundingClientRect().height < 43.9)
  .map((element) => element.outerHTML)"""
# Every text's contrast with what lies behind it, for those below what WCAG asks of level AA (4.5, large text 3).
TOO_PALE = """() => {
  const luminance = ([r, g, b]) => [r, g, b]
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const colour = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const found = colour(getComputedStyle(one).backgroundColor);
      if (found[3] > 200) return found;
    }
    return [255, 255, 255];
  };
  const pale = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest("noscript")) continue;
    const style = getComputedStyle(element);
    const lights = [luminance(colour(style.color)), luminance(behind(element))].sort((a, b) => b - a);
    const contrast = (lights[0] + 0.05) / (lights[1] + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) pale.push(`${texts.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
  }
  return pale;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_that_is_written_can_be_read(page: Page, tmp_path: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    (tmp_path / "text.jpg").write_text("I am a cat")
    grey = tmp_path / "grey.png"
    Image.new("RGB", (200, 200), "grey").save(grey)
    page.set_input_files("#choose", [CAT, CAT, grey, tmp_path / "text.jpg"])
    expect(page.locator("#status")).to_have_text("All 4 photos done.")
    page.locator(".card").get_by_role("button", name="Wrong").first.click()
    expect(page.locator(".thanks").first).to_contain_text("Thank you")
    expect(page.locator(".no-preview:visible")).to_have_count(1)
    page.locator(".why-button").first.click()
    assert page.evaluate(TOO_PALE) == []
    page.get_by_role("button", name="What this model is").click()
    expect(page.locator(".facts")).to_be_visible()
    assert page.evaluate(TOO_PALE) == []


def test_the_documentation_shows_every_route_and_how_to_ask_it(page: Page, service: Running) -> None:
    page.goto(f"http://127.0.0.1:{service.port}/docs")
    expect(page.locator(".opblock")).to_have_count(14)
    expect(page.locator(".opblock-summary-path", has_text="batch")).to_be_visible()
    page.locator(".opblock-summary-path", has_text="batch").click()
    shown = page.locator(".opblock.is-open")
    expect(shown.locator(".opblock-description")).to_contain_text("localhost:8000/predict/batch")
    expect(shown.locator(".responses-table")).to_contain_text("deadline_exceeded")


def test_an_example_that_cannot_be_had_is_said(page: Page) -> None:
    page.route("**/assets/cat.jpg", lambda route: route.abort())
    page.get_by_role("button", name="A cat").click()
    expect(page.locator("#status")).to_have_text("The service cannot be reached. Is it still running?")


def test_a_page_whose_address_has_the_key_in_it_can_ask(empty: Page) -> None:
    with_key, stop = start_server(Settings(api_keys=DIGEST, metrics_port=free_port()))
    try:
        empty.goto(f"http://me:{KEY}@127.0.0.1:{with_key.port}/")
        empty.set_input_files("#choose", CAT)
        expect(empty.locator(".card h2")).to_have_text("It’s a cat")
        expect(empty.get_by_role("link", name="The model as JSON")).to_be_visible()
        expect(empty.get_by_role("link", name="Metrics")).to_have_count(0)
        empty.goto(f"http://me:{KEY}@127.0.0.1:{with_key.port}/docs")
        expect(empty.locator("#docs .opblock").first).to_be_visible()
    finally:
        stop()
