"""The shipped compose.yaml with the shipped image: up, asked, watched, stopped and back."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, blobs, encoded
from tests.containers.containers import HARDENED, running
from tests.containers.engine import Docker
from tests.containers.stack import Stack
from tests.ops.dashboards import Query, queries
from tests.waiting import until

pytestmark = pytest.mark.slow

# A panel of alerts that fire: none does while all is well.
QUIET = {"Alerts firing"}


@pytest.fixture(scope="module")
def stack(docker: Docker, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(docker, tmp_path_factory.mktemp("stack"), "catsdogs-compose-test")
    stack.down()
    try:
        stack.up(image)
        yield stack
    finally:
        stack.down()


def test_compose_builds_the_image_from_the_checkout(docker: Docker, stack: Stack) -> None:
    """What `up --build` does first; an engine without a registry cannot be told how pip comes to its packages."""
    if docker.standins:
        told = json.loads(stack.compose("config", "--format", "json"))["services"]["service"]["build"]
        assert (told["context"], told["dockerfile"]) == (str(ROOT), "docker/Dockerfile")
        return
    stack.compose("build", "service", timeout=1200, CATSDOGS_IMAGE="cats-dogs-compose-test")


def test_grafana_whose_password_has_a_default_is_published_on_loopback_only(stack: Stack) -> None:
    document = stack.compose("--profile", "left-out", "config", "--format", "json", GRAFANA_PASSWORD="")
    grafana = json.loads(document)["services"]["grafana"]
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "admin"
    assert [port["host_ip"] for port in grafana["ports"]] == ["127.0.0.1"]


def test_keys_reach_the_service_as_they_are_set_and_are_not_made_empty(stack: Stack) -> None:
    def keys(name: str, **environment: str) -> object:
        told = json.loads(stack.compose("config", "--format", "json", check=True, timeout=60, **environment))
        return told["services"]["service"]["environment"][name]

    assert keys("CATSDOGS_API_KEYS") is None
    for name in ("CATSDOGS_API_KEYS", "CATSDOGS_ID_KEY"):
        assert keys(name, **{name: ""}) == ""
        assert keys(name, **{name: "a"}) == "a"


def test_what_is_published_is_published_on_this_machine_alone(stack: Stack) -> None:
    published = {}
    for line in stack.compose("ps", "--format", "json").splitlines():
        container = json.loads(line)
        assert container["Health"] == "healthy"
        published[container["Service"]] = {
            (port["URL"], port["TargetPort"]) for port in container["Publishers"] if port["PublishedPort"]
        }
    assert published.pop("grafana", {("127.0.0.1", 3000)}) == {("127.0.0.1", 3000)}
    assert published == {
        "edge": {("127.0.0.1", 8000)},
        "prometheus": {("127.0.0.1", 9090)},
        "service": set(),
        "alertmanager": set(),
    }


def test_photographs_are_answered_and_prometheus_counts_them(stack: Stack, photos: list[tuple[str, bytes]]) -> None:
    answers = [(label, stack.predict(data)) for label, data in photos[:20]]
    assert sum(answer.json()["predicted_label"] == label for label, answer in answers) >= 19
    for label, answer in answers:
        told = httpx.post(f"{stack.url}/feedback", json={"id": answer.json()["id"], "label": label})
        assert told.status_code == 200
    until(lambda: stack.query("sum(catsdogs_predictions_total) >= 20"))
    until(lambda: stack.query("sum(catsdogs_feedback_total) >= 20"))
    assert [sample["value"][1] for sample in stack.query('up{job="catsdogs"}')] == ["1"]
    assert float(stack.query("catsdogs_live_accuracy")[0]["value"][1]) >= 0.95


def test_every_panel_of_the_dashboards_has_data(stack: Stack, photos: list[tuple[str, bytes]]) -> None:
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=stack.url, timeout=60) as http:
            for turn in range(100_000):
                if stop.is_set():
                    return
                label, data = photos[turn % len(photos)]
                answer = http.post("/predict", files={"file": data})
                http.post("/feedback", json={"id": answer.json()["id"], "label": label})
                http.post("/predict", files={"file": b"no picture"})
                http.post("/explain", files={"file": data})
                http.get("/")

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    missing: set[Query] = set()
    try:
        wanted = {query for query in queries(interval="30s") if query.panel not in QUIET}

        def all_there() -> bool:
            nonlocal missing
            missing = {query for query in (missing or wanted) if not stack.query(query.expr)}
            return not missing

        until(all_there)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert len(wanted) > 40


# In the container: neither a lane nor the process that starts lanes lives for long.
KILLER = """
import os, signal, time
while True:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if b"serving.engine." + b"zygote" in open(f"/proc/{pid}/cmdline", "rb").read():
                os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
    time.sleep(0.05)
"""


def test_a_service_that_can_start_no_lane_is_replaced(stack: Stack) -> None:
    container = stack.compose("ps", "--quiet", "service").split()[0]

    def restarts() -> int:
        return int(stack.docker("inspect", "--format", "{{.RestartCount}}", container))

    before = restarts()
    stack.compose("exec", "--detach", "service", "python3", "-c", KILLER)
    until(lambda: restarts() > before)
    until(lambda: stack.predict().status_code == 200)


def test_an_alert_fires_when_the_service_is_stopped_and_clears_when_it_is_back(stack: Stack) -> None:
    until(lambda: "CatsDogsDown" not in stack.firing())
    stack.compose("stop", "service")
    answer = stack.predict()
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert answer.headers["content-type"] == "application/problem+json"
    until(lambda: "CatsDogsDown" in stack.firing())
    told = ("exec", "alertmanager", "wget", "-q", "-O", "-", "http://127.0.0.1:9093/api/v2/alerts?active=true")
    until(lambda: "CatsDogsDown" in {alert["labels"]["alertname"] for alert in json.loads(stack.compose(*told))})
    stack.compose("start", "service")
    until(lambda: "CatsDogsDown" not in stack.firing())
    until(lambda: stack.predict().status_code == 200)


def test_feedback_is_taken_after_the_container_was_replaced(stack: Stack) -> None:
    prediction = stack.predict(encoded(blobs(5), "PNG")).json()
    until(lambda: stack.query("sum(catsdogs_journal_lines_total) > 0"))
    stack.compose("up", "--detach", "--no-deps", "--no-build", "--force-recreate", "--wait", "service")
    until(lambda: stack.predict().status_code == 200)
    told = httpx.post(f"{stack.url}/feedback", json={"id": prediction["id"], "label": "dogs"})
    assert (told.status_code, told.json()["predicted_label"]) == (200, prediction["predicted_label"])


def test_the_smoke_test_passes_what_is_good(stack: Stack) -> None:
    until(lambda: stack.predict().status_code == 200)
    version = httpx.get(f"{stack.url}/model").json()["version"]
    done = stack.run("smoke_test.sh", stack.url, "--model", version)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"passed: {stack.url}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--label", "dogs"), "FAILED  knows cat.jpg: cats, not dogs"),
        (("--seconds", "0.000001"), "FAILED  quick: "),
        (("--model", "2020.1.1"), "FAILED  model: "),
    ],
)
def test_the_smoke_test_fails_a_wrong_answer(stack: Stack, options: tuple[str, ...], said: str) -> None:
    done = stack.run("smoke_test.sh", stack.url, *options)
    assert done.returncode == 1
    assert said in done.stdout


def test_the_smoke_test_fails_a_service_whose_model_is_gone(
    docker: Docker, image: str, stack: Stack, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").touch(mode=0o644)
    tmp_path.chmod(0o755)
    mounted = ("--volume", f"{tmp_path}/model.onnx:/model.onnx:ro", "--env", "CATSDOGS_MODEL=/model.onnx")
    with running(docker, image, *HARDENED, *mounted) as container:
        container.logged("started")
        done = stack.run("smoke_test.sh", container.url)
    assert done.returncode == 1
    assert "FAILED  ready: 503, not 200\n        model.onnx: not a model that onnxruntime can load" in done.stdout
    assert "FAILED  predicts: 503 503 503 503 503, not" in done.stdout


def test_the_smoke_test_fails_a_service_that_is_slow(docker: Docker, image: str, stack: Stack) -> None:
    with running(docker, image, *HARDENED) as container:
        container.ready()
        docker("update", "--cpus", "0.02", container.id)
        done = stack.run("smoke_test.sh", container.url, "--seconds", "0.2")
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("FAILED  quick: ")]


def test_the_smoke_test_fails_where_nothing_answers(stack: Stack) -> None:
    done = stack.run("smoke_test.sh", stack.side)
    assert done.returncode == 1
    assert "FAILED  alive: 000, not 200" in done.stdout


def test_the_smoke_test_fails_a_service_that_answers_only_sometimes(stack: Stack) -> None:
    class Fickle(http.server.BaseHTTPRequestHandler):
        """Right at every other request."""

        answered = 0

        def do_GET(self) -> None:
            self.answer(200, {"status": "ok"})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            Fickle.answered += 1
            self.answer(200 if Fickle.answered % 2 else 500, {"verdict": "cats"})

        def answer(self, status: int, body: dict[str, str]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Fickle) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = stack.run("smoke_test.sh", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert done.returncode == 1
    assert "FAILED  predicts: 200 500 200 500 200, not 200 200 200 200 200" in done.stdout
