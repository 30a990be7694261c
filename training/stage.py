"""What every pipeline stage shares: its error, its progress bar, directories written whole, and the paths."""

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import tqdm

from shared.addresses import without_secrets

T = TypeVar("T")

GATHERED: Final = Path("data/gathered")
GATHERED_TABLE: Final = Path("data/gathered.csv")
RAW: Final = Path("data/raw")
NAMES: Final = Path("data/names.csv")
AUDIT: Final = Path("data/audit.csv")
SPLIT: Final = Path("data/split.csv")
PREPARED: Final = Path("data/processed_split")
CHECKPOINTS: Final = Path("data/checkpoints")
TRAINING: Final = Path("data/training.lock")
TRAINED: Final = Path("models/trained")
CLOSER: Final = Path("models/closer")
CANDIDATE: Final = Path("models/candidate.onnx")
CANDIDATE_INT8: Final = Path("models/candidate.int8.onnx")
MODEL: Final = Path("models/model.onnx")
MODEL_INT8: Final = Path("models/model.int8.onnx")
SUSPECTS: Final = Path("data/suspects.csv")
REPORTS: Final = Path("reports")
PRODUCTION: Final = "production"  # the collection of what `gather` brings; no other has this name


NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IMBALANCE: Final = 10  # photos of one class for each of the other from which a warning is given


class StageError(Exception):
    """A problem the user can fix; shown as one line with exit code 2, and no output is half-written.

    Addresses in the message are shown without their secrets.
    """

    def __init__(self, message: str) -> None:
        """Keep the message."""
        super().__init__(without_secrets(message))


def imbalance(cats: int, dogs: int) -> str | None:
    """A warning if one class has ten times the photos of the other, or more; both have at least one."""
    fewer, more = sorted([(cats, "cats"), (dogs, "dogs")])
    if more[0] < IMBALANCE * fewer[0]:
        return None
    return (
        f"warning: {more[0]:,} {more[1]} and only {fewer[0]:,} {fewer[1]}. The model will tend to say {more[1]}, and "
        f"figures of {fewer[1]} will be coarse: add photos of {fewer[1]}"
    )


@contextmanager
def explained() -> Iterator[None]:
    """Make a StageError of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        message = f"{error.strerror}: nothing is half-written and finished files are kept; run it again"
        raise StageError(message) from error


@contextmanager
def alone(lock: Path, doing: str = "training here") -> Iterator[None]:
    """Run the block as the only process that holds the file ``lock``, which stays.

    Raises:
        StageError: another process is, which the message names.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            # Not flock: loader processes would inherit it, and outlive a run that was killed by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise StageError(f"process {file.read()} is already {doing}; wait for it, or end it") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces ``path`` only if the block succeeds.

    Raises:
        StageError: another process is writing it.
    """
    aside, lock = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "lock"))
    with alone(lock, f"writing {path}"):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            yield aside
            os.sync()  # one sync for thousands of small files, rather than one each
            if path.exists():
                shutil.rmtree(path)
            aside.rename(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            lock.unlink(missing_ok=True)


def progress(items: Iterable[T], what: str, total: int | None = None, unit: str = " pictures") -> Iterable[T]:
    """Iterate over ``items`` with a progress bar that shows rate and time left."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    every = 0.5 if sys.stderr.isatty() else 15  # fewer lines in a log file than on a terminal
    quiet = os.environ.get("RANK", "0") != "0"  # of processes that train together, the first one shows it
    bar: Iterable[T] = tqdm.tqdm(
        items, desc=what, total=total, unit=unit, mininterval=every, dynamic_ncols=True, disable=quiet
    )
    return bar
