"""Evaluate: measure the exported file, through onnxruntime, on photos that nothing was fitted on.

    catsdogs evaluate

Writes the report to ``reports/`` and the finished file, with its test metrics in the contract, to
``models/model.onnx``.
"""

import csv
import io
from pathlib import Path

import mlflow
import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from shared import contract, exam
from shared.contract import CLASSES, Contract
from shared.exam import Outputs
from shared.intervals import wilson
from shared.pixels import SIZE, pixels
from training import plots, stage, tracking
from training.graph import INPUT, runner
from training.params import Evaluate
from training.stage import StageError, progress

Labels = npt.NDArray[np.int64]


def evaluate(params: Evaluate) -> None:
    """Evaluate ``models/candidate.onnx`` on the test side.

    Raises:
        StageError: an earlier stage has not run, or the file fails its own exam.
    """
    if not stage.CANDIDATE.exists():
        raise StageError(f"{stage.CANDIDATE}: not there; run `catsdogs export` first")
    data = stage.CANDIDATE.read_bytes()
    model = onnx.load_model_from_string(data)
    document = contract.loads({entry.key: entry.value for entry in model.metadata_props})
    run = runner(data)
    failures = exam.sit(document.exam, run)
    if failures:
        raise StageError(f"{stage.CANDIDATE} fails its exam: {'; '.join(failures)}")

    paths = sorted((stage.PREPARED / "test").glob("*/*.png"))
    if not paths:
        raise StageError(f"{stage.PREPARED / 'test'}: no pictures there; run `catsdogs prepare` first")
    answers = [_answer(path, run) for path in progress(paths, "testing")]
    outputs = Outputs(*(np.concatenate(parts) for parts in zip(*answers, strict=True)))
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    predicted = outputs.probabilities.argmax(1)

    metrics = measure(outputs, labels)
    document = msgspec.structs.replace(document, test=metrics)
    onnx.helper.set_model_props(model, {contract.METADATA_KEY: contract.dumps(document)})
    report = _report(document, outputs, labels, model.ByteSize())
    worst = _worst(outputs, labels, params.worst)
    stage.REPORTS.mkdir(exist_ok=True)
    stage.write_json(stage.REPORTS / "metrics.json", report)
    stage.write_whole(stage.REPORTS / "predictions.csv", _predictions(paths, outputs, document))
    plots.confusion_matrix(labels, predicted).savefig(stage.REPORTS / "confusion.png", dpi=120)
    plots.sheet(
        [pixels(paths[index].read_bytes()) for index in worst],
        [f"{CLASSES[labels[i]]}, said {CLASSES[predicted[i]]} {outputs.probabilities[i].max():.3f}" for i in worst],
        f"{len(worst)} worst of {int((predicted != labels).sum())} mistakes on {len(paths):,} test photos",
    ).savefig(stage.REPORTS / "worst.png", dpi=110)
    stage.write_whole(stage.MODEL, model.SerializeToString())
    _track(document, model, report)
    accuracy = metrics.accuracy
    print(
        f"{stage.MODEL}: {accuracy.value:.2%} right on {metrics.pictures:,} test photos "
        f"(95 % interval {accuracy.low:.2%} to {accuracy.high:.2%}), log loss {metrics.log_loss:.4f}"
    )


def measure(outputs: Outputs, labels: Labels) -> contract.TestMetrics:
    """Accuracy with its interval, log loss in nats, and counts by true and predicted class."""
    predicted = outputs.probabilities.argmax(1)
    confusion = [[int(((labels == true) & (predicted == said)).sum()) for said in (0, 1)] for true in (0, 1)]
    likelihood = outputs.probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return contract.TestMetrics(
        pictures=len(labels),
        accuracy=wilson(int((predicted == labels).sum()), len(labels)),
        log_loss=float(-np.log(likelihood.clip(1e-12)).mean()),
        confusion=((confusion[0][0], confusion[0][1]), (confusion[1][0], confusion[1][1])),
    )


def _answer(path: Path, run: exam.Run) -> Outputs:
    return run(pixels(path.read_bytes())[np.newaxis])


def _report(document: Contract, outputs: Outputs, labels: Labels, size: int) -> dict[str, object]:
    assert document.test is not None
    verdicts = [
        document.judge(probabilities, float(familiarity))
        for probabilities, familiarity in zip(outputs.probabilities, outputs.familiarity, strict=True)
    ]
    answered = np.array([verdict.unsure_because is None for verdict in verdicts])
    right = outputs.probabilities.argmax(1) == labels
    return {
        "version": document.version,
        "pictures": document.test.pictures,
        "accuracy": msgspec.to_builtins(document.test.accuracy),
        "log_loss": document.test.log_loss,
        "confusion": {
            true: dict(zip(CLASSES, row, strict=True))
            for true, row in zip(CLASSES, document.test.confusion, strict=True)
        },
        "answered": msgspec.to_builtins(wilson(int(answered.sum()), len(answered))),
        "accuracy_when_answered": (
            msgspec.to_builtins(wilson(int((right & answered).sum()), int(answered.sum()))) if answered.any() else None
        ),
        "unsure": {
            reason: sum(verdict.unsure_because == reason for verdict in verdicts)
            for reason in ("close_call", "unfamiliar")
        },
        "megabytes": round(size / 1e6, 2),
        "dataset_digest": document.provenance.dataset_digest,
        "split_digest": document.provenance.split_digest,
        "git_commit": document.provenance.git_commit,
    }


def _worst(outputs: Outputs, labels: Labels, count: int) -> list[int]:
    """Indices of the mistakes, the most confident first."""
    mistakes = np.flatnonzero(outputs.probabilities.argmax(1) != labels)
    order = np.argsort(-outputs.probabilities[mistakes].max(1))
    return [int(index) for index in mistakes[order][:count]]


def _predictions(paths: list[Path], outputs: Outputs, document: Contract) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("photo", "actual", "predicted", "dogs", "familiarity", "verdict"))
    for path, probabilities, familiarity in zip(paths, outputs.probabilities, outputs.familiarity, strict=True):
        verdict = document.judge(probabilities, float(familiarity))
        row = (path.stem, path.parent.name, verdict.label, f"{probabilities[1]:.6f}", f"{familiarity:.4f}")
        writer.writerow((*row, verdict.verdict))
    return text.getvalue()


def _track(document: Contract, model: onnx.ModelProto, report: dict[str, object]) -> None:
    assert document.test is not None
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, SIZE, SIZE, 3), INPUT)]),
        outputs=Schema(
            [
                TensorSpec(np.dtype(np.float32), shape, name)
                for name, shape in zip(Outputs._fields, ((-1, 2), (-1, 7, 7), (-1,)), strict=True)
            ]
        ),
    )
    with tracking.run(document.provenance.mlflow_run_id):
        mlflow.log_metrics({"test_accuracy": document.test.accuracy.value, "test_log_loss": document.test.log_loss})
        for name in ("metrics.json", "predictions.csv", "confusion.png", "worst.png"):
            mlflow.log_artifact(str(stage.REPORTS / name), "report")
        mlflow.onnx.log_model(model, name="model", signature=signature, pip_requirements=["onnxruntime", "numpy"])
        mlflow.set_tag("version", report["version"])
