"""MLflow: where a run's parameters, metrics, pictures and model are kept to be compared.

The store is ``mlflow.db`` in the working folder, or what ``MLFLOW_TRACKING_URI`` names. Look at it with
``mlflow ui --backend-store-uri sqlite:///mlflow.db``. Train, export and evaluate write into one run, with what the
machine did meanwhile (processor, memory, disk, network; the GPU where nvidia-ml-py is installed) every ten seconds.
"""

import gc
import json
import logging
import os
import platform
import sqlite3
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import mlflow
import msgspec
import pandas as pd  # type: ignore[import-untyped]  # its stubs are another package
import requests
import sqlalchemy
import torch
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.data.pandas_dataset import from_pandas
from mlflow.exceptions import MlflowException

from shared.addresses import without_secrets
from training.split import SIDES
from training.stage import StageError

EXPERIMENT: Final = "cats-dogs"
DEFAULT_STORE: Final = "sqlite:///mlflow.db"
# Unless the environment sets them. MLflow's own are 7 retries of 120 s with pauses that double: a dead server
# would be noticed only after minutes.
DEFAULTS: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# Whose versions can change a figure.
PACKAGES: Final = ("numpy", "onnx", "onnxruntime", "pillow", "scikit-learn", "torch", "torchvision")
WRITTEN: Final = [f":(top,exclude){output}" for output in ("dvc.lock", "models", "reports")]
DIGEST_LENGTH: Final = 36  # the longest that MLflow's tables hold


@contextmanager
def store() -> Iterator[mlflow.MlflowClient]:
    """Use the store; yields a client of it.

    Raises:
        StageError: the store, or the server in front of it, fails while the block runs.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow.store.db.utils", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # tracebacks and retries; the error below is enough
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    shown = without_secrets(uri)
    if shown != uri:
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # where each run can be seen, secrets and all
    mlflow.set_tracking_uri(uri)
    try:
        _open(uri)
        yield mlflow.MlflowClient()
    except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        if _interrupted(error):
            raise KeyboardInterrupt from error
        raise StageError(
            f"the MLflow store {shown} failed: {_reason(error)}; finished work is kept, so fix that and run it again"
        ) from error


def _interrupted(error: BaseException | None) -> bool:
    """Whether it came of Ctrl-C in the middle of the store's work."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _interrupted(error.__context__))


def _reason(error: Exception) -> str:
    """The error in a line; for "API request to … (Caused by …: [Errno 111] Connection refused"))" only its end."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return line.rpartition(": ")[2].rstrip("\"')") if line.startswith("API request") else line


def _open(uri: str) -> None:
    """Open a SQLite file before MLflow does, which would retry a broken one ten times in 100 seconds."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")


@contextmanager
def run(run_id: str | None = None, name: str | None = None, *, nested: bool = False) -> Iterator[str]:
    """Start a run, or resume ``run_id``; yields its id. A nested run belongs to the run around it.

    If this store does not know the run, as for weights that came by ``dvc pull``, a new one starts, whose tag
    ``continues`` names it.

    Raises:
        StageError: the store fails while the block runs.
    """
    # Four lines a run that it works, and warnings when the store fails, which the error covers.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    with store():
        mlflow.set_experiment(EXPERIMENT)
        tags = {"continues": run_id} if run_id and not _known(run_id) else None
        if tags:
            run_id = None
        run_name = None if run_id else name
        with mlflow.start_run(
            run_id=run_id, run_name=run_name, nested=nested, tags=tags, log_system_metrics=True
        ) as active:
            run_id = active.info.run_id
            try:
                yield run_id
            except KeyboardInterrupt as interrupt:
                # In the middle of the store's work it leaves SQLite locked: the frames hold what holds the lock, a
                # connection, which is in a reference cycle with its cache of statements.
                traceback.clear_frames(interrupt.__traceback__)
                gc.collect()
                raise


def _known(run_id: str) -> bool:
    try:
        mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def log_dataset(prepared: Path, split_digest: str) -> None:
    """Log the photos of each side as inputs of the active run, a row of digest and label for each photo.

    Two runs on the same photos, split alike, show the same digest. Pixels are not read.

    Args:
        prepared: the folder that ``prepare`` filled; a file's name is the start of the photo's SHA-256.
        split_digest: of :func:`training.split.split_digest`; MLflow's own field has room for its first 36 digits, the
            tag ``split_digest`` for all of them.
    """
    for side in SIDES:
        photos = [(path.stem, path.parent.name) for path in sorted((prepared / side).glob("*/*.webp"))]
        dataset = from_pandas(
            pd.DataFrame(photos, columns=["sha256", "label"]),
            source=get_dataset_source_from_json(json.dumps({"uri": str(prepared / side)}), "local"),
            targets="label",
            name=f"{EXPERIMENT} {side}",
            digest=split_digest[:DIGEST_LENGTH],
        )
        mlflow.log_input(dataset, context=side, tags={"split_digest": split_digest})


def flat(section: msgspec.Struct, prefix: str = "") -> dict[str, Any]:
    """Parameters under dotted names, as MLflow lists them."""
    result: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(section).items():
        if isinstance(value, msgspec.Struct):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


def log_section(stage: str, section: msgspec.Struct) -> None:
    """Tag the active run with a stage's parameters; not as MLflow's own, which a second run of it could not change."""
    mlflow.set_tags({name: without_secrets(str(value)) for name, value in flat(section, f"{stage}.").items()})


def versions() -> dict[str, str]:
    """Tags with the versions of Python, CUDA and the main packages."""
    cuda = torch.version.cuda or "none"
    return {"version.python": platform.python_version(), "version.cuda": cuda} | {
        f"version.{package}": metadata.version(package) for package in PACKAGES
    }


def git_commit() -> str:
    """The checkout's commit, with ``-dirty`` appended if files differ, or ``unknown`` outside a repository.

    What stages before this one wrote in the same `dvc repro` does not count.
    """
    git = partial(subprocess.run, capture_output=True, text=True, check=True)
    try:
        commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no", "--", ":/", *WRITTEN]).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + "-dirty" * bool(changed)
