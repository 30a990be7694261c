"""Search: try values of the ranges that params.yaml has under ``tune``, and show the best ones as a change of the file.

    catsdogs tune                  # 20 trials; one that was interrupted goes on
    catsdogs tune --trials 50      # 30 more

A trial is a training run in a process and a folder of its own, and a nested run in MLflow. Optuna draws its values and
stops it after an epoch in which it is worse than half of the finished trials were. ``data/tune`` holds what was found.
"""

import difflib
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import mlflow
import msgspec
import optuna
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from training import params as parameters
from training import split as splits
from training import stage, tracking
from training.params import Params, Range
from training.stage import StageError

FOLDER: Final = Path("data/tune")
STARTUP: Final = 5  # trials that are finished before one is stopped early
RUN: Final = "mlflow_run_id"
PARAMS: Final = "params.yaml"
SQLITE: Final = "sqlite:///"
DONE: Final = (TrialState.COMPLETE, TrialState.PRUNED)


def tune(params_file: Path, trials: int) -> None:
    """Search until this number of trials is done, and print the best one.

    Raises:
        StageError: there are no ranges, a trial fails, or a process is already training here.
    """
    document = parameters.load(params_file)
    if not document.tune:
        raise StageError(f"{params_file}: nothing to search; give ranges of parameters of `train` under `tune`")
    with stage.alone(stage.TRAINING):
        study = _study(document)
        with tracking.run(study.user_attrs.get(RUN), "tune") as run_id:
            study.set_user_attr(RUN, run_id)
            while (done := len(study.get_trials(deepcopy=False, states=DONE))) < trials:
                trial = study.ask(fixed_distributions={name: _drawn(of) for name, of in document.tune.items()})
                values = ", ".join(f"{name} {value}" for name, value in trial.params.items())
                print(f"trial {done + 1} of {trials}: {values}", flush=True)
                _trial(study, trial, params_file)
            change = _change(params_file, study.best_params)
            mlflow.log_text(change, "best.diff")
            mlflow.log_metric("val_loss", study.best_value)
    print(f"best validation loss: {study.best_value:.4f}, with {'this change' if change else 'the values as they are'}")
    print(change, end="")


def _study(document: Params) -> optuna.Study:
    """The search with this recipe, these ranges and photos; what was interrupted in it comes first."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made_of = [document.train, document.tune, splits.split_digest(splits.read(stage.SPLIT))]
    FOLDER.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(FOLDER / "journal"))),
        study_name=hashlib.sha256(msgspec.json.encode(made_of)).hexdigest(),
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(STARTUP),
    )
    study.sampler = optuna.samplers.TPESampler(seed=document.train.seed + len(study.trials))
    current = {name: tracking.flat(document.train)[name] for name in document.tune}
    if not study.trials and all(current[name] in of for name, of in document.tune.items()):
        study.enqueue_trial(current)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
    return study


def _drawn(of: Range | list[Any]) -> BaseDistribution:
    if isinstance(of, list):
        return CategoricalDistribution(of)
    if isinstance(of.low, int) and isinstance(of.high, int):
        return IntDistribution(of.low, of.high, log=of.log)
    return FloatDistribution(of.low, of.high, log=of.log)


def _trial(study: optuna.Study, trial: optuna.Trial, params_file: Path) -> None:
    around, client = mlflow.active_run(), mlflow.MlflowClient()
    assert around is not None
    if (run_id := trial.user_attrs.get(RUN)) is None:
        tags = {MLFLOW_PARENT_RUN_ID: around.info.run_id}
        run_id = client.create_run(around.info.experiment_id, tags=tags).info.run_id
        trial.set_user_attr(RUN, run_id)
    folder = FOLDER / run_id
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for path in (stage.PREPARED, stage.SPLIT):
        with suppress(FileExistsError):
            (folder / path).symlink_to(path.absolute())
    shutil.copy(params_file, folder / PARAMS)
    for name, value in trial.params.items():
        parameters.assign(folder / PARAMS, f"train.{name}", value)
    losses, stopped = _losses(trial, folder, run_id)
    if stopped:
        client.set_terminated(run_id, "KILLED")
        study.tell(trial, state=TrialState.PRUNED)
        print(f"  stopped early: worse than half of the finished trials after epoch {len(losses)}")
    else:
        study.tell(trial, losses[-1] if math.isfinite(losses[-1]) else math.inf)
    shutil.rmtree(folder)


def _losses(trial: optuna.Trial, folder: Path, run_id: str) -> tuple[list[float], bool]:
    """Train in the folder; returns the validation losses, and whether it was stopped early."""
    client, losses, stopped = mlflow.MlflowClient(), list[float](), False
    epochs = parameters.load(folder / PARAMS).train.epochs
    store = mlflow.get_tracking_uri()
    if store.startswith(SQLITE):
        store = SQLITE + str(Path(store.removeprefix(SQLITE)).absolute())
    environment = os.environ | {"MLFLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-P", "-u", "-m", "training.train"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(f"  {line}", end="", flush=True)
                if not line.startswith("epoch "):
                    continue
                found = {metric.step: metric.value for metric in client.get_metric_history(run_id, "val_loss")}
                for epoch in range(len(losses) + 1, len(found) + 1):
                    losses.append(found[epoch])
                    trial.report(found[epoch], epoch)
                if len(losses) < epochs and trial.should_prune():
                    stopped = True
                    process.terminate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode and not stopped:
        trial.study.tell(trial, state=TrialState.FAIL)
        raise StageError(f"trial {trial.number} failed, as said above; run it again to go on with other values")
    return losses, stopped


def _change(params_file: Path, values: dict[str, Any]) -> str:
    """The difference that these values make to the file; empty if they are its own."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copy(params_file, Path(scratch) / PARAMS))
        parameters.assign(copy, "train.seed", parameters.load(copy).train.seed)  # which writes it in a form of its own
        before = copy.read_text().splitlines(keepends=True)
        for name, value in values.items():
            parameters.assign(copy, f"train.{name}", value)
        after = copy.read_text().splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, str(params_file), f"{params_file} (best)", n=1))
