"""What watches the service is valid and reads what there is; each alert fires when it should, and only then."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.conftest import ROOT
from tests.ops import dashboards
from tests.ops.watched import CONFIG, ITS_OWN, OTHERS, RECORDS, exposed, program, rules
from tests.serving.conftest import Running, Start

ALERTMANAGER: Final = ROOT / "ops/alertmanager"
UNITS: Final = sorted((CONFIG / "tests").glob("*.yml"))
RECEIVERS: Final = re.findall(r"```yaml\n(.*?)```", (ALERTMANAGER / "README.md").read_text(), re.DOTALL)
RUNBOOK: Final = (CONFIG / "RUNBOOK.md").read_text()
ALERTS: Final = {rule["alert"]: rule for rule in rules("alert")}


def run(*command: str | Path, given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def page(start: Start, tmp_path: Path) -> str:
    """The service's page of metrics, once it has met with everything."""
    server = start(journal=str(tmp_path / "journal"))
    answer = server.predict().json()
    server.predict(b"no picture")
    server.explain()
    server.http.post("/feedback", json={"id": answer["id"], "label": "cats"})
    return server.http.get("/metrics").text


def test_the_configuration_is_valid_and_nothing_in_it_is_doubtful() -> None:
    said = run(program("promtool"), "check", "config", "--lint-fatal", "--lint=all", CONFIG / "prometheus.yml")
    assert sum(map(int, re.findall(r"(\d+) rules found", said))) == len(rules())


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_the_rules_pass_their_unit_tests(path: Path) -> None:
    run(program("promtool"), "test", "rules", path)


def test_every_alert_has_a_unit_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    checks = [
        check
        for path in UNITS
        for test in yaml.safe_load(path.read_text())["tests"]
        for check in test["alert_rule_test"]
    ]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == set(ALERTS)
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == set(ALERTS)


def test_every_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(sections) == sorted(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"ops/prometheus/RUNBOOK.md#{name.lower()}"
        if "absent(" not in rule["expr"]:  # which has no value to tell
            assert "{{" in rule["annotations"]["description"]


def test_the_runbook_names_only_what_there_is() -> None:
    settings = (ROOT / "serving/settings.py").read_text()
    for name in re.findall(r"CATSDOGS_([A-Z_]+)", RUNBOOK):
        assert f"    {name.lower()}: Annotated" in settings
    titles = {panel["title"] for board in dashboards.boards().values() for panel in dashboards.panels(board)}
    quoted = set(re.findall(r'"([A-Z][^"]+)"', RUNBOOK)) - {"Capacity", "Targets"}
    assert quoted <= titles
    assert set(re.findall(r"CatsDogs\w+", RUNBOOK)) == set(ALERTS)
    for path in re.findall(r"\bops/[\w./]+\.(?:yml|md|cfg)\b", RUNBOOK):
        assert (ROOT / path).is_file(), path


def test_every_rule_reads_what_the_service_exposes_or_another_rule_makes(page: str) -> None:
    known = exposed(page) | RECORDS | ITS_OWN
    for rule in rules():
        unknown = {name for name in dashboards.metrics(rule["expr"]) if not name.startswith(OTHERS)} - known
        assert not unknown, (rule, unknown)


def test_every_record_is_read_by_an_alert_a_panel_or_another_record() -> None:
    read = [rule["expr"] for rule in rules()] + [query.expr for query in dashboards.queries()]
    assert {name for expr in read for name in dashboards.metrics(expr)} >= RECORDS


def test_the_page_of_metrics_has_nothing_that_promtool_objects_to(page: str) -> None:
    assert run(program("promtool"), "check", "metrics", given=page) == ""


def test_prometheus_3_can_read_the_page_as_prometheus_2_does(server: Running) -> None:
    """The third refuses a page without a type it knows, and writes whole bounds of buckets as 1.0."""
    server.predict()
    answer = server.http.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"})
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    bounds = set(re.findall(r'le="([^"]*)"', answer.text))
    assert {bound for bound in bounds if bound != "+Inf" and str(float(bound)) != bound} == set()


def test_alertmanagers_configuration_is_valid_and_hides_no_alert_that_there_is_not() -> None:
    run(program("amtool"), "check-config", ALERTMANAGER / "alertmanager.yml")
    config = yaml.safe_load((ALERTMANAGER / "alertmanager.yml").read_text())
    matchers = [matcher for rule in config["inhibit_rules"] for matcher in rule["source_matchers"]]
    sources = {re.fullmatch(r'alertname = "(\w+)"', matcher) for matcher in matchers}
    for source in sources:
        assert source is not None
        assert source[1] in ALERTS
    for rule in config["inhibit_rules"]:
        for matcher in rule["target_matchers"]:
            _, _, pattern = matcher.partition(' "')
            assert any(re.fullmatch(pattern.rstrip('"'), name) for name in ALERTS), matcher


def routed(severity: str) -> str:
    command = ("config", "routes", "test", f"--config.file={ALERTMANAGER}/alertmanager.yml", f"severity={severity}")
    return run(program("amtool"), *command).splitlines()[0]  # a warning about its own flags may follow


def test_every_severity_has_a_receiver() -> None:
    for severity in {rule["labels"]["severity"] for rule in ALERTS.values()}:
        assert routed(severity) == "pages"


@pytest.mark.parametrize("receiver", RECEIVERS, ids=lambda text: re.findall(r"(\w+)_configs", text)[0])
def test_a_receiver_of_the_readme_can_take_the_place_of_the_default(receiver: str, tmp_path: Path) -> None:
    config = (ALERTMANAGER / "alertmanager.yml").read_text()
    assert config.endswith("  - name: pages\n")
    indented = "".join(f"  {line}\n" for line in receiver.splitlines())
    (tmp_path / "alertmanager.yml").write_text(config.removesuffix("  - name: pages\n") + indented)
    run(program("amtool"), "check-config", tmp_path / "alertmanager.yml")
