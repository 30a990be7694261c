"""The shipped compose.yaml, up on free ports of this machine under a name of its own."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import ROOT
from tests.containers.containers import CAT
from tests.containers.engine import Docker
from tests.ops.edge import free_ports
from tests.waiting import PATIENCE


class Stack:
    """Compose with a project, an environment file and ports of its own."""

    def __init__(self, docker: Docker, folder: Path, name: str) -> None:
        self.docker = docker
        self.name = name
        ports = free_ports(4)
        self.environment = {
            "COMPOSE_PROJECT_NAME": name,
            "CATSDOGS_PORT": str(ports[0]),
            "CATSDOGS_ID_KEY": "a secret of this test alone",
            "CATSDOGS_CANDIDATE_PORT": str(ports[1]),
            "PROMETHEUS_PORT": str(ports[2]),
            "GRAFANA_PORT": str(ports[3]),
            "TMPDIR": str(folder),
        }
        self.url, self.side, self.prometheus = (f"http://127.0.0.1:{port}" for port in ports[:3])
        if docker.standins:  # of Grafana alone there is none
            services: dict[str, object] = {name: {"image": image} for name, image in docker.images().items()}
            services["grafana"] = {"profiles": ["left-out"]}
            (folder / "stand-ins.yaml").write_text(json.dumps({"services": services}))
            self.environment["COMPOSE_FILE"] = f"{ROOT}/compose.yaml:{folder}/stand-ins.yaml"
            self.environment["COMPOSE_PROJECT_DIRECTORY"] = str(ROOT)

    def compose(self, *arguments: str, check: bool = True, timeout: float = 300, **environment: str) -> str:
        """Run `docker compose` on the shipped file."""
        return self.docker("compose", *arguments, check=check, timeout=timeout, **self.environment | environment)

    def up(self, image: str) -> None:
        """Bring it up with this image and wait until all of it is healthy."""
        self.environment["CATSDOGS_IMAGE"] = image
        never = ["--pull", "never"] if self.docker.standins else []
        self.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", "180", *never)

    def down(self) -> None:
        """Remove everything that it made."""
        self.compose("--profile", "deploy", "down", "--volumes", "--timeout", "1", "--remove-orphans", check=False)

    def begin(self, script: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Start one of the shipped scripts as a person would, from somewhere else."""
        return subprocess.Popen(
            [ROOT / "ops" / script, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
            env=os.environ | self.docker.environment | self.environment | environment,
        )  # fmt: skip

    def run(self, script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run one to its end."""
        with self.begin(script, *arguments, **environment) as process:
            said, _ = process.communicate(timeout=900)
        return subprocess.CompletedProcess([script, *arguments], process.returncode, said)

    def predict(self, data: bytes = CAT) -> httpx.Response:
        """Ask about one picture through the edge."""
        return httpx.post(f"{self.url}/predict", files={"file": data}, timeout=PATIENCE)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Ask Prometheus; samples that are no number are left out."""
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression}, timeout=PATIENCE)
        assert answer.status_code == 200, (expression, answer.text)
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return [sample for sample in result if sample["value"][1] != "NaN"]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {sample["metric"]["alertname"] for sample in self.query('ALERTS{alertstate="firing"}')}
