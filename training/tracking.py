"""MLflow: where a run's parameters, metrics, pictures and model are kept to be compared.

The store is ``mlflow.db`` in the working folder, or what ``MLFLOW_TRACKING_URI`` names. Look at it with
``mlflow ui --backend-store-uri sqlite:///mlflow.db``. Train, export and evaluate write into one run.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import mlflow
import msgspec

EXPERIMENT: Final = "cats-dogs"
DEFAULT_STORE: Final = "sqlite:///mlflow.db"


@contextmanager
def run(run_id: str | None = None, name: str | None = None, *, nested: bool = False) -> Iterator[str]:
    """Start a run, or go on with ``run_id``; yields its id. A nested one belongs to the run around it."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(DEFAULT_STORE)
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else name, nested=nested) as active:
        run_id = active.info.run_id
        yield run_id


def flat(section: msgspec.Struct, prefix: str = "") -> dict[str, Any]:
    """Parameters under dotted names, as MLflow lists them."""
    result: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(section).items():
        if isinstance(value, msgspec.Struct):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


def git_commit() -> str:
    """The checkout's commit, with ``-dirty`` behind it if files differ from it, or ``unknown`` outside a repository."""
    try:
        described = subprocess.run(
            [
                "git",
                "describe",
                "--always",
                "--dirty",
                "--abbrev=40",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
