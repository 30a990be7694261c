"""README.md, CONTRIBUTING.md and docs/ are true: commands run from where their reader stands, links lead somewhere."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from PIL import Image

from serving.errors import CODES
from serving.settings import Settings
from tests.conftest import ROOT, blobs, encoded
from tests.e2e.test_process import Process, serve
from tests.serving.conftest import Running, start_server

PAGES: Final = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BIN: Final = Path(sys.executable).parent
# What makes an environment, by its folder.
MAKES: Final = {".venv/bin": ("make serve",), ".venv-dev/bin": ("make test", "make install-dev", "make pipeline")}


class Run(NamedTuple):
    """What a command prints; what is run in its place where it is long or needs others; which test runs it whole."""

    prints: str = ""
    instead: str = ""
    whole: str = ""


VENV: Final = ".venv-dev/bin"
COMMANDS: Final = {
    # The service of the fixture answers these.
    "curl -F file=@tests/cat.jpg localhost:8000/predict": Run('"verdict":"cats"'),
    'curl -F file=@tests/cat.jpg "localhost:8000/predict?explain=true"': Run('"evidence":'),
    "curl -H 'Content-Type: image/jpeg' --data-binary @tests/cat.jpg localhost:8000/predict": Run('"verdict":"cats"'),
    "curl -F file=@tests/cat.jpg -F file=@tests/cat.jpg localhost:8000/predict/batch": Run(
        '"results":.*"cats".*"cats"'
    ),
    "curl -F file=@tests/cat.jpg localhost:8000/explain -o why.png": Run(),
    'printf \'{"images": [{"id": "chelsea", "data": "%s"}]}\' "$(base64 -w0 tests/cat.jpg)" |\n'
    "  curl -d @- localhost:8000/predict/batch": Run('"client_id":"chelsea".*"verdict":"cats"'),
    'printf \'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["%s"]}]}\' \\\n'
    '  "$(base64 -w0 tests/cat.jpg)" | curl -d @- localhost:8000/v2/models/cats-dogs/infer': Run('"verdict".*"cats"'),
    'id=$(curl -F file=@tests/cat.jpg localhost:8000/predict | sed \'s/^{"id":"//; s/".*//\')\n'
    'curl -d \'{"id": "\'$id\'", "label": "cats"}\' localhost:8000/feedback': Run('"correct":true'),
    "curl localhost:8000/health/ready": Run('"status":"ready"'),
    "ops/smoke_test.sh http://localhost:8000": Run("passed: http://localhost"),
    f"{VENV}/catsdogs report journal": Run("predictions"),
    f"{VENV}/catsdogs collect photos.zip --limit 200": Run(
        "photos", f"{VENV}/catsdogs collect photos.zip --limit 200 --url http://localhost:8000"
    ),
    # As they stand.
    ".venv/bin/catsdogs predict tests/cat.jpg": Run("cats .* tests/cat.jpg"),
    ".venv/bin/catsdogs key": Run("digest  [0-9a-f]{64}"),
    f"{VENV}/catsdogs score photos.zip --out scores\n{VENV}/catsdogs sort scores sorted": Run("6  pictures"),
    f"{VENV}/catsdogs score photos.zip --csv > scores.csv": Run(whole="tests/scoring/test_score.py"),
    f"{VENV}/catsdogs score s3://my-bucket/photos --out s3://my-bucket/scores": Run(
        "SOURCE", f"{VENV}/catsdogs score --help", "tests/scoring/test_stores.py"
    ),
    f"{VENV}/catsdogs score s3://my-bucket/photos --out s3://my-bucket/scores --ray auto": Run(
        "--ray ADDRESS", f"{VENV}/catsdogs score --help", "tests/scoring/test_cluster.py"
    ),
    f"{VENV}/python -m scoring.bench rate photos\n"
    f"{VENV}/python -m scoring.bench rate photos --store\n"
    f"{VENV}/python -m scoring.bench crash photos": Run("crash .* rate", f"{VENV}/python -m scoring.bench --help"),
    f"{VENV}/catsdogs train --help": Run("catsdogs train"),
    f"{VENV}/catsdogs tune --trials 50": Run("--trials", f"{VENV}/catsdogs tune --help", "tests/training/test_tune.py"),
    f"{VENV}/catsdogs tune --trials 50 --ray auto": Run(
        "--ray ADDRESS", f"{VENV}/catsdogs tune --help", "tests/training/test_tune.py"
    ),
    f"{VENV}/catsdogs train --processes 4": Run(
        "--processes", f"{VENV}/catsdogs train --help", "tests/training/test_distributed.py"
    ),
    f"{VENV}/torchrun --standalone --nproc-per-node 4 -m training.train": Run(
        "--closer", f"{VENV}/python -m training.train --help", "tests/training/test_distributed.py"
    ),
    f"{VENV}/torchrun --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --nproc-per-node 4 -m training.train": Run(
        "--node-rank", f"{VENV}/torchrun --help", "tests/training/test_distributed.py"
    ),
    f"{VENV}/python -m ops.stale": Run("Nothing is stale."),
    f"{VENV}/python -m ops.changes HEAD": Run("## What this changes in the model"),
    f"{VENV}/python -m pytest tests/shared/test_contract.py": Run("passed"),
    f"{VENV}/ruff check --fix .\n{VENV}/ruff format .": Run("All checks passed!\n.* files left unchanged"),
    f"{VENV}/pre-commit install": Run("pre-commit installed at"),
    f"{VENV}/dvc params diff\n{VENV}/dvc metrics diff\n{VENV}/dvc plots diff\n{VENV}/dvc exp show": Run(
        "workspace", whole="tests/e2e/test_dvc.py"
    ),
    f"{VENV}/dvc remote modify store url s3://my-bucket/cats-dogs\n"
    f"{VENV}/dvc remote modify --local store profile my-profile": Run(whole="tests/e2e/test_dvc.py"),
    # Long, or with an effect beyond the checkout: in a reduced way.
    "make serve": Run("catsdogs serve", "make --dry-run serve", "tests/e2e/test_process.py"),
    "CATSDOGS_JOURNAL=journal make serve": Run(
        "catsdogs serve", "CATSDOGS_JOURNAL=journal make --dry-run serve", "tests/e2e/test_process.py"
    ),
    "CATSDOGS_CHALLENGER=models/model.onnx CATSDOGS_JOURNAL=journal make serve": Run(
        "catsdogs serve",
        "CATSDOGS_CHALLENGER=models/model.onnx CATSDOGS_JOURNAL=journal make --dry-run serve",
        "tests/serving/model/test_challenger.py",
    ),
    "CATSDOGS_SAMPLES=samples make serve": Run(
        "catsdogs serve", "CATSDOGS_SAMPLES=samples make --dry-run serve", "tests/serving/telemetry/test_samples.py"
    ),
    ".venv/bin/catsdogs forget --samples samples 6a6a0f8c9d1e2f3a4b5c6d7e8f9001020304050607080900010203": Run(
        "there was no sample"
    ),
    **{
        f"{VENV}/catsdogs label {arguments}": Run("--settle", f"{VENV}/catsdogs label --help", whole)
        for arguments, whole in {
            "samples --as Anna": "tests/e2e/test_page_label.py",
            "samples --as Cleo --settle": "tests/e2e/test_page_label.py",
            f"samples --as Anna --import labels.json\n{VENV}/catsdogs label samples --export labels.json": (
                "tests/training/labelling/test_exchange.py"
            ),
        }.items()
    },
    "CATSDOGS_PORT=9000 CATSDOGS_LOG_LEVEL=warning make serve": Run(
        "catsdogs serve",
        "CATSDOGS_PORT=9000 CATSDOGS_LOG_LEVEL=warning make --dry-run serve",
        "tests/serving/test_settings.py",
    ),
    "make test": Run('pytest .* -m "not slow"', "make --dry-run test"),
    "make test-slow": Run("pytest .* -m slow", "make --dry-run test-slow"),
    "make test-containers": Run("pytest .* tests/containers", "make --dry-run test-containers"),
    "make install-dev": Run("pip install", "make --dry-run --always-make install-dev"),
    "make pipeline": Run("dvc repro", "make --dry-run pipeline", "tests/e2e/test_pipeline.py"),
    "make pipeline SOURCE=photos.zip": Run(
        "python -m training.own own .*dvc repro", "make --dry-run pipeline SOURCE=photos.zip", "tests/e2e/test_own.py"
    ),
    'make pipeline SOURCE=photos.zip CLASSES="cats=cat,kitten,0 dogs=dog,puppy,1"': Run(
        "--classes",
        'make --dry-run pipeline SOURCE=photos.zip CLASSES="cats=cat,kitten,0 dogs=dog,puppy,1"',
        "tests/e2e/test_own.py",
    ),
    'make pipeline SOURCE=photos.zip SET="fetch.keep_sides=true train.epochs=2"': Run(
        "--set",
        'make --dry-run pipeline SOURCE=photos.zip SET="fetch.keep_sides=true train.epochs=2"',
        "tests/e2e/test_own.py",
    ),
    "PIP_EXTRA_INDEX_URL=ADDRESS make pipeline": Run(
        "pip install", "PIP_EXTRA_INDEX_URL=ADDRESS make --dry-run --always-make pipeline", "tests/e2e/test_pipeline.py"
    ),
    f"{VENV}/mypy": Run("mypy", f"{VENV}/mypy --version"),
    f"{VENV}/mlflow ui --backend-store-uri sqlite:///mlflow.db": Run("--backend-store-uri", f"{VENV}/mlflow ui --help"),
    f"{VENV}/catsdogs promote --dry-run": Run(
        "--dry-run", f"{VENV}/catsdogs promote --help", "tests/training/promotion/test_promote.py"
    ),
    f"{VENV}/catsdogs promote --dry-run\nmake ship": Run(
        "--dry-run.*catsdogs promote",
        f"{VENV}/catsdogs promote --help; make --dry-run ship",
        "tests/training/promotion/test_promote.py",
    ),
    f"{VENV}/catsdogs gather samples labels.csv": Run(
        "SAMPLES", f"{VENV}/catsdogs gather --help", "tests/training/test_gather.py"
    ),
    "cp serving/models/cats-dogs.int8.onnx before.onnx\n"
    f"{VENV}/python -m training.promotion.shift halve kind.zip shift": Run(
        "OUT/streamed", f"{VENV}/python -m training.promotion.shift halve --help", "tests/e2e/test_loop.py"
    ),
    f"{VENV}/catsdogs collect shift/streamed\n{VENV}/python -m training.promotion.shift labels samples known.csv\n"
    f"{VENV}/catsdogs label samples --as script --import known.csv": Run(
        "POST /feedback", f"{VENV}/python -m training.promotion.shift labels --help", "tests/e2e/test_loop.py"
    ),
    f"{VENV}/python -m training.promotion.shift measure "
    "before.onnx serving/models/cats-dogs.int8.onnx shift/held-back": Run(
        "BEFORE and AFTER", f"{VENV}/python -m training.promotion.shift measure --help", "tests/e2e/test_loop.py"
    ),
    f"{VENV}/catsdogs rollback": Run(
        "rollback", f"{VENV}/catsdogs rollback --help", "tests/training/promotion/test_promote.py"
    ),
    f"{VENV}/catsdogs restore --list\n{VENV}/catsdogs restore 3": Run(
        "--list", f"{VENV}/catsdogs restore --help", "tests/training/promotion/test_promote.py"
    ),
    f"{VENV}/dvc push": Run("dvc push", f"{VENV}/dvc push --help", "tests/e2e/test_dvc.py"),
    f"{VENV}/dvc pull": Run("dvc pull", f"{VENV}/dvc pull --help", "tests/e2e/test_dvc.py"),
    f"{VENV}/dvc exp run -S train.lr=1e-4 -S train.epochs=3": Run(
        "-S", f"{VENV}/dvc exp run --help", "tests/e2e/test_dvc.py"
    ),
    "ops/deploy.sh --sample photos/ ghcr.io/OWNER/REPOSITORY/cats-dogs-inference@sha256:…": Run(
        "--sample", "ops/deploy.sh --help", "tests/containers/test_deploy.py"
    ),
    "ops/deploy.sh --roll-back": Run("--roll-back", "ops/deploy.sh --help", "tests/containers/test_deploy.py"),
    # Below, or with containers.
    "pkill -HUP -x catsdogs": Run(whole="tests/e2e/test_swaps.py"),
    "docker compose up -d --wait": Run(whole="tests/containers/test_compose.py"),
    "CATSDOGS_IMAGE=cats-dogs-inference docker compose up -d --wait --build": Run(
        whole="tests/containers/test_compose.py"
    ),
}
ELSEWHERE: Final = ("pkill", "docker compose")


def commands(text: str) -> list[str]:
    return [block.strip() for language, block in FENCE.findall(text) if language == "bash"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone with the changes of the working tree, in which make has made both environments."""
    folder = tmp_path_factory.mktemp("docs") / "checkout"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True, capture_output=True)
    listed = ["git", "ls-files", "--modified", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name in (".venv", ".venv-dev"):
        (folder / name).symlink_to(sys.prefix)
    (folder / "samples").mkdir()  # as a service makes it
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for seed in range(6):
            archive.writestr(f"{'Cat' if seed % 2 else 'Dog'}/{seed}.jpg", encoded(blobs(seed), "JPEG"))
    return folder


@pytest.fixture(scope="module")
def service(checkout: Path) -> Iterator[Running]:
    """The service that a reader has started before; it keeps a journal."""
    running, stop = start_server(Settings(journal=str(checkout / "journal")))
    running.predict()
    yield running
    stop()


def run(command: str, folder: Path, port: int = 8000) -> str:
    """Run it as a reader does: in the root of the checkout, with no environment activated."""
    left_out = ("CATSDOGS_", "COV", "PYTEST_", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)} | {
        "PATH": ":".join(place for place in os.environ["PATH"].split(":") if Path(place) != BIN),
        # The environment behind the links was made for this checkout's original.
        "PYTHONPATH": str(folder),
        "DVC_NO_ANALYTICS": "1",
    }
    command = command.replace("localhost:8000", f"localhost:{port}").replace("curl ", "curl --silent --fail ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_command_is_in_the_table_and_the_table_has_no_other() -> None:
    assert {command for text in PAGES.values() for command in commands(text)} == set(COMMANDS)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_says_what_it_is(name: str) -> None:
    assert {language for language, _ in FENCE.findall(PAGES[name])} <= {"bash", "json", "text", "yaml"}


@pytest.mark.parametrize("command", [command for command in COMMANDS if not any(word in command for word in ELSEWHERE)])
def test_a_command_runs_in_a_fresh_checkout(command: str, checkout: Path, service: Running) -> None:
    how = COMMANDS[command]
    printed = run(how.instead or command, checkout, service.port)
    assert re.search(how.prints, printed, re.DOTALL), printed


def test_the_drawing_is_the_picture_with_its_evidence(checkout: Path, service: Running) -> None:
    (command,) = [command for command in COMMANDS if "why.png" in command]
    run(command, checkout, service.port)
    with Image.open(checkout / "why.png") as image:
        assert image.size == (448, 298)


def test_the_signal_reaches_the_service_which_goes_on(tmp_path: Path) -> None:
    process: Process = serve(tmp_path).ready()
    # Of all services on this machine, the one that this test started.
    run(f"pkill -HUP -x catsdogs --session {process.process.pid}", ROOT)
    process.ready()
    assert process.stop() == 0


@pytest.mark.parametrize("command", [command for command in COMMANDS if COMMANDS[command].whole])
def test_what_is_not_run_whole_here_is_run_whole_by_a_test_that_is_there(command: str) -> None:
    assert (ROOT / COMMANDS[command].whole).is_file()


@pytest.mark.parametrize("name", PAGES)
def test_an_environment_is_made_before_it_is_used(name: str) -> None:
    for place, makers in MAKES.items():
        used = PAGES[name].find(place)
        said = [PAGES[name].find(maker) for maker in makers]
        assert used < 0 or any(0 <= where < used for where in said), place


@pytest.mark.parametrize("name", PAGES)
def test_the_targets_of_make_exist(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`|= ?\w+ )make ([a-z-]+)", PAGES[name], re.MULTILINE):
        assert re.search(f"^{target}:", makefile, re.MULTILINE), target


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [*PAGES, "SECURITY.md", "CHANGELOG.md"])
def test_its_links_lead_to_what_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if target.startswith(("https://", "../../")):  # the latter GitHub's own pages
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), (target, anchor)


def test_the_readme_names_the_two_commands_first() -> None:
    assert commands(PAGES["README.md"])[:2] == ["make serve", "make test"]
    assert len(PAGES["README.md"].splitlines()) <= 180


def test_limits_are_as_their_table_says() -> None:
    rows = re.findall(
        r"^\|[^|]+\|([^|]+)\|([^|]*`[^|]*)\|$", PAGES["docs/operations.md"].split("## Limits")[1], re.MULTILINE
    )
    assert rows
    for bounds, names in rows:
        for name in re.findall(r"`([\w.]+\.[A-Z_]+)`", names):
            module, _, constant = name.rpartition(".")
            value = getattr(importlib.import_module(f"serving.{module}"), constant)
            assert not isinstance(value, int | float) or f"{value:,.10g}" in bounds, name
        settings = [name.lower() for name in re.findall(r"`CATSDOGS_([A-Z_]+)`", names)]
        assert set(settings) <= set(Settings.__struct_fields__), names


def test_every_error_code_is_on_the_page_of_the_api_with_its_status() -> None:
    for code, (status, _) in CODES.items():
        assert f"| `{code}` | {status} |" in PAGES["docs/api.md"], code
