"""Promotion with real files, real photos of a test side, and a real MLflow store.

The models look at how red a picture is: ``threshold`` decides which of the photos they get right.
"""

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from PIL import Image

from serving.model import session as serving
from shared import contract, exam
from shared.contract import Contract, Histogram, Precision, Provenance, Reference, Unsure
from shared.files import write_json, write_whole
from shared.intervals import wilson
from shared.pixels import SIZE
from tests.conftest import ROOT, blobs, encoded
from tests.waiting import until
from training import cli, registry, split, stage, tracking
from training.comparison import Difference, compare
from training.match import Match, decide
from training.promote import PIPELINE, SERVED
from training.split import Photo
from training.stage import StageError

EACH = 110  # photos of each class; the cats' red is 0..109, the dogs' 110..219
Make = Callable[..., dict[str, bytes]]


def graph(threshold: float, padding: int, work: int) -> onnx.ModelProto:
    """A model that says dogs above ``threshold``; ``padding`` bytes larger and ``work`` convolutions slower."""
    constants: dict[str, npt.NDArray[Any]] = {
        "red": np.array([0], np.int64),
        "threshold": np.array(threshold, np.float32),
        "axes": np.array([1, 2, 3], np.int64),
        "two": np.array([[-0.02, 0.02]], np.float32),
        "column": np.array([1], np.int64),
        "seven": np.array([1, 7, 7], np.int64),
        "padding": np.random.default_rng(0).random(padding // 4, np.float32),
        "no": np.array(0, np.float32),
    }
    if work:
        constants["kernel"] = np.full((3, 3, 3, 3), 1e-9, np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["float", "red"], ["reds"], axis=3),
        helper.make_node("ReduceMean", ["reds", "axes"], ["mean"], keepdims=0),
        helper.make_node("ReduceMean", ["padding"], ["some"], keepdims=0),
        helper.make_node("Mul", ["some", "no"], ["nothing"]),
        helper.make_node("Sub", ["mean", "threshold"], ["above"]),
        helper.make_node("Add", ["above", "nothing"], ["excess 0"]),
        helper.make_node("Transpose", ["float"], ["work 0"], perm=[0, 3, 1, 2]),
        *(
            node
            for n in range(work)
            for node in (
                helper.make_node("Conv", [f"work {n}", "kernel"], [f"work {n + 1}"], pads=[1, 1, 1, 1]),
                helper.make_node("ReduceMean", [f"work {n + 1}", "axes"], [f"done {n}"], keepdims=0),
                helper.make_node("Mul", [f"done {n}", "no"], [f"none {n}"]),
                helper.make_node("Add", [f"excess {n}", f"none {n}"], [f"excess {n + 1}"]),
            )
        ),
        helper.make_node("Unsqueeze", [f"excess {work}", "column"], ["columns"]),
        helper.make_node("Mul", ["columns", "two"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("Sigmoid", [f"excess {work}"], ["familiarity"]),
        helper.make_node("Unsqueeze", ["columns", "column"], ["places"]),
        helper.make_node("Expand", ["places", "seven"], ["evidence"]),
    ]
    outputs: dict[str, list[str | int | None]] = {
        "probabilities": ["n", 2],
        "evidence": ["n", 7, 7],
        "familiarity": ["n"],
    }
    return helper.make_model(
        helper.make_graph(
            nodes,
            "redness",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def document(run: exam.Run, precision: Precision, **provenance: str) -> Contract:
    histogram = Histogram(edges=(0.0, 1.0), counts=(1,))
    given = {
        "dataset_digest": "0" * 64,
        "split_digest": split.split_digest(split.read(stage.SPLIT)),
        "git_commit": "unknown",
        "mlflow_run_id": "f" * 32,
        "created": "2026-11-23T00:00:00+00:00",
    }
    return Contract(
        version=f"2026.11.23-redness-{precision}",
        architecture="redness",
        precision=precision,
        temperature=1.0,
        unsure=Unsure(close_call=0.5, unfamiliar=0.0),
        provenance=Provenance(**given | provenance),
        reference=Reference(confidence=histogram, brightness=histogram, familiarity=histogram),
        exam=exam.write({"blobs.png": encoded(blobs(1), "PNG")}, run, {"blobs.png": 0.05}),
    )


def finished(threshold: float, precision: Precision, padding: int, work: int, **provenance: str) -> onnx.ModelProto:
    from training.graph import runner

    model = graph(threshold, padding, work)
    text = contract.dumps(document(runner(model.SerializeToString()), precision, **provenance))
    helper.set_model_props(model, {contract.METADATA_KEY: text})
    return model


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with tables and nothing in them; making the tables takes seconds, copying them does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """A folder where the pipeline has prepared a test side, with a registry of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    photos = []
    for label, reds in (("cats", range(EACH)), ("dogs", range(EACH, 2 * EACH))):
        folder = stage.PREPARED / "test" / label
        folder.mkdir(parents=True)
        for red in reds:
            Image.new("RGB", (SIZE, SIZE), (red, 90, 60)).save(folder / f"{red:03}.png")
            photos.append(Photo(f"{red}.jpg", label, "test", f"{red:064x}"))
    rows = "".join(f"{photo.path},{photo.label},{photo.side},{photo.sha256}\n" for photo in photos)
    stage.SPLIT.write_text(f"path,label,side,sha256\n{rows}")
    return tmp_path


@pytest.fixture
def make(work: Path) -> Make:
    """Stand in for `dvc repro`: write a model that has ``wrong`` cats wrong, and its report."""

    def write(
        wrong: int = 0, *, padding: int = 40_000, work: int = 0, int8: int | None = None, **provenance: str
    ) -> dict[str, bytes]:
        for precision, size in (("fp32", padding), ("int8", int8)):
            path, report = PIPELINE[precision]  # type: ignore[index]
            path.unlink(missing_ok=True)
            if size is not None:
                model = finished(EACH - 0.5 - wrong, precision, size, work, **provenance)  # type: ignore[arg-type]
                write_whole(path, model.SerializeToString())
                write_json(report, {"version": f"2026.11.23-redness-{precision}"})
        return {path.name: path.read_bytes() for path, _ in PIPELINE.values() if path.exists()}

    return write


def run(*arguments: str) -> Result:
    return CliRunner().invoke(getattr(cli, arguments[0]), arguments[1:])


def done(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.stdout


def served() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in SERVED.iterdir()} if SERVED.exists() else {}


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def state() -> tuple[object, ...]:
    """Everything that a command which changes nothing must leave alone."""
    found = client().search_model_versions("name='cats-dogs'")
    champion = registry.champion(client())
    runs = client().search_runs([experiment.experiment_id for experiment in client().search_experiments()])
    tags = sorted((int(version.version), sorted(version.tags.items())) for version in found)
    return champion and champion.version, tags, len(runs), served()


def champion() -> str:
    version = registry.champion(client())
    assert version is not None
    return registry.version_name(version)


def test_the_first_candidate_is_champion_and_every_file_names_its_version(make: Make) -> None:
    made = make()
    assert "there is no champion yet" in done("promote")
    assert champion() == "cats-dogs/1"
    assert sorted(served()) == ["cats-dogs.fp32.json", "cats-dogs.fp32.onnx"]
    assert serving.load(SERVED / "cats-dogs.fp32.onnx").contract.provenance.registry == "cats-dogs/1"
    assert json.loads(served()["cats-dogs.fp32.json"])["registry"] == "cats-dogs/1"
    tags = client().get_model_version("cats-dogs", "1").tags
    assert tags["sha256_fp32"] == hashlib.sha256(made["model.onnx"]).hexdigest()
    assert tags["decision"] == "promoted"


def test_a_significantly_worse_candidate_is_kept_out_though_it_is_smaller(make: Make) -> None:
    make(0)
    done("promote")
    before = served()
    make(8, padding=4000)
    output = done("promote")
    assert "keep out: the champion is significantly better (8 of 220 photos only the champion has right, 0" in output
    assert champion() == "cats-dogs/1"
    assert served() == before
    tags = client().get_model_version("cats-dogs", "2").tags
    assert tags["decision"] == "kept out"
    assert tags["rival"] == "cats-dogs/1"
    assert (tags["test_photos"], tags["only_champion_right"], tags["only_candidate_right"]) == ("220", "8", "0")
    assert float(tags["p_value"]) == pytest.approx(2 / 2**8)
    interval = wilson(2 * EACH - 8, 2 * EACH)
    assert tags["candidate_accuracy"] == f"{interval.value:.6g} (95 % {interval.low:.6g} to {interval.high:.6g})"
    assert int(tags["candidate_bytes"]) < int(tags["champion_bytes"])
    assert float(tags["candidate_log_loss"]) > float(tags["champion_log_loss"])
    assert float(tags["time_ratio"]) > 0


def test_a_significantly_better_candidate_wins_though_it_is_larger(make: Make) -> None:
    make(8)
    done("promote")
    make(0, padding=80_000)
    assert "promote: the candidate is significantly better" in done("promote")
    assert champion() == "cats-dogs/2"
    assert client().get_model_version("cats-dogs", "2").tags["previous_champion"] == "1"
    assert serving.load(SERVED / "cats-dogs.fp32.onnx").contract.provenance.registry == "cats-dogs/2"


def test_an_equal_and_smaller_candidate_wins(make: Make) -> None:
    make(2)
    done("promote")
    make(2, padding=4000)
    output = done("promote")
    assert "promote: no significant difference (0 of 220 photos only the champion" in output
    assert "smaller" in output
    assert champion() == "cats-dogs/2"


def test_an_equal_larger_and_slower_candidate_is_kept_out(make: Make) -> None:
    make(2)
    done("promote")
    make(2, padding=80_000, work=2)
    output = done("promote")
    assert "keep out: no significant difference" in output
    assert "neither smaller nor faster" in output
    assert champion() == "cats-dogs/1"


def test_the_int8_file_is_what_is_compared_and_both_are_shipped(make: Make) -> None:
    make(2)
    done("promote")
    made = make(2, padding=80_000, int8=8000)
    done("promote")
    assert champion() == "cats-dogs/2"
    assert sorted(served()) == [f"cats-dogs.{p}.{s}" for p in ("fp32", "int8") for s in ("json", "onnx")]
    loaded = serving.load(SERVED / "cats-dogs.int8.onnx").contract
    assert (loaded.precision, loaded.provenance.registry) == ("int8", "cats-dogs/2")
    tags = client().get_model_version("cats-dogs", "2").tags
    assert int(tags["candidate_bytes"]) == len(made["model.int8.onnx"])
    make(0, padding=4000)  # a version without int8 leaves no int8 of another behind
    done("promote")
    assert sorted(served()) == ["cats-dogs.fp32.json", "cats-dogs.fp32.onnx"]


def test_a_dry_run_says_the_same_and_changes_nothing(make: Make) -> None:
    make(8)
    before = state()
    assert "there is no champion yet" in done("promote", "--dry-run")
    assert state() == before
    done("promote")
    make(0)
    before = state()
    said = done("promote", "--dry-run")
    assert state() == before
    assert said.splitlines()[-1] == done("promote").splitlines()[-2]


def test_the_registry_s_model_is_an_mlflow_model_with_its_signature(make: Make) -> None:
    make(2, int8=8000)
    done("promote")
    model = mlflow.onnx.load_model("models:/cats-dogs@champion")
    assert {entry.key for entry in model.metadata_props} == {contract.METADATA_KEY}
    signature = mlflow.models.get_model_info("models:/cats-dogs@champion").signature
    assert signature is not None
    assert [tensor.name for tensor in signature.outputs] == ["probabilities", "evidence", "familiarity"]


def test_a_version_belongs_to_the_run_that_trained_it(make: Make) -> None:
    with tracking.run(name="training") as run_id:
        pass
    make(mlflow_run_id=run_id)
    done("promote")
    assert client().get_model_version("cats-dogs", "1").run_id == run_id


def test_the_same_file_is_registered_once(make: Make) -> None:
    make(8)
    done("promote")
    (SERVED / "cats-dogs.fp32.onnx").unlink()  # cut off between the alias and the files
    assert "cats-dogs/1: champion already" in done("promote")
    assert serving.load(SERVED / "cats-dogs.fp32.onnx").contract.provenance.registry == "cats-dogs/1"
    make(0)
    done("promote")
    done("rollback")
    done("promote")
    assert champion() == "cats-dogs/2"
    assert len(client().search_model_versions("name='cats-dogs'")) == 2


def test_rollback_restores_the_bytes_and_stops_at_the_first(make: Make) -> None:
    make(16, int8=8000)
    done("promote")
    first = served()
    make(8)
    done("promote")
    second = served()
    make(0)
    done("promote")
    assert "cats-dogs/2: champion again" in done("rollback")
    assert (champion(), served()) == ("cats-dogs/2", second)
    done("rollback")
    assert (champion(), served()) == ("cats-dogs/1", first)
    assert "rolled_back" in client().get_model_version("cats-dogs", "3").tags
    result = run("rollback")
    assert result.exit_code == 2
    assert "cats-dogs/1 is the first champion" in result.output
    assert (champion(), served()) == ("cats-dogs/1", first)


def test_rollback_without_a_champion_says_so(work: Path) -> None:
    result = run("rollback")
    assert result.exit_code == 2
    assert "no champion to roll back from" in result.output


def contradict(path: Path, **changes: object) -> None:
    model = onnx.load(path)
    text = model.metadata_props[0].value
    loaded = msgspec.json.decode(text, type=Contract)
    model.metadata_props[0].value = contract.dumps(msgspec.structs.replace(loaded, **changes))
    onnx.save(model, path)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_candidate_that_must_not_serve_is_refused_and_not_registered(make: Make, precision: Precision) -> None:
    path = PIPELINE[precision][0]
    make()
    done("promote")
    before = state()

    def refused(reason: str) -> None:
        result = run("promote")
        assert result.exit_code == 2
        assert reason in result.output.replace("\n", " ")
        assert state() == before

    make(1, int8=8000)
    contradict(path, pixels="0" * 64)
    refused("another procedure")
    make(1, int8=8000)
    contradict(path, exam=msgspec.structs.replace(serving.load(path).contract.exam, questions=()))
    refused("fails its exam")
    make(1, int8=8000)
    path.write_bytes(path.read_bytes()[:200])
    refused("it does not run")
    make(1, int8=8000, split_digest="1" * 64)
    refused("another split")
    make(1, int8=8000)
    contradict(path, provenance=document(serving.load(path).run, precision, mlflow_run_id="e" * 32).provenance)
    refused("come from different training runs")
    make(1, int8=8000)
    PIPELINE[precision][1].unlink()
    refused("run `catsdogs evaluate` first")


def test_without_a_candidate_or_photos_it_says_what_to_run(make: Make) -> None:
    assert "run `catsdogs evaluate` first" in run("promote").output
    make(1)
    done("promote")
    make(0)
    shutil.rmtree(stage.PREPARED)
    assert "run `catsdogs prepare` first" in run("promote").output


def test_a_champion_for_pixels_of_another_time_is_no_rival(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make(0)
    done("promote")
    monkeypatch.setattr("shared.spec.DIGEST", "1" * 64)
    make(8)
    contradict(PIPELINE["fp32"][0], pixels="1" * 64)
    assert "the champion can no longer serve: it was trained on pixels" in done("promote")
    assert champion() == "cats-dogs/2"
    assert "cats-dogs/1 must not serve" in run("rollback").output


def test_a_champion_whose_files_are_lost_or_changed_is_an_error(make: Make, work: Path) -> None:
    make(8)
    done("promote")
    make(0)
    (kept,) = work.glob("mlruns/**/extra_files/cats-dogs.fp32.onnx")
    kept.write_bytes(kept.read_bytes() + b"\0")
    assert "differ from those that were registered" in run("promote").output.replace("\n", " ")
    shutil.rmtree(work / "mlruns")
    result = run("promote")
    assert result.exit_code == 2
    assert "cannot be downloaded" in result.output
    assert champion() == "cats-dogs/1"


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_a_dead_server_is_one_clear_line_and_nothing_changes(
    make: Make, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    make(8)
    done("promote")
    make(0)
    before, store = state(), os.environ["MLFLOW_TRACKING_URI"]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    result = run(command)
    assert time.monotonic() - began < 30
    assert result.exit_code == 2
    assert f"Error: the MLflow store http://127.0.0.1:{port} failed: [Errno 111] Connection refused; " in result.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    assert state() == before


def test_a_broken_store_is_said_at_once(make: Make, work: Path) -> None:
    make()
    (work / "mlflow.db").write_bytes(b"no database" * 100)
    began = time.monotonic()
    assert "file is not a database" in run("promote").output
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("full_at", [1, 2])
def test_a_full_disk_leaves_the_champion_serving(make: Make, monkeypatch: pytest.MonkeyPatch, full_at: int) -> None:
    make(8, int8=8000)
    done("promote")
    before = served()
    make(0, int8=8000)
    writes = 0

    def write_until_full(path: Path, data: bytes | str) -> None:
        nonlocal writes
        writes += path.parent == SERVED
        if writes == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(path, data)

    with monkeypatch.context() as full:
        full.setattr("training.promote.write_whole", write_until_full)
        result = run("promote")
    assert result.exit_code == 2
    assert "No space left on device: nothing is half-written" in result.output
    assert (champion(), served()) == ("cats-dogs/1", before)
    done("promote")
    assert champion() == "cats-dogs/2"
    assert len(client().search_model_versions("name='cats-dogs'")) == 2


def test_a_server_that_dies_when_the_alias_moves_leaves_the_old_files(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(8)
    done("promote")
    before = served()
    make(0)

    def dead(*_: object) -> None:
        raise mlflow.exceptions.MlflowException("API request to http://x failed (Caused by e: connection reset)")

    with monkeypatch.context() as dying:
        dying.setattr(mlflow.MlflowClient, "set_registered_model_alias", dead)
        assert "failed: connection reset; finished work is kept" in run("promote").output
    assert (champion(), served()) == ("cats-dogs/1", before)


def match(only_champion: int, only_candidate: int, *, both: int = 1300, size: int = 100, speed: float = 1.0) -> Match:
    first = np.repeat([True, True, False], [both, only_champion, only_candidate])
    second = np.repeat([True, False, True], [both, only_champion, only_candidate])
    return Match(compare(first, second), Difference(0, 0, 0), (0.1, 0.1), (100, size), (10, 10 * speed), speed)


@pytest.mark.parametrize(
    ("played", "promoted"),
    [
        (match(0, 8, size=200, speed=2), True),  # significantly better is enough
        (match(0, 5), False),  # five are not significant
        (match(5, 5), False),
        (match(5, 5, size=99), True),
        (match(5, 5, size=100, speed=0.96), False),
        (match(5, 5, size=200, speed=0.95), True),
        (match(6, 1, size=50), True),  # may be worse by 0.8 %
        (match(13, 5, size=50), False),  # not significant, but it may be worse by 1.3 %
        (match(3, 0, both=20, size=50), False),  # not significant on 23 photos, which prove nothing
        (match(0, 0, both=20, size=50), False),
        (match(8, 0, size=50, speed=0.5), False),
    ],
)
def test_the_rule(played: Match, promoted: bool) -> None:
    assert decide(played).promote is promoted
    assert decide(played).reason


def test_the_margin_is_how_much_worse_a_smaller_model_may_be() -> None:
    assert not decide(match(13, 5, size=50), margin=0.005).promote
    assert decide(match(13, 5, size=50), margin=0.02).promote
    assert not decide(match(8, 0, size=50), margin=0.5).promote  # never a significantly worse one


def test_each_side_s_photos_are_inputs_of_the_run_with_the_split_s_digest(work: Path) -> None:
    for side in ("train", "val"):
        shutil.copytree(stage.PREPARED / "test", stage.PREPARED / side)
    with tracking.run(name="training") as run_id:
        tracking.log_dataset(stage.PREPARED, "ab" * 32)
    inputs = client().get_run(run_id).inputs
    assert inputs is not None
    found = {
        tag.value: entry for entry in inputs.dataset_inputs for tag in entry.tags if tag.key == "mlflow.data.context"
    }
    assert sorted(found) == ["test", "train", "val"]
    for side, entry in found.items():
        assert entry.dataset.name == f"cats-dogs {side}"
        assert entry.dataset.digest == ("ab" * 32)[:36]
        assert json.loads(str(entry.dataset.profile))["num_rows"] == 2 * EACH
        assert ("split_digest", "ab" * 32) in {(tag.key, tag.value) for tag in entry.tags}


def test_the_machine_is_watched_while_a_run_goes_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with tracking.run(name="training") as run_id:
        until(lambda: client().get_run(run_id).data.metrics)
    assert "system/cpu_utilization_percentage" in client().get_run(run_id).data.metrics


def test_a_store_that_dies_while_a_run_goes_on_is_a_clear_error(work: Path) -> None:
    with pytest.raises(StageError, match=r"the MLflow store sqlite:.* failed"), tracking.run(name="training"):
        (work / "mlflow.db").write_bytes(b"no database" * 100)
        mlflow.log_metric("loss", 1.0)
    assert mlflow.active_run() is None


def test_an_error_of_the_work_itself_passes_through_a_run_unchanged(work: Path) -> None:
    with pytest.raises(StageError, match=r"^no photos$"), tracking.run(name="training"):
        raise StageError("no photos")


def test_intervals_of_the_table_are_wilson_s(make: Make) -> None:
    make(8)
    done("promote")
    make(0)
    interval = wilson(2 * EACH - 8, 2 * EACH)
    assert f"{interval.value:.2%} ({interval.low:.2%} to {interval.high:.2%})" in done("promote", "--dry-run")


def test_the_documented_commands_run(make: Make) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/pipeline.md").read_text(), re.DOTALL)
    commands = [shlex.split(block)[1:] for block in blocks if re.search(r"/bin/catsdogs (promote|rollback)", block)]
    assert commands == [["promote", "--dry-run"], ["rollback"]]
    make(8)
    done("promote")
    make(0)
    done("promote")
    for command in commands:
        assert done(*command)
