"""A real Prometheus with the shipped configuration, pointed at what a test has started."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from tests.conftest import ROOT
from tests.waiting import until

CONFIG: Final = ROOT / "ops/prometheus"
# What Prometheus makes of a scrape and of alerts by itself.
ITS_OWN: Final = {"up", "ALERTS"}
# What the others expose; it is looked for where they run.
OTHERS: Final = ("haproxy_", "prometheus_", "alertmanager_")


def program(name: str) -> str:
    """Path of one of Debian's programs; the test is skipped without it, and fails in CI."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"no {name}, and CI must not pass without what it checks")
        pytest.skip(f"no {name} on this machine")
    return found


def rules(kind: str = "expr") -> list[dict[str, Any]]:
    """All rules, or those that are alerts ("alert") or records ("record")."""
    files = (yaml.safe_load(path.read_text()) for path in (CONFIG / "rules").glob("*.yml"))
    return [rule for file in files for group in file["groups"] for rule in group["rules"] if kind in rule]


RECORDS: Final = {rule["record"] for rule in rules("record")}


def exposed(page: str) -> set[str]:
    """Names of the series that a page of metrics may have."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE):
        names |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    return names


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Prometheus:
    """The shipped configuration and rules, with other addresses and a scrape each second."""

    def __init__(self, folder: Path, targets: dict[str, list[str]]) -> None:
        """Start it; ``targets`` has the addresses of each job but its own."""
        binary = program("prometheus")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(CONFIG / files) for files in config["rule_files"]]
        jobs = targets | {"prometheus": [f"127.0.0.1:{port}"]}
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = jobs.get("alertmanager", [])
        assert {job["job_name"] for job in config["scrape_configs"]} == set(jobs)
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": jobs[job["job_name"]]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.log = (folder / "prometheus.log").open("w")
        self.process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        try:
            until(self._ready, "Prometheus is not ready")
        except BaseException:
            self.stop()
            raise

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        answer = httpx.post(f"{self.url}/api/v1/query", data={"query": expr}).json()
        assert answer["status"] == "success", (expr, answer)
        return list(answer["data"]["result"])

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {sample["metric"]["alertname"] for sample in self.query('ALERTS{alertstate="firing"}')}

    def targets(self) -> dict[str, str]:
        """Health of each job's target."""
        found = httpx.get(f"{self.url}/api/v1/targets").json()["data"]["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in found}

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.log.close()

    def _ready(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()
        try:
            return httpx.get(f"{self.url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False
