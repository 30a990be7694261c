"""Several processes train one network: it is the one that a single process makes, whatever happens to them."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn

from tests.conftest import ROOT, measured
from tests.training.conftest import write_params
from tests.training.test_interrupted import Stage, learning
from tests.training.test_train import weights
from training import stage, whole_batch
from training.stage import StageError, alone
from training.train import read_trained

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
SIMPLE = {"batch_size": 79, "side": 64}  # of 80 pictures: the last batch has one, so one process has none
PRETRAINED = {
    "model": "efficientnet_lite0", "pretrained": True, "side": 32, "frozen_blocks": 12, "probe_pictures": 40,
    "head_lr": 3e-4, "batch_size": 15,
}  # fmt: skip


def environment() -> dict[str, str]:
    return os.environ | measured() | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def trained(folder: Path, *launcher: str) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    """Weights and history of a run in float64 by `python`, or by torchrun."""
    command = [*(launcher or (sys.executable,)), "-m", "tests.training.double"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with (folder / stage.TRAINED / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    found = weights(folder / "models")
    assert not close(weights(folder / "models", "start.pt"), found)  # or there is nothing to compare
    shutil.rmtree(folder / "models")
    return found, history


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name], other[name], rtol=0, atol=1e-4) for name in one)


def counts(history: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(line["train_accuracy"], line["val_accuracy"]) for line in history]


def losses(history: list[dict[str, str]]) -> list[float]:
    return [float(line[name]) for line in history for name in ("train_loss", "val_loss")]


@pytest.mark.slow
@pytest.mark.parametrize(("section", "epochs"), [(SIMPLE, 10), (PRETRAINED, 4)], ids=["from scratch", "pretrained"])
def test_twenty_steps_of_two_processes_give_the_weights_and_counts_of_one(
    work: Path, section: dict[str, object], epochs: int
) -> None:
    write_params(work, train=section | {"epochs": epochs})
    alone, history = trained(work)
    two, same = trained(work, *TORCHRUN, "--standalone", "--nproc-per-node", "2")
    assert close(alone, two)
    assert counts(history) == counts(same)
    assert losses(history) == pytest.approx(losses(same))


def process_of(launcher: int, rank: int) -> int:
    """The process of this rank that the launcher started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == launcher and f"\0RANK={rank}\0" in (folder / "environ").read_text():
                return int(folder.name)
        except OSError:
            continue
    pytest.fail(f"there is no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_with_one_line_and_the_run_goes_on_with_one(work: Path, rank: int) -> None:
    write_params(work, train={"epochs": 3, "checkpoint_minutes": 1e-6})
    with Stage(work, "train --processes 2") as first:
        first.until(lambda: learning(work))
        processes = [process_of(first.process.pid, number) for number in (0, 1)]
        with (
            pytest.raises(StageError, match=rf"process {processes[0]} is already training here"),
            alone(stage.TRAINING),
        ):
            pass
        os.kill(processes[rank], signal.SIGKILL)
        assert first.finish() == 2
        lines = first.errors.read_text().replace("\r", "\n").splitlines()
    assert [line for line in lines if line and " batches" not in line and " INFO mlflow" not in line] == [
        f"Error: process {rank} of 2 ended by SIGKILL, and so the others did; run it again: it goes on from its last "
        "checkpoint"
    ]
    assert not any(Path(f"/proc/{process}").exists() for process in processes)

    with Stage(work, "train") as again:
        assert again.finish() == 0, again.errors.read_text()
    assert any(line.startswith("resumed: ") for line in again.printed)
    logged = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_metric_history(
        read_trained(work / stage.TRAINED)["mlflow_run_id"], "val_loss"
    )
    assert [metric.step for metric in logged] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_on_the_same_curve(work: Path) -> None:
    """Interrupted by its first process after an epoch; as many epochs later it is where a single process is."""
    write_params(work, train=SIMPLE | {"epochs": 3, "checkpoint_minutes": 1e-6})
    expected, history = trained(work)
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "tests.training.double"]
    with subprocess.Popen(
        command, cwd=work, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1: "):
                os.kill(process_of(process.pid, 1), signal.SIGKILL)
    assert process.returncode != 0
    assert not (work / stage.TRAINED).exists()
    found, same = trained(work)
    assert close(expected, found)
    assert counts(history) == counts(same)
    assert losses(history) == pytest.approx(losses(same))


@pytest.mark.slow
def test_a_machine_with_other_parameters_is_refused(work: Path) -> None:
    write_params(work, train={"seed": 1})
    (work / "params.yaml").rename(work / "params1.yaml")
    write_params(work)
    (work / "params.yaml").rename(work / "params0.yaml")
    train = f"exec {sys.executable} -m training.train --params params$RANK.yaml"
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--no-python", "sh", "-c", train]
    done = subprocess.run(command, cwd=work, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "process 1 has other parameters than process 0" in done.stderr


@pytest.fixture
def machines() -> Iterator[list[list[str]]]:
    """Two network namespaces with a cable between them, as the beginnings of commands that run there."""
    names = [f"catsdogs{uuid.uuid4().hex[:6]}{end}" for end in "ab"]
    ends = [f"v{name[-6:]}" for name in names]
    commands = [
        *(f"ip netns add {name}" for name in names),
        f"ip link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}",
        *(f"ip -n {name} link set lo up" for name in names),
        *(f"ip -n {names[n]} address add 10.99.0.{n + 1}/24 dev {ends[n]}" for n in (0, 1)),
        *(f"ip -n {names[n]} link set {ends[n]} up" for n in (0, 1)),
    ]
    try:
        for command in commands:
            if subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode:
                pytest.skip(f"network namespaces cannot be made here: {command}")
        yield [
            ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={end}"]
            for name, end in zip(names, ends, strict=True)
        ]
    finally:
        for name in names:
            if Path("/run/netns", name).exists():
                subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.mark.slow
def test_two_machines_train_one_network_and_end_together(work: Path, machines: list[list[str]]) -> None:
    write_params(work, train=SIMPLE | {"epochs": 2})
    expected, _ = trained(work)
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.99.0.1", "--master-port", "29511"]

    def start(node: int) -> subprocess.Popen[bytes]:
        command = [*machines[node], *TORCHRUN, *where, "--node-rank", str(node), "-m", "tests.training.double"]
        return subprocess.Popen(command, cwd=work, env=environment(), stdout=subprocess.DEVNULL)

    with start(0) as one, start(1) as two:
        assert (one.wait(), two.wait()) == (0, 0)
    assert close(expected, weights(work / "models"))

    shutil.rmtree(work / "models")
    write_params(work, train=SIMPLE | {"epochs": 200, "checkpoint_minutes": 1e-6})
    with start(0) as one, start(1) as two:
        while not learning(work):
            assert one.poll() is None
        os.kill(process_of(two.pid, 1), signal.SIGKILL)
        assert one.wait(60) != 0
        assert two.wait(60) != 0


def test_dropout_and_stochastic_depth_take_what_their_rate_says_and_keep_the_mean() -> None:
    ones = torch.ones(4000, 8, 1, 1)
    for rows in (False, True):
        drop = whole_batch.Drop(0.2, rows=rows)
        torch.manual_seed(0)
        found = drop(ones)
        assert set(found.unique().tolist()) == {0.0, 1.25}
        assert float(found.mean()) == pytest.approx(1, abs=0.03)
        whole_rows = (found.amax((1, 2, 3)) == found.amin((1, 2, 3))).float().mean()
        assert (whole_rows == 1) == rows
        assert torch.equal(drop.eval()(ones), ones)


def test_the_layers_are_put_wherever_the_network_has_torch_s_own() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3)), nn.Dropout(0.5))
    whole_batch.spread(network)
    norm, drop = network.get_submodule("0.1"), network.get_submodule("1")
    assert isinstance(norm, whole_batch.BatchNorm)
    assert norm.momentum == 0.3
    assert isinstance(drop, whole_batch.Drop)
    assert (drop.p, drop.rows) == (0.5, False)
