"""A training run that is killed, or runs out of disk or server, as a person meets it: through the command."""

import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.training.conftest import write_params
from tests.training.test_train import digest, weights

pytestmark = pytest.mark.slow

CATSDOGS = str(Path(sys.executable).with_name("catsdogs"))


@pytest.fixture
def two_epochs(work: Path) -> Path:
    """Two epochs, with a checkpoint after every batch."""
    write_params(work, train={"epochs": 2, "checkpoint_minutes": 1e-6})
    return work


class Stage:
    """One `catsdogs` process."""

    def __init__(self, folder: Path, command: str, largest_file: int | None = None) -> None:
        self.errors = folder / "errors.txt"
        limit = f"trap '' XFSZ; ulimit -f {largest_file // 1024};" if largest_file else ""
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                ["bash", "-c", f"{limit} exec {shlex.quote(CATSDOGS)} {command}"],
                cwd=folder,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.printed: list[str] = []

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def until_it_prints(self, start: str) -> None:
        for line in self.output:
            self.printed.append(line)
            if line.startswith(start):
                return
        pytest.fail(f"never printed {start!r}: {''.join(self.printed)}{self.errors.read_text()}")

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.process.poll() is not None:
                pytest.fail(f"ended too early: {self.output.read()}{self.errors.read_text()}")
            time.sleep(0.002)

    def finish(self) -> int:
        self.printed += self.output.readlines()
        return self.process.wait()

    def error(self) -> str:
        """What is said last; MLflow's store of files has words of its own before it."""
        return self.errors.read_text().replace("\r", "\n").splitlines()[-1]


def _limit(process: int, largest_file: int) -> None:
    resource.prlimit(process, resource.RLIMIT_FSIZE, (largest_file, largest_file))


def train(folder: Path) -> str:
    """Run to the end; returns the digest of the weights."""
    with Stage(folder, "train") as stage:
        assert stage.finish() == 0, stage.errors.read_text()
    return digest(weights(folder / "models"))


def checkpoints(folder: Path) -> list[Path]:
    """Of runs that are not finished, in the order of their last writing."""
    return sorted((folder / "data/checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)


def place(checkpoint: Path) -> tuple[int, int]:
    """Whole epochs and batches of the next one that a checkpoint holds."""
    content = torch.load(checkpoint, weights_only=True)
    return len(content["history"]), content["epoch_so_far"][0]


def learning(folder: Path) -> bool:
    """Whether there is a checkpoint from after the first batch."""
    return any(place(path) > (0, 0) for path in checkpoints(folder))


@pytest.fixture(scope="module")
def whole() -> dict[str, str]:
    """The digest of an uninterrupted run, once known."""
    return {}


def uninterrupted(folder: Path, whole: dict[str, str]) -> str:
    if not whole:
        whole["digest"] = train(folder)
        (folder / "models").rename(folder / "uninterrupted")
    return whole["digest"]


def test_a_run_killed_again_and_again_ends_with_the_same_weights(two_epochs: Path, whole: dict[str, str]) -> None:
    expected = uninterrupted(two_epochs, whole)
    with Stage(two_epochs, "train") as stage:
        stage.until(lambda: learning(two_epochs))
        stage.kill()
    epochs, batches = place(checkpoints(two_epochs)[0])
    assert epochs == 0
    assert batches > 0

    with Stage(two_epochs, "train") as stage:
        stage.until(lambda: place(checkpoints(two_epochs)[0]) >= (1, 2))
        stage.kill()
    assert place(checkpoints(two_epochs)[0])[0] == 1

    with Stage(two_epochs, "train") as stage:  # when all is learned, and nothing is written
        stage.until_it_prints("epoch 2: ")
        stage.kill()
    assert [place(path) for path in checkpoints(two_epochs)] == [(2, 0)]
    assert not (two_epochs / "models/trained").exists()

    assert train(two_epochs) == expected
    assert list((two_epochs / "data/checkpoints").iterdir()) == []


def test_a_full_disk_costs_nothing_that_was_finished(
    two_epochs: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = uninterrupted(two_epochs, whole)
    # MLflow's store of small files, so that it is training's own files that find no room.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (two_epochs / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with Stage(two_epochs, "train") as stage:
        stage.until(lambda: learning(two_epochs))
        _limit(stage.process.pid, 100_000)
        assert stage.finish() == 2
    assert stage.error() == "Error: File too large: nothing is half-written and finished files are kept; run it again"
    epochs, batches = place(checkpoints(two_epochs)[0])  # the last that found room, and whole
    assert epochs == 0
    assert batches > 0

    with Stage(two_epochs, "train") as stage:
        stage.until_it_prints("epoch 2: ")
        _limit(stage.process.pid, 100_000)
        assert stage.finish() == 2
    assert stage.error().startswith("Error: File too large")
    assert [path.name for path in (two_epochs / "models").iterdir()] == []
    assert len(checkpoints(two_epochs)) == 1

    assert train(two_epochs) == expected


@pytest.mark.parametrize(("command", "kept"), [("fetch", "data/raw"), ("prepare", "data/processed_split")])
def test_a_stage_without_room_leaves_its_earlier_output_alone(
    in_folder: Path, data: Path, command: str, kept: str
) -> None:
    write_params(in_folder, fetch={"source": [str(data.parent / "photos")]})
    (in_folder / "data").mkdir()
    for name in ("raw", "split.csv"):
        (in_folder / "data" / name).symlink_to(data / name)
    output = in_folder / kept
    output.unlink(missing_ok=True)
    output.mkdir()
    (output / "earlier").write_text("kept")
    with Stage(in_folder, command, largest_file=5_000) as stage:
        assert stage.finish() == 2
    assert stage.error().startswith("Error: File too large: nothing is half-written")
    assert [path.name for path in output.iterdir()] == ["earlier"]
    assert not list((in_folder / "data").glob(".*"))


class Server:
    """A real MLflow server, to be killed and started again on the same port and store."""

    def __init__(self, folder: Path, store: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.store = folder, store
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.store]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven processes that nothing here asks for
        with (self.folder / "server.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, env=environment
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        pytest.fail((self.folder / "server.txt").read_text())

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(in_folder: Path, mlflow_store: str) -> Iterator[Server]:
    found = Server(in_folder, mlflow_store)
    found.start()
    yield found
    found.kill()


def test_a_dead_mlflow_server_is_said_and_a_later_run_goes_on(
    two_epochs: Path, whole: dict[str, str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = uninterrupted(two_epochs, whole)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with Stage(two_epochs, "train") as stage:
        stage.until_it_prints("epoch 1: ")
        server.kill()
        assert stage.finish() == 2
    assert stage.error().startswith(f"Error: the MLflow store {server.uri} failed: ")
    assert stage.error().endswith("finished work is kept, so fix that and run it again")
    assert "Traceback" not in stage.errors.read_text()
    assert not (two_epochs / "models/trained").exists()
    assert place(checkpoints(two_epochs)[0])[0] >= 1

    server.start()
    with Stage(two_epochs, "train") as stage:
        assert stage.finish() == 0, stage.errors.read_text()
    assert "epoch 1: " not in "".join(stage.printed)  # which was finished
    assert digest(weights(two_epochs / "models")) == expected


def test_a_second_run_in_the_same_folder_names_the_first_and_leaves_it_alone(two_epochs: Path) -> None:
    with Stage(two_epochs, "train") as first:
        first.until_it_prints("frozen: ")
        first.process.send_signal(signal.SIGSTOP)  # so that it is there however long the second takes to start
        with Stage(two_epochs, "train") as second:
            assert second.finish() == 2
        assert f"process {first.process.pid} is already " in second.error()
        first.kill()
    train(two_epochs)  # the lock of a process that is gone holds nobody up


def test_a_run_with_other_labels_or_code_starts_anew_and_says_why(
    two_epochs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = two_epochs / "copy"
    for room in ("shared", "training", "serving"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", "models"))
    monkeypatch.setenv("PYTHONPATH", str(copy))

    def interrupted() -> str:
        before = len(checkpoints(two_epochs))
        with Stage(two_epochs, "train") as stage:
            stage.until(lambda: len(checkpoints(two_epochs)) > before)
            stage.kill()
            stage.finish()
        (line,) = [line for line in stage.printed if line.startswith(("resumed: ", "starting anew"))] or [""]
        for file in checkpoints(two_epochs)[:-1]:
            file.unlink()
        return line

    assert interrupted() == ""
    with (copy / "training/labels.csv").open("a") as file:
        file.write(f"{'0' * 64},cats,keep,seen again\n")
    assert interrupted().rstrip().endswith("had other labels")
    with (copy / "training/fit.py").open("a") as file:
        file.write("# changed\n")
    assert interrupted().rstrip().endswith("had other code")
