"""Why: the map over a photo, by its button and everywhere."""

from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

from serving.model import evidence
from tests.e2e.conftest import CAT

# A map that speaks for a cat in its left half, for a dog at its lower right, and for neither at its upper right.
CAT_ON_THE_LEFT = [[-4.0, -8.0, -4.0, 0, 0, 0, 0]] * 4 + [[-2.0, -4.0, -2.0, 0, 0, 4.0, 4.0]] * 3
CANVAS = """canvas => {
  const { width, height } = canvas;
  return [width, height, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
}"""


def test_a_button_shows_the_evidence_over_its_photo_and_hides_it_again(page: Page) -> None:
    page.set_input_files("#choose", [CAT, CAT])
    expect(page.locator("#status")).to_have_text("All 2 photos done.")
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
    expect(page.locator("#status")).to_have_text("All 3 photos done.")
    switch.check()
    expect(page.locator(".card canvas:visible")).to_have_count(2)
    expect(page.locator('.card[data-state="unreadable"] .why-button')).to_be_hidden()
    page.set_input_files("#choose", CAT)
    expect(page.locator(".card canvas:visible")).to_have_count(3)
    page.locator(".why-button").first.click()
    switch.uncheck()
    expect(page.locator(".card canvas:visible")).to_have_count(0)


def test_the_page_draws_what_the_service_draws(page: Page) -> None:
    with page.expect_response("**/predict?explain=true") as asked:
        page.set_input_files("#choose", CAT)
    of_chelsea = asked.value.json()
    page.route("**/predict*", lambda route: route.fulfill(json={**of_chelsea, "evidence": CAT_ON_THE_LEFT}))
    page.set_input_files("#choose", CAT)
    expect(page.locator('.card[data-state="cats"]')).to_have_count(2)
    page.get_by_role("switch").check()
    expect(page.locator(".card canvas:visible")).to_have_count(2)
    for place, map_ in ((0, CAT_ON_THE_LEFT), (1, of_chelsea["evidence"])):
        # Drawn once the photo is, so a moment after its card is explained.
        expect(page.locator("canvas").nth(place)).to_have_js_property("width", 224)
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
    expect(canvas).to_have_js_property("width", 112)
    expect(canvas).to_have_js_property("height", 224)
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
    expect(page.locator("canvas")).to_have_js_property("width", 224)
    expect(page.locator("canvas")).to_have_js_property("height", 168)
