"""Packaging: turn the two graphs into a self-describing model file, the same way for every precision.

The file's own answers to the validation photos, computed by onnxruntime, give its temperatures, when it looks again,
and when it answers; the reference histograms are of those answers; and the exam is answered by the file itself. So an
int8 file's thresholds are its own.
"""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from scipy.special import expit, logit

from shared import contract, exam
from shared.contract import SecondLook
from shared.metrics import Floats
from shared.second_look import Network, closer
from training import audit, calibration, labels, sanity, stage, tracking
from training.golden import golden_pictures
from training.graph import UNCALIBRATED, Runner, branches, single_threaded, with_temperatures
from training.params import Corrupted, Export
from training.photographs import Photographs
from training.pictures import evenly_spaced
from training.robustness import when_corrupted
from training.stage import StageError, progress

CONFIDENCE_EDGES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
UNIT_EDGES: Final = tuple(float(edge) for edge in np.linspace(0, 1, 21).round(2))
# Measured on the golden pictures: answers to cats move by 0.01 for noise, and by 0.02 to 0.2 for swapped colours, a
# picture upside down or half as bright; answers to pictures of neither animal by up to 0.09, and by 0.1 to 0.6.
LEAST_TOLERANCE: Final = 0.01
LARGEST_TOLERANCE: Final = 0.2
# Of 14. An int8 network trained on few photos has stable answers to 11, the one that ships to 13.
LEAST_QUESTIONS: Final = 8
DIGITS: Final = 8  # of the weights' digest, in a version


class Packaged(NamedTuple):
    """A finished file and what is worth reporting about it."""

    data: bytes
    report: dict[str, Any]


class Trained(NamedTuple):
    """Where the networks come from."""

    first: dict[str, Any]  # models/trained/trained.json
    side: int  # of what the closer network sees, in pixels


Other = Callable[[onnx.ModelProto], Network]


class Validation(NamedTuple):
    """Both looks' answers to the n validation photos, before calibration; float64 [n] but for the labels."""

    labels: npt.NDArray[np.int64]
    odds: Floats  # the first look's log-odds of dogs
    familiarity: Floats
    closer_odds: Floats
    closer_familiarity: Floats
    brightness: Floats


class Calibrated(NamedTuple):
    """What is fitted on the validation photos, and the calibrated answers to them."""

    temperature: float
    second_look: SecondLook
    unsure: contract.Unsure
    promised: float  # share of all pictures that are answered wrongly, at most
    odds: Floats
    familiarity: Floats
    again: npt.NDArray[np.bool_]


def package(
    model: onnx.ModelProto, precision: contract.Precision, trained: Trained, params: Export, others: dict[str, Other]
) -> Packaged:
    """Fit temperatures and thresholds, set and answer the exam, and write the contract into the model.

    Args:
        model: the graphs, of ``training.graph.merged``.
        precision: what they compute in.
        trained: where the networks come from.
        params: how many answers may be wrong, how many pictures be called unfamiliar, and looked at again.
        others: other ways to compute a file, for which the exam must leave room; by their names.

    Raises:
        StageError: too few golden pictures have answers that differ from noise, or pictures that show nothing are
            answered.
    """
    hot = with_temperatures(model, UNCALIBRATED, UNCALIBRATED)
    found = _validate(Runner(hot.SerializeToString()), params, trained.side, precision)
    fitted = _calibrate(found, params, trained.side)
    if fitted.promised > params.answered_error:
        needed = calibration.photos_needed(params.answered_error)
        print(
            f"promise: at most {fitted.promised:.1%} of all pictures answered wrongly; for {params.answered_error:.1%} "
            f"it takes {needed:,} validation photos, and there are {len(found.labels):,}"
        )
    model = with_temperatures(model, fitted.temperature, fitted.second_look.temperature)
    network = single_threaded(model.SerializeToString())
    unsure = sanity.unsure(network, fitted.second_look, fitted.unsure, fitted.familiarity)
    unsure = _corrupted_too(network, fitted, unsure, params.corrupted)
    questions, differences = _exam(network, fitted.second_look, {name: other(model) for name, other in others.items()})
    confidence = expit(np.abs(fitted.odds))
    document = contract.Contract(
        version=_version(model, trained.first["model"], precision),
        architecture=trained.first["model"],
        precision=precision,
        temperature=fitted.temperature,
        second_look=fitted.second_look,
        unsure=unsure,
        provenance=contract.Provenance(
            dataset_digest=audit.dataset_digest(audit.read(stage.AUDIT)),
            split_digest=trained.first["split_digest"],
            git_commit=tracking.git_commit(),
            mlflow_run_id=trained.first["mlflow_run_id"],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        reference=contract.Reference(
            confidence=_histogram(confidence, CONFIDENCE_EDGES),
            brightness=_histogram(found.brightness, UNIT_EDGES),
            familiarity=_histogram(fitted.familiarity, UNIT_EDGES),
        ),
        exam=questions,
    )
    onnx.helper.set_model_props(model, {contract.METADATA_KEY: contract.dumps(document)})
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    answered = (confidence >= unsure.close_call) & (fitted.familiarity >= unsure.unfamiliar)
    wrong = (fitted.odds > 0) != (found.labels == 1)
    report = {
        "version": document.version,
        "megabytes": round(len(data) / 1e6, 2),
        "val_pictures": len(wrong),
        "val_accuracy": float(1 - wrong.mean()),
        "val_log_loss": log_loss(fitted.odds, found.labels),
        "val_log_loss_uncalibrated": log_loss(found.odds, found.labels),
        "temperature": fitted.temperature,
        "second_look": msgspec.to_builtins(fitted.second_look),
        "val_looked_at_again": float(fitted.again.mean()),
        "close_call": unsure.close_call,
        "promised_wrong": fitted.promised,
        "val_answered": float(answered.mean()),
        "val_answered_wrong": float((answered & wrong).mean()),
        "unfamiliar": unsure.unfamiliar,
        "exam": {
            "questions": len(questions.questions),
            "largest_tolerance": questions.tolerance,
            "measured": differences,
        },
    }
    return Packaged(data, report)


def log_loss(odds: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Mean negative log likelihood in nats, of log-odds of dogs."""
    return float(np.logaddexp(0, np.where(labels == 1, -odds, odds)).mean())


def _validate(network: Runner, params: Export, side: int, what: str) -> Validation:
    """Look twice at every validation photo, one at a time as the service does."""
    photos = Photographs("val", labels.decisions())
    how = SecondLook(sure=1, familiar=1, side=side, crops=params.crops, temperature=UNCALIBRATED)
    rows = []
    for index in progress(range(len(photos)), f"validating {what}"):
        photo = photos[index]
        picture = photo.square()
        first = network.first(picture[np.newaxis])
        second = closer(photo, first, network, how)
        odds = (logit(answer.probabilities[0, 1].astype(np.float64)) * UNCALIBRATED for answer in (first, second))
        rows.append((next(odds), first.familiarity[0], next(odds), second.familiarity[0], picture.mean() / 255))
    return Validation(np.array(photos.labels), *np.array(rows, np.float64).T)


def _calibrate(found: Validation, params: Export, side: int) -> Calibrated:
    truth = found.labels
    first, second = (calibration.fit_temperature(odds, truth) for odds in (found.odds, found.closer_odds))
    confidence = expit(np.abs(found.odds) / first)
    second_look = SecondLook(
        sure=float(np.quantile(confidence, params.look_again.unsure)),
        familiar=float(np.quantile(found.familiarity, params.look_again.unfamiliar)),
        side=side,
        crops=params.crops,
        temperature=second,
    )
    again = (confidence < second_look.sure) | (found.familiarity < second_look.familiar)
    odds = np.where(again, found.closer_odds / second, found.odds / first)
    familiarity = np.where(again, found.closer_familiarity, found.familiarity)
    unseen = np.where(
        again,
        calibration.cross_fitted(found.closer_odds, truth),
        calibration.cross_fitted(found.odds, truth),
    )
    threshold, promised = calibration.close_call(
        expit(np.abs(unseen)), (odds > 0) != (truth == 1), params.answered_error
    )
    unfamiliar = float(np.quantile(familiarity, params.unfamiliar_share))
    unsure = contract.Unsure(close_call=threshold, unfamiliar=unfamiliar)
    return Calibrated(first, second_look, unsure, promised, odds, familiarity, again)


def _corrupted_too(network: Network, fitted: Calibrated, unsure: contract.Unsure, params: Corrupted) -> contract.Unsure:
    """``unsure`` with a confidence that keeps ``params.answered_error`` for corrupted photos of every kind too.

    For that, no more than ``params.unsure`` of the validation photos become unsure.
    """
    photos = Photographs("val", labels.decisions())
    chosen = evenly_spaced(len(photos), params.photos)
    confidence, familiarity, wrong = when_corrupted(
        network, fitted.second_look, photos, np.array(photos.labels), chosen
    )
    confidence[familiarity < unsure.unfamiliar] = 0
    clean = expit(np.abs(fitted.odds))
    share = min(1.0, float((clean < unsure.close_call).mean()) + params.unsure)
    largest = max(unsure.close_call, float(np.quantile(clean, share, method="lower")))
    threshold, worst = calibration.surer(confidence, wrong, (unsure.close_call, largest), params.answered_error)
    print(
        f"close call: below {threshold:.3f}; of the answers to any kind of corrupted photo, at most {worst:.1%} are "
        "wrong"
    )
    return msgspec.structs.replace(unsure, close_call=threshold)


def _version(model: onnx.ModelProto, name: str, precision: contract.Precision) -> str:
    """Date, network, precision and the start of the weights' digest: no two files share it."""
    entries = (entry for graph in (model.graph, *branches(model)) for entry in graph.initializer)
    weights = hashlib.sha256(b"".join(entry.SerializeToString() for entry in entries)).hexdigest()
    return f"{datetime.now(UTC):%Y.%m.%d}-{name.removeprefix('efficientnet_')}-{precision}-{weights[:DIGITS]}"


def _exam(network: Runner, how: SecondLook, others: dict[str, Network]) -> tuple[exam.Exam, dict[str, float]]:
    """The exam, each question with a tolerance that is measured: how far correct answers of other machines differ.

    Golden pictures whose answers vary with noise are left out: they cannot tell a wrong machine from a right one.
    """
    pictures = golden_pictures()
    found = {name: exam.spread(picture, network, how, others) for name, picture in pictures.items()}
    # Twice what was measured, because other processors and decoders could not be tried here.
    tolerances = {name: round(max(LEAST_TOLERANCE, 2 * max(ways.values())), 4) for name, ways in found.items()}
    kept = {name: picture for name, picture in pictures.items() if tolerances[name] <= LARGEST_TOLERANCE}
    if len(kept) < LEAST_QUESTIONS:
        raise StageError(
            f"only {len(kept)} golden pictures have answers stable under noise; an exam needs {LEAST_QUESTIONS}"
        )
    largest = {way: max(found[name][way] for name in kept) for way in found[next(iter(kept))]}
    return exam.write(kept, network, how, {name: tolerances[name] for name in kept}), largest


def _histogram(values: npt.NDArray[np.floating[Any]], edges: tuple[float, ...]) -> contract.Histogram:
    counts, _ = np.histogram(values, edges)
    return contract.Histogram(edges=edges, counts=tuple(counts.tolist()))
