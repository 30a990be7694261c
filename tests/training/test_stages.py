"""What ``dvc.yaml`` says its stages depend on is what they read."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from serving.cli import main
from tests.conftest import ROOT
from tests.training.conftest import write_params

STAGES: Final[dict[str, dict[str, Any]]] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
BEFORE_EXPORT: Final = ("gather", "fetch", "audit", "split", "prepare", "suspects", "train", "train_closer")
FITTED: Final = ("suspects", "train", "train_closer", "export", "quantize")
# What a stage imports and need not declare, since no change to it changes an output: in which stages, and why.
UNDECLARED: Final = {
    "training/__init__.py": (STAGES, "how threads wait, and that MLflow sends nothing home"),
    "training/stage.py": (STAGES, "errors, progress bars, and paths, which dvc.yaml has too"),
    "training/tracking.py": (STAGES, "records of the run, in MLflow"),
    "training/params.py": (STAGES, "reads params.yaml, whose values are declared"),
    "training/machine.py": (STAGES, "what this machine computes with, which no lock can hold"),
    "shared/__init__.py": (STAGES, "empty"),
    "shared/addresses.py": (STAGES, "words of errors"),
    "shared/files.py": (STAGES, "writes whole what it is given"),
    "shared/hardware.py": (STAGES, "counts cores"),
    "shared/contract.py": (BEFORE_EXPORT, "the names of the classes, which are folders of their inputs too"),
    "shared/intervals.py": (BEFORE_EXPORT, "decides what is warned of or refused, and the contract names its type"),
    "shared/metrics.py": (BEFORE_EXPORT, "by way of the contract"),
    "training/plots.py": (FITTED, "how figures look: no reason to train again"),
    "training/audit.py": (("prepare", *FITTED[:3], "evaluate"), "by way of split, for a type"),
    "training/split.py": ((*FITTED, "evaluate"), "reads split.csv, a declared file"),
}  # fmt: skip


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports(file: Path) -> set[Path]:
    """Files of ours that this one imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.split(".")[0] in ("training", "shared")}
    packages = {name.rpartition(".")[0] for name in ours}
    return {found for name in ours | packages - {""} if (found := file_of(name))}


def imported(stage: str) -> set[str]:
    """The stage's own module, and all that it imports directly or by way of others."""
    start = file_of(f"training.{stage.partition('_')[0]}")
    assert start
    found, open_ = {start}, [start]
    while open_:
        new = imports(open_.pop()) - found
        found |= new
        open_ += new
    return {str(path.relative_to(ROOT)) for path in found}


def test_dvc_s_run_cache_brings_no_gathered_picture_back_that_was_forgotten() -> None:
    assert all(about["persist"] for out in STAGES["gather"]["outs"] for about in out.values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_code_that_it_runs(stage: str) -> None:
    undeclared = {path for path, (stages, _) in UNDECLARED.items() if stage in stages}
    assert imported(stage) - undeclared - set(STAGES[stage]["deps"]) == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_no_code_that_it_does_not_run(stage: str) -> None:
    assert {path for path in STAGES[stage]["deps"] if path.endswith(".py")} - imported(stage) == set()


def test_nothing_is_excused_that_no_stage_imports() -> None:
    assert {path for path, (stages, _) in UNDECLARED.items() if not any(path in imported(s) for s in stages)} == set()


# What a stage keeps for its own next run, and what evaluate only puts into MLflow.
KEPT: Final = ("data/decoded/", "data/checkpoints/", "data/training.lock", "reports/suspects.png")
_opened: list[str] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | bytes):
        _opened.append(str(Path(arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]).absolute()))


def installed(path: Path) -> bool:
    """Whether a file belongs to git or an installed package, which may lie in the checkout."""
    return any(part in {".git", "site-packages"} or part.endswith(".egg-info") for part in path.parts)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Every file that this process opens, as it does."""
    global _opened  # noqa: PLW0603  # an audit hook is for good
    if _opened is None:
        sys.addaudithook(_hear)
    _opened = []
    yield _opened
    _opened = None


@pytest.mark.slow
def test_a_stage_declares_the_data_that_it_reads(work: Path, opened: list[str]) -> None:
    write_params(work, suspects={"pretrained": False})
    for stage in ("audit", "split", "suspects", "train", "train_closer", "export", "quantize", "evaluate"):
        opened.clear()
        done = CliRunner().invoke(main, ["train", "--closer"] if stage == "train_closer" else [stage])
        assert done.exit_code == 0, done.output
        places = [Path(path) for path in opened]
        read = {
            str(path.relative_to(home))
            for path in places
            for home in (work, ROOT)
            if path.is_relative_to(home) and path.exists() and path.suffix != ".py" and not installed(path)
        }
        section = STAGES[stage]
        outs = [
            next(iter(out)) if isinstance(out, dict) else out
            for kind in ("outs", "metrics", "plots")
            for out in section.get(kind, [])
        ]
        known = [*section["deps"], *outs, "params.yaml"]
        strange = {path for path in read if not any(path == name or path.startswith(f"{name}/") for name in known)}
        assert {path for path in strange if not path.startswith(KEPT)} == set(), stage
