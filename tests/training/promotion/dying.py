"""Commands that are killed at a chosen moment, each in a process of its own."""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import mlflow

from tests.training.promotion.redness import as_fast
from training import cli
from training.promotion import match, promote, restore  # loaded once, in the process that the others are forked from
from training.promotion.served import SERVED

STEPS = {
    mlflow.MlflowClient: [
        "create_registered_model",
        "create_model_version",
        "set_model_version_tag",
        "set_registered_model_alias",
    ],
    importlib.import_module("mlflow.onnx"): ["log_model"],  # what mlflow.onnx names is only a lazy loader
    Path: ["replace", "unlink"],
}
__all__ = ["killed", "promote", "restore"]


def killed(moment: int, *arguments: str) -> bool:
    """Run a command and kill it before the step of this number. False if it ended by itself before that."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_run, args=(moment, arguments, os.environ["MLFLOW_TRACKING_URI"], Path.cwd()))
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def _run(moment: int, arguments: tuple[str, ...], store: str, folder: Path) -> None:
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = store
    vars(match)["typical_seconds"] = as_fast
    moments = 0

    def dying(step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(step)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if isinstance(args[0], Path) and args[0].parent != SERVED:
                return step(*args, **kwargs)
            nonlocal moments
            if moments == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            moments += 1
            return step(*args, **kwargs)

        return counted

    for owner, names in STEPS.items():
        for name in names:
            setattr(owner, name, dying(getattr(owner, name)))
    getattr(cli, arguments[0]).main(arguments[1:], standalone_mode=False)
