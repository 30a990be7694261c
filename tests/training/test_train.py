"""Training on generated pictures with the small network: fast, and learnable."""

import hashlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest
import torch

from tests.conftest import ROOT, draw_photos
from training import fit as fitting
from training import params, train
from training.audit import audit
from training.params import Train, Variation
from training.prepare import prepare
from training.split import split
from training.stage import StageError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    from training.fetch import fetch

    fetch([str(draw_photos(folder / "photos", 60))], folder / "raw")
    photos = split(audit(folder / "raw", folder / "audit.csv", 0.97), folder / "split.csv", 0.7, 0.15)
    prepare(photos, folder / "raw", folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def section() -> Train:
    section = params.load(ROOT / "params.yaml").train
    return msgspec.structs.replace(
        section,
        model="simple_cnn",
        epochs=3,
        batch_size=16,
        head_lr=3e-3,
        weight_average=0.9,
        checkpoint_minutes=1e-6,
        soup=(),
    )


def fit(prepared: Path, section: Train, folder: Path, **options: bool) -> dict[str, torch.Tensor]:
    train.train(prepared, section, folder / "trained", folder / "checkpoints", "digest", **options)
    weights: dict[str, torch.Tensor] = torch.load(folder / "trained/weights.pt", weights_only=True)
    return weights


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns_and_keeps_the_best_epoch(prepared: Path, section: Train, in_folder: Path) -> None:
    fit(prepared, msgspec.structs.replace(section, epochs=6), in_folder)
    history = (in_folder / "trained/history.csv").read_text().splitlines()
    losses = [float(line.split(",")[3]) for line in history[1:]]
    trained = json.loads((in_folder / "trained/trained.json").read_text())
    assert trained["val_loss"] == min(losses) < losses[0]
    assert [member["epoch"] for member in trained["members"]] == [losses.index(min(losses)) + 1]
    assert trained["val_accuracy"] > 0.8
    assert (in_folder / "trained/curves.png").stat().st_size > 5000
    assert list((in_folder / "checkpoints").iterdir()) == []


def test_the_same_seed_gives_the_same_weights(prepared: Path, section: Train, in_folder: Path) -> None:
    section = msgspec.structs.replace(section, epochs=1)
    one, two = (fit(prepared, section, in_folder / name) for name in ("one", "two"))
    other = fit(prepared, msgspec.structs.replace(section, seed=1), in_folder / "three")
    assert equal(one, two)
    assert not equal(one, other)


def test_a_killed_run_goes_on_to_the_same_result(
    prepared: Path, section: Train, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(prepared, section, in_folder / "whole")

    context = multiprocessing.get_context("spawn")
    process = context.Process(target=fit, args=(prepared, section, in_folder / "cut"))
    process.start()
    deadline = time.monotonic() + 120
    # Somewhere in the second epoch: the first one's end has been written, and checkpoints come with every batch.
    while time.monotonic() < deadline and not _epochs_saved(in_folder / "cut/checkpoints"):
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (in_folder / "cut/trained").exists()

    capsys.readouterr()
    assert equal(fit(prepared, section, in_folder / "cut"), whole)
    assert "resumed: epoch" in capsys.readouterr().out


def _epochs_saved(folder: Path) -> int:
    try:
        files = [path for path in folder.iterdir() if path.suffix == ".pt"]
        return len(torch.load(files[0], weights_only=True)["history"]) if files else 0
    except OSError:
        return 0


def test_restart_forgets_the_interrupted_run(prepared: Path, section: Train, in_folder: Path) -> None:
    section = msgspec.structs.replace(section, epochs=1)
    whole = fit(prepared, section, in_folder / "whole")
    identity = hashlib.sha256(msgspec.json.encode(section) + b"digest").hexdigest()
    (in_folder / "again/checkpoints").mkdir(parents=True)
    (in_folder / f"again/checkpoints/{identity[:16]}.pt").write_bytes(b"the remains of something else")
    assert equal(fit(prepared, section, in_folder / "again", restart=True), whole)


def test_a_soup_is_kept_where_validation_gains_from_it(prepared: Path, section: Train, in_folder: Path) -> None:
    import mlflow

    section = msgspec.structs.replace(section, soup=(Variation(epochs=2, lr=1e-3), Variation(seed=5)))
    weights = fit(prepared, section, in_folder)
    trained = json.loads((in_folder / "trained/trained.json").read_text())
    assert len(trained["members"]) == 3
    assert trained["val_loss"] <= min(member["val_loss"] for member in trained["members"]) + 1e-9
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    nested = mlflow.search_runs(search_all_experiments=True, output_format="list")
    parents = [run.data.tags.get("mlflow.parentRunId") for run in nested]
    assert parents.count(trained["mlflow_run_id"]) == 2


def test_averaging_is_the_mean_of_each_weight() -> None:
    one = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    other = {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor(3)}
    assert torch.equal(fitting.average([one, other])["w"], torch.tensor([2.0, 4.0]))
    assert torch.equal(fitting.average([one, other])["n"], torch.tensor(3))


def test_the_run_is_in_mlflow(prepared: Path, section: Train, in_folder: Path) -> None:
    import mlflow

    fit(prepared, section, in_folder)
    run_id = json.loads((in_folder / "trained/trained.json").read_text())["mlflow_run_id"]
    run = mlflow.get_run(run_id)
    assert run.data.params["model"] == "simple_cnn"
    assert run.data.params["augmentation.flip"] == "0.5"
    client = mlflow.MlflowClient()
    assert [metric.step for metric in client.get_metric_history(run_id, "val_loss")] == [1, 2, 3]
    assert {"curves.png", "validation_confusion.png"} <= {file.path for file in client.list_artifacts(run_id)}


def test_without_pictures_it_says_what_to_run(tmp_path: Path, section: Train) -> None:
    with pytest.raises(StageError, match="run `catsdogs prepare` first"):
        fit(tmp_path / "nothing", section, tmp_path)


def test_augmentation_is_for_training_only_and_the_same_whoever_draws_it(prepared: Path, section: Train) -> None:
    from training.augmentation import augmentation
    from training.pictures import Pictures

    plain = Pictures(prepared / "train")
    augmented = Pictures(prepared / "train", augmentation(section.augmentation), seed=5)
    again = Pictures(prepared / "train", augmentation(section.augmentation), seed=5)
    later = Pictures(prepared / "train", augmentation(section.augmentation), seed=6)
    assert torch.equal(plain[3][0], plain[3][0])
    assert torch.equal(augmented[3][0], again[3][0])
    assert not torch.equal(augmented[3][0], plain[3][0])
    assert not torch.equal(augmented[3][0], later[3][0])
    assert augmented[3][0].shape == (3, 224, 224)
    assert augmented[3][0].dtype == torch.uint8
