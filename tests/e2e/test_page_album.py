"""The photos on the page as a collection: filtered, sorted, exported, cleared, enlarged; folders of them."""

import csv
import json
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Page, Route, expect

from serving.messages import Prediction, Probabilities
from tests.conftest import blobs, encoded
from tests.e2e.conftest import CAT

NAMES = "() => [...document.querySelectorAll('.card:not([hidden]) .name')].map((name) => name.textContent)"
# Where everything is that is in sight and can be pressed.
PLACES = """() => [...document.querySelectorAll("button, label, select")]
  .map((element) => [element, element.getBoundingClientRect()])
  .filter(([element, { top, bottom }]) => element.checkVisibility() && bottom > 0 && top < innerHeight)
  .map(([element, { left, top }]) => [element.value ?? element.textContent, left, top])"""


def answer(number: int, verdict: str, cats: float) -> Prediction:
    return Prediction(
        id=str(number),
        predicted_label="cats" if cats > 0.5 else "dogs",
        probabilities=Probabilities(cats, 1 - cats),
        verdict=verdict,  # type: ignore[arg-type]
        unsure_because="unfamiliar" if verdict == "unsure" else None,
        familiarity=0.5,
        model="m",
        evidence=[[0.0] * 7] * 7,
    )


@pytest.fixture
def album(page: Page, tmp_path: Path) -> Page:
    """The page with five photos: a cat, a dog, a cat, unsure, unreadable."""
    answers = [answer(1, "cats", 0.9), answer(2, "dogs", 0.2), answer(3, "cats", 0.99), answer(4, "unsure", 0.99)]
    problem = {"error": {"status": 415, "code": "unsupported_format", "detail": "this is a PDF document; export it"}}
    results = [*msgspec.to_builtins(answers), problem]
    files = [tmp_path / name for name in ("cat 10.jpg", "dog.jpg", "cat 9.jpg", "=car.jpg", "text.jpg")]
    for file in files:
        file.write_bytes(CAT.read_bytes())
    files[-1].write_text("I am a cat")

    def tell(route: Route) -> None:
        label = json.loads(route.request.post_data or "")["label"]
        route.fulfill(json={"id": "", "label": label, "predicted_label": "cats", "correct": label == "cats"})

    page.route("**/predict/batch*", lambda route: route.fulfill(json={"results": results, "model": "m"}))
    page.route("**/feedback", tell)
    page.set_input_files("#choose", files)
    expect(page.locator("#status")).to_have_text("All 5 photos done.")
    return page


def filtered(page: Page, name: str) -> list[str]:
    page.locator("#tally").get_by_role("button", name=name).click()
    expect(page.locator("#tally").get_by_role("button", name=name)).to_have_attribute("aria-pressed", "true")
    names: list[str] = page.evaluate(NAMES)
    return names


def test_the_counts_are_filters(album: Page) -> None:
    assert filtered(album, "2 cats") == ["cat 10.jpg", "cat 9.jpg"]
    assert filtered(album, "1 dog") == ["dog.jpg"]
    assert filtered(album, "1 unsure") == ["=car.jpg"]
    assert filtered(album, "1 unreadable") == ["text.jpg"]
    expect(album.locator('.card[data-state="unreadable"] .why')).to_have_text("This is a PDF document; export it.")
    assert len(filtered(album, "5 photos")) == 5
    expect(album.get_by_role("button", name="0 wrong")).to_be_disabled()
    album.get_by_role("button", name="Wrong: dog.jpg").click()
    assert filtered(album, "1 wrong") == ["dog.jpg"]
    # What is put right stays under the hands of who does it.
    album.get_by_role("button", name="Right: dog.jpg").click()
    expect(album.get_by_role("button", name="0 wrong")).to_be_visible()
    assert album.evaluate(NAMES) == ["dog.jpg"]
    album.set_input_files("#choose", CAT)
    expect(album.locator(".card:visible")).to_have_count(6)


def test_photos_are_sorted_by_name_by_doubt_and_as_they_came(album: Page) -> None:
    came = album.evaluate(NAMES)
    sort = album.get_by_role("combobox", name="Sort")
    sort.select_option("by name")
    assert album.evaluate(NAMES) == ["=car.jpg", "cat 9.jpg", "cat 10.jpg", "dog.jpg", "text.jpg"]
    sort.select_option("least sure first")
    assert album.evaluate(NAMES) == ["=car.jpg", "dog.jpg", "cat 10.jpg", "cat 9.jpg", "text.jpg"]
    sort.select_option("newest first")
    assert album.evaluate(NAMES) == came


def test_what_is_shown_is_exported_as_csv_and_no_name_is_a_formula(album: Page) -> None:
    album.get_by_role("button", name="Wrong: dog.jpg").click()
    album.get_by_role("combobox", name="Sort").select_option("by name")
    with album.expect_download() as saved:
        album.get_by_role("button", name="Export as CSV").click()
    assert saved.value.suggested_filename == "cats-or-dogs.csv"
    with saved.value.path().open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["photo"] for row in rows] == ["'=car.jpg", "cat 9.jpg", "cat 10.jpg", "dog.jpg", "text.jpg"]
    car, *_, dog, text = rows
    assert (car["verdict"], car["unsure_because"]) == ("unsure", "unfamiliar")
    assert (dog["verdict"], dog["cats"], dog["feedback"], dog["id"], dog["error"]) == ("dogs", "0.2", "cats", "2", "")
    assert (text["verdict"], text["error"]) == ("", "This is a PDF document; export it.")
    filtered(album, "1 dog")
    with album.expect_download() as saved:
        album.get_by_role("button", name="Export as CSV").click()
    assert saved.value.path().read_text("utf-8-sig").splitlines()[1:] == [
        '"dog.jpg","dogs","","0.2","0.8","0.5","cats","2","m",""'
    ]


def test_cleared_photos_can_be_brought_back(album: Page) -> None:
    before = album.evaluate(NAMES)
    undo = album.get_by_role("button", name="Undo")
    expect(undo).to_be_hidden()
    album.get_by_role("button", name="Clear").click()
    expect(album.locator("#status")).to_have_text("5 photos cleared.")
    expect(album.locator(".card, #tally:visible, #tools:visible")).to_have_count(0)
    undo.click()
    assert album.evaluate(NAMES) == before
    expect(album.locator("#tally")).to_contain_text("2 cats")
    expect(undo).to_be_hidden()


def test_a_photo_is_enlarged_and_a_broken_file_is_a_word(album: Page) -> None:
    album.get_by_role("button", name="Enlarge: dog.jpg").click()
    large = album.get_by_role("dialog", name="dog.jpg")
    expect(large.get_by_role("img", name="dog.jpg")).to_have_js_property("naturalWidth", 451)
    album.keyboard.press("Escape")
    expect(large).to_be_hidden()
    expect(album.get_by_role("button", name="Enlarge: dog.jpg")).to_be_focused()
    broken = album.locator('.card[data-state="unreadable"]')
    expect(broken.get_by_text("No preview")).to_be_visible()
    expect(broken.locator("img, .enlarge").locator("visible=true")).to_have_count(0)


@pytest.mark.parametrize("width", [1100, 360])
def test_nothing_moves_when_a_button_is_pressed(album: Page, width: int) -> None:
    album.set_viewport_size({"width": width, "height": 900})
    card = album.locator('.card[data-state="dogs"]')
    for name in ("Wrong", "Right", "Show why"):
        button = card.get_by_role("button", name=name)
        button.scroll_into_view_if_needed()
        before = album.evaluate(PLACES)
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        assert album.evaluate(PLACES) == before, name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of folders, with more in it than photos, and more photos than a browser lists at once."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number in range(120):
        (tmp_path / "photos" / f"{number}.png").write_bytes(encoded(blobs(number, (64, 48)), "PNG"))
    (tmp_path / "photos" / "more" / "cat.jpg").write_bytes(CAT.read_bytes())
    (tmp_path / "photos" / "Thumbs.db").write_bytes(b"no photo")
    return tmp_path / "photos"


def test_a_folder_can_be_chosen(page: Page, folder: Path) -> None:
    page.set_input_files("#folder", folder)
    expect(page.locator("#status")).to_have_text("All 121 photos done.")
    assert page.evaluate(NAMES) == [*(f"{number}.png" for number in range(120)), "cat.jpg"]
    expect(page.locator(".card .name").last).to_have_attribute("title", "photos/more/cat.jpg")


def test_a_folder_can_be_dropped(page: Page, folder: Path) -> None:
    devtools = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 500, "y": 300, "data": data})
    expect(page.locator("#status")).to_have_text("All 121 photos done.")
    assert page.evaluate(NAMES) == [*(f"{number}.png" for number in range(120)), "cat.jpg"]


def test_heic_photos_are_offered(page: Page) -> None:
    assert "image/heic" in (page.locator("#choose").get_attribute("accept") or "")


def test_what_windows_high_contrast_leaves_of_colours_still_tells_cats_from_dogs(album: Page) -> None:
    album.emulate_media(forced_colors="active")
    colours = [
        album.locator(f".card .bar .{animal}").first.evaluate("bar => getComputedStyle(bar).backgroundColor")
        for animal in ("cats", "dogs")
    ]
    pressed = album.get_by_role("button", name="Right: dog.jpg")
    before = pressed.evaluate("button => getComputedStyle(button).backgroundColor")
    pressed.click()
    expect(pressed).to_have_attribute("aria-pressed", "true")
    assert len({*colours, "rgba(0, 0, 0, 0)"}) == 3
    assert pressed.evaluate("button => getComputedStyle(button).backgroundColor") != before


def test_a_folder_without_photos_is_said_to_be_one(page: Page, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none/notes.txt").write_text("none")
    page.set_input_files("#folder", tmp_path / "none")
    expect(page.locator("#status")).to_have_text("I found no photos there.")
    for name in ("a.jfif", "b.JPE", "c.jpeg"):
        (tmp_path / "none" / name).write_bytes(CAT.read_bytes())
    page.set_input_files("#folder", tmp_path / "none")
    expect(page.locator("#status")).to_have_text("All 3 photos done.")


def test_what_has_no_answer_can_be_asked_again_from_its_filter(page: Page, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(4)]
    for file in files:
        file.write_bytes(CAT.read_bytes())
    page.route("**/predict/batch*", lambda route: route.fulfill(status=500, body="{}"))
    page.set_input_files("#choose", files)
    assert len(filtered(page, "4 unanswered")) == 4
    page.unroute("**/predict/batch*")
    page.get_by_role("button", name="Try all 4 again").click()
    expect(page.locator("#status")).to_have_text("All 4 photos done.")
    expect(page.locator(".card:visible")).to_have_count(4)


def test_the_keyboard_keeps_its_place(album: Page) -> None:
    def focused() -> str:
        name: str = album.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id")
        return name

    album.get_by_role("combobox", name="Sort").select_option("least sure first")
    album.get_by_role("button", name="Wrong: cat 9.jpg").focus()
    album.keyboard.press("Enter")
    expect(album.get_by_role("button", name="1 wrong")).to_be_enabled()
    assert focused() == "Wrong: cat 9.jpg"
    album.get_by_role("button", name="Clear").focus()
    album.keyboard.press("Enter")
    assert focused() == "undo"
    album.keyboard.press("Enter")
    assert focused() == "clear"


def test_photos_that_are_scrolled_past_before_they_are_shown_hold_no_memory(page: Page, tmp_path: Path) -> None:
    page.evaluate("""() => {
      window.held = new Set();
      const [make, drop] = [URL.createObjectURL, URL.revokeObjectURL];
      URL.createObjectURL = (file) => { const url = make(file); held.add(url); return url; };
      URL.revokeObjectURL = (url) => { held.delete(url); drop(url); };
    }""")
    files = [tmp_path / f"{number}.png" for number in range(60)]
    for number, file in enumerate(files):
        file.write_bytes(encoded(blobs(number, (1500, 1000)), "PNG"))
    page.set_input_files("#choose", files)
    expect(page.locator("#status")).to_have_text("All 60 photos done.")
    for place in (1, 0, 0.5, 1, 0):
        page.evaluate(f"scrollTo(0, {place} * document.body.scrollHeight)")
    page.wait_for_function("held.size === 0")
