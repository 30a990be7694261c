"""Evaluate: measure the exported files, through onnxruntime, on photos that nothing was fitted on.

    catsdogs evaluate

Writes the finished files, with their test metrics in the contract, to ``models/model.onnx`` and
``models/model.int8.onnx``, and to ``reports/``: the figures (``metrics.json``, ``metrics.int8.json``,
``ablation.json``), each photo's answer (``predictions.csv``), ``report.html`` with the worst mistakes,
``report-without-photos.html`` and ``model-card.md``.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import mlflow
import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from shared import contract, exam
from shared.contract import CLASSES, Contract, Precision
from shared.exam import Outputs, Run
from shared.files import write_json, write_whole
from shared.pixels import Pixels
from training import ablation, labels, ood, plots, report, stage, tracking
from training.comparison import Comparison, compare
from training.graph import runner
from training.machine import choose_machine
from training.measure import Quality, quality
from training.occlusion import Occlusion, occlusion
from training.packaging import answers
from training.params import Evaluate
from training.pictures import Pictures, evenly_spaced
from training.stage import StageError, progress
from training.train import read_trained

TURN: Final = 20  # photos that a file is timed on before the next file's turn
FILES: Final[dict[Precision, tuple[Path, Path, str]]] = {
    "fp32": (stage.CANDIDATE, stage.MODEL, "metrics.json"),
    "int8": (stage.CANDIDATE_INT8, stage.MODEL_INT8, "metrics.int8.json"),
}
Labels = npt.NDArray[np.int64]


@dataclass
class Measured:
    """One file and its measurements."""

    model: onnx.ModelProto
    document: Contract
    run: Run
    outputs: Outputs
    raw: Quality
    audited: Quality
    ood_detection: ood.OodDetection | None
    ood_outputs: dict[str, Outputs]
    milliseconds: float = 0.0


def evaluate(params: Evaluate) -> None:
    """Evaluate the candidates on the test side.

    Raises:
        StageError: an earlier stage has not run, or a file fails its own exam.
    """
    trained = read_trained(stage.TRAINED)
    decided = labels.decisions()
    test = Pictures(stage.PREPARED / "test")
    after_audit = [labels.audited(path.stem, path.parent.name, decided) for path in test.paths]
    others = ood.read(Path(params.not_pets)) if Path(params.not_pets).exists() else {}
    if not others:
        print(f"{params.not_pets}: not found; photos of other things are not evaluated (evaluate.not_pets)")
    files = {
        precision: _measure(path, test, after_audit, others)
        for precision, (path, _, _) in FILES.items()
        if path.exists()
    }
    if "fp32" not in files:
        raise StageError(f"{stage.CANDIDATE}: not found; run `catsdogs export` first")
    _time(files, test, params.timed)
    evidence = occlusion(files["fp32"].run, [test.array(index) for index in evenly_spaced(len(test), params.covered)])
    rows = ablation.ablation(trained, decided, choose_machine())
    truth = np.array(test.labels)
    precisions = (
        compare(*(files[precision].outputs.probabilities.argmax(1) == truth for precision in ("fp32", "int8")))
        if "int8" in files
        else None
    )
    _write(params, test, files, evidence, rows, precisions)
    _track(params, trained["mlflow_run_id"], files, rows)
    for precision, file in files.items():
        print(
            f"{precision}: {file.raw.accuracy.text()} right on {file.raw.pictures:,} test photos, "
            f"{file.audited.accuracy.text()} on the {file.audited.pictures:,} with audited labels; "
            f"log loss {file.raw.log_loss.value:.4f} and {file.audited.log_loss.value:.4f}"
        )
    print(f"{stage.REPORTS / 'report.html'}: the full report")


def _measure(path: Path, test: Pictures, after_audit: list[str | None], others: dict[str, list[Pixels]]) -> Measured:
    data = path.read_bytes()
    model = onnx.load_model_from_string(data)
    document = contract.loads({entry.key: entry.value for entry in model.metadata_props})
    run = runner(data)
    failures = exam.sit(document.exam, run)
    if failures:
        raise StageError(f"{path} fails its exam: {'; '.join(failures)}")
    outputs = answers(run, test, f"testing {document.precision}")
    kept = np.array([label is not None for label in after_audit])
    right_labels = np.array([CLASSES.index(label) for label in after_audit if label is not None])
    raw = quality(outputs, np.array(test.labels), document)
    audited = quality(Outputs(*(rows[kept] for rows in outputs)), right_labels, document)
    ood_outputs = ood.grouped_answers(run, others, f"out of distribution, {document.precision}") if others else {}
    promise = contract.TestMetrics(
        pictures=raw.pictures,
        accuracy=raw.accuracy,
        log_loss=raw.log_loss.value,
        confusion=raw.confusion,
        audited=audited.accuracy,
    )
    document = msgspec.structs.replace(document, test=promise)
    onnx.helper.set_model_props(model, {contract.METADATA_KEY: contract.dumps(document)})
    detection = ood.ood_detection(outputs, ood_outputs, document) if ood_outputs else None
    return Measured(model, document, run, outputs, raw, audited, detection, ood_outputs)


def _time(files: dict[Precision, Measured], test: Pictures, count: int) -> None:
    """Median milliseconds of a photo on one thread, in turns so that other load affects all files alike.

    A turn is several photos long, because a service runs one file: alternating photo by photo, each file evicts the
    other's weights from the caches, which costs the faster one most (2.6 ms rather than 1.9; float takes 4.6).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    runs = {precision: runner(file.model.SerializeToString(), options) for precision, file in files.items()}
    spent: dict[Precision, list[float]] = {precision: [] for precision in files}
    chosen = evenly_spaced(len(test), count)
    for start in progress(range(0, len(chosen), TURN), "timing", unit=" turns"):
        pictures = [test.array(index)[np.newaxis] for index in chosen[start : start + TURN]]
        for precision, run in runs.items():
            for picture in pictures:
                began = perf_counter()
                run(picture)
                spent[precision].append((perf_counter() - began) * 1000)
    for precision, file in files.items():
        file.milliseconds = median(spent[precision])


def figures(file: Measured, evidence: Occlusion | None) -> dict[str, Any]:
    """Content of ``metrics.json`` for a file; names without ``audited`` are of the original labels."""
    document, raw, audited = file.document, msgspec.to_builtins(file.raw), msgspec.to_builtins(file.audited)
    result = {
        "version": document.version,
        "pictures": raw["pictures"],
        "accuracy": raw["accuracy"],
        "log_loss": raw["log_loss"]["value"],
        "log_loss_interval": raw["log_loss"],
        "calibration_error": raw["calibration_error"],
        "confusion": {
            true: dict(zip(CLASSES, row, strict=True)) for true, row in zip(CLASSES, raw["confusion"], strict=True)
        },
        "answered": raw["answered"],
        "accuracy_when_answered": raw["accuracy_when_answered"],
        "unsure": raw["unsure"],
        "audited": {name: value for name, value in audited.items() if name != "confusion"},
        "megabytes": round(file.model.ByteSize() / 1e6, 2),
        "milliseconds": round(file.milliseconds, 2),
        "dataset_digest": document.provenance.dataset_digest,
        "split_digest": document.provenance.split_digest,
        "git_commit": document.provenance.git_commit,
    }
    if file.ood_detection:
        result["strangers"] = msgspec.to_builtins(file.ood_detection)
    if evidence:
        result["evidence"] = msgspec.to_builtins(evidence)
    return result


def _write(
    params: Evaluate,
    test: Pictures,
    files: dict[Precision, Measured],
    evidence: Occlusion,
    rows: list[ablation.AblationRow],
    precisions: Comparison | None,
) -> None:
    fp32, truth = files["fp32"], np.array(test.labels)
    metrics = {precision: figures(file, evidence if precision == "fp32" else None) for precision, file in files.items()}
    predicted = fp32.outputs.probabilities.argmax(1)
    worst = _worst(fp32.outputs, truth, params.worst)
    mistakes = plots.contact_sheet(
        [test.array(index) for index in worst],
        [f"{CLASSES[truth[i]]}, said {CLASSES[predicted[i]]} {fp32.outputs.probabilities[i].max():.3f}" for i in worst],
        f"{len(worst)} worst of {int((predicted != truth).sum())} mistakes on {len(truth):,} test photos",
    )
    stage.REPORTS.mkdir(exist_ok=True)
    for precision, (_, _, name) in FILES.items():
        if precision in metrics:
            write_json(stage.REPORTS / name, metrics[precision])
    table = [msgspec.to_builtins(row) | {"verdict": _verdict(row)} for row in rows]
    write_json(stage.REPORTS / "ablation.json", {"compared_with": rows[1].name, "rows": table})
    write_whole(stage.REPORTS / "predictions.csv", _predictions(test.paths, fp32))
    plots.confusion_matrix(truth, predicted).savefig(stage.REPORTS / "confusion.png", dpi=120)
    mistakes.savefig(stage.REPORTS / "worst.png", dpi=110)
    content = report.Content(
        metrics={str(precision): figures for precision, figures in metrics.items()},
        outputs={str(precision): file.outputs for precision, file in files.items()},
        contracts={str(precision): file.document for precision, file in files.items()},
        ood_outputs=fp32.ood_outputs,
        labels=truth,
        ablation=table,
        precisions=precisions,
    )
    write_whole(stage.REPORTS / "report.html", report.page(content, mistakes))
    write_whole(stage.REPORTS / "report-without-photos.html", report.page(content, None))
    write_whole(stage.REPORTS / "model-card.md", report.card(content))
    for precision, (_, path, _) in FILES.items():
        if precision in files:
            write_whole(path, files[precision].model.SerializeToString())
        else:
            path.unlink(missing_ok=True)


def _verdict(row: ablation.AblationRow) -> str:
    return row.against_first.describe("the fine-tuned network", "this one") if row.against_first else "compared with"


def _worst(outputs: Outputs, truth: Labels, count: int) -> list[int]:
    """Indices of the mistakes, the most confident first."""
    mistakes = np.flatnonzero(outputs.probabilities.argmax(1) != truth)
    order = np.argsort(-outputs.probabilities[mistakes].max(1))
    return [int(index) for index in mistakes[order][:count]]


def _predictions(paths: list[Path], file: Measured) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("photo", "actual", "predicted", "dogs", "familiarity", "verdict"))
    outputs = file.outputs
    for path, probabilities, familiarity in zip(paths, outputs.probabilities, outputs.familiarity, strict=True):
        verdict = file.document.judge(probabilities, float(familiarity))
        row = (path.stem, path.parent.name, verdict.label, f"{probabilities[1]:.6f}", f"{familiarity:.4f}")
        writer.writerow((*row, verdict.verdict))
    return text.getvalue()


def _track(params: Evaluate, run_id: str, files: dict[Precision, Measured], rows: list[ablation.AblationRow]) -> None:
    with tracking.run(run_id):
        for precision, file in files.items():
            mlflow.log_metrics(
                {
                    f"test_accuracy_{precision}": file.raw.accuracy.value,
                    f"test_accuracy_audited_{precision}": file.audited.accuracy.value,
                    f"test_log_loss_{precision}": file.raw.log_loss.value,
                    f"milliseconds_{precision}": file.milliseconds,
                }
            )
        for path in sorted(stage.REPORTS.iterdir()):
            mlflow.log_artifact(str(path), "report")
        mlflow.set_tag("version", files["fp32"].document.version)
        tracking.log_section("evaluate", params)
        for row in rows:
            if row.mlflow_run_id:
                with tracking.run(row.mlflow_run_id, nested=True):
                    mlflow.log_metrics(
                        {
                            "test_accuracy_audited": row.accuracy.value,
                            "test_log_loss_audited": row.log_loss.value,
                            "test_accuracy_degraded": row.degraded.value,
                        }
                    )
