"""The OpenAPI document against the service: what fits it is accepted, what does not is not, answers are as it says."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from serving.http.auth import make
from tests.fuzz import SCALE
from tests.serving.conftest import Running, Start

CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = 40


def schemathesis(server: Running, folder: Path, config: str = "", headers: Sequence[str] = ()) -> str:
    """Run all of its checks on every operation; returns its report. It keeps its notes in ``folder``."""
    (folder / "schemathesis.toml").write_text(CONFIG.read_text() + config)
    (folder / "openapi.json").write_bytes(server.http.get("/openapi.json").content)
    command = [
        sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run", "openapi.json",
        "--url", f"http://127.0.0.1:{server.port}", "--checks", "all", "--phases", "examples,coverage,fuzzing",
        "--max-examples", str(EXAMPLES * SCALE), "--continue-on-failure", "--warnings", "off", "--no-color",
        "--request-timeout", "20",
    ]  # fmt: skip
    command += [f"--header={header}" for header in headers]
    if SCALE == 1:
        command.append("--generation-deterministic")
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def test_the_service_does_as_its_document_says(server: Running, tmp_path: Path) -> None:
    assert "14 selected / 14 total" in schemathesis(server, tmp_path)
    assert server.predict().status_code == 200


@pytest.mark.slow
def test_a_service_with_keys_does_so_for_an_allowed_page_and_lets_nobody_in_without(
    start: Start, tmp_path: Path
) -> None:
    key, digest = make()
    server = start(api_keys=digest, origins="https://app.example")
    server.http.headers["x-api-key"] = key
    page = ("Origin: https://app.example", "Sec-Fetch-Site: cross-site")
    schemathesis(server, tmp_path, f'[auth.openapi.header]\napi_key = "{key}"\n', page)
    assert server.metric('catsdogs_rejected_total{code="foreign_origin"}') == 0
    assert server.predict().status_code == 200
