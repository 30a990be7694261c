"""Export: fit what depends on the validation set, and write the network as one self-describing ONNX file.

    catsdogs export

Writes ``models/candidate.onnx``: the graph, with the contract in its metadata; ``evaluate`` adds the test
metrics.
"""

from typing import Final

import mlflow
import numpy as np
import onnx
import torch

from shared import contract, exam
from shared.exam import Outputs
from shared.files import write_json, write_whole
from shared.pixels import Pixels
from training import calibration, labels, models, stage, tracking
from training.familiarity import Familiarity
from training.graph import Graph, largest_difference, runner, to_onnx
from training.machine import choose_machine
from training.packaging import Calibrated, package
from training.params import Export
from training.pictures import Pictures, evenly_spaced
from training.train import features, read_trained

TOLERANCE: Final = 1e-4  # between torch and onnxruntime, on real photos, of what each output is computed from


def export(params: Export) -> None:
    """Export ``models/trained`` to ``models/candidate.onnx``.

    Raises:
        StageError: an earlier stage has not run, or the file's outputs differ from torch's.
    """
    trained = read_trained(stage.TRAINED)
    machine = choose_machine()
    classifier = models.build(trained["model"], pretrained=False)
    classifier.load_state_dict(torch.load(stage.TRAINED / "weights.pt", weights_only=True, map_location="cpu"))
    classifier.to(memory_format=torch.channels_last).to(machine.device)
    train_set = Pictures(stage.PREPARED / "train")
    val_set = Pictures(stage.PREPARED / "val", decided=labels.decisions())

    train_rows, _ = features(classifier, train_set, params.familiarity_pictures, machine, "features to train on")
    val_rows, val_truth = features(classifier, val_set, len(val_set), machine, "features to validate on")
    classifier.to("cpu")
    with torch.inference_mode():
        logits = classifier.head(val_rows).double().numpy()
    truth = val_truth.numpy()
    temperature = calibration.fit_temperature(logits, truth)
    familiarity = Familiarity(train_rows, val_rows, params.familiarity_dimensions)

    graph = Graph(classifier, familiarity, temperature)
    model = to_onnx(graph, params.opset)
    pictures = np.stack([val_set.array(index) for index in evenly_spaced(len(val_set), params.parity_pictures)])
    differences = check_parity(graph, runner(model.SerializeToString()), pictures)
    packaged = package(model, "fp32", Calibrated(trained, temperature), val_set, params, {})
    write_whole(stage.CANDIDATE, packaged.data)
    report = packaged.report | {
        "temperature": temperature,
        "val_log_loss_uncalibrated": calibration.log_loss(logits, truth),
        **{f"parity_{name}": difference for name, difference in differences.items()},
    }
    write_json(stage.REPORTS / "export.json", report)
    with tracking.run(trained["mlflow_run_id"]):
        tracking.log_section("export", params)
        mlflow.log_metrics({name: value for name, value in report.items() if isinstance(value, float)})
    print(f"{stage.CANDIDATE}: {report['version']}, {report['megabytes']:.1f} MB")


def read_candidate() -> tuple[onnx.ModelProto, Calibrated]:
    """Read what :func:`export` wrote: the bare graph, and what is needed to package it in another precision.

    Raises:
        StageError: it has not run.
    """
    try:
        model = onnx.load(stage.CANDIDATE)
    except OSError as error:
        raise stage.StageError(f"{stage.CANDIDATE}: {error.strerror}; run `catsdogs export` first") from error
    document = contract.loads({entry.key: entry.value for entry in model.metadata_props})
    del model.metadata_props[:]
    return model, Calibrated(read_trained(stage.TRAINED), document.temperature)


def check_parity(graph: Graph, run: exam.Run, pictures: Pixels) -> dict[str, float]:
    """Compare the exported file with torch on real photos; returns the largest difference by output.

    Raises:
        StageError: one of them is above ``TOLERANCE``, relative to the scale of the evidence, of the log-odds and of
            familiarity's curve.
    """
    with torch.inference_mode():
        expected = Outputs(*(tensor.numpy() for tensor in graph(torch.from_numpy(pictures))))
    differences = largest_difference(run(pictures), expected)
    # The two others are sigmoids, whose slope is at most a quarter, of something with a scale of its own.
    scales = {
        "probabilities": max(1.0, float(np.abs(expected.evidence).max()) / graph.temperature / 4),
        "evidence": 1.0,
        "familiarity": max(1.0, float(graph.familiarity.scale[0]) / 4),
    }
    # "not <=" rather than ">": a NaN must fail.
    wrong = [
        f"{name} by {difference:.2g}"
        for name, difference in differences.items()
        if not difference <= TOLERANCE * scales[name]
    ]
    if wrong:
        raise stage.StageError(
            f"the exported file's outputs differ from torch's by more than {TOLERANCE:g} of their scale: "
            f"{', '.join(wrong)}"
        )
    return differences
