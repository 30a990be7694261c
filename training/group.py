"""The processes that train one network together, each on its part of every batch, and what they tell one another.

torchrun starts them; :func:`launch` does, on this machine. Without it the group is this process alone. All compute, and
the first one prints, records and writes. A process that is lost ends the others: at once where its connections close,
and after ``PATIENCE`` where a machine is gone.
"""

import contextlib
import datetime
import json
import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from training.stage import StageError, explained

T = TypeVar("T")

PATIENCE: Final = datetime.timedelta(seconds=50)
START: Final = datetime.timedelta(minutes=10)  # for the first one to reach the MLflow store
LOST: Final = 75  # exit code of a process that ends because another one did


def rank() -> int:
    """Number of this process in the group, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Count the processes of the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part: every n-th of the items."""
    return items[rank() :: size()]


def total(tensor: Tensor) -> Tensor:
    """Sum the processes' tensors, in place; the same bits for all of them."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def together(part: Sequence[T]) -> list[T]:
    """Put the parts of :func:`share` together again, in their order, for every process."""
    parts: list[Any] = [None] * size()
    if size() == 1:
        return list(part)
    dist.all_gather_object(parts, part)
    return [parts[index % size()][index // size()] for index in range(sum(map(len, parts)))]


def from_first(value: T) -> T:
    """What the first process has."""
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def wait_for_first() -> None:
    """Wait until the first process comes here too, for ``START`` at most."""
    if size() > 1:
        dist.monitored_barrier(timeout=START)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun started, and end with one line if the block fails; else do nothing."""
    try:
        with explained(), Path(os.devnull).open("w") as nowhere, contextlib.ExitStack() as stack:
            if dist.is_torchelastic_launched():
                dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
                if rank() > 0:
                    stack.enter_context(contextlib.redirect_stdout(nowhere))
            yield
            if dist.is_initialized():
                dist.destroy_process_group()
    except StageError as error:
        _end(str(error), 2)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        _end(f"process {rank()} of {size()} lost another one: {str(error).splitlines()[0]}", LOST)


def _end(line: str, code: int) -> None:
    """End this process. Its line goes where torchrun reads it, or else to the terminal."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        Path(file).write_text(json.dumps({"message": line}))
    else:
        print(f"Error: {line}", file=sys.stderr)
    sys.exit(code)


def launch(processes: int, *arguments: str) -> None:
    """Run ``python -m`` with these arguments in several processes of this machine, as torchrun does.

    Raises:
        StageError: one of them failed; the message is its line.
    """
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # pages on what the error below says in a line
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            1,
            1,
            processes,
            logs_specs=DefaultLogsSpecs(folder),
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
        )
        try:
            elastic_launch(config, sys.executable)("-P", "-u", "-m", *arguments)
        except ChildFailedError as error:
            print(file=sys.stderr)  # a progress bar may have been interrupted in its line
            number, failure = min(error.failures.items(), key=lambda item: item[1].exitcode == LOST)
            if failure.exitcode == 2:
                raise StageError(failure.message) from error
            how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            raise StageError(
                f"process {number} of {processes} ended by {how}, and so the others did; run it again: it goes on from "
                "its last checkpoint"
            ) from error
        except SignalException as error:
            raise KeyboardInterrupt from error
