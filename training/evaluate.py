"""Evaluate: measure the exported files, through onnxruntime, on photos that nothing was fitted on.

    catsdogs evaluate

Writes the finished files, with their test metrics in the contract, to ``models/model.onnx`` and
``models/model.int8.onnx``, and to ``reports/``: the figures (``metrics.json``, ``metrics.int8.json``,
``ablation.json``), each photo's answer (``predictions.csv``), ``report.html`` with the worst mistakes,
``report-without-photos.html`` and ``model-card.md``.
"""

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import mlflow
import msgspec
import numpy as np
import onnx

from shared import contract, exam
from shared.contract import CLASSES, Contract, Precision
from shared.files import write_json, write_whole
from shared.intervals import Interval, wilson
from shared.metrics import Bools, Ints
from shared.second_look import Outputs, look
from training import ablation, labels, ood, plots, report, stage, tracking
from training.comparison import Comparison, compare
from training.graph import Runner, single_threaded
from training.machine import choose_machine
from training.measure import Quality, quality, reasons, typical_seconds
from training.occlusion import Occlusion, occlusion
from training.params import Evaluate
from training.photographs import Answered, Photographs, Photos, answers
from training.pictures import evenly_spaced
from training.robustness import Cell, File, robustness
from training.slices import Slice, groups, slices
from training.split import FROM_PRODUCTION
from training.stage import StageError, progress
from training.train import read_trained

TURN: Final = 20  # photos that a file is timed on before the next file's turn
FILES: Final[dict[Precision, tuple[Path, Path, str]]] = {
    "fp32": (stage.CANDIDATE, stage.MODEL, "metrics.json"),
    "int8": (stage.CANDIDATE_INT8, stage.MODEL_INT8, "metrics.int8.json"),
}


@dataclass(frozen=True)
class TestSide:
    """The photos of the test side, with the labels they came with and the audited ones."""

    __test__ = False  # a noun of the field, not a class of pytest's

    photos: Photographs  # with the labels they came with
    truth: Ints
    audited: Photographs  # without those that show both animals or none
    kept: Bools  # which photos those are


@dataclass
class Measured:
    """One file and its measurements."""

    model: onnx.ModelProto
    document: Contract
    network: Runner
    answered: Answered
    raw: Quality
    audited: Quality
    first_raw: Quality  # of the first look alone
    first_audited: Quality
    ood_detection: ood.OodDetection | None
    ood_outputs: dict[str, Outputs]
    from_production: dict[str, Quality]  # on the test sides of what production met, where there are photos
    slices: list[Slice]
    robustness: dict[str, Cell]
    milliseconds: float = 0.0  # of the first look
    milliseconds_mean: float = 0.0  # of an answer, with second looks

    @property
    def file(self) -> File:
        """What answers."""
        return File(self.network, self.document)


def evaluate(params: Evaluate, others: tuple[str, ...]) -> None:
    """Evaluate the candidates on the test side.

    Args:
        params: the section ``evaluate``.
        others: photos of other things, as in ``export.others``; what `export` learned from is not asked about.

    Raises:
        StageError: an earlier stage has not run, or a file fails its own exam.
    """
    trained = read_trained(stage.TRAINED)
    test = _test_side()
    strangers = ood.to_measure(ood.read(others))
    if not strangers:
        print("photos of other things: none, so they are not evaluated (export.others)")
    parts = groups(test.audited)
    sides = {side: photos for side in FROM_PRODUCTION if len(photos := Photographs(side))}
    files = {
        precision: _measure(path, test, sides, parts, strangers)
        for precision, (path, _, _) in FILES.items()
        if path.exists()
    }
    if "fp32" not in files:
        raise StageError(f"{stage.CANDIDATE}: not found; run `catsdogs export` first")
    _time(files, test.photos, params.timed)
    fp32, serving = files["fp32"], files.get("int8", files["fp32"])
    pictures = [test.photos[index].square() for index in evenly_spaced(len(test.photos), params.covered)]
    evidence = occlusion(fp32.network, pictures)
    chosen = evenly_spaced(len(test.audited), params.corrupted)
    cells = robustness(
        {precision: file.file for precision, file in files.items()}, test.audited, np.array(test.audited.labels), chosen
    )
    for precision, file in files.items():
        file.robustness = cells[precision]
    rows = ablation.ablation(trained, fp32.file, serving.file, test.audited, choose_machine())
    precisions = (
        compare(*(files[precision].answered.outputs.probabilities.argmax(1) == test.truth for precision in FILES))
        if "int8" in files
        else None
    )
    _write(params, test, files, evidence, rows, precisions)
    _track(params, trained["mlflow_run_id"], files)
    for precision, file in files.items():
        print(
            f"{precision}: {file.raw.accuracy.text()} right on {file.raw.pictures:,} test photos, "
            f"{file.audited.accuracy.text()} on the {file.audited.pictures:,} with audited labels; "
            f"log loss {file.raw.log_loss.value:.4f} and {file.audited.log_loss.value:.4f}"
        )
        for side, found in file.from_production.items():
            print(f"{precision}: {found.accuracy.text()} right on {found.pictures:,} photos of the side {side}")
    print(f"{stage.REPORTS / 'report.html'}: the full report")


def _test_side() -> TestSide:
    photos = Photographs("test")
    audited = Photographs("test", labels.decisions())
    return TestSide(photos, np.array(photos.labels), audited, np.isin(photos.ids, audited.ids))


def _measure(
    path: Path,
    test: TestSide,
    sides: dict[str, Photographs],
    parts: dict[tuple[str, str], Bools],
    others: dict[str, Photos],
) -> Measured:
    data = path.read_bytes()
    model = onnx.load_model_from_string(data)
    document = contract.loads({entry.key: entry.value for entry in model.metadata_props})
    network, when = single_threaded(data), document.second_look
    failures = exam.sit(document.exam, network, when)
    if failures:
        raise StageError(f"{path} fails its exam: {'; '.join(failures)}")
    answered = answers(network, test.photos, when, f"testing {document.precision}")
    first = _first(network, test.photos, answered)
    raw, first_raw = (quality(outputs, test.truth, document) for outputs in (answered.outputs, first))
    truth = np.array(test.audited.labels)
    kept = [Outputs(*(rows[test.kept] for rows in outputs)) for outputs in (answered.outputs, first)]
    audited, first_audited = (quality(outputs, truth, document) for outputs in kept)
    ood_outputs = {
        name: answers(network, photos, when, f"{name}, {document.precision}").outputs for name, photos in others.items()
    }
    from_production = {}
    for side, photos in sides.items():
        outputs = answers(network, photos, when, f"{side}, {document.precision}").outputs
        from_production[side] = quality(outputs, np.array(photos.labels), document)
    promises = {side: _promise(found) for side, found in from_production.items()}
    document = msgspec.structs.replace(document, test=_promise(raw, audited.accuracy), **promises)
    onnx.helper.set_model_props(model, {contract.METADATA_KEY: contract.dumps(document)})
    return Measured(
        model=model,
        document=document,
        network=network,
        answered=answered,
        raw=raw,
        audited=audited,
        first_raw=first_raw,
        first_audited=first_audited,
        ood_detection=ood.ood_detection(answered.outputs, ood_outputs, document) if ood_outputs else None,
        ood_outputs=ood_outputs,
        from_production=from_production,
        slices=slices(parts, kept[0].probabilities.argmax(1) == truth, reasons(kept[0], document) == ""),
        robustness={},
    )


def _promise(found: Quality, audited: Interval | None = None) -> contract.TestMetrics:
    return contract.TestMetrics(
        pictures=found.pictures,
        accuracy=found.accuracy,
        log_loss=found.log_loss.value,
        confusion=found.confusion,
        audited=audited,
        when_answered=found.accuracy_when_answered,
    )


def _first(network: Runner, photos: Photographs, answered: Answered) -> Outputs:
    """What the first look alone says of the photos."""
    outputs = Outputs(*(rows.copy() for rows in answered.outputs))
    for index in np.flatnonzero(answered.again).tolist():
        alone = network.first(photos[index].square()[np.newaxis])
        for rows, row in zip(outputs, alone, strict=True):
            rows[index] = row[0]
    return outputs


def _time(files: dict[Precision, Measured], photos: Photographs, count: int) -> None:
    """Milliseconds of a photo on one thread, in turns so that other load affects all files alike.

    A turn is several photos long, because a service runs one file: alternating photo by photo, each file evicts the
    other's weights from the caches, which costs the faster one most (2.6 ms rather than 1.9; float takes 4.6).
    Decoding is not counted; cutting out what the second look sees is.
    """
    first: dict[Precision, list[float]] = {precision: [] for precision in files}
    whole: dict[Precision, list[tuple[float, bool]]] = {precision: [] for precision in files}
    chosen = evenly_spaced(len(photos), count)
    for start in progress(range(0, len(chosen), TURN), "timing", unit=" turns"):
        turn = [photos[index] for index in chosen[start : start + TURN]]
        pictures = [photo.square()[np.newaxis] for photo in turn]
        for precision, file in files.items():
            for picture in pictures:
                began = perf_counter()
                file.network.first(picture)
                first[precision].append(perf_counter() - began)
        for precision, file in files.items():
            for photo in turn:
                began = perf_counter()
                again = look(photo, file.network, file.document.second_look).again
                whole[precision].append((perf_counter() - began, again))
    for precision, file in files.items():
        file.milliseconds = median(first[precision]) * 1000
        seconds, twice = np.array(whole[precision]).T
        share = float(file.answered.again.mean())
        file.milliseconds_mean = typical_seconds(seconds, twice == 1, share) * 1000


def figures(file: Measured, evidence: Occlusion | None) -> dict[str, Any]:
    """Content of ``metrics.json`` for a file.

    Names without ``audited`` are of the labels that the photos came with; slices and robustness are of audited ones,
    and those of ``from_production`` are labels that a person gave.
    """
    document, raw, audited = file.document, msgspec.to_builtins(file.raw), msgspec.to_builtins(file.audited)
    again = file.answered.again
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
        "answered_wrong": raw["answered_wrong"],
        "accuracy_when_answered": raw["accuracy_when_answered"],
        "unsure": raw["unsure"],
        "audited": {name: value for name, value in audited.items() if name != "confusion"},
        "looked_again": msgspec.to_builtins(wilson(int(again.sum()), len(again))),
        "first_look": _short(file.first_raw) | {"audited": _short(file.first_audited)},
        "megabytes": round(file.model.ByteSize() / 1e6, 2),
        "milliseconds": round(file.milliseconds, 2),
        "milliseconds_mean": round(file.milliseconds_mean, 2),
        "dataset_digest": document.provenance.dataset_digest,
        "split_digest": document.provenance.split_digest,
        "git_commit": document.provenance.git_commit,
    }
    if file.ood_detection:
        result["strangers"] = msgspec.to_builtins(file.ood_detection)
    if file.from_production:
        result["from_production"] = msgspec.to_builtins(file.from_production)
    if evidence:
        result["evidence"] = msgspec.to_builtins(evidence)
    return result | {"slices": msgspec.to_builtins(file.slices), "robustness": msgspec.to_builtins(file.robustness)}


def _short(found: Quality) -> dict[str, Any]:
    named: dict[str, Interval] = {"accuracy": found.accuracy, "log_loss": found.log_loss, "answered": found.answered}
    short: dict[str, Any] = msgspec.to_builtins(named)
    return short


def _write(
    params: Evaluate,
    test: TestSide,
    files: dict[Precision, Measured],
    evidence: Occlusion,
    rows: list[ablation.AblationRow],
    precisions: Comparison | None,
) -> None:
    fp32, truth = files["fp32"], test.truth
    outputs = fp32.answered.outputs
    metrics = {precision: figures(file, evidence if precision == "fp32" else None) for precision, file in files.items()}
    predicted = outputs.probabilities.argmax(1)
    worst = _worst(outputs, truth, params.worst)
    mistakes = plots.contact_sheet(
        [test.photos[index].square() for index in worst],
        [f"{CLASSES[truth[i]]}, said {CLASSES[predicted[i]]} {outputs.probabilities[i].max():.3f}" for i in worst],
        f"{len(worst)} worst of {int((predicted != truth).sum())} mistakes on {len(truth):,} test photos, "
        "by the labels they came with",
    )
    stage.REPORTS.mkdir(exist_ok=True)
    for precision, (_, _, name) in FILES.items():
        if precision in metrics:
            write_json(stage.REPORTS / name, metrics[precision])
    table = [msgspec.to_builtins(asdict(row)) | _verdicts(row) for row in rows]
    write_json(stage.REPORTS / "ablation.json", {"labels": "audited", "compared_with": ablation.FIRST, "rows": table})
    write_whole(stage.REPORTS / "predictions.csv", _predictions(test.photos, fp32))
    plots.confusion_matrix(truth, predicted).savefig(stage.REPORTS / "confusion.png", dpi=120)
    mistakes.savefig(stage.REPORTS / "worst.png", dpi=110)
    content = report.Content(
        metrics={str(precision): figures for precision, figures in metrics.items()},
        outputs={str(precision): file.answered.outputs for precision, file in files.items()},
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


def _verdicts(row: ablation.AblationRow) -> dict[str, str]:
    named = {"verdict": row.against_first, "degraded_verdict": row.degraded_against_first}
    return {name: found.describe(ablation.FIRST, "this") if found else "compared with" for name, found in named.items()}


def _worst(outputs: Outputs, truth: Ints, count: int) -> list[int]:
    """Indices of the mistakes, the most confident first."""
    mistakes = np.flatnonzero(outputs.probabilities.argmax(1) != truth)
    order = np.argsort(-outputs.probabilities[mistakes].max(1))
    return [int(index) for index in mistakes[order][:count]]


def _predictions(photos: Photographs, file: Measured) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("photo", "actual", "predicted", "dogs", "familiarity", "verdict", "looked_again"))
    outputs, again = file.answered
    for id_, label, probabilities, familiarity, twice in zip(
        photos.ids, photos.given, outputs.probabilities, outputs.familiarity, again, strict=True
    ):
        verdict = file.document.judge(probabilities, float(familiarity))
        row = (id_, label, verdict.label, f"{probabilities[1]:.6f}", f"{familiarity:.4f}")
        writer.writerow((*row, verdict.verdict, int(twice)))
    return text.getvalue()


def _track(params: Evaluate, run_id: str, files: dict[Precision, Measured]) -> None:
    with tracking.run(run_id):
        for precision, file in files.items():
            mlflow.log_metrics(
                {
                    f"test_accuracy_{precision}": file.raw.accuracy.value,
                    f"test_accuracy_audited_{precision}": file.audited.accuracy.value,
                    f"test_log_loss_{precision}": file.raw.log_loss.value,
                    f"test_looked_again_{precision}": float(file.answered.again.mean()),
                    f"milliseconds_{precision}": file.milliseconds,
                    f"milliseconds_mean_{precision}": file.milliseconds_mean,
                }
                | {f"{side}_accuracy_{precision}": found.accuracy.value for side, found in file.from_production.items()}
            )
        for path in sorted(stage.REPORTS.iterdir()):
            mlflow.log_artifact(str(path), "report")
        mlflow.set_tag("version", files["fp32"].document.version)
        tracking.log_section("evaluate", params)
