"""Promotion with real files, real photos of a test side, and a real MLflow store."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image

from shared.contract import Precision
from shared.files import write_json, write_whole
from shared.pixels import SIZE
from tests.conftest import ROOT
from tests.training.promotion.redness import BLUE, EACH, Redness, as_fast
from training.promotion import match
from training.promotion.promote import PIPELINE

Make = Callable[..., None]
LOG_MODEL = mlflow.onnx.log_model


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with tables and nothing in them; making the tables takes seconds, copying them does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def test_side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder data/ after the split, with photos of the test side only."""
    data = tmp_path_factory.mktemp("test side") / "data"
    rows = ["path,label,collection,side,sha256"]
    for photo in range(2 * EACH):
        label = "cats" if photo < EACH else "dogs"
        picture = np.full((SIZE, SIZE, 3), (photo // 2, 90, BLUE), np.uint8)
        picture[::2, :, 0] += photo % 2
        path = data / "raw" / "drawn" / f"{photo}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, compress_level=1)
        rows.append(f"drawn/{photo}.png,{label},drawn,test,{photo:020}{'0' * 44}")
    (data / "split.csv").write_text("\n".join(rows) + "\n")
    return data


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path, test_side: Path) -> Path:
    """A folder where the pipeline has split off a test side, with a registry of its own."""
    monkeypatch.setattr(match, "typical_seconds", as_fast)
    # Writing and trying out the example of a version takes half of its time; test_the_registry_s_model_… does it once.
    monkeypatch.setattr("mlflow.onnx.log_model", lambda *of, **more: LOG_MODEL(*of, **more | {"input_example": None}))
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    # Links save a second for each test; the table is one that tests write to.
    shutil.copytree(test_side, tmp_path / "data", copy_function=lambda source, to: Path(to).hardlink_to(source))
    table = tmp_path / "data" / "split.csv"
    table.unlink()
    shutil.copy(test_side / "split.csv", table)
    return tmp_path


@pytest.fixture
def make(work: Path) -> Make:
    """Stand in for `dvc repro`: write a model, an int8 one if that is given, and their reports."""

    def write(
        fp32: Redness | None = None,
        int8: Redness | None = None,
        report: Mapping[str, Any] | None = None,
        **provenance: str,
    ) -> None:
        models: dict[Precision, Redness | None] = {"fp32": fp32 or Redness(), "int8": int8}
        for precision, model in models.items():
            path, figures = PIPELINE[precision]
            path.unlink(missing_ok=True)
            if model:
                write_whole(path, model.file(precision, **provenance))
                write_json(figures, {"version": f"2026.11.23-redness-{precision}", **(report or {})})

    return write


@pytest.fixture
def others(work: Path) -> Path:
    """Photos of other things, where params.yaml says they are; a file is asked about a hundred of them or so."""
    folder = work / "data" / "sources" / "not-pets.zip"
    folder.mkdir(parents=True)
    for photo in range(500):
        Image.new("RGB", (32, 32), (photo // 2, 90, 200 + photo % 2)).save(folder / f"{photo}.png")
    return folder
