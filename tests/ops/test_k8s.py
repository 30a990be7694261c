"""The Kubernetes manifests: valid, of one mind with each other and with the service, with no right beyond its needs.

kubectl renders them, the published schemas judge them, and a real service answers their probes.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml

from serving.http.server import DRAIN_SECONDS
from serving.settings import PREFIX, Settings, from_environment
from tests.conftest import ROOT
from tests.e2e.test_process import CAT, serve
from tests.ops.edge import free_ports
from tests.ops.manifests import K8S, Manifest, container, docker_run, only, render, settings

OVERLAYS = ("staging", "production")
# Of other makers, whose schemas Kubernetes does not publish: checked by hand below.
CUSTOM = ("ServiceMonitor", "HTTPRoute")
IMAGE = "ghcr.io/cats-dogs/cats-dogs/cats-dogs-inference"
OLDEST = "1.31"  # of the Kubernetes versions that their makers still mend, in autumn 2025


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(request.param)


@pytest.fixture(scope="module")
def production() -> list[Manifest]:
    return render("production")


def pod(manifests: list[Manifest]) -> Manifest:
    return dict(only(manifests, "Deployment")["spec"]["template"]["spec"])


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_kubernetes_would_take_every_object(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_would_not_pass(manifests: list[Manifest]) -> None:
    broken: dict[str, Any] = {**only(manifests, "Deployment")}
    broken["spec"] = {**broken["spec"], "minReadySecond": 5}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_everything_is_in_the_overlays_namespace_which_takes_restricted_pods_alone(manifests: list[Manifest]) -> None:
    namespace = only(manifests, "Namespace")["metadata"]
    assert {m["metadata"]["namespace"] for m in manifests if m["kind"] != "Namespace"} == {namespace["name"]}
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_selector_finds_the_pods(manifests: list[Manifest]) -> None:
    deployment = only(manifests, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert selects(deployment["selector"]["matchLabels"], labels)
    assert selects(only(manifests, "Service")["spec"]["selector"], labels)
    assert selects(only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels)
    assert selects(only(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"], labels)
    for spread in pod(manifests)["topologySpreadConstraints"]:
        assert selects(spread["labelSelector"]["matchLabels"], labels)


def test_every_port_that_is_named_is_one_of_the_containers(manifests: list[Manifest]) -> None:
    inside = container(only(manifests, "Deployment"))
    ports = {port["name"]: port["containerPort"] for port in inside["ports"]}
    assert ports == {"http": Settings().port, "metrics": int(settings(manifests)["CATSDOGS_METRICS_PORT"])}
    assert {port["targetPort"] for port in only(manifests, "Service")["spec"]["ports"]} == set(ports)
    rules = only(manifests, "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == ["http", "metrics"]
    assert all(rule["from"] for rule in rules)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert inside[probe]["httpGet"]["port"] in ports


def test_the_pods_speak_to_nobody(manifests: list[Manifest]) -> None:
    policy = only(manifests, "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []


def test_the_container_has_no_rights_that_it_does_not_need(manifests: list[Manifest]) -> None:
    spec = pod(manifests)
    inside = container(only(manifests, "Deployment"))
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["runAsGroup"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert only(manifests, "ServiceAccount")["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == only(manifests, "ServiceAccount")["metadata"]["name"]
    assert inside["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert inside["resources"]["limits"] == inside["resources"]["requests"] == {"cpu": "1", "memory": "256Mi"}


def test_its_service_does_not_leak_into_its_settings(manifests: list[Manifest]) -> None:
    # Kubernetes would set NAME_PORT for each Service in the namespace.
    assert only(manifests, "Service")["metadata"]["name"].upper() + "_" == PREFIX
    assert pod(manifests)["enableServiceLinks"] is False


def test_its_settings_are_settings_and_the_service_takes_them(manifests: list[Manifest]) -> None:
    environment = settings(manifests)
    assert {name.removeprefix(PREFIX).lower() for name in environment} <= set(Settings.__struct_fields__)
    taken = from_environment(environment)
    mounts = [mount["mountPath"] for mount in container(only(manifests, "Deployment"))["volumeMounts"]]
    assert taken.journal in mounts


def test_no_pod_starts_without_the_secret_with_the_keys(manifests: list[Manifest]) -> None:
    inside = container(only(manifests, "Deployment"))
    keys, id_key = inside["env"]
    # Not `optional`, which would leave the variable out and the service open.
    reference = {"name": "catsdogs-keys", "key": "CATSDOGS_API_KEYS"}
    assert keys == {"name": "CATSDOGS_API_KEYS", "valueFrom": {"secretKeyRef": reference}}
    assert id_key["name"] == id_key["valueFrom"]["secretKeyRef"]["key"] == "CATSDOGS_ID_KEY"
    assert [source for source in inside["envFrom"] if "secretRef" in source] == []
    assert f"create secret generic {reference['name']} -n catsdogs --from-literal={reference['key']}=" in (
        (K8S / "README.md").read_text()
    )


def test_a_pod_has_time_to_drain_and_to_finish(manifests: list[Manifest]) -> None:
    delay = float(settings(manifests)["CATSDOGS_DRAIN_DELAY_SECONDS"])
    ready = container(only(manifests, "Deployment"))["readinessProbe"]
    assert delay >= ready["periodSeconds"] * ready["failureThreshold"]
    assert pod(manifests)["terminationGracePeriodSeconds"] > delay + DRAIN_SECONDS


def test_a_rollout_takes_no_pod_away_before_its_successor_is_ready(manifests: list[Manifest]) -> None:
    assert only(manifests, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_the_autoscaler_scales_the_deployment_on_processor_and_queue(production: list[Manifest]) -> None:
    deployment, scaler = only(production, "Deployment"), only(production, "HorizontalPodAutoscaler")["spec"]
    target = {key: deployment[key] for key in ("apiVersion", "kind")} | {"name": deployment["metadata"]["name"]}
    assert scaler["scaleTargetRef"] == target
    # With both, each `kubectl apply` would undo what the autoscaler did.
    assert "replicas" not in deployment["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 12)
    assert [metric["type"] for metric in scaler["metrics"]] == ["Resource", "Pods"]


def test_draining_nodes_leaves_most_pods(production: list[Manifest]) -> None:
    budget = only(production, "PodDisruptionBudget")["spec"]["maxUnavailable"]
    assert 0 < budget < only(production, "HorizontalPodAutoscaler")["spec"]["minReplicas"] / 2


def test_the_route_leads_to_the_service_and_waits_for_it(production: list[Manifest]) -> None:
    service = only(production, "Service")
    (rule,) = only(production, "HTTPRoute")["spec"]["rules"]
    ports = {port["port"]: port["targetPort"] for port in service["spec"]["ports"]}
    (backend,) = rule["backendRefs"]
    assert (backend["name"], ports[backend["port"]]) == (service["metadata"]["name"], "http")
    limits = Settings()
    assert int(rule["timeouts"]["request"].removesuffix("s")) > limits.body_seconds + limits.deadline_seconds


def test_prometheus_finds_the_service_under_the_name_of_its_rules(production: list[Manifest]) -> None:
    service, monitor = only(production, "Service"), only(production, "ServiceMonitor")["spec"]
    assert selects(monitor["selector"]["matchLabels"], service["metadata"]["labels"])
    (endpoint,) = monitor["endpoints"]
    ports = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
    assert ports[endpoint["port"]] == "metrics"
    prometheus = yaml.safe_load((ROOT / "ops/prometheus/prometheus.yml").read_text())
    assert service["metadata"]["name"] in {job["job_name"] for job in prometheus["scrape_configs"]}
    assert endpoint["interval"] == prometheus["global"]["scrape_interval"]


def test_the_rules_come_along_as_they_are() -> None:
    done = subprocess.run([K8S / "rules.sh"], capture_output=True, text=True, check=True)
    rules = list(yaml.safe_load_all(done.stdout))
    assert {rule["kind"] for rule in rules} == {"PrometheusRule"}
    for rule, name in zip(rules, ("records", "alerts"), strict=True):
        assert rule["spec"] == yaml.safe_load((ROOT / f"ops/prometheus/rules/{name}.yml").read_text())


def test_the_adapter_measures_what_the_autoscaler_asks_for(production: list[Manifest], tmp_path: Path) -> None:
    (rule,) = yaml.safe_load((K8S / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    metric = only(production, "HorizontalPodAutoscaler")["spec"]["metrics"][1]["pods"]["metric"]["name"]
    assert rule["seriesQuery"].startswith(metric + "{")
    query = rule["metricsQuery"]
    for name, value in (("Series", metric), ("LabelMatchers", 'pod=~"a|b"'), ("GroupBy", "pod")):
        assert f"<<.{name}>>" in query
        query = query.replace(f"<<.{name}>>", value)
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI"):
            pytest.fail("no promtool, and CI must not pass without it")
        pytest.skip("no promtool on this machine")
    rules = [{"record": f"check:{number}", "expr": expr} for number, expr in enumerate((query, rule["seriesQuery"]))]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": rules}]}))
    subprocess.run([promtool, "check", "rules", tmp_path / "rules.yml"], check=True, capture_output=True)


def test_the_image_is_the_one_that_is_published_and_production_names_it_by_digest() -> None:
    images = {overlay: container(only(render(overlay), "Deployment"))["image"] for overlay in OVERLAYS}
    assert images["staging"] == f"{IMAGE}:latest"
    assert re.fullmatch(rf"{IMAGE}@sha256:[0-9a-f]{{64}}", images["production"])
    assert IMAGE in (ROOT / "compose.yaml").read_text()
    assert IMAGE.rsplit("/", 1)[1] in (ROOT / ".github/workflows/publish.yml").read_text()


def test_the_readmes_release_sets_the_digest(tmp_path: Path) -> None:
    command = re.search(r"^sed .*$", (K8S / "README.md").read_text(), re.MULTILINE)
    assert command
    shutil.copytree(K8S, tmp_path / "ops/k8s")
    digest = "sha256:" + "5a" * 32
    subprocess.run(["sh", "-euc", command[0]], cwd=tmp_path, env={**os.environ, "DIGEST": digest}, check=True)
    image = container(only(render("production", tmp_path / "ops/k8s"), "Deployment"))["image"]
    assert image == f"{IMAGE}@{digest}"


def test_docker_can_rehearse_the_pods_of_production(production: list[Manifest]) -> None:
    assert set(docker_run(production)) == {
        "--user=10001:10001",
        "--memory=268435456",
        "--memory-swap=268435456",
        "--cpus=1",
        "--stop-timeout=30",
        "--health-interval=2s",
        "--health-timeout=2s",
        "--health-retries=2",
        "--health-start-period=60s",
        "--read-only",
        "--security-opt=no-new-privileges",
        "--cap-drop=ALL",
        "--tmpfs=/journal:size=1073741824,mode=1777",
        "--env=CATSDOGS_DRAIN_DELAY_SECONDS=5",
        "--env=CATSDOGS_JOURNAL=/journal",
        "--env=CATSDOGS_JOURNAL_FILES=8",
        "--env=CATSDOGS_METRICS_PORT=9000",
    }


def test_a_service_answers_the_probes_and_the_scrape_and_leaves_when_told_as_kubernetes_expects(
    production: list[Manifest], tmp_path: Path
) -> None:
    inside, monitor = container(only(production, "Deployment")), only(production, "ServiceMonitor")["spec"]
    (metrics_port,) = free_ports(1)
    own = {"CATSDOGS_JOURNAL": str(tmp_path / "journal"), "CATSDOGS_METRICS_PORT": str(metrics_port)}
    process = serve(tmp_path, **settings(production) | own).ready()
    urls = {"http": process.url, "metrics": f"http://127.0.0.1:{metrics_port}"}

    def probe(kind: str) -> int:
        asked = inside[kind]["httpGet"]
        return httpx.get(urls[asked["port"]] + asked["path"]).status_code

    assert [probe(kind) for kind in ("startupProbe", "readinessProbe", "livenessProbe")] == [200, 200, 200]
    (endpoint,) = monitor["endpoints"]
    page = httpx.get(urls[endpoint["port"]] + endpoint["path"]).text
    scaled = only(production, "HorizontalPodAutoscaler")["spec"]["metrics"][1]["pods"]["metric"]["name"]
    assert re.search(rf"^{scaled} 0$", page, re.MULTILINE)
    assert httpx.get(urls["http"] + endpoint["path"]).status_code == 404  # not for the world

    os.killpg(process.process.pid, signal.SIGTERM)
    told = time.monotonic()
    assert (probe("readinessProbe"), probe("livenessProbe")) == (503, 200)
    assert httpx.post(f"{process.url}/predict", files={"file": CAT}).json()["verdict"] == "cats"
    assert process.wait() == 0
    assert time.monotonic() - told < pod(production)["terminationGracePeriodSeconds"]
