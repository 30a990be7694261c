"""Many photos at once: sent in batches, their progress seen, stopped, refused for a while, and the service gone."""

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, Route, expect

from serving.settings import Settings
from tests.conftest import blobs, encoded
from tests.e2e.conftest import CAT
from tests.e2e.test_process import Process
from tests.serving.conftest import Running, start_server

BATCHES = "**/predict/batch*"
ALL_SETTLED = "document.querySelectorAll('.card[data-state=waiting]').length === 0"
# All that the bar shows from now on.
WATCH = """() => {
  const bar = document.querySelector("progress");
  window.seen = [];
  new MutationObserver(() => window.seen.push(bar.value)).observe(bar, { attributes: true });
}"""
# How many photos each request from now on has. (Playwright does not see the files of a form.)
COUNT = """() => {
  const ask = window.fetch;
  window.sent = [];
  window.fetch = (path, options) => {
    if (options?.body instanceof FormData) window.sent.push(options.body.getAll("file").length);
    return ask(path, options);
  };
}"""
TALLY = """() => ["cats", "dogs", "unsure", "unreadable", "failed"]
  .map((kind) => parseInt(document.querySelector(`#tally button[value=${kind}]`).textContent))"""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two hundred files, one of them no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    files = [folder / f"picture {number:03d}.jpg" for number in range(200)]
    for number, file in enumerate(files):
        file.write_bytes(encoded(blobs(number, (64, 48)), "JPEG"))
    files[100].write_text("I am a cat")
    return files


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[int], Process]]:
    """Start `catsdogs serve` on the given port; a second call starts it again."""
    with ExitStack() as stack:

        def start(port: int) -> Process:
            program = str(Path(sys.executable).parent / "catsdogs")
            process = Process([program, "serve", "--port", str(port)], tmp_path).ready()
            stack.callback(lambda: process.process.poll() is None and process.stop())
            return process

        yield start


def test_two_hundred_photos_are_answered_in_batches_and_their_progress_is_seen(
    page: Page, pictures: list[Path]
) -> None:
    asked: list[Request] = []
    under_way: list[int] = []
    page.on("request", lambda request: asked.append(request) if "/predict" in request.url else None)
    page.on("request", lambda request: under_way.append(+1) if "/predict" in request.url else None)
    page.on("requestfinished", lambda request: under_way.append(-1) if "/predict" in request.url else None)
    page.evaluate(WATCH)
    page.evaluate(COUNT)
    page.set_input_files("#choose", pictures)
    expect(page.locator("#status")).to_have_text("All 200 photos done.")
    assert page.locator(".card").count() == 200
    assert page.locator('.card[data-state="unreadable"]').count() == 1
    assert page.evaluate(ALL_SETTLED)
    seen = page.evaluate("window.seen")
    assert len({value for value in seen if 0 < value < 200}) >= 10
    assert seen == sorted(seen)
    expect(page.locator("#progress")).to_be_hidden()
    sent = page.evaluate("window.sent")
    assert sum(sent) == 200
    assert max(sent) == 8
    assert all("predict/batch?explain=true" in request.url for request in asked)
    assert max(sum(under_way[:length]) for length in range(len(under_way))) <= 2
    assert sum(page.evaluate(TALLY)) == 200


def test_only_photos_near_the_screen_are_held(page: Page, pictures: list[Path]) -> None:
    page.set_input_files("#choose", pictures)
    expect(page.locator("#status")).to_have_text("All 200 photos done.")
    page.get_by_role("switch").check()
    expect(page.locator(".card canvas:visible").first).to_have_js_property("width", 224)
    assert 4 <= page.locator("img[src]").count() < 60
    assert 4 <= page.locator("canvas:not([width='0'])").count() < 60
    last = page.locator(".card").last
    last.scroll_into_view_if_needed()
    expect(last.locator("img")).to_have_js_property("naturalWidth", 64)
    expect(last.locator("canvas")).to_have_js_property("width", 224)
    expect(page.locator(".card").first.locator("img[src]")).to_have_count(0)
    assert page.locator("img[src]").count() < 60


def test_a_lone_photo_goes_as_it_is(page: Page) -> None:
    with page.expect_request("**/predict?explain=true") as asked:
        page.set_input_files("#choose", CAT)
    assert asked.value.headers["content-type"].startswith("multipart/form-data")
    expect(page.locator("#status")).to_have_text("Done.")
    expect(page.locator("#tally")).to_be_hidden()


def test_large_photos_share_no_request(page: Page, tmp_path: Path) -> None:
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(CAT.read_bytes() + bytes(6_000_000))  # what follows the end of a JPEG is no part of it
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/predict" in request.url else None)
    page.set_input_files("#choose", files)
    expect(page.locator("#status")).to_have_text("All 3 photos done.")
    assert page.locator('.card[data-state="cats"]').count() == 3
    assert [url.endswith("/predict?explain=true") for url in asked] == [True] * 3


def test_the_answers_go_to_their_photos_in_the_order_chosen(page: Page, pictures: list[Path]) -> None:
    page.set_input_files("#choose", [CAT, *pictures[:20], CAT])
    expect(page.locator("#status")).to_have_text("All 22 photos done.")
    names = page.locator(".card .name").all_text_contents()
    assert names == ["cat.jpg", *(file.name for file in pictures[:20]), "cat.jpg"]
    for card in (page.locator(".card").first, page.locator(".card").last):
        expect(card.locator("h2")).to_have_text("It’s a cat")


def test_on_a_slow_line_every_photo_is_sent_once_and_answered(empty: Page, tmp_path: Path) -> None:
    files = []
    for number in range(16):
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(CAT.read_bytes() + bytes(200_000))
    page = empty
    line = {"offline": False, "latency": 20, "downloadThroughput": -1, "uploadThroughput": 300_000}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", line)
    # Room for one group of eight photos, and less patience with who waits for memory than sending them takes.
    service, stop = start_server(Settings(max_memory_bytes=2_000_000, deadline_seconds=4.0))
    with ExitStack() as stack:
        stack.callback(stop)
        page.goto(f"http://127.0.0.1:{service.port}/")
        page.evaluate(COUNT)
        page.set_input_files("#choose", files)
        expect(page.locator("#status")).to_have_text("All 16 photos done.")
        assert page.locator('.card[data-state="cats"]').count() == 16
        assert sum(page.evaluate("window.sent")) == 16


def test_a_file_that_is_gone_is_refused_and_the_others_are_answered(
    page: Page, pictures: list[Path], tmp_path: Path
) -> None:
    gone = tmp_path / "gone.jpg"
    gone.write_bytes(pictures[0].read_bytes())

    def come_back_later(route: Route) -> None:
        gone.unlink()
        overloaded(route)

    page.route(BATCHES, come_back_later, times=1)
    page.set_input_files("#choose", [pictures[0], gone, pictures[1]])
    expect(page.locator("#status")).to_have_text("All 3 photos done.")
    expect(page.locator('.card[data-state="unreadable"] .why')).to_have_text(
        "This file cannot be read. It may be a folder, or it has been moved."
    )
    assert page.locator('.card[data-state="unreadable"]').count() == 1


def test_stopping_leaves_the_rest_to_be_asked_again(page: Page, pictures: list[Path]) -> None:
    batches = 0

    def hold(route: Route) -> None:
        nonlocal batches
        batches += 1
        if batches <= 3:
            route.continue_()  # and the others are never answered

    page.route(BATCHES, hold)
    page.set_input_files("#choose", pictures[:80])
    expect(page.locator("#progress p")).to_contain_text("24 of 80 photos")
    page.get_by_role("button", name="Stop").click()
    again = page.get_by_role("button", name="Try all 56 again")
    expect(again).to_be_visible()
    expect(page.locator(".card .why", has_text="You stopped")).to_have_count(56)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    page.unroute(BATCHES)
    again.click()
    expect(page.locator("#status")).to_have_text("All 56 photos done.")
    assert sum(page.evaluate(TALLY)) == 80
    expect(again).to_be_hidden()


def test_stopping_does_not_wait_for_a_service_that_hangs(page: Page, pictures: list[Path]) -> None:
    page.route(BATCHES, lambda route: route.abort())
    page.route("**/health", lambda _: None)  # never answered
    with page.expect_request("**/health"):
        page.set_input_files("#choose", pictures[:20])
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".card .why", has_text="You stopped")).to_have_count(20)
    page.unroute("**/health")
    page.unroute(BATCHES)
    page.set_input_files("#choose", pictures[20:24])
    expect(page.locator("#status")).to_have_text("20 photos without an answer.")
    assert sum(page.evaluate(TALLY)) == 24


def overloaded(route: Route) -> None:
    problem = {"type": "x", "title": "x", "status": 503, "detail": "x", "code": "overloaded", "request_id": "x"}
    route.fulfill(status=503, headers={"Retry-After": "1"}, json=problem, content_type="application/problem+json")


def test_a_service_that_asks_to_wait_is_asked_again_when_it_said(page: Page, pictures: list[Path]) -> None:
    page.route(BATCHES, overloaded, times=2)
    said = page.locator("#status")
    page.set_input_files("#choose", pictures[:24])
    expect(said).to_have_text("Too many people are asking right now. I will try again in 1 s.")
    expect(said).to_have_text("All 24 photos done.")
    assert page.locator('.card[data-state="failed"]').count() == 0


def test_it_does_not_wait_for_ever(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/predict" in request.url else None)
    page.route("**/predict?*", overloaded)
    page.set_input_files("#choose", CAT)
    expect(page.locator(".card .why")).to_have_text("Too many people are asking right now.")
    assert len(asked) == 6
    page.unroute("**/predict?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".card h2")).to_have_text("It’s a cat")


def test_a_photo_that_waited_too_long_in_a_batch_is_asked_again_by_itself(
    page: Page, pictures: list[Path], service: Running
) -> None:
    parts = [("file", picture.read_bytes()) for picture in pictures[:8]]
    answer = service.http.post("/predict/batch?explain=true", files=parts).json()

    def one_too_late(route: Route) -> None:
        problem = {"status": 503, "detail": "x", "code": "deadline_exceeded"}
        answer["results"][3] = {"id": None, "error": problem}
        route.fulfill(json=answer)

    page.route(BATCHES, one_too_late, times=1)
    with page.expect_request("**/predict?explain=true"):
        page.set_input_files("#choose", pictures[:8])
    expect(page.locator("#status")).to_have_text("All 8 photos done.")
    assert page.locator('.card[data-state="failed"]').count() == 0


def test_a_limit_for_batches_lower_than_the_page_s_is_no_obstacle(page: Page, pictures: list[Path]) -> None:
    problem = {"status": 413, "detail": "x", "code": "body_too_large"}
    page.route(BATCHES, lambda route: route.fulfill(status=413, json=problem))
    page.set_input_files("#choose", pictures[:9])
    expect(page.locator("#status")).to_have_text("All 9 photos done.")
    assert page.locator('.card[data-state="failed"]').count() == 0


@pytest.mark.slow
def test_a_service_killed_in_the_middle_loses_nothing(
    empty: Page, pictures: list[Path], begin: Callable[[int], Process]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = begin(port)
    page = empty
    page.goto(f"http://127.0.0.1:{port}/")
    batches = 0

    def kill_it_at_the_tenth(route: Route) -> None:
        nonlocal batches
        batches += 1
        if batches == 10:
            process.stop(signal.SIGKILL)
        route.continue_()

    page.route(BATCHES, kill_it_at_the_tenth)
    page.set_input_files("#choose", pictures)
    again = page.get_by_role("button", name="Try all")
    expect(again).to_be_visible()
    assert page.evaluate(ALL_SETTLED)
    lost = page.locator(".card .why", has_text="The service cannot be reached").count()
    assert 200 - 9 * 8 <= lost <= 200 - 7 * 8
    expect(again).to_have_text(f"Try all {lost} again")
    expect(page.locator("#status")).to_have_text(f"{lost} photos without an answer.")
    again.click()  # still gone
    expect(again).to_have_text(f"Try all {lost} again")
    begin(port)
    again.click()
    expect(page.locator("#status")).to_have_text(f"All {lost} photos done.")
    assert page.locator('.card[data-state="unreadable"]').count() == 1  # the one that is no picture
    assert sum(page.evaluate(TALLY)) == 200
    expect(again).to_be_hidden()
