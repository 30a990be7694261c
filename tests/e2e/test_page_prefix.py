"""Behind a real proxy that serves the service under a prefix, with the prefix removed or left in."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from serving.settings import Settings
from tests.e2e.conftest import CAT
from tests.ops.edge import free_ports
from tests.serving.conftest import Running, start_server
from tests.waiting import until

CONFIG = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend proxy
    bind 127.0.0.1:{port}
    {rules}
    default_backend service
backend service
    server one 127.0.0.1:{service}
"""
REMOVED = "http-request redirect location /cats/ if { path /cats }\n    http-request replace-path ^/cats(/.*) \\1"
FORWARDED = "http-request set-header X-Forwarded-Prefix /cats"


@pytest.fixture(params=["removed", "forwarded", "set"], scope="module")
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of HAProxy; the service is under /cats there."""
    haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if haproxy is None:
        pytest.skip("no haproxy on this machine")
    running: Running
    running, stop = start_server(Settings(root_path="/cats" if request.param == "set" else ""))
    rules = {"removed": REMOVED, "forwarded": FORWARDED, "set": ""}[request.param]
    (port,) = free_ports(1)
    config: Path = tmp_path_factory.mktemp("proxy") / "haproxy.cfg"
    config.write_text(CONFIG.format(port=port, rules=rules, service=running.port))
    process = subprocess.Popen([haproxy, "-db", "-f", config])
    address = f"http://127.0.0.1:{port}"
    until(lambda: answers(address))
    yield address
    process.terminate()
    process.wait()
    stop()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/cats/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("path", ["/cats", "/cats/"])
def test_the_page_works(proxy: str, empty: Page, path: str) -> None:
    empty.goto(proxy + path)
    assert empty.url == f"{proxy}/cats/"
    empty.set_input_files("#choose", CAT)
    expect(empty.locator(".card h2")).to_have_text("It’s a cat")
    empty.set_input_files("#choose", [CAT, CAT])
    expect(empty.locator(".card h2")).to_have_count(3)
    empty.click("footer a >> text=API")
    expect(empty.locator("#docs .title")).to_contain_text("Cats or dogs")
    empty.locator("#operations-service-health").click()
    empty.click("text=Execute")
    expect(empty.locator("#operations-service-health .request-url")).to_contain_text(f"{proxy}/cats/health")
    expect(empty.locator("#operations-service-health .live-responses-table")).to_contain_text('"ok"')


def test_the_document_leads_to_the_routes(proxy: str) -> None:
    document = httpx.get(f"{proxy}/cats/openapi.json")
    server = document.url.join(document.json()["servers"][0]["url"])
    assert server == f"{proxy}/cats/"
    assert httpx.get(f"{str(server).rstrip('/')}/health").json() == {"status": "ok"}
