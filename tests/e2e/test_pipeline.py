"""The whole pipeline through DVC, on generated pictures: fast, and without any data set at hand."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from serving.cli import main
from serving.model import session as models
from serving.model.classify import classify
from shared import contract
from shared.contract import Label, TestMetrics
from shared.pixels import Limits, pixels
from tests.conftest import ROOT, draw_photos
from tests.training.test_gather import Kept
from training import split

pytestmark = pytest.mark.slow

STAGES = (
    "gather",
    "fetch",
    "audit",
    "split",
    "prepare",
    "suspects",
    "train",
    "train_closer",
    "export",
    "quantize",
    "evaluate",
)


CLASS_OF: dict[str, Label] = {"Cat": "cats", "Dog": "dogs"}
SAMPLES = 30  # of each animal, so that some are on each side whatever their digests


def run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run a program of this environment in the folder, as `make pipeline` would."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "DVC_NO_ANALYTICS": "1",
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def checkout(folder: Path, source: list[str], others: Sequence[str] = (), **train: object) -> Path:
    """A copy of what the pipeline depends on, with parameters for a small run."""
    folder.mkdir()
    for name in ("shared", "training"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    params["fetch"]["source"] = source
    params["train"] |= train
    params["closer"] = None
    params["export"]["others"] = [*others]
    params["export"]["corrupted"]["photos"] = 4
    params["evaluate"] |= {"timed": 20, "covered": 20, "corrupted": 4}
    if params["train"]["model"] == "simple_cnn":
        params["suspects"]["pretrained"] = False
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    assert run(folder, "dvc", "init", "--no-scm", "--quiet").returncode == 0
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    photos = draw_photos(folder / "photos", 60 + SAMPLES)
    kept = Kept(folder)
    for number in range(60, 60 + SAMPLES):
        for name, label in CLASS_OF.items():
            path = photos / f"PetImages/{name}/{number}.jpg"
            kept.keep(f"{name}{number}", "unsure" if number % 2 else "random", picture=pixels(path.read_bytes()))
            kept.label({f"{name}{number}": label})
            path.unlink()
    shutil.copy(photos / "PetImages/Cat/3.jpg", photos / "PetImages/Cat/copy of 3.jpg")
    shutil.copy(photos / "PetImages/Cat/4.jpg", photos / "PetImages/Dog/a cat.jpg")
    (photos / "PetImages/Cat/666.jpg").write_bytes(b"")
    work = checkout(folder / "work", ["../photos"], model="simple_cnn", epochs=8, head_lr=3e-3, weight_average=0.9)
    for command in (("catsdogs", "gather", "../samples", "../labels.csv"), ("dvc", "repro")):
        done = run(work, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    return work


def report(folder: Path, name: str) -> "dict[str, Any]":
    document: dict[str, Any] = json.loads((folder / "reports" / name).read_text())
    return document


def test_every_stage_leaves_its_outputs(finished: Path) -> None:
    audit = report(finished, "audit.json")
    assert audit["corrupt"] == {"cats": 1, "dogs": 0}
    assert audit["duplicate"] == {"cats": 1, "dogs": 0}
    assert audit["cross_class"] == {"cats": 1, "dogs": 1}
    sides = report(finished, "split.json")
    of_photos = sides["collections"]["photos"]
    assert sum(count for side in ("train", "val", "test") for count in of_photos[side].values()) == 119
    prepared = sum(count for side in ("train", "val", "test") for count in sides[side].values())
    assert len(list((finished / "data/processed_split").glob("*/*/*.webp"))) == prepared
    assert list((finished / "models/closer").iterdir()) == []  # the first network looks again
    for name in ("confusion.png", "worst.png", "predictions.csv", "ablation.json", "suspects.json", "model-card.md"):
        assert (finished / "reports" / name).stat().st_size > 0


def test_the_reports_are_whole_pages_and_only_the_one_that_stays_has_photos(finished: Path) -> None:
    inside, public = (
        (finished / "reports" / f"{name}.html").read_text() for name in ("report", "report-without-photos")
    )
    for page in (inside, public):
        assert page.count("<svg") >= 7
        assert not re.findall(
            r"""(?:src|href)=["'](?!data:|#|https://arxiv)[^"']*""", page
        )  # nothing loaded from elsewhere
        for section in (
            "Answers",
            "The second look",
            "Robustness",
            "Slices",
            "What each part gains",
            "The worst mistakes",
        ):
            assert section in page
    assert '<img src="data:image/png' in inside
    assert "<img" not in public


def test_the_report_and_the_card_list_the_collections_with_their_terms(finished: Path) -> None:
    counts = report(finished, "split.json")["collections"]["photos"]
    sides = " | ".join(f"{counts[side]['cats']} / {counts[side]['dogs']}" for side in ("train", "val", "test"))
    row = f"| photos | not stated | not stated | 62 / 61 | 59 / 60 | {sides} | 0 / 0 | 0 / 0 |"
    assert row in (finished / "reports/model-card.md").read_text()
    assert "<tr><td>photos</td><td>not stated</td>" in (finished / "reports/report.html").read_text()


def test_both_precisions_ship_with_contracts_of_their_own(finished: Path) -> None:
    for name, precision in (("model.onnx", "fp32"), ("model.int8.onnx", "int8")):
        served = models.load(finished / "models" / name)
        assert served.contract.precision == precision
        assert served.contract.test is not None and served.contract.test.audited is not None
    assert report(finished, "metrics.int8.json")["megabytes"] < report(finished, "metrics.json")["megabytes"]


def test_what_production_met_has_test_sides_of_its_own_in_reports_and_contracts(finished: Path) -> None:
    sides = report(finished, "split.json")
    assert sum(count for side in sides["collections"]["production"].values() for count in side.values()) == 2 * SAMPLES
    assert sides["collections"]["production"]["test"] == {"cats": 0, "dogs": 0}
    card, page = ((finished / "reports" / name).read_text() for name in ("model-card.md", "report.html"))
    for name, file in (("metrics.json", "model.onnx"), ("metrics.int8.json", "model.int8.onnx")):
        figures = report(finished, name)["from_production"]
        document = models.load(finished / "models" / file).contract
        for side, promised in (("production", document.production), ("hard", document.hard)):
            count = sum(sides[side].values())
            assert isinstance(promised, TestMetrics)
            assert figures[side]["pictures"] == promised.pictures == sum(map(sum, promised.confusion)) == count > 0
            assert figures[side]["accuracy"]["value"] == promised.accuracy.value
            assert f"\n| {side} | {count} | " in card
            assert f'<td>{side}</td><td class="n">{count}</td>' in page


def test_the_ablation_names_every_part_and_compares_it_with_the_first_look(finished: Path) -> None:
    rows = {row["name"]: row for row in report(finished, "ablation.json")["rows"]}
    assert list(rows) == [
        "linear probe on the untouched trunk",
        "first look alone",
        "second network alone, whole picture",
        "second look at (1.0)",
        "second look at (1.0, 0.6)",
        "second look at (1.0, 0.6, 0.45)",
        "the file that serves, int8",
    ]
    assert [name for name, row in rows.items() if row["against_first"] is None] == ["first look alone"]
    shares = [row["looked_again"]["value"] for row in rows.values()]
    assert shares[:3] == [0, 0, 1]
    assert 0 < shares[3] == shares[4] == shares[5] < 1


def test_robustness_and_slices_are_measured_for_both_files_with_intervals(finished: Path) -> None:
    for name in ("metrics.json", "metrics.int8.json"):
        figures = report(finished, name)
        assert len(figures["robustness"]) == 75
        cell = figures["robustness"]["upside down 3"]
        assert (cell["severity"], cell["photos"]) == (3, 4)
        assert all({"value", "low", "high"} == cell[what].keys() for what in ("accuracy", "wrong_when_answered"))
        shares = [row["accuracy"]["value"] for row in figures["slices"]]
        assert shares == sorted(shares)
        assert "collection" in {row["by"] for row in figures["slices"]}


def test_every_figure_in_the_documents_says_on_which_labels(finished: Path) -> None:
    card = (finished / "reports/model-card.md").read_text()
    page = (finished / "reports/report-without-photos.html").read_text()
    for row in re.findall(r"^\| ((?:right|log loss|calibration error|answered wrongly)[^|]*) \|", card, re.M):
        assert "original labels" in row or "audited labels" in row, row
    for row in re.findall(r"<tr><td>((?:right|log loss|answered wrongly)[^<]*)</td>", page):
        assert "original labels" in row or "audited labels" in row, row
    for section in ("Corrupted photos", "Slices"):
        assert "audited labels" in card.split(f"## {section}")[1].split("\n## ")[0], section


def test_the_model_learned_and_says_so_itself(finished: Path) -> None:
    metrics = report(finished, "metrics.json")
    assert metrics["accuracy"]["value"] >= 0.8
    file = onnx.load(finished / "models/model.onnx")
    document = contract.loads({entry.key: entry.value for entry in file.metadata_props})
    assert document.test is not None
    assert document.test.accuracy.value == metrics["accuracy"]["value"]
    assert msgspec.to_builtins(document.test.when_answered) == metrics["accuracy_when_answered"]
    assert document.architecture == "simple_cnn"


def test_the_service_takes_the_model_and_answers_like_the_evaluation(finished: Path) -> None:
    model = models.load(finished / "models/model.onnx")
    paths = {photo.sha256[:20]: photo.path for photo in split.read(finished / "data/split.csv")}
    rows = (finished / "reports/predictions.csv").read_text().splitlines()[1:]
    for row in rows:
        photo, _, _, dogs, *_ = row.split(",")
        data = (finished / "data/raw" / paths[photo]).read_bytes()
        answer = classify(model, data, Limits())
        assert answer.dogs == pytest.approx(float(dogs), abs=1e-5)


def test_a_second_run_does_nothing(finished: Path) -> None:
    done = run(finished, "dvc", "repro")
    assert done.returncode == 0
    assert "Data and pipelines are up to date." in done.stdout
    assert "Running stage" not in done.stdout


def test_the_drawing_is_the_design_s(finished: Path) -> None:
    edges = run(finished, "dvc", "dag", "--dot").stdout
    expected = set(itertools.pairwise(STAGES)) - {("train", "train_closer")}
    for before, after in expected | {("suspects", "train_closer"), ("train", "export")}:
        assert f'"{before}" -> "{after}"' in edges


def test_a_changed_parameter_reruns_only_what_depends_on_it(finished: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    params = work / "params.yaml"
    params.write_text(re.sub(r"answered_error: \S+", "answered_error: 0.1", params.read_text()))
    status = run(work, "dvc", "status").stdout
    assert "export:" in status
    assert not any(f"{stage}:\n" in status for stage in ("fetch", "audit", "split", "prepare", "train"))


def test_mlflow_has_the_run_and_the_report(finished: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{finished}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "cats-dogs"]
    runs = client.search_runs([experiment.experiment_id])
    (found,) = runs
    assert found.info.status == "FINISHED"
    measured = {"val_loss", "val_accuracy", "test_accuracy_fp32", "test_log_loss_int8", "temperature"}
    assert measured <= set(found.data.metrics)
    assert {"test_looked_again_int8", "milliseconds_mean_fp32"} <= set(found.data.metrics)
    artifacts = {file.path for file in client.list_artifacts(found.info.run_id, "report")}
    assert {"report/confusion.png", "report/worst.png", "report/metrics.json"} <= artifacts


def test_a_stage_without_its_input_says_which_to_run(in_folder: Path) -> None:
    shutil.copy(ROOT / "params.yaml", in_folder)
    for stage, hint in (
        ("audit", "fetch"),
        ("split", "audit"),
        ("prepare", "split"),
        ("suspects", "prepare"),
        ("export", "train"),
        ("quantize", "train"),
        ("evaluate", "train"),
    ):
        done = CliRunner().invoke(main, [stage])
        assert done.exit_code == 2
        assert f"run `catsdogs {hint}` first" in done.stderr


def test_real_photographs_from_zip_to_verdict(tmp_path: Path, photos: list[tuple[str, bytes]]) -> None:
    import zipfile

    from tests.conftest import PHOTOS

    with zipfile.ZipFile(PHOTOS) as archive, zipfile.ZipFile(tmp_path / "some.zip", "w") as some:
        for folder in ("Cat", "Dog"):
            names = [name for name in archive.namelist() if f"/{folder}/" in name][:160]
            for name in names:
                some.writestr(name, archive.read(name))
    others = [
        str(PHOTOS.with_name("not-pets.zip"))
    ]  # or what shows nothing would look familiar after so little training
    work = checkout(tmp_path / "work", ["../some.zip"], others, epochs=1, probe_pictures=300)
    done = run(work, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert report(work, "metrics.json")["accuracy"]["value"] >= 0.9
    model = models.load(work / "models/model.onnx")
    right = sum(classify(model, data, Limits()).label == label for label, data in photos)
    assert right >= 0.9 * len(photos)
