"""The README is true: its commands run, its figures are the report's, its links lead somewhere."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serving.settings import Settings
from tests.conftest import ROOT
from tests.serving.conftest import Running, start_server

README = (ROOT / "README.md").read_text()
COMMANDS = [block.strip() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)]
CURLS = [command for command in COMMANDS if "localhost:8000" in command and not command.startswith("ops/")]
# Commands that run for long, or install, have a test of their own.
ELSEWHERE = {
    "make serve": "tests/e2e/test_process.py::test_make_serve_in_a_fresh_clone_answers_without_torch",
    "make pipeline": "tests/e2e/test_pipeline.py: what it runs",
    "make test": "this run",
    "CATSDOGS_JOURNAL=journal make serve": "tests/e2e/test_journal_crash.py",
    ".venv-dev/bin/catsdogs report journal": "tests/ops/test_report.py",
    ".venv-dev/bin/catsdogs collect photos.zip --limit 200": "tests/ops/test_collect.py",
    "pkill -HUP -x catsdogs": "tests/e2e/test_swaps.py",
    "docker compose up -d --wait": "tests/containers/test_compose.py",
    "CATSDOGS_IMAGE=cats-dogs-inference docker compose up -d --wait --build": "tests/containers/test_compose.py",
    "ops/smoke_test.sh http://localhost:8000": "tests/containers/test_compose.py",
    ".venv-dev/bin/python -m ops.changes HEAD": "tests/ops/test_changes.py",
    "make bench-train": "tests/training/test_bench.py: what it runs",
    ".venv-dev/bin/catsdogs promote --dry-run": "tests/training/test_promote.py",
    ".venv-dev/bin/catsdogs rollback": "tests/training/test_promote.py",
}


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    running, stop = start_server(Settings())
    yield running
    stop()


def run(command: str, port: int = 0) -> str:
    """Run a block of the README in the repository's root, with this environment's programs and the test's server."""
    here = str(Path(sys.executable).parent)
    command = re.sub(r"\.venv(-dev)?/bin", shlex.quote(here), command).replace("localhost:8000", f"localhost:{port}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_run_by_a_test() -> None:
    for command in COMMANDS:
        known = (
            command in ELSEWHERE
            or "localhost:8000" in command
            or command.startswith((".venv/bin/catsdogs", ".venv-dev/bin/catsdogs", ".venv-dev/bin/mlflow ui"))
            or ".venv-dev/bin/dvc" in command  # tests/e2e/test_dvc.py runs them all
        )
        assert known, f"no test runs {command!r}"


@pytest.mark.parametrize("command", [command for command in CURLS if "why.png" not in command])
def test_the_curl_examples_answer(service: Running, command: str) -> None:
    answer = json.loads(run(command.replace("curl ", "curl --silent --fail ", 1), service.port))
    if "batch" in command:
        assert answer["results"][0]["id"] == "chelsea"
        assert answer["results"][0]["verdict"] == "cats"
    elif "feedback" in command:
        assert answer["correct"] is True
    elif "ready" in command:
        assert answer["status"] == "ready"
    else:
        assert answer["verdict"] == "cats"


def test_the_curl_example_of_a_drawing_draws(service: Running, tmp_path: Path) -> None:
    (command,) = [command for command in CURLS if "why.png" in command]
    run(command.replace("curl ", "curl --silent --fail ").replace("why.png", f"{tmp_path}/why.png"), service.port)
    with Image.open(tmp_path / "why.png") as image:
        assert image.size == (448, 298)


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if "/bin/catsdogs" in command and command not in ELSEWHERE]
)
def test_the_command_line_examples_run(command: str) -> None:
    assert run(command).strip()


def test_mlflow_ui_is_the_command_s_name() -> None:
    (command,) = [command for command in COMMANDS if "mlflow ui" in command]
    assert "--backend-store-uri" in run(command.split(" --")[0] + " --help")


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(f"^{''.join(target)}:", makefile, re.MULTILINE), target


def measured(precision: str) -> "dict[str, Any]":
    document: dict[str, Any] = json.loads((ROOT / f"serving/models/cats-dogs.{precision}.json").read_text())
    return document


def test_the_figures_are_the_reports() -> None:
    files = [measured("int8"), measured("fp32")]

    def share(interval: "dict[str, float]") -> str:
        return f"{interval['value']:.2%} ({interval['low']:.2%} to {interval['high']:.2%})"

    rows = {
        f"right, of {files[0]['pictures']:,} photos": [share(file["accuracy"]) for file in files],
        "right, wrong labels corrected": [share(file["audited"]["accuracy"]) for file in files],
        "log loss": [f"{file['log_loss']:.4f}" for file in files],
        "log loss, wrong labels corrected": [f"{file['audited']['log_loss']['value']:.4f}" for file in files],
        "calibration error": [share(file["audited"]["calibration_error"]) for file in files],
        'answered, rather than "unsure"': [share(file["audited"]["answered"]) for file in files],
        "right where answered": [share(file["audited"]["accuracy_when_answered"]) for file in files],
        "other things called unsure": [share(file["strangers"]["strangers_unsure"]) for file in files],
        "milliseconds a photo, one thread": [f"{file['milliseconds']:.1f}" for file in files],
        "megabytes": [f"{file['megabytes']:.1f}" for file in files],
    }
    for name, figures in rows.items():
        row = f"| {name} | {' | '.join(figures)} |"
        assert row in README, row


def test_the_report_is_the_shipped_file_s(service: Running) -> None:
    model = service.http.get("/model").json()
    report = measured(model["precision"])
    assert report["version"] == model["version"]
    assert report["accuracy"] == model["test"]["accuracy"]
    assert report["dataset_digest"] == model["provenance"]["dataset_digest"]
    assert model["provenance"]["registry"].startswith("cats-dogs/")


def test_the_image_is_as_small_and_as_soon_ready_as_it_says() -> None:
    image = json.loads((ROOT / "reports/image.json").read_text())
    layers = ", ".join(str(image["layers_mb"][name]) for name in ("packages", "base", "models", "app"))
    for row in (
        f"| unpacked | {image['unpacked_mb']} MB |",
        f"| … of it packages, Python and system libraries, both models, code | {layers} MB |",
        f"| compressed | {image['compressed_mb']} MB |",
        f"| ready with 1 CPU and 256 MB of memory | {image['ready_seconds'][1]} s |",
        f"| resident then | {image['resident_mb']} MB |",
    ):
        assert row in README, row


def test_its_links_lead_to_files_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
