"""Training on generated pictures with the small network: fast, and learnable."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
import torch

from training import fit as fitting
from training import labels, models, tracking, train
from training.augmentation import degrade
from training.fit import greedy_soup
from training.labels import Decision
from training.machine import choose_machine
from training.params import Train, Variation
from training.pictures import Pictures
from training.stage import StageError
from training.train import read_trained


def fit(prepared: Path, section: Train, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    train.train(prepared, section, folder / "trained", folder / "checkpoints", "digest", **options)
    return weights(folder)


def weights(folder: Path, name: str = "weights.pt") -> dict[str, torch.Tensor]:
    read: dict[str, torch.Tensor] = torch.load(folder / "trained" / name, weights_only=True)
    return read


def digest(weights: dict[str, torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


def variation(name: str, **changes: object) -> Variation:
    return Variation(name, {key.replace("__", "."): value for key, value in changes.items()})


def test_it_learns_and_keeps_the_best_epoch(prepared: Path, section: Train, in_folder: Path) -> None:
    fit(prepared, msgspec.structs.replace(section, epochs=6), in_folder)
    history = (in_folder / "trained/history.csv").read_text().splitlines()
    column = history[0].split(",").index("val_loss")
    losses = [float(line.split(",")[column]) for line in history[1:]]
    trained = read_trained(in_folder / "trained")
    assert trained["val_loss"] == pytest.approx(min(losses))
    assert min(losses) < losses[0]
    assert [member["epoch"] for member in trained["members"]] == [losses.index(min(losses)) + 1]
    assert trained["val_accuracy"] > 0.8
    assert (in_folder / "trained/curves.png").stat().st_size > 5000
    assert list((in_folder / "checkpoints").iterdir()) == []


def test_the_same_seed_gives_the_same_weights(prepared: Path, section: Train, in_folder: Path) -> None:
    section = msgspec.structs.replace(section, epochs=1, soup=(variation("second", seed=3),))
    one, two = (fit(prepared, section, in_folder / name) for name in ("one", "two"))
    other = fit(prepared, msgspec.structs.replace(section, seed=1), in_folder / "three")
    assert digest(one) == digest(two) != digest(other)
    for member in ("members/0.pt", "members/1.pt", "members/2.pt"):
        assert digest(weights(in_folder / "one", member)) == digest(weights(in_folder / "two", member))


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
    assert len(checkpoints) == 2
    for path in checkpoints:
        path.write_bytes(b"the remains of something else")
    assert digest(fit(prepared, section, in_folder / "again", restart=True)) == digest(whole)


def judged(prepared: Path, weights: dict[str, torch.Tensor]) -> float:
    """Log loss on the validation photos, as they are and degraded: what the average is chosen by."""
    model = models.build("simple_cnn", pretrained=False)
    model.load_state_dict(weights)
    sides = (Pictures(prepared / "val", transform) for transform in (None, degrade))
    outputs = [train.predict_logits(model, side, choose_machine(), "judging") for side in sides]
    return sum(float(torch.nn.functional.cross_entropy(*output)) for output in outputs) / 2


def test_a_soup_is_kept_where_validation_gains_from_it(prepared: Path, section: Train, in_folder: Path) -> None:
    import mlflow

    soup = (variation("slower", epochs=2, lr=1e-3), variation("wider crops", seed=5, augmentation__crop_scale=[0.3, 1]))
    kept = fit(prepared, msgspec.structs.replace(section, soup=soup), in_folder)
    trained = read_trained(in_folder / "trained")
    members = trained["members"]
    assert [member["name"] for member in members] == ["fine-tuned", "slower", "wider crops"]
    losses = [judged(prepared, weights(in_folder, f"members/{number}.pt")) for number in (1, 2, 3)]
    assert judged(prepared, kept) <= min(losses) + 1e-6
    mixed = fitting.average(
        [weights(in_folder, f"members/{number}.pt") for number, member in enumerate(members, 1) if member["kept"]]
    )
    assert all(torch.allclose(mixed[name].double(), kept[name].double(), atol=1e-6) for name in kept)
    nested = mlflow.search_runs(search_all_experiments=True, output_format="list")
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in nested}
    assert [parents[member["mlflow_run_id"]] for member in members] == [trained["mlflow_run_id"]] * 3
    rows = [line.split(",")[:3] for line in (in_folder / "trained/history.csv").read_text().splitlines()[1:]]
    epochs = [("fine-tuned", 1), ("fine-tuned", 2), ("fine-tuned", 3), ("slower", 1), ("slower", 2)]
    epochs += [("wider crops", 1), ("wider crops", 2), ("wider crops", 3)]
    assert rows == [[str(count), name, str(epoch)] for count, (name, epoch) in enumerate(epochs, 1)]


def test_the_start_is_kept_and_is_every_member_s(prepared: Path, section: Train, in_folder: Path) -> None:
    section = msgspec.structs.replace(section, epochs=1, soup=(variation("still", lr=1e-12, head_lr=1e-12),))
    fit(prepared, section, in_folder)
    start, still = (weights(in_folder, f"members/{number}.pt") for number in (0, 2))
    learned = [name for name in start if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(start[name], still[name], atol=1e-6) for name in learned)


def test_a_member_follows_the_audited_labels_where_it_is_told_to(
    prepared: Path, section: Train, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = sorted((prepared / "train/cats").glob("*.png"))
    decided = {
        first.stem: Decision("0" * 64, "cats", "exclude", "both animals"),
        second.stem: Decision("1" * 64, "cats", "relabel", "a dog"),
    }
    monkeypatch.setattr(labels, "decisions", lambda: decided)
    section = msgspec.structs.replace(section, epochs=1, soup=(variation("audited", audited=True),))
    fit(prepared, section, in_folder)
    count = len(list((prepared / "train").glob("*/*.png")))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pictures: ")]
    assert [line.split()[1] for line in printed] == [str(count), str(count - 1)]


def test_averaging_is_the_mean_of_each_weight() -> None:
    one = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    other = {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor(3)}
    assert torch.equal(fitting.average([one, other])["w"], torch.tensor([2.0, 4.0]))
    assert torch.equal(fitting.average([one, other])["n"], torch.tensor(3))


@pytest.mark.parametrize(
    ("members", "best", "chosen", "value"),
    [
        ([4.0], 0.0, [0], 4.0),
        ([0.0, 3.0, 10.0], 1.0, [0, 1], 1.5),  # the third would make it worse
        ([10.0, 3.0, 0.0], 1.0, [2, 1], 1.5),  # whatever the order they come in
        ([1.0, 0.0, 2.0], 1.0, [0], 1.0),  # perfect alone
        ([1.1, -3.0, 4.7], 1.0, [0], 1.1),  # all three would be better still, but greed adds one at a time
        ([0.2, 2.0, 1.3], 1.0, [2, 0, 1], 3.5 / 3),
    ],
)
def test_the_soup_starts_with_the_best_and_takes_who_helps(
    members: list[float], best: float, chosen: list[int], value: float
) -> None:
    found, mixed = greedy_soup(
        [{"w": torch.tensor(w)} for w in members], lambda weights: abs(float(weights["w"]) - best)
    )
    assert found == chosen
    assert float(mixed["w"]) == pytest.approx(value)


def test_the_run_is_in_mlflow_with_its_data(prepared: Path, section: Train, in_folder: Path) -> None:
    import mlflow

    fit(prepared, section, in_folder)
    trained = read_trained(in_folder / "trained")
    client = mlflow.MlflowClient()
    parent, member = (client.get_run(part["mlflow_run_id"]) for part in (trained, trained["members"][0]))
    assert parent.data.params["model"] == "simple_cnn"
    assert parent.data.params["augmentation.flip"] == "0.5"
    assert torch.__version__.startswith(parent.data.tags["version.torch"])
    assert {"device", "precision", "version.cuda", "version.numpy"} <= parent.data.tags.keys()
    assert parent.data.metrics["val_loss"] == pytest.approx(trained["val_loss"])
    history = client.get_metric_history(member.info.run_id, "val_loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    rates = [metric.value for metric in client.get_metric_history(member.info.run_id, "lr")]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 3
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"curves.png", "validation_confusion.png"} <= names
    assert parent.inputs is not None
    inputs = {source.dataset.name: source.dataset.digest for source in parent.inputs.dataset_inputs}
    assert inputs == {f"cats-dogs {side}": "digest" for side in ("train", "val", "test")}


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
        fit(tmp_path / "nothing", section, tmp_path)


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
