"""A search: its ranges, and trials that finish, are interrupted, and are stopped early."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from optuna import Study, load_study
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from tests.clusters import Nodes, nodes
from tests.training.conftest import write_params
from training import params
from training.stage import PREPARED, StageError
from training.tune import FOLDER, tune

__all__ = ["nodes"]

SEARCH = "from training import tune; tune.STARTUP = 1; from training.cli import tune; tune()"
NOTHING, NOTHING_EITHER, LEARNS = 1e-9, 2e-9, 3e-3


def search(trials: int, *options: str, until: str = "") -> str:
    """Search, or be interrupted when a line begins so; returns what was printed."""
    printed = ""
    command = [sys.executable, "-c", SEARCH, "--trials", str(trials), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed += line
            if until and line.startswith(until):
                process.send_signal(signal.SIGINT)
    assert (process.returncode != 0) == bool(until), printed
    return printed


def study() -> Study:
    return load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(FOLDER / "journal"))))


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_stops_bad_trials_and_shows_what_the_best_changes(work: Path) -> None:
    write_params(work, train={"epochs": 2, "head_lr": NOTHING})
    params.assign(work / "params.yaml", "tune", {"head_lr": [NOTHING, NOTHING_EITHER, LEARNS]})
    interrupted = search(1, until="  epoch 1: ")
    assert interrupted.startswith(f"trial 1 of 1: head_lr {NOTHING}\n")
    again = search(1)
    assert "  resumed: epoch 2, batch 0" in again
    assert again.endswith("with the values as they are\n")

    study().enqueue_trial({"head_lr": LEARNS})
    study().enqueue_trial({"head_lr": NOTHING_EITHER})
    printed = search(3)
    assert "trial 1 of" not in printed
    assert "  stopped early: worse than half of the finished trials after epoch 1\n" in printed
    change = printed.partition("with this change\n")[2].splitlines()
    assert change[:2] == ["--- params.yaml", "+++ params.yaml (best)"]
    assert [line for line in change[3:] if line[0] != " "] == [f"-  head_lr: {NOTHING}", f"+  head_lr: {LEARNS}"]

    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    around = client.get_run(study().user_attrs["mlflow_run_id"])
    assert around.data.metrics["val_loss"] == study().best_value
    inside = f"tags.mlflow.parentRunId = '{around.info.run_id}'"
    nested: Any = client.search_runs([around.info.experiment_id], inside, order_by=["attributes.start_time"])
    assert [run.info.status for run in nested] == ["FINISHED", "FINISHED", "KILLED"]
    assert [run.data.params["head_lr"] for run in nested] == [str(NOTHING), str(LEARNS), str(NOTHING_EITHER)]
    assert [len(client.get_metric_history(run.info.run_id, "val_loss")) for run in nested] == [2, 2, 1]
    assert [path.name for path in FOLDER.iterdir()] == ["journal"]


@pytest.mark.slow
def test_on_a_cluster_trials_run_side_by_side(work: Path, nodes: Nodes) -> None:
    write_params(work, train={"epochs": 2, "head_lr": NOTHING})
    params.assign(work / "params.yaml", "tune", {"head_lr": [NOTHING, LEARNS]})
    interrupted = search(2, "--ray", nodes.address, until="  trial 2: epoch 1: ").splitlines()
    assert [line.partition(": ")[0] for line in interrupted[:2]] == ["trial 1 of 2", "trial 2 of 2"]
    again = search(2, "--ray", nodes.address)
    assert "  trial 2: resumed: epoch " in again
    assert "best validation loss: " in again
    (first, second) = study().get_trials(states=(TrialState.COMPLETE,))
    assert first.datetime_complete and second.datetime_start and second.datetime_start < first.datetime_complete
    assert [path.name for path in FOLDER.iterdir()] == ["journal"]
    (work / PREPARED).unlink()
    failed = subprocess.run(
        [sys.executable, "-c", SEARCH, "--trials", "3", "--ray", nodes.address],
        capture_output=True, text=True, env=os.environ, check=False,
    )  # fmt: skip
    assert failed.returncode == 2 and "  trial 3: Error: " in failed.stdout
    end = "Error: trial 3: training ended with exit code 2; run it again to go on with other values\n"
    assert failed.stderr.endswith(end)


def test_without_a_cluster_at_the_address_it_says_so(work: Path) -> None:
    params.assign(work / "params.yaml", "tune", {"lr": [1e-3, 1e-4]})
    with socket.socket() as bound:  # which does not listen
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(StageError, match=r"no Ray cluster at .*: .*Connection refused"):
            tune(work / "params.yaml", 1, "{}:{}".format(*bound.getsockname()))


def test_without_ranges_there_is_nothing_to_search(work: Path) -> None:
    params.assign(work / "params.yaml", "tune", {})
    with pytest.raises(StageError, match="give ranges of parameters of `train` under `tune`"):
        tune(work / "params.yaml", 1)


@pytest.mark.parametrize(
    ("ranges", "reason"),
    [
        ({"speed": [1, 2]}, "tune: no parameter 'speed'"),
        ({"lr": {"low": 0.0, "high": 1.0}}, "tune: Expected `float` > 0"),
        ({"lr": {"low": 1e-3, "high": 1e-4}}, "low 0.001 and high 0.0001: no range"),
        ({"weight_decay": {"low": 0.0, "high": 0.1, "log": True}}, "no range on a logarithmic scale"),
        ({"batch_size": []}, "Expected `array` of length >= 1"),
    ],
)
def test_an_impossible_range_is_said_before_anything_runs(work: Path, ranges: dict[str, Any], reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        params.assign(work / "params.yaml", "tune", ranges)
