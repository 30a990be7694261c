"""The rooms of the house, and which of them may enter which."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("shared", "serving", "scoring", "training", "ops")
# Third parties that a room may import; the standard library and the room itself always. Of a package within a room,
# its own line is the one that counts.
ALLOWED = {
    "shared": {"numpy", "obstore", "PIL", "msgspec", "pillow_heif", "ray"},
    "serving": {"shared", "click", "msgspec"},
    "serving/http": {"httptools", "msgspec", "multipart", "starlette", "uvicorn"},
    "serving/engine": {"shared", "msgspec", "numpy"},
    "serving/model": {"shared", "numpy", "onnxruntime", "PIL"},
    "serving/telemetry": {"shared", "aioprometheus", "msgspec", "starlette"},
    "scoring": {"shared", "serving", "click", "msgspec", "numpy", "obstore", "pyarrow", "ray"},
    "ops": {"shared", "click", "httpx", "jinja2", "matplotlib", "msgspec", "numpy", "PIL"},
}  # fmt: skip
# What the benchmark compares the service with is written with these, in environments of their own; `serving` is for
# lanes that answer at once.
BASELINES = ROOT / "ops" / "bench" / "baselines"
COMPARED = {"anyio", "bentoml", "fastapi", "litserve", "onnxruntime", "pydantic", "serving"}
FORBIDDEN = {"training": {"serving", "scoring", "ops"}}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


def loaded(modules: str) -> set[str]:
    """Everything that these modules bring into a process."""
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    packages = [ROOT / other for other in ALLOWED if other.startswith(f"{room}/")]
    for path in modules(room):
        if path.parent in packages:
            continue
        allowed = ALLOWED[room] | (COMPARED if path.is_relative_to(BASELINES) else set())
        strangers = imports_of(path) - set(sys.stdlib_module_names) - allowed - {room.partition("/")[0]}
        assert not strangers, f"{path.relative_to(ROOT)} imports {strangers}"


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_stays_out_of_others(room: str) -> None:
    for path in modules(room):
        assert not imports_of(path) & FORBIDDEN[room], path


def test_every_package_of_the_service_has_a_line() -> None:
    assert {str(path.parent.relative_to(ROOT)) for path in modules("serving")} == {
        room for room in ALLOWED if room.startswith("serving")
    }


def test_the_process_that_talks_brings_in_nothing_that_decodes_or_computes() -> None:
    found = loaded("serving.cli, serving.http.server, serving.model.manager, serving.local")
    assert {"starlette", "uvicorn"} <= found
    assert found.isdisjoint(("numpy", "PIL", "onnxruntime"))


def test_a_lane_brings_in_nothing_that_talks() -> None:
    found = loaded("serving.engine.worker, serving.engine.zygote, serving.engine.wire")
    assert {"numpy", "PIL", "onnxruntime"} <= found
    assert found.isdisjoint(("asyncio", "http", "ssl", "starlette", "uvicorn", "serving.http"))


def test_scoring_on_one_machine_brings_in_nothing_of_a_cluster() -> None:
    assert loaded("scoring.cli, scoring.run").isdisjoint(("ray", "scoring.cluster"))


@pytest.mark.parametrize("package", ["engine", "model", "telemetry"])
def test_what_is_below_http_imports_nothing_of_it(package: str) -> None:
    for path in modules(f"serving/{package}"):
        assert "serving.http" not in path.read_text(), path


def test_no_module_imports_itself_by_way_of_others() -> None:
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for room in ROOMS for path in modules(room)}
    graph = {}
    for name, path in files.items():
        nodes = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        imported = {
            f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            for node in nodes
            for alias in node.names
        } | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        graph[name] = imported & files.keys() - {name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_no_module_is_about_nothing() -> None:
    for room in ROOMS:
        assert not {path.stem for path in modules(room)} & {"utils", "helpers", "common", "misc"}


def test_the_service_starts_and_answers_with_torch_and_its_like_blocked() -> None:
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "onnx", "mlflow", "dvc", "training", "sklearn", "matplotlib"}:
            raise ImportError(f"{name} must not be imported by the service")
sys.meta_path.insert(0, Block())
from serving.http.app import create_app
from serving.cli import main
from serving.model.session import load
from serving.http.server import run
from serving.settings import Settings
create_app(Settings())
print(load(Settings().model_path).contract.version)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_only_pictures_in_the_repository_are_free_of_rights() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True)
    suffixes = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")
    pictures = {name for name in listed.stdout.splitlines() if name.lower().endswith(suffixes)}
    # Those of NOTICE, a screenshot of the page, and a plot.
    assert pictures <= {
        "tests/cat.jpg",
        "serving/web/cat.jpg",
        "serving/web/coffee.jpg",
        "serving/web/dog.jpg",
        ".github/page.png",
        "reports/confusion.png",
    }


def test_no_stage_of_the_pipeline_depends_on_promotion() -> None:
    assert {path.name for path in (ROOT / "training").glob("*.py") if "training.promotion" in path.read_text()} == {
        "cli.py"
    }
