"""Models that look at how red a picture is, and commands that compare them.

The photos of the test side are 0, 0.5, 1, … red, cats below the middle and dogs above. A model says dogs above a
threshold, which decides how many photos it gets right. It knows pets by how little blue they have.
"""

import os
from typing import Any

import mlflow
import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from shared import contract, exam
from shared.contract import Contract, Histogram, Precision, Provenance, Reference, SecondLook, Unsure
from shared.files import write_json, write_whole
from shared.pixels import SIZE
from shared.second_look import INPUT, Network
from tests.conftest import blobs, encoded
from training import cli, split, stage
from training.graph import SUREST, Runner, merged
from training.promotion import registry
from training.promotion.files import NAME
from training.promotion.served import SERVED

EACH = 220  # photos of each class
BLUE = 60  # of pets; other things have more


class Redness(msgspec.Struct, frozen=True, kw_only=True):
    """A model: how many cats it has wrong, and what else there is to compare."""

    wrong: int = 0
    steepness: float = 0.02  # of the logits; the larger, the more certain
    padding: int = 40_000  # bytes
    work: int = 0  # convolutions
    stranger: float = 130.0  # blue from which a picture is unfamiliar
    close_call: float = 0.503
    sure: float = 0.0  # probability from which the first look's answer stands
    wrong_again: int = 0  # cats that the second look has wrong
    questions: int = 2
    tolerance: float = 0.05

    def graph(self) -> onnx.ModelProto:
        """The model without a contract."""
        return merged(self._look(self.wrong, self.work), self._look(self.wrong_again, 0))

    def _look(self, wrong: int, work: int) -> onnx.ModelProto:
        constants: dict[str, npt.NDArray[Any]] = {
            "red": np.array([0], np.int64),
            "blue": np.array([2], np.int64),
            "threshold": np.array((EACH - 0.5 - wrong) / 2, np.float32),
            "stranger": np.array(self.stranger, np.float32),
            "axes": np.array([1, 2, 3], np.int64),
            "two": np.array([[-self.steepness, self.steepness]], np.float32),
            "column": np.array([1], np.int64),
            "seven": np.array([1, 7, 7], np.int64),
            "padding": np.random.default_rng(0).random(self.padding // 4, np.float32),
            "no": np.array(0, np.float32),
            "bound": np.array(SUREST, np.float32),
            "other bound": np.array(-SUREST, np.float32),
        }
        if work:
            constants["kernel"] = np.full((3, 3, 3, 3), 1e-9, np.float32)
        nodes = [
            helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["float", "red"], ["reds"], axis=3),
            helper.make_node("Gather", ["float", "blue"], ["blues"], axis=3),
            helper.make_node("ReduceMean", ["reds", "axes"], ["mean"], keepdims=0),
            helper.make_node("ReduceMean", ["blues", "axes"], ["mean blue"], keepdims=0),
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
            helper.make_node("Sub", ["stranger", "mean blue"], ["pet-like"]),
            helper.make_node("Clip", ["pet-like", "other bound", "bound"], ["bounded"]),
            helper.make_node("Sigmoid", ["bounded"], ["familiarity"]),
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
                [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
                [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
            ),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=10,
        )

    def contract(self, network: Network, precision: Precision, **provenance: str) -> Contract:
        """What the model says about itself."""
        histogram = Histogram(edges=(0.0, 1.0), counts=(1,))
        given = {
            "dataset_digest": "0" * 64,
            "split_digest": split.split_digest(split.read(stage.SPLIT)),
            "git_commit": "unknown",
            "mlflow_run_id": "f" * 32,
            "created": "2026-11-23T00:00:00+00:00",
        }
        pictures = {f"blobs {seed}.png": encoded(blobs(seed), "PNG") for seed in range(self.questions)}
        how = SecondLook(sure=self.sure, familiar=0.0, side=SIZE, crops=(1.0,), temperature=1.0)
        return Contract(
            version=f"2026.11.23-redness-{precision}",
            architecture="redness",
            precision=precision,
            temperature=1.0,
            second_look=how,
            unsure=Unsure(close_call=self.close_call, unfamiliar=0.5),
            provenance=Provenance(**given | provenance),
            reference=Reference(confidence=histogram, brightness=histogram, familiarity=histogram),
            exam=exam.write(pictures, network, how, dict.fromkeys(pictures, self.tolerance)),
        )

    def file(self, precision: Precision = "fp32", **provenance: str) -> bytes:
        """The finished file, as evaluate writes it."""
        model = self.graph()
        text = contract.dumps(self.contract(Runner(model.SerializeToString()), precision, **provenance))
        helper.set_model_props(model, {contract.METADATA_KEY: text})
        data: bytes = model.SerializeToString()
        return data


def place(model: Redness, precision: Precision = "fp32", **provenance: str) -> None:
    """Put a model into serving/models as a clone has it: no registry knows it."""
    write_whole(SERVED / f"{NAME}.{precision}.onnx", model.file(precision, **provenance))
    write_json(SERVED / f"{NAME}.{precision}.json", {"version": "shipped"})


def run(*arguments: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(getattr(cli, arguments[0]), arguments[1:])


def done(*arguments: str) -> str:
    """Run a command that succeeds; returns what it prints."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.stdout


def refused(*arguments: str) -> str:
    """Run a command that a person must help; returns what it says."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output + str(result.exception)
    return " ".join(result.output.split())


def client() -> mlflow.MlflowClient:
    """A client of the test's own store."""
    return mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def served() -> dict[str, bytes]:
    """Everything in serving/models."""
    return {path.name: path.read_bytes() for path in SERVED.iterdir()} if SERVED.exists() else {}


def tags(number: int) -> dict[str, str]:
    """Tags of a version."""
    return dict(client().get_model_version(NAME, str(number)).tags)


def champion() -> str:
    """Name of the champion."""
    version = registry.champion(client())
    assert version is not None
    return registry.version_name(version)


def state() -> tuple[object, ...]:
    """Everything that a command which changes nothing must leave alone."""
    found = registry.champion(client())
    runs = client().search_runs([experiment.experiment_id for experiment in client().search_experiments()])
    tags = [(int(version.version), sorted(version.tags.items())) for version in registry.versions(client())]
    return found and found.version, tags, len(runs), served()


def as_fast(*_: object) -> float:
    """The seconds of every model: these are so small that what else the machine does would decide."""
    return 0.01
