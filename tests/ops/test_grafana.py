"""The dashboards are whole, and a real Prometheus that watches a real service has data for every query of theirs."""

import contextlib
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from serving.settings import Settings
from tests.conftest import ROOT
from tests.ops.dashboards import boards, filled, metrics, panels, queries
from tests.ops.watched import ITS_OWN, OTHERS, RECORDS, Prometheus, exposed, free_port, program, rules
from tests.serving.conftest import Running, start_server
from tests.waiting import until

GRAFANA: Final = ROOT / "ops/grafana"
SOURCE: Final = {"type": "prometheus", "uid": "catsdogs-prometheus"}
KINDS: Final = {"bargauge", "heatmap", "row", "stat", "state-timeline", "table", "timeseries"}
# Of all that a query may need, the only thing that does not happen in this test.
NOT_HERE: Final = "a firing alert"


@pytest.fixture(params=boards())
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    return boards()[request.param]


def test_the_dashboards_and_their_source_are_provisioned() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {key: source[key] for key in SOURCE} == SOURCE
    assert source["url"] == "http://prometheus:9090"
    scraped = yaml.safe_load((ROOT / "ops/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/catsdogs.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert {board["uid"] for board in boards().values()} == {"catsdogs-service", "catsdogs-model"}


def test_every_panel_is_named_explained_and_asks_the_provisioned_source(board: dict[str, Any]) -> None:
    assert 39 <= board["schemaVersion"] <= 41
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(board)]
    assert len(titles) > 10
    for panel in panels(board):
        assert panel["type"] in KINDS
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == SOURCE
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["datasource"] == SOURCE for target in panel["targets"])
    (instance,) = board["templating"]["list"]
    assert instance["datasource"] == SOURCE


def test_grafanas_own_schema_knows_every_field_of_every_panel(board: dict[str, Any]) -> None:
    register_default_plugins()
    known = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(board)))
    assert list(lost(board["panels"], known["panels"])) == []
    assert list(lost(board["links"], known["links"])) == []


def lost(ours: object, known: object, path: str = "") -> Iterator[str]:
    """What of ours is not in what is known, but for what says nothing (null, false, empty)."""
    if isinstance(ours, dict) and isinstance(known, dict):
        for key, value in ours.items():
            if value:
                yield from lost(value, known.get(key), f"{path}/{key}")
    elif isinstance(ours, list) and isinstance(known, list) and len(ours) == len(known):
        for number, (one, other) in enumerate(zip(ours, known, strict=True)):
            yield from lost(one, other, f"{path}/{number}")
    elif ours != known:
        yield f"{path}: {ours}"


def test_thresholds_rise_from_a_first_without_a_value(board: dict[str, Any]) -> None:
    """Grafana draws no colour for a scale that does not begin so."""
    for panel in panels(board):
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [{"value": None}])
        values = [step["value"] for step in steps]
        assert values[0] is None
        assert values[1:] == sorted(values[1:])


def test_no_panel_lies_over_another_and_none_leaves_the_page(board: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 < place["w"]
        assert place["x"] + place["w"] <= 24
        rows, columns = range(place["y"], place["y"] + place["h"]), range(place["x"], place["x"] + place["w"])
        for cell in itertools.product(rows, columns):
            assert cell not in taken, (panel["title"], taken[cell])
            taken[cell] = panel["title"]
    glance = [panel for panel in panels(board) if panel["gridPos"]["y"] == 1]
    assert sum(panel["gridPos"]["w"] for panel in glance) == 24
    assert {panel["type"] for panel in glance} == {"stat"}


def test_the_dashboards_lead_to_each_other() -> None:
    by_uid = {board["uid"]: board for board in boards().values()}
    for uid, board in by_uid.items():
        assert {link["url"] for link in board["links"]} == {f"/d/{other}" for other in by_uid if other != uid}


def annotations() -> list[str]:
    listed = [note for board in boards().values() for note in board["annotations"]["list"]]
    return [filled(note["expr"]) for note in listed if "expr" in note]


def test_every_query_parses_and_reads_what_is_there(server: Running) -> None:
    known = exposed(server.http.get("/metrics").text) | RECORDS | ITS_OWN
    for expr in [query.expr for query in queries()] + annotations():
        assert "$" not in expr, f"a variable nobody fills in: {expr}"
        promql_parser.parse(expr)
        assert {name for name in metrics(expr) if not name.startswith(OTHERS)} <= known


class Traffic:
    """Predictions, feedback and refused requests, again and again until it is stopped."""

    def __init__(self, server: Running, edge: str) -> None:
        self._server, self._edge = server, edge
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        cat = (ROOT / "tests/cat.jpg").read_bytes()
        with httpx.Client(base_url=self._edge, timeout=60) as edge:
            while not self._stop.is_set():
                for _ in range(20):
                    answer = self._server.predict(cat).json()
                edge.post("/feedback", json={"id": answer["id"], "label": "cats"}).raise_for_status()
                assert edge.post("/predict", files={"file": b"no picture"}).status_code == 415
                time.sleep(0.05)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A service that works, behind the shipped edge, with the shipped Alertmanager, watched by a Prometheus."""
    haproxy, alertmanager, _ = (program(name) for name in ("haproxy", "prometheus-alertmanager", "prometheus"))
    folder = tmp_path_factory.mktemp("watched")
    door, watch, alerts = (f"127.0.0.1:{free_port()}" for _ in range(3))
    with contextlib.ExitStack() as stack:
        server, stop = start_server(Settings(journal=str(folder / "journal")))
        stack.callback(stop)
        address = f"127.0.0.1:{server.port}"
        ports = {"EDGE_PORT": door, "EDGE_WATCH_PORT": watch}
        background(
            stack,
            [haproxy, "-db", "-q", "-f", f"{ROOT}/ops/edge/haproxy.cfg"],
            {name: value.partition(":")[2] for name, value in ports.items()} | {"EDGE_SERVICE": address},
        )
        background(
            stack,
            [
                alertmanager,
                f"--config.file={ROOT}/ops/alertmanager/alertmanager.yml",
                f"--storage.path={folder}/alertmanager",
                f"--web.listen-address={alerts}",
                "--cluster.listen-address=",
            ],
        )
        prometheus = Prometheus(folder, {"catsdogs": [address], "edge": [watch], "alertmanager": [alerts]})
        stack.callback(prometheus.stop)
        until(lambda: answers(f"http://{door}/health/ready"), "the edge has no replica")
        stack.enter_context(Traffic(server, f"http://{door}"))
        yield prometheus


def background(stack: contextlib.ExitStack, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Start a program that ends with the stack."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_every_target_is_scraped_and_every_rule_evaluated(watched: Prometheus) -> None:
    jobs = {"catsdogs": "up", "edge": "up", "prometheus": "up", "alertmanager": "up"}
    until(lambda: watched.targets() == jobs, "a target is not up")
    until(lambda: bool(watched.query('job:replicas:up{job="catsdogs"} == 1')), "no rule is evaluated")
    assert watched.query("sum(increase(prometheus_rule_evaluation_failures_total[5m])) > 0") == []
    assert [sample["metric"]["instance"] for sample in watched.query('up{job="catsdogs"}')] == ["127.0.0.1"]


def test_every_query_of_every_panel_has_data(watched: Prometheus) -> None:
    waiting = {query for query in queries("10s") if NOT_HERE not in query.needs}
    assert {query.panel for query in set(queries("10s")) - waiting} == {"Alerts firing"}

    def answered() -> bool:
        waiting.difference_update([query for query in waiting if has_data(watched, query.expr)])
        return not waiting

    until(answered, waiting)


def has_data(prometheus: Prometheus, expr: str) -> bool:
    """Whether a query has an answer that can be drawn: "not a number" cannot."""
    return any(sample["value"][1] != "NaN" for sample in prometheus.query(expr))


def test_where_all_is_well_no_alert_fires(watched: Prometheus) -> None:
    """But for the pictures: one and the same cat again and again is not what the model was validated on."""
    assert watched.firing() <= {"CatsDogsDrift"}


def test_what_rules_and_annotations_read_of_the_others_is_what_they_expose(watched: Prometheus) -> None:
    names = {name for rule in rules() for name in metrics(rule["expr"]) if name.startswith(OTHERS)}
    assert len(names) >= 4
    for name in names:
        assert watched.query(name), name
    for expr in annotations():
        watched.query(expr)
