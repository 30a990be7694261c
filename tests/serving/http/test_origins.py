"""Web pages of other origins, preflights, and host names: who may use the service from a browser."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from serving.http.app import create_app
from serving.settings import Settings, SettingsError, from_environment
from tests.serving.conftest import PHOTO, Running, Start, start_server
from tests.serving.http.test_auth import DIGEST, GOOD, free_port
from tests.serving.http.test_errors import assert_problem

APP = "https://app.example"
EVIL = "https://evil.example"
ASKED = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}

FOREIGN = {
    "cross-site": {"sec-fetch-site": "cross-site"},
    "a page elsewhere": {"origin": EVIL},
    "both": {"origin": EVIL, "sec-fetch-site": "cross-site"},
    "another port of the same host": {"origin": "http://cats.example:3000", "sec-fetch-site": "same-site"},
    "another port, without Sec-Fetch-Site": {"origin": "http://cats.example:3000"},
    "a sandboxed frame": {"origin": "null"},
    "a host that begins like the service's": {"origin": "http://cats.example.evil.example"},
    "a host that ends like the service's": {"origin": "http://evil-cats.example"},
    "a value that no browser sends": {"sec-fetch-site": "same-origin, cross-site"},
    "an origin that is none": {"origin": "cats.example"},
}
OWN = {
    "curl": {},
    "the service's page": {"origin": "https://cats.example", "sec-fetch-site": "same-origin"},
    "its page, without Sec-Fetch-Site": {"origin": "http://cats.example"},
    "its page behind TLS": {"origin": "https://cats.example"},
    "its page on another port": {"origin": "http://cats.example:8000", "host": "cats.example:8000"},
    "its page behind a proxy that adds the port": {"origin": "https://cats.example", "host": "Cats.example:443"},
    "its page behind a proxy that replaces Host": {
        "origin": "https://cats.example",
        "sec-fetch-site": "same-origin",
        "host": "127.0.0.1:8000",
    },
    "a person": {"sec-fetch-site": "none"},
}


@pytest.fixture(scope="module")
def public() -> Iterator[Running]:
    """A server on all addresses, so that it answers to any host name."""
    running, stop = start_server(Settings(host="0.0.0.0"))
    running.http.headers["host"] = "cats.example"
    yield running
    stop()


def preflight(server: Running, origin: str, path: str = "/predict") -> httpx.Response:
    return server.http.options(path, headers={"origin": origin, "sec-fetch-site": "cross-site", **ASKED})


@pytest.mark.parametrize("who", FOREIGN)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/explain", "/feedback"])
def test_a_post_of_a_foreign_page_is_refused(public: Running, who: str, path: str) -> None:
    # A browser sends this without a preflight.
    sent = {"content-type": "text/plain", **FOREIGN[who]}
    refused = public.http.post(path, content=b"{}", headers=sent)
    assert_problem(refused, "foreign_origin")
    assert refused.headers["vary"] == "Origin"
    assert refused.headers["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in refused.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("who", OWN)
def test_a_post_of_the_service_s_own_page_or_of_no_page_is_answered(public: Running, who: str) -> None:
    assert public.predict(headers=OWN[who]).status_code == 200


def test_a_refused_post_is_counted_and_nothing_of_it_is_recorded(start: Start) -> None:
    server = start()
    assert server.predict(headers={"origin": EVIL}).status_code == 403
    assert server.metric('catsdogs_rejected_total{code="foreign_origin"}') == 1
    assert server.metric('http_requests_total{method="POST",route="unmatched",status="403"}') == 1
    assert server.metric('catsdogs_predictions_total{label="cats",verdict="cats"}') == 0


def test_a_link_from_a_foreign_page_works(public: Running) -> None:
    for path in ("/", "/docs", "/health"):
        answer = public.http.get(path, headers={"sec-fetch-site": "cross-site", "origin": EVIL})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_preflight_of_a_foreign_page_is_refused_and_no_preflight_is_an_unknown_method(public: Running) -> None:
    assert_problem(preflight(public, EVIL), "foreign_origin")
    assert_problem(public.http.options("/predict", headers={"origin": EVIL}), "method_not_allowed")
    assert_problem(public.http.options("/predict"), "method_not_allowed")


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """A server with keys that the pages of one other origin may use."""
    running, stop = start_server(Settings(origins=f"{APP}, http://localhost:3000", api_keys=DIGEST), wait_ready=False)
    yield running
    stop()


def test_a_preflight_of_an_allowed_page_needs_no_key_and_allows_one_to_be_sent(shared: Running) -> None:
    answer = preflight(shared, APP)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == APP
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    named = {"content-encoding", "content-type", "inference-header-content-length"}
    assert {"authorization", "x-api-key", "x-request-id"} | named == set(allowed)
    assert int(answer.headers["access-control-max-age"]) > 0
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers


def test_an_allowed_page_may_read_answers_and_errors_alike(shared: Running) -> None:
    page = {"origin": APP, "sec-fetch-site": "cross-site"}
    form = {"file": PHOTO}
    answers = [
        shared.http.post("/predict", files=form, headers=page | GOOD["bearer"]),
        shared.http.get("/model", headers=page | GOOD["bearer"]),
        shared.http.get("/", headers=page | GOOD["bearer"]),
        shared.http.post("/predict", files={"file": b"no picture"}, headers=page | GOOD["bearer"]),
        shared.http.get("/nowhere", headers=page | GOOD["bearer"]),
        shared.http.post("/predict", files=form, headers=page),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 415, 404, 401]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == APP
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"X-Request-Id", "Retry-After"} <= set(exposed)
        assert "Origin" in answer.headers["vary"]
        assert answer.headers.get_list("cross-origin-resource-policy") == ["cross-origin"]
        assert "access-control-allow-credentials" not in answer.headers


def test_a_page_that_is_not_among_those_allowed_stays_foreign(shared: Running) -> None:
    for origin in (EVIL, "http://app.example", "https://app.example:8443", "https://x.app.example", "null"):
        assert_problem(preflight(shared, origin), "foreign_origin")
        assert_problem(shared.predict(headers={"origin": origin}), "foreign_origin")
    assert shared.predict(headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_where_some_origins_are_allowed_a_cache_keeps_answers_apart(shared: Running) -> None:
    for sent in ({}, {"origin": EVIL}, {"origin": APP}):
        answer = shared.http.get("/health", headers=sent)
        assert answer.headers.get_list("vary") == ["Origin"]
        assert ("access-control-allow-origin" in answer.headers) == (sent.get("origin") == APP)


def test_all_pages_can_be_allowed_and_then_the_answer_does_not_depend_on_the_origin(start: Start) -> None:
    server = start(origins="*")
    assert preflight(server, EVIL).headers["access-control-allow-origin"] == "*"
    for sent in ({"origin": EVIL, "sec-fetch-site": "cross-site"}, {"origin": "null"}, {}):
        answer = server.predict(headers=sent)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        assert "vary" not in answer.headers
    assert server.http.get("/health", headers={"host": "evil.example"}).status_code == 200


def test_an_error_that_no_handler_made_can_be_read_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(origins=APP)
    monkeypatch.setattr(type(server.service), "model", property(lambda _: 1 / 0))
    answer = server.http.get("/model", headers={"origin": APP})
    assert_problem(answer, "internal_error")
    assert answer.headers["access-control-allow-origin"] == APP


def test_origins_are_compared_as_browsers_send_them(start: Start) -> None:
    server = start(origins="https://App.Example:443\nhttp://other.example:80")
    for origin in (APP, "http://other.example"):
        assert preflight(server, origin).status_code == 204


@pytest.mark.parametrize(
    "value",
    [
        "app.example", "https://app.example/", "https://*.example", "null", "*, https://app.example", "https://", ",",
        "ftp://app.example", "https://app.example;https://other.example", "https://käse.example", "https://a.example:x",
    ],
)  # fmt: skip
def test_a_value_that_is_no_origin_is_refused_with_what_is_allowed(value: str) -> None:
    with pytest.raises(
        SettingsError, match=r"^CATSDOGS_ORIGINS is .*; allowed are origins such as https://app\.example"
    ) as error:
        from_environment({"CATSDOGS_ORIGINS": value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", ["", "*", APP, f"{APP},http://[::1]:3000", f"{APP} \n http://localhost:3000,"])
def test_values_that_are_origins(value: str) -> None:
    assert from_environment({"CATSDOGS_ORIGINS": value}).origins == value


LOOPBACK = [
    "localhost",
    "LocalHost:8000",
    "localhost.",
    "cats.localhost:1",
    "127.0.0.1",
    "127.1.2.3:80",
    "[::1]:8000",
    "nas:80",
]
ELSEWHERE = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
    "0.0.0.0:8000", "[::2]", "128.0.0.1", "192.168.0.1",
]  # fmt: skip


def test_on_loopback_the_service_answers_to_names_of_loopback_only(server: Running) -> None:
    for host in LOOPBACK:
        assert server.http.get("/health", headers={"host": host}).status_code == 200, host
    for host in ELSEWHERE:
        refused = server.http.get("/health", headers={"host": host})
        assert_problem(refused, "misdirected_request")
        rebound = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert_problem(server.predict(headers=rebound), "misdirected_request")


@pytest.mark.parametrize("bound", ["127.0.0.2", "localhost", "::1"])
def test_every_loopback_address_is_one(bound: str) -> None:
    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(create_app(Settings(host=bound)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            hosts = ("localhost", "evil.example")
            return [(await http.get("/openapi.json", headers={"host": host})).status_code for host in hosts]

    assert asyncio.run(statuses()) == [200, 421]


def test_on_loopback_behind_a_proxy_the_host_of_an_allowed_origin_is_answered(shared: Running) -> None:
    for host, status in {"app.example": 200, "app.example:443": 200, "evil.example": 421}.items():
        assert shared.http.get("/health", headers={"host": host}).status_code == status


def test_on_other_addresses_any_host_is_answered(public: Running) -> None:
    for host in (*LOOPBACK, "cats.example", "x"):
        assert public.http.get("/health", headers={"host": host}).status_code == 200


def test_the_metrics_port_checks_hosts_too(start: Start) -> None:
    port = free_port()
    start(metrics_port=port)
    url = f"http://127.0.0.1:{port}/metrics"
    assert httpx.get(url).status_code == 200
    assert httpx.get(url, headers={"host": "evil.example"}).json()["code"] == "misdirected_request"
