"""Packaging: turn a graph into a self-describing model file, the same way for every precision.

The file's own outputs on the validation set, computed by onnxruntime, decide when it answers; the reference histograms
are of those outputs; and the exam is answered by the file itself. So an int8 file's thresholds are its own.
"""

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from shared import contract, exam
from shared.exam import Outputs, Run
from shared.metrics import log_losses
from training import audit, calibration, stage, tracking
from training.golden import golden_pictures
from training.graph import runner
from training.params import Export
from training.pictures import Pictures
from training.stage import StageError, progress

CONFIDENCE_EDGES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
UNIT_EDGES: Final = tuple(float(edge) for edge in np.linspace(0, 1, 21).round(2))
# Measured on the golden pictures: answers to cats move by 0.01 for noise, and by 0.02 to 0.2 for swapped colours, a
# picture upside down or half as bright; answers to pictures of neither animal by up to 0.09, and by 0.1 to 0.6.
LEAST_TOLERANCE: Final = 0.01
LARGEST_TOLERANCE: Final = 0.2
# Of 14. An int8 network trained on few photos has stable answers to 11, the one that ships to 13.
LEAST_QUESTIONS: Final = 8


class Packaged(NamedTuple):
    """A finished file and what is worth reporting about it."""

    data: bytes
    report: dict[str, Any]


class Calibrated(NamedTuple):
    """What is known of the trained network at every precision."""

    trained: dict[str, Any]  # models/trained/trained.json
    temperature: float


def package(
    model: onnx.ModelProto,
    precision: contract.Precision,
    calibrated: Calibrated,
    val_set: Pictures,
    params: Export,
    others: dict[str, Run],
) -> Packaged:
    """Fit the thresholds, set and answer the exam, and write the contract into the model.

    Args:
        model: the graph, of ``training.graph``.
        precision: what it computes in.
        calibrated: where it comes from.
        val_set: the validation pictures, with audited labels.
        params: how many answers may be wrong, and how many pictures be called unfamiliar.
        others: other ways to compute this file, for which the exam must leave room; by their names.

    Raises:
        StageError: too few golden pictures have answers that differ from noise.
    """
    run = runner(model.SerializeToString())
    outputs = answers(run, val_set, f"validating {precision}")
    labels = np.array(val_set.labels)
    close_call = calibration.close_call(outputs.probabilities.astype(np.float64), labels, params.answered_error)
    unfamiliar = float(np.quantile(outputs.familiarity, params.unfamiliar_share))
    questions, differences = _exam(run, others)
    trained = calibrated.trained
    document = contract.Contract(
        version=f"{datetime.now(UTC):%Y.%m.%d}-{trained['model'].removeprefix('efficientnet_')}-{precision}",
        architecture=trained["model"],
        precision=precision,
        temperature=calibrated.temperature,
        unsure=contract.Unsure(close_call=close_call, unfamiliar=unfamiliar),
        provenance=contract.Provenance(
            dataset_digest=audit.dataset_digest(audit.read(stage.AUDIT)),
            split_digest=trained["split_digest"],
            git_commit=tracking.git_commit(),
            mlflow_run_id=trained["mlflow_run_id"],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        reference=contract.Reference(
            confidence=_histogram(outputs.probabilities.max(1), CONFIDENCE_EDGES),
            brightness=_histogram(_brightness(val_set), UNIT_EDGES),
            familiarity=_histogram(outputs.familiarity, UNIT_EDGES),
        ),
        exam=questions,
    )
    onnx.helper.set_model_props(model, {contract.METADATA_KEY: contract.dumps(document)})
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    answered = outputs.probabilities.max(1) >= close_call
    wrong = outputs.probabilities.argmax(1) != labels
    return Packaged(
        data,
        {
            "version": document.version,
            "megabytes": round(len(data) / 1e6, 2),
            "val_pictures": len(labels),
            "val_accuracy": float(1 - wrong.mean()),
            "val_log_loss": float(log_losses(outputs.probabilities, labels).mean()),
            "close_call": close_call,
            "val_answered": float(answered.mean()),
            "val_answered_wrong": float((answered & wrong).sum() / max(1, answered.sum())),
            "unfamiliar": unfamiliar,
            "exam": {
                "questions": len(questions.questions),
                "largest_tolerance": questions.tolerance,
                "measured": differences,
            },
        },
    )


def answers(run: Run, pictures: Pictures, what: str) -> Outputs:
    """Run the file on every picture, one at a time as the service does."""
    rows = [run(pictures.array(index)[np.newaxis]) for index in progress(range(len(pictures)), what)]
    return Outputs(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def _exam(run: Run, others: dict[str, Run]) -> tuple[exam.Exam, dict[str, float]]:
    """The exam, each question with a tolerance that is measured: how far correct answers of other machines differ.

    Golden pictures whose answers vary with noise are left out: they cannot tell a wrong machine from a right one.
    """
    pictures = golden_pictures()
    found = {name: exam.spread(picture, run, others) for name, picture in pictures.items()}
    # Twice what was measured, because other processors and decoders could not be tried here.
    tolerances = {name: round(max(LEAST_TOLERANCE, 2 * max(ways.values())), 4) for name, ways in found.items()}
    kept = {name: picture for name, picture in pictures.items() if tolerances[name] <= LARGEST_TOLERANCE}
    if len(kept) < LEAST_QUESTIONS:
        raise StageError(
            f"only {len(kept)} golden pictures have answers stable under noise; an exam needs {LEAST_QUESTIONS}"
        )
    largest = {way: max(found[name][way] for name in kept) for way in found[next(iter(kept))]}
    return exam.write(kept, run, {name: tolerances[name] for name in kept}), largest


def _brightness(pictures: Pictures) -> npt.NDArray[np.float64]:
    return np.array([float(pictures.array(index).mean()) / 255 for index in range(len(pictures))])


def _histogram(values: npt.NDArray[np.floating[Any]], edges: tuple[float, ...]) -> contract.Histogram:
    counts, _ = np.histogram(values, edges)
    return contract.Histogram(edges=edges, counts=tuple(counts.tolist()))
