"""Export: fit what depends on the validation set, and write the network as one self-describing ONNX file.

    catsdogs export

Writes ``models/candidate.onnx``: the graph, and the contract in its metadata, all but the test metrics, which
``evaluate`` adds.
"""

import json
from datetime import UTC, datetime
from typing import Any, Final

import mlflow
import numpy as np
import numpy.typing as npt
import onnx
import torch
from scipy.special import softmax

from shared import contract, exam
from shared.exam import Outputs
from shared.pixels import Pixels
from training import audit, calibration, models, stage, tracking
from training.familiarity import Familiarity
from training.golden import golden_pictures
from training.graph import Graph, largest_difference, runner, to_onnx
from training.machine import choose_machine
from training.params import Export
from training.pictures import Pictures
from training.train import features

TOLERANCE: Final = 1e-4  # between torch and onnxruntime, on real photos
# Between this machine and another, fp32. Measured on the golden pictures: a decoder that is one level off at one value
# in ten moves an output by up to 0.044; swapped channels or a picture on its side by more than 0.1 in 11 of 14.
EXAM_TOLERANCE: Final = 0.05
CONFIDENCE_EDGES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
UNIT_EDGES: Final = tuple(float(edge) for edge in np.linspace(0, 1, 21).round(2))


def export(params: Export) -> None:
    """Export ``models/trained`` to ``models/candidate.onnx``.

    Raises:
        StageError: an earlier stage has not run, or the file's outputs differ from torch's.
    """
    trained = _trained()
    machine = choose_machine()
    classifier = models.build(trained["model"], pretrained=False)
    classifier.load_state_dict(torch.load(stage.TRAINED / "weights.pt", weights_only=True, map_location="cpu"))
    classifier.to(memory_format=torch.channels_last).to(machine.device)
    train_set, val_set = Pictures(stage.PREPARED / "train"), Pictures(stage.PREPARED / "val")

    train_rows, _ = features(classifier, train_set, params.familiarity_pictures, machine, "features to train on")
    val_rows, val_truth = features(classifier, val_set, len(val_set), machine, "features to validate on")
    classifier.to("cpu")
    with torch.inference_mode():
        logits = classifier.head(val_rows).double().numpy()
    labels = val_truth.numpy()
    temperature = calibration.fit_temperature(logits, labels)
    probabilities = softmax(logits / temperature, axis=1)
    close_call = calibration.close_call(probabilities, labels, params.answered_error)
    familiarity = Familiarity(train_rows, val_rows, params.familiarity_dimensions)
    with torch.inference_mode():
        familiar = familiarity(val_rows).numpy()
    unfamiliar = float(np.quantile(familiar, params.unfamiliar_share))

    graph = Graph(classifier, familiarity, temperature)
    model = to_onnx(graph, params.opset)
    run = runner(model.SerializeToString())
    pictures = np.stack(
        [val_set[index][0].permute(1, 2, 0).numpy() for index in _spread(val_set, params.parity_pictures)]
    )
    differences = check_parity(graph, run, pictures)

    brightness = np.array([float(val_set[index][0].double().mean()) / 255 for index in range(len(val_set))])
    document = contract.Contract(
        version=f"{datetime.now(UTC):%Y.%m.%d}-{trained['model'].removeprefix('efficientnet_')}-fp32",
        architecture=trained["model"],
        precision="fp32",
        temperature=temperature,
        unsure=contract.Unsure(close_call=close_call, unfamiliar=unfamiliar),
        provenance=contract.Provenance(
            dataset_digest=audit.dataset_digest(audit.read(stage.AUDIT)),
            split_digest=trained["split_digest"],
            git_commit=tracking.git_commit(),
            mlflow_run_id=trained["mlflow_run_id"],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        reference=contract.Reference(
            confidence=_histogram(probabilities.max(1), CONFIDENCE_EDGES),
            brightness=_histogram(brightness, UNIT_EDGES),
            familiarity=_histogram(familiar, UNIT_EDGES),
        ),
        exam=exam.write(golden_pictures(), run, EXAM_TOLERANCE),
    )
    onnx.helper.set_model_props(model, {contract.METADATA_KEY: contract.dumps(document)})
    onnx.checker.check_model(model)
    stage.write_whole(stage.CANDIDATE, model.SerializeToString())

    answered = probabilities.max(1) >= close_call
    report = {
        "version": document.version,
        "megabytes": stage.CANDIDATE.stat().st_size / 1e6,
        "temperature": temperature,
        "val_log_loss": calibration.log_loss(logits, labels),
        "val_log_loss_calibrated": calibration.log_loss(logits, labels, temperature),
        "close_call": close_call,
        "val_answered": float(answered.mean()),
        "val_answered_wrong": float((answered & (probabilities.argmax(1) != labels)).mean()),
        "unfamiliar": unfamiliar,
        **{f"parity_{name}": difference for name, difference in differences.items()},
    }
    stage.write_json(stage.REPORTS / "export.json", report)
    with tracking.run(trained["mlflow_run_id"]):
        mlflow.log_metrics({name: value for name, value in report.items() if isinstance(value, float)})
    print(f"{stage.CANDIDATE}: {document.version}, {report['megabytes']:.1f} MB")


def check_parity(graph: Graph, run: exam.Run, pictures: Pixels) -> dict[str, float]:
    """Compare the exported file with torch on real photos; returns the largest difference by output.

    Raises:
        StageError: one of them is above ``TOLERANCE``.
    """
    with torch.inference_mode():
        expected = Outputs(*(tensor.numpy() for tensor in graph(torch.from_numpy(pictures))))
    differences = largest_difference(run(pictures), expected)
    # "not <=" rather than ">": a NaN must fail.
    wrong = [f"{name} by {difference:.2g}" for name, difference in differences.items() if not difference <= TOLERANCE]
    if wrong:
        raise stage.StageError(f"the exported file differs from torch in {', '.join(wrong)}, more than {TOLERANCE:g}")
    return differences


def _trained() -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((stage.TRAINED / "trained.json").read_text())
    except OSError as error:
        raise stage.StageError(f"{stage.TRAINED}: {error.strerror}; run `catsdogs train` first") from error
    return document


def _spread(pictures: Pictures, count: int) -> list[int]:
    """Indices spread evenly over the data set, so that both classes are among them."""
    return [int(index) for index in np.linspace(0, len(pictures) - 1, min(count, len(pictures)))]


def _histogram(values: npt.NDArray[np.floating[Any]], edges: tuple[float, ...]) -> contract.Histogram:
    counts, _ = np.histogram(values, edges)
    return contract.Histogram(edges=edges, counts=tuple(counts.tolist()))
