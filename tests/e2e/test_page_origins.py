"""Pages of other origins in a real browser: what they can make it send, and what they can read."""

import base64
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from serving.settings import Settings
from tests.e2e.conftest import CAT, PATIENCE
from tests.serving.conftest import Running, start_server
from tests.serving.http.test_auth import DIGEST, KEY

# A request without a preflight. The browser sends it, whatever becomes of the answer.
BLIND = """url => fetch(url, { method: "POST", mode: "no-cors", body: "{}" }).catch(() => null)"""
FORM = """([url, data, headers]) => {
  const body = new FormData();
  body.append("file", new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], "photo"));
  return fetch(url, { method: "POST", body, headers }).then(
    async (answer) => ({ status: answer.status, id: answer.headers.get("X-Request-Id"), ...(await answer.json()) }),
    (error) => error.name,
  );
}"""


class Blank(http.server.BaseHTTPRequestHandler):
    """An empty page at every address."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """The port of a web server that is not the service."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def foreign(browser: Browser) -> Iterator[Page]:
    """A tab for a page of another origin."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def send(page: Page, port: int, data: bytes, **headers: str) -> Any:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return page.evaluate(FORM, [f"http://127.0.0.1:{port}/predict", base64.b64encode(data).decode(), sent])


# The host of the service is 127.0.0.1: another port of it is the same site, another name is another site.
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_foreign_page_can_make_the_browser_send_nothing_that_counts(
    service: Running, foreign: Page, elsewhere: int, host: str
) -> None:
    refused = 'catsdogs_rejected_total{code="foreign_origin"}'
    before = service.metric(refused)
    foreign.goto(f"http://{host}:{elsewhere}/")
    foreign.evaluate(BLIND, f"http://127.0.0.1:{service.port}/feedback")
    assert service.metric(refused) == before + 1
    assert send(foreign, service.port, CAT.read_bytes()) == "TypeError"
    assert service.metric(refused) == before + 2
    assert send(foreign, service.port, CAT.read_bytes(), x_request_id="mine") == "TypeError"  # after a preflight
    assert service.metric(refused) == before + 3


def test_a_form_of_a_foreign_page_is_refused(service: Running, foreign: Page, elsewhere: int) -> None:
    foreign.goto(f"http://localhost:{elsewhere}/")
    foreign.set_content(
        f'<form method="post" action="http://127.0.0.1:{service.port}/feedback"><button>Go</button></form>'
    )
    foreign.get_by_role("button").click()
    expect(foreign.locator("body")).to_contain_text("foreign_origin")


def test_an_allowed_page_sends_a_key_and_reads_answers_and_errors(foreign: Page, elsewhere: int) -> None:
    running, stop = start_server(Settings(origins=f"http://localhost:{elsewhere}", api_keys=DIGEST), wait_ready=False)
    try:
        foreign.goto(f"http://localhost:{elsewhere}/")
        answer = send(foreign, running.port, CAT.read_bytes(), authorization=f"Bearer {KEY}", x_request_id="mine")
        assert (answer["status"], answer["verdict"]) == (200, "cats")
        answer = send(foreign, running.port, b"no picture", authorization=f"Bearer {KEY}", x_request_id="mine")
        assert (answer["status"], answer["id"], answer["code"]) == (415, "mine", "unsupported_format")
        answer = send(foreign, running.port, CAT.read_bytes())
        assert (answer["status"], answer["code"]) == (401, "unauthorized")
    finally:
        stop()
