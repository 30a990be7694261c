"""What runs leave in the store that promotion reads."""

import json
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from tests.training.promotion.redness import client
from tests.waiting import until
from training import stage, tracking
from training.split import SIDES
from training.stage import StageError


def test_each_side_s_photos_are_inputs_of_the_run_with_the_split_s_digest(work: Path) -> None:
    for side in SIDES:
        for label, number in (("cats", 1), ("dogs", 2)):
            (stage.PREPARED / side / label).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(stage.PREPARED / side / label / f"{number}.webp")
    with tracking.run(name="training") as run_id:
        tracking.log_dataset(stage.PREPARED, "ab" * 32)
    inputs = client().get_run(run_id).inputs
    assert inputs is not None
    found = {
        tag.value: entry for entry in inputs.dataset_inputs for tag in entry.tags if tag.key == "mlflow.data.context"
    }
    assert sorted(found) == ["test", "train", "val"]
    for side, entry in found.items():
        assert entry.dataset.name == f"cats-dogs {side}"
        assert entry.dataset.digest == ("ab" * 32)[:36]
        assert json.loads(str(entry.dataset.profile))["num_rows"] == 2
        assert ("split_digest", "ab" * 32) in {(tag.key, tag.value) for tag in entry.tags}


def test_the_machine_is_watched_while_a_run_goes_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with tracking.run(name="training") as run_id:
        until(lambda: client().get_run(run_id).data.metrics)
    assert "system/cpu_utilization_percentage" in client().get_run(run_id).data.metrics


def test_a_store_that_dies_while_a_run_goes_on_is_a_clear_error(work: Path) -> None:
    with pytest.raises(StageError, match=r"the MLflow store sqlite:.* failed"), tracking.run(name="training"):
        (work / "mlflow.db").write_bytes(b"no database" * 100)
        mlflow.log_metric("loss", 1.0)
    assert mlflow.active_run() is None


def test_an_error_of_the_work_itself_passes_through_a_run_unchanged(work: Path) -> None:
    with pytest.raises(StageError, match=r"^no photos$"), tracking.run(name="training"):
        raise StageError("no photos")
