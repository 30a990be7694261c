"""Search: try values of the ranges that params.yaml has under ``tune``, and show the best ones as a change of the file.

    catsdogs tune                  # 20 trials; one that was interrupted goes on
    catsdogs tune --trials 50      # 30 more
    catsdogs tune --ray auto       # a trial on each GPU or machine of a Ray cluster at the same time

A trial is a training run in a process and a folder of its own, and a nested run in MLflow. Optuna draws its values and
stops it after an epoch in which it is worse than half of the finished trials were. ``data/tune`` holds what was found.
"""

import difflib
import hashlib
import math
import re
import shutil
import tempfile
from collections.abc import Hashable
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
from training.trials import Cluster, Ended, Here, Machines

FOLDER: Final = Path("data/tune")
STARTUP: Final = 5  # trials that are finished before one is stopped early
RUN: Final = "mlflow_run_id"
PARAMS: Final = "params.yaml"
SQLITE: Final = "sqlite:///"
EPOCH: Final = re.compile(r"epoch \d+: ")  # the line after one, not a progress bar
DONE: Final = (TrialState.COMPLETE, TrialState.PRUNED)


Ranges = dict[str, BaseDistribution]


class _Trial:
    """A trial that runs, and the losses that it has reported."""

    def __init__(self, number: int, study: optuna.Study, params_file: Path, ranges: Ranges) -> None:
        """Draw its values, and make its run and folder."""
        self.number = number
        self._client = mlflow.MlflowClient()
        self.trial = study.ask(fixed_distributions=ranges)
        around = mlflow.active_run()
        assert around is not None
        if (run_id := self.trial.user_attrs.get(RUN)) is None:
            tags = {MLFLOW_PARENT_RUN_ID: around.info.run_id}
            run_id = self._client.create_run(around.info.experiment_id, tags=tags).info.run_id
            self.trial.set_user_attr(RUN, run_id)
        self.run_id = run_id
        self.folder = (FOLDER / run_id).absolute()
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        for path in (stage.PREPARED, stage.SPLIT):
            with suppress(FileExistsError):
                (self.folder / path).symlink_to(path.absolute())
        shutil.copy(params_file, self.folder / PARAMS)
        for name, value in self.trial.params.items():
            parameters.assign(self.folder / PARAMS, f"train.{name}", value)
        self._epochs = parameters.load(self.folder / PARAMS).train.epochs
        self.losses: list[float] = []

    def should_stop(self) -> bool:
        """Report the epochs that are done; whether it is worse than half of the finished trials were."""
        found = {metric.step: metric.value for metric in self._client.get_metric_history(self.run_id, "val_loss")}
        for epoch in range(len(self.losses) + 1, len(found) + 1):
            self.losses.append(found[epoch])
            self.trial.report(found[epoch], epoch)
        return len(self.losses) < self._epochs and self.trial.should_prune()

    def end(self, *, early: bool) -> None:
        """Record its outcome, and delete its folder."""
        if early:
            self._client.set_terminated(self.run_id, "KILLED")
            self.trial.study.tell(self.trial, state=TrialState.PRUNED)
        else:
            self.should_stop()
            if len(self.losses) < self._epochs:
                raise StageError(f"trial {self.number}: {self.folder} ended after epoch {len(self.losses)}")
            loss = self.losses[-1]
            self.trial.study.tell(self.trial, loss if math.isfinite(loss) else math.inf)
        shutil.rmtree(self.folder)


def tune(params_file: Path, trials: int, ray: str | None = None) -> None:
    """Search until this number of trials is done, and print the best one.

    Args:
        params_file: with the ranges.
        trials: in all.
        ray: address of a Ray cluster to run them on; None for this machine.

    Raises:
        StageError: there are no ranges, a trial fails, there is no such cluster, or a process is already training here.
    """
    document = parameters.load(params_file)
    if not document.tune:
        raise StageError(f"{params_file}: nothing to search; give ranges of parameters of `train` under `tune`")
    with stage.alone(stage.TRAINING):
        machines = Here() if ray is None else Cluster(ray)
        study = _study(document, machines.at_once)
        with tracking.run(study.user_attrs.get(RUN), "tune") as run_id:
            study.set_user_attr(RUN, run_id)
            ranges = {name: _drawn(of) for name, of in document.tune.items()}
            _search(study, machines, params_file, ranges, trials)
            change = _change(params_file, study.best_params)
            mlflow.log_text(change, "best.diff")
            mlflow.log_metric("val_loss", study.best_value)
    print(f"best validation loss: {study.best_value:.4f}, with {'this change' if change else 'the values as they are'}")
    print(change, end="")


def _search(study: optuna.Study, machines: Machines, params_file: Path, ranges: Ranges, trials: int) -> None:
    if machines.hosts > 1 and _store().startswith(SQLITE):
        raise StageError("MLFLOW_TRACKING_URI: name a server; SQLite's locks do not work between machines")
    running: dict[Hashable, _Trial] = {}
    try:
        while True:
            done = len(study.get_trials(deepcopy=False, states=DONE))
            for number in range(done + len(running) + 1, min(trials, done + machines.at_once) + 1):
                trial = _Trial(number, study, params_file, ranges)
                values = ", ".join(f"{name} {value}" for name, value in trial.trial.params.items())
                print(f"trial {number} of {trials}: {values}", flush=True)
                environment = {"MLFLOW_RUN_ID": trial.run_id, "MLFLOW_TRACKING_URI": _store()}
                running[machines.start(str(trial.folder), environment)] = trial
            if not running:
                return
            handle, heard = machines.heard()
            trial = running[handle]
            said = f"  trial {trial.number}: " if machines.at_once > 1 else "  "
            if isinstance(heard, Ended):
                del running[handle]
                if heard.why:
                    study.tell(trial.trial, state=TrialState.FAIL)
                    raise StageError(f"trial {trial.number}: {heard.why}; run it again to go on with other values")
                trial.end(early=False)
                continue
            print(said + heard, end="", flush=True)
            if EPOCH.match(heard) and trial.should_stop():
                del running[handle]
                machines.stop(handle)
                trial.end(early=True)
                epochs = len(trial.losses)
                print(f"{said}stopped early: worse than half of the finished trials after epoch {epochs}", flush=True)
    except BaseException:
        machines.stop(*running)
        raise


def _store() -> str:
    """The MLflow store, as a process in another folder has to name it."""
    store = mlflow.get_tracking_uri()
    return SQLITE + str(Path(store.removeprefix(SQLITE)).absolute()) if store.startswith(SQLITE) else store


def _study(document: Params, at_once: int) -> optuna.Study:
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
    seed = document.train.seed + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=at_once > 1)
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
