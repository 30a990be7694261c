"""What a browser is told, in a browser that reports every violation; and that nothing comes back as it was sent."""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, expect, sync_playwright

from tests.e2e.conftest import CAT, CHROMIUM, FLAGS
from tests.serving.conftest import PHOTO, Running

SCRIPT = "<script>alert(1)</script>"
EVERYWHERE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


@pytest.mark.parametrize("address", ["/health", "/model", "/metrics", "/openapi.json", "/assets/app.js", "/nowhere"])
def test_what_is_no_page_may_load_nothing(server: Running, address: str) -> None:
    headers = server.http.get(address).headers
    assert headers.items() >= EVERYWHERE.items()
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "server" not in headers
    assert "x-powered-by" not in headers


@pytest.mark.parametrize("address", ["/", "/docs"])
def test_a_page_may_load_its_own_and_nothing_else(server: Running, address: str) -> None:
    headers = server.http.get(address).headers
    assert headers.items() >= EVERYWHERE.items()
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["style-src"] == "'self'"
    assert "camera=()" in headers["permissions-policy"]


def test_an_address_is_not_completed_with_a_host_the_client_names(server: Running) -> None:
    answer = server.http.get("/health/", headers={"host": "evil.localhost"})
    assert answer.status_code == 404
    assert "evil.localhost" not in answer.text + str(answer.headers)


def test_nothing_comes_back_as_it_was_sent(server: Running) -> None:
    form = {"file": (SCRIPT, b"no picture", SCRIPT)}
    # Ids of a batch come back, in JSON, which no browser takes for a page.
    batch = {"images": [{"data": SCRIPT}], SCRIPT: 1}
    odd = {"user-agent": SCRIPT, "x-request-id": SCRIPT, "accept": SCRIPT, "content-type": SCRIPT, "cookie": SCRIPT}
    foreign = {"origin": f"https://{SCRIPT}", "sec-fetch-site": SCRIPT}
    answers = [
        server.http.get(f"/{SCRIPT}"),
        server.http.get(f"/assets/{SCRIPT}"),
        server.http.request(SCRIPT[1:7], "/predict"),
        server.http.get("/health", headers=odd),
        server.http.post("/predict", content=b"", headers=odd),
        server.http.post("/predict", content=b"", headers=foreign),
        server.http.get("/health", headers={"host": SCRIPT}),
        server.http.post("/predict", params={"explain": SCRIPT}, files={"file": PHOTO}),
        server.http.post("/predict", files=form),
        server.http.post("/explain", files=form),
        server.http.post("/predict", files={SCRIPT: PHOTO}),
        server.http.post("/predict/batch", json=batch),
        server.http.post("/feedback", json={"id": SCRIPT, "label": SCRIPT}),
    ]
    for answer in answers:
        assert answer.headers["content-type"] in ("application/json", "application/problem+json")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.status_code < 500
        assert "alert(1)" not in str(answer.headers)
        told = json.dumps(answer.json())
        assert "alert(1)" not in told or repr(SCRIPT) in told
        assert "/serving/" not in told
        assert "Traceback" not in told


@pytest.fixture
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def test_the_pages_work_under_their_policy_without_one_violation(server: Running, browser: Browser) -> None:
    said: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(message.text)

    page = browser.new_page()
    page.on("console", note)
    page.on("pageerror", lambda error: said.append(str(error)))
    url = f"http://127.0.0.1:{server.port}"
    page.goto(url)
    page.set_input_files("#choose", CAT)
    expect(page.locator(".card h2")).to_have_text("It’s a cat")
    page.wait_for_load_state("networkidle")
    page.goto(f"{url}/docs")
    page.click("#operations-service-health .opblock-summary")
    page.click("#operations-service-health .execute")
    expect(page.locator("#operations-service-health .responses-table.live-responses-table").first).to_contain_text(
        "200"
    )
    page.click("#operations-predictions-predict .opblock-summary")
    expect(page.locator("#operations-predictions-predict .responses-inner").first).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.close()
    assert said == []


@pytest.mark.parametrize("path", ["/", "/docs", "/assets/app.js"])
def test_a_browser_asks_again_and_is_told_if_nothing_has_changed(server: Running, path: str) -> None:
    first = server.http.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = server.http.get(path, headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert server.http.get(path, headers={"If-None-Match": '"other"'}).content == first.content
