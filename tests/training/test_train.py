"""Training on generated pictures with the small network: fast, and learnable."""

import hashlib
import json
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from training import balance, labels, tracking, train
from training import split as splits
from training.batch_augmentation import InLoaders, OnDevice
from training.labels import Decision
from training.params import Train
from training.pictures import Pictures
from training.stage import StageError
from training.train import read_trained


def fit(prepared: Path, section: Train, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    photos = splits.read(prepared.parent / "split.csv")
    train.train(prepared, section, folder / "trained", folder / "checkpoints", photos, **options)
    return weights(folder)


def weights(folder: Path, name: str = "weights.pt") -> dict[str, torch.Tensor]:
    read: dict[str, torch.Tensor] = torch.load(folder / "trained" / name, weights_only=True)
    return read


def digest(weights: dict[str, torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("augmenter", [InLoaders, OnDevice])
def test_it_learns_and_keeps_the_weights_of_the_last_epoch(
    prepared: Path, section: Train, in_folder: Path, monkeypatch: pytest.MonkeyPatch, augmenter: type
) -> None:
    monkeypatch.setattr(train, "augmenter", augmenter)
    fit(prepared, msgspec.structs.replace(section, epochs=6), in_folder)
    history = (in_folder / "trained/history.csv").read_text().splitlines()
    column = history[0].split(",").index("val_loss")
    losses = [float(line.split(",")[column]) for line in history[1:]]
    trained = read_trained(in_folder / "trained")
    assert trained["val_loss"] == pytest.approx(losses[-1])
    assert losses[-1] < losses[0]
    assert (trained["model"], trained["side"], trained["epochs"]) == ("simple_cnn", 224, 6)
    assert trained["val_accuracy"] > 0.8
    assert (in_folder / "trained/curves.png").stat().st_size > 5000
    assert list((in_folder / "checkpoints").iterdir()) == []


def test_few_samples_of_production_are_drawn_more_often_than_other_pictures(
    prepared: Path, section: Train, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [path.stem for path in Pictures(prepared / "train").paths]
    samples = set(ids[::20])
    photos = [
        replace(photo, collection="production") if photo.sha256[: labels.ID_LENGTH] in samples else photo
        for photo in splits.read(prepared.parent / "split.csv")
    ]
    drawn: list[int] = []

    def draw(weights: npt.NDArray[np.float64], seed: int) -> list[int]:
        drawn.extend(balance.draw(weights, seed))
        raise InterruptedError

    monkeypatch.setattr(train, "balance", Mock(wraps=balance, draw=draw))
    with pytest.raises(InterruptedError):
        train.train(prepared, section, in_folder / "trained", in_folder / "checkpoints", photos)
    share = sum(ids[index] in samples for index in drawn) / len(drawn)
    assert share == pytest.approx(section.production_share, abs=0.03)
    assert len(samples) / len(ids) < 0.07


def test_the_same_seed_gives_the_same_weights(prepared: Path, section: Train, in_folder: Path) -> None:
    section = msgspec.structs.replace(section, epochs=1)
    one, two = (fit(prepared, section, in_folder / name) for name in ("one", "two"))
    other = fit(prepared, msgspec.structs.replace(section, seed=1), in_folder / "three")
    assert digest(one) == digest(two) != digest(other)
    assert digest(weights(in_folder / "one", "start.pt")) == digest(weights(in_folder / "two", "start.pt"))


def test_what_else_draws_random_numbers_changes_nothing(prepared: Path, section: Train, in_folder: Path) -> None:
    section = msgspec.structs.replace(section, epochs=1)
    torch.manual_seed(1)
    one = fit(prepared, section, in_folder / "one")
    torch.rand(100)
    assert digest(fit(prepared, section, in_folder / "two")) == digest(one)


def test_restart_forgets_the_interrupted_run(
    prepared: Path, section: Train, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = msgspec.structs.replace(section, epochs=1)
    whole = fit(prepared, section, in_folder / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("training.plots.learning_curves", Mock(side_effect=KeyboardInterrupt))
        fit(prepared, section, in_folder / "again")
    checkpoints = list((in_folder / "again/checkpoints").iterdir())
    assert len(checkpoints) == 1
    for path in checkpoints:
        path.write_bytes(b"the remains of something else")
    assert digest(fit(prepared, section, in_folder / "again", restart=True)) == digest(whole)


def test_the_start_is_kept(prepared: Path, section: Train, in_folder: Path) -> None:
    fit(prepared, msgspec.structs.replace(section, epochs=1, lr=1e-12, head_lr=1e-12), in_folder)
    start, still = weights(in_folder, "start.pt"), weights(in_folder)
    learned = [name for name in start if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(start[name], still[name], atol=1e-6) for name in learned)


def test_audited_labels_are_followed_where_the_recipe_says_so(
    prepared: Path, section: Train, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = sorted((prepared / "train/cats").glob("*.webp"))
    decided = {
        first.stem: Decision("0" * 64, "cats", "exclude", "both animals"),
        second.stem: Decision("1" * 64, "cats", "relabel", "a dog"),
    }
    monkeypatch.setattr(labels, "decisions", lambda: decided)
    for audited in (False, True):
        fit(prepared, msgspec.structs.replace(section, epochs=1, audited=audited), in_folder / str(audited))
    count = len(list((prepared / "train").glob("*/*.webp")))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pictures: ")]
    assert [line.split()[1] for line in printed] == [str(count), str(count - 1)]


def test_the_run_is_in_mlflow_with_its_data(prepared: Path, section: Train, in_folder: Path) -> None:
    import mlflow

    fit(prepared, section, in_folder)
    trained = read_trained(in_folder / "trained")
    client = mlflow.MlflowClient()
    run = client.get_run(trained["mlflow_run_id"])
    assert run.data.params["model"] == "simple_cnn"
    assert run.data.params["augmentation.flip"] == "0.5"
    assert torch.__version__.startswith(run.data.tags["version.torch"])
    assert {"device", "precision", "version.cuda", "version.numpy"} <= run.data.tags.keys()
    assert run.data.metrics["val_loss"] == pytest.approx(trained["val_loss"])
    history = client.get_metric_history(run.info.run_id, "val_loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    rates = [metric.value for metric in client.get_metric_history(run.info.run_id, "lr")]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 3
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert "curves.png" in names
    assert run.inputs is not None
    inputs = {source.dataset.name: source.dataset.digest for source in run.inputs.dataset_inputs}
    digest = splits.split_digest(splits.read(prepared.parent / "split.csv"))[:36]
    assert inputs == {f"cats-dogs {side}": digest for side in ("train", "val", "test")}


def test_a_run_that_this_store_does_not_know_is_gone_on_with_in_a_new_one(in_folder: Path) -> None:
    import mlflow

    elsewhere = "0" * 32
    with tracking.run(elsewhere, "export") as run_id:
        mlflow.log_metric("val_loss", 0.02)
    assert run_id != elsewhere
    assert mlflow.MlflowClient().get_run(run_id).data.tags["continues"] == elsewhere
    with tracking.run(run_id) as again:
        assert again == run_id


def test_without_pictures_it_says_what_to_run(tmp_path: Path, section: Train) -> None:
    with pytest.raises(StageError, match="run `catsdogs prepare` first"):
        train.train(tmp_path / "nothing", section, tmp_path / "trained", tmp_path / "checkpoints", [])


def test_without_training_the_next_stage_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="run `catsdogs train` first"):
        read_trained(tmp_path / "trained")


def test_an_older_result_stays_until_the_new_one_is_whole(
    prepared: Path, section: Train, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = msgspec.structs.replace(section, epochs=1)
    before = fit(prepared, section, in_folder)
    monkeypatch.setattr("training.plots.learning_curves", lambda _: pytest.fail("stopped just before the end"))
    with pytest.raises(pytest.fail.Exception):
        fit(prepared, msgspec.structs.replace(section, seed=1), in_folder)
    assert digest(weights(in_folder)) == digest(before)
    assert sorted(path.name for path in in_folder.iterdir()) == ["checkpoints", "trained"]


def test_a_pretrained_network_starts_from_a_probe_that_knows_the_animals(
    prepared: Path, section: Train, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = in_folder / "prepared"
    shutil.copy2(prepared.parent / "split.csv", in_folder)
    for side, each in (("train", 12), ("val", 3)):
        for label in ("cats", "dogs"):
            (some / side / label).mkdir(parents=True)
            for path in sorted((prepared / side / label).iterdir())[:each]:
                shutil.copy2(path, some / side / label)
    section = msgspec.structs.replace(section, model="efficientnet_lite0", pretrained=True, epochs=1, frozen_blocks=16)
    fit(some, section, in_folder)
    printed = capsys.readouterr().out
    assert "head: starts from a linear probe, " in printed
    assert json.loads((in_folder / "trained/trained.json").read_text())["val_accuracy"] >= 5 / 6


def test_a_password_in_the_store_s_address_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@127.0.0.1:9/?token=s3cret")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "")
    with (
        pytest.raises(StageError, match=r"the MLflow store http://\*\*\*@127.0.0.1:9/\?\*\*\* failed") as raised,
        tracking.run(),
    ):
        pass
    assert "s3cret" not in str(raised.value)


def test_an_interrupt_that_breaks_the_store_s_work_is_still_one(in_folder: Path) -> None:
    def work() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise MlflowException("no transaction")

    with pytest.raises(KeyboardInterrupt), tracking.store():
        work()


def test_an_interrupt_in_the_middle_of_the_store_s_work_leaves_no_lock(in_folder: Path) -> None:
    def work() -> None:
        held = sqlite3.connect(os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///"))
        held.execute("BEGIN IMMEDIATE")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tracking.run() as run_id:
        work()
    assert MlflowClient().get_run(run_id).info.status == "FAILED"  # which had to be written
