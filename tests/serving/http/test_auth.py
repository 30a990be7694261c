"""API keys, and the metrics' own port: who may ask what."""

import base64
import hashlib
import json
import re
import socket

import httpx
import pytest
from click.testing import CliRunner

from serving import cli
from serving.http import auth
from serving.settings import SettingsError, from_environment
from serving.telemetry.logs import to_stdout
from tests.serving.conftest import PHOTO, Start

KEY, DIGEST = auth.make()
OTHER, OTHER_DIGEST = auth.make()
ADDRESSES = ("/", "/docs", "/assets/app.js", "/metrics", "/model", "/openapi.json", "/nowhere", "/health/")


def basic(key: str, name: str = "anybody") -> str:
    return "Basic " + base64.b64encode(f"{name}:{key}".encode()).decode()


GOOD = {
    "bearer": {"authorization": f"Bearer {KEY}"},
    "bearer in another case": {"authorization": f"bearer   {KEY}"},
    "header": {"x-api-key": KEY},
    "basic": {"authorization": basic(KEY)},
    "basic without a name": {"authorization": basic(KEY, "")},
    "the second key": {"x-api-key": OTHER},
    "one wrong and one right": {"authorization": "Bearer wrong", "x-api-key": KEY},
}
BAD = {
    "none": {},
    "wrong": {"authorization": "Bearer wrong"},
    "cut short": {"authorization": f"Bearer {KEY[:-1]}"},
    "the digest itself": {"authorization": f"Bearer {DIGEST}"},
    "the name of basic": {"authorization": basic("x", KEY)},
    "no base64": {"authorization": "Basic %%%"},
    "another scheme": {"authorization": f"Digest {KEY}"},
    "no scheme": {"authorization": KEY},
    "empty": {"x-api-key": "", "authorization": ""},
    "not ASCII": {"x-api-key": "\xff\xfe"},
}


def test_without_the_setting_everything_is_open_and_the_log_says_so(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    with to_stdout("info"):
        assert start(host="0.0.0.0").predict().status_code == 200
    assert "no API keys are set" in capsys.readouterr().out


def test_on_loopback_it_is_not_open_to_others_and_nothing_says_so(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    with to_stdout("info"):
        assert start().predict().status_code == 200
    assert "no API keys are set" not in capsys.readouterr().out


def test_with_keys_only_health_is_open(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with to_stdout("info"):
        server = start(api_keys=f"{DIGEST}, {OTHER_DIGEST}")
        assert server.http.get("/health").status_code == 200
        assert server.http.get("/health/ready").status_code == 200
        for address in ADDRESSES:
            refused = server.http.get(address)
            assert refused.status_code == 401
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.json()["code"] == "unauthorized"
            assert refused.json()["request_id"] == refused.headers["x-request-id"]
            challenges = refused.headers.get_list("www-authenticate")
            assert [challenge.split()[0] for challenge in challenges] == ["Bearer", "Basic"]
        for sent in GOOD.values():
            assert server.http.get("/model", headers=sent).status_code == 200
        for sent in BAD.values():
            headers = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
            refused = server.http.get("/model", headers=headers)
            assert refused.status_code == 401
            assert not any(value and value in refused.text for value in sent.values())
        assert server.http.post("/predict", files={"file": PHOTO}, headers=GOOD["bearer"]).status_code == 200
        metrics = server.http.get("/metrics", headers=GOOD["basic"]).text
    assert f'catsdogs_rejected_total{{code="unauthorized"}} {len(ADDRESSES) + len(BAD)}' in metrics
    said = capsys.readouterr().out
    assert "no API keys are set" not in said
    assert not any(secret in said for secret in (KEY, OTHER, DIGEST, basic(KEY)))


def test_a_body_is_not_waited_for_where_there_is_no_key(start: Start) -> None:
    server = start(api_keys=DIGEST)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "digests",
    ["", " ", ",", KEY, DIGEST[:-1], f"{DIGEST}x", f"{DIGEST}{DIGEST}", f"{DIGEST};{DIGEST}"],
    ids=["empty", "blank", "comma", "key", "short", "long", "run together", "semicolon"],
)
def test_a_setting_that_is_no_digest_is_refused_and_not_repeated(digests: str) -> None:
    with pytest.raises(SettingsError, match=r"^CATSDOGS_API_KEYS is invalid; allowed are SHA-256 digests") as error:
        from_environment({"CATSDOGS_API_KEYS": digests})
    assert digests.strip(" ,") == "" or digests not in str(error.value)
    assert "unset it for a service without keys" in str(error.value)


@pytest.mark.parametrize("between", [",", " ", ", ", "\n"])
def test_several_digests(between: str) -> None:
    read = from_environment({"CATSDOGS_API_KEYS": between.join((DIGEST, OTHER_DIGEST.upper())) + "\n"})
    assert [known.hex() for known in auth.digests(read.api_keys)] == [DIGEST, OTHER_DIGEST]


def test_the_command_makes_a_key_its_digest_and_says_how_to_use_both() -> None:
    said = CliRunner().invoke(cli.main, ["key"]).stdout
    key, digest = re.findall(r"^(?:key|digest) +(\S+)$", said, re.MULTILINE)
    assert hashlib.sha256(key.encode()).hexdigest() == digest
    assert len(key) >= 43
    assert f"CATSDOGS_API_KEYS={digest} catsdogs serve" in said
    assert f'"Authorization: Bearer {key}"' in said
    assert key not in CliRunner().invoke(cli.main, ["key"]).stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_metrics_on_a_port_of_their_own_are_there_and_nowhere_else(start: Start) -> None:
    port = free_port()
    server = start(metrics_port=port, api_keys=DIGEST)
    key = GOOD["bearer"]
    assert server.http.get("/metrics", headers=key).json()["code"] == "not_found"
    assert "/metrics" not in server.http.get("/openapi.json", headers=key).json()["paths"]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as apart:
        assert 'route="/health/ready"' in apart.get("/metrics").text
        assert apart.get("/health").json() == {"status": "ok"}
        assert apart.get("/health/ready").status_code == 200
        for other in ("/", "/predict", "/model", "/docs"):
            assert apart.get(other).json()["code"] == "not_found"


def test_a_metrics_port_in_use_is_an_error_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(cli.main, ["serve", "--port", "0"], env={"CATSDOGS_METRICS_PORT": str(port)})
    assert result.exit_code == 2
    told = [json.loads(line)["message"] for line in result.stdout.splitlines()]
    assert f"port {port} is taken: try CATSDOGS_METRICS_PORT={port + 1}" in told
