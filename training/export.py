"""Export: write both networks as one self-describing ONNX file, calibrated on the validation photos.

    catsdogs export

Writes ``models/candidate.onnx``: the graphs, with the contract in its metadata; ``evaluate`` adds the test metrics.
"""

from pathlib import Path
from typing import Final

import mlflow
import numpy as np
import onnx
import torch
from torch import Tensor, nn

from shared.files import write_json, write_whole
from shared.pixels import SIZE, Pixels
from shared.second_look import Outputs
from training import ood, sanity, stage, tracking
from training.familiarity import Learned, Lesser, Residual
from training.graph import Graph, Runner, halved, merged, parts, to_onnx, widened, with_temperatures
from training.machine import Machine, choose_machine
from training.models import Classifier
from training.packaging import Trained, package
from training.params import Export
from training.pictures import Pictures, evenly_spaced
from training.train import features, load_trained, read_trained

TOLERANCE: Final = 1e-4  # between torch and onnxruntime, on real photos, of each output's scale
NO_OTHERS: Final = "familiarity: from the training photos only; photos of other things (export.others) make it better"


def export(params: Export) -> None:
    """Export ``models/trained`` and ``models/closer`` to ``models/candidate.onnx``.

    Raises:
        StageError: an earlier stage has not run, or the file's outputs differ from torch's.
    """
    trained = read_networks()
    machine = choose_machine()
    others = ood.to_learn_from(ood.read(params.others))
    print(f"familiarity: learned from {len(others):,} photos of other things" if others else NO_OTHERS)
    first = Graph(*_with_familiarity(stage.TRAINED, SIZE, others, params, machine))
    closer = Graph(*_with_familiarity(closer_folder(), trained.side, others, params, machine))
    graphs = to_onnx(first, SIZE, params.opset), to_onnx(closer, trained.side, params.opset)
    for graph in (first, closer):
        graph.temperature.fill_(1)
    network = Runner(with_temperatures(merged(*graphs), 1, 1).SerializeToString())
    differences = check_parity((first, closer), network, trained.side, params.parity_pictures)
    packaged = package(merged(*map(halved, graphs)), "fp32", trained, params, {})
    write_whole(stage.CANDIDATE, packaged.data)
    report = packaged.report | {f"parity_{name}": difference for name, difference in differences.items()}
    write_json(stage.REPORTS / "export.json", report)
    with tracking.run(trained.first["mlflow_run_id"]):
        tracking.log_section("export", params)
        mlflow.log_metrics({name: value for name, value in report.items() if isinstance(value, float)})
    print(f"{stage.CANDIDATE}: {report['version']}, {report['megabytes']:.1f} MB")


def closer_folder() -> Path:
    """Folder of the network of the second look: that of the first if no other was trained."""
    return stage.CLOSER if (stage.CLOSER / "trained.json").exists() else stage.TRAINED


def read_networks() -> Trained:
    """Read what training wrote about both networks.

    Raises:
        StageError: it has not run.
    """
    return Trained(read_trained(stage.TRAINED), read_trained(closer_folder())["side"])


def read_candidate() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Read the two graphs that :func:`export` wrote, in float32 and without a contract.

    Raises:
        StageError: it has not run.
    """
    try:
        model = onnx.load(stage.CANDIDATE)
    except OSError as error:
        raise stage.StageError(f"{stage.CANDIDATE}: {error.strerror}; run `catsdogs export` first") from error
    del model.metadata_props[:]
    first, closer = parts(model, (SIZE, read_networks().side))
    return widened(first), widened(closer)


def _with_familiarity(
    folder: Path, side: int, others: list[ood.OtherPhoto], params: Export, machine: Machine
) -> tuple[Classifier, nn.Module]:
    """A trained network, and familiarity fitted on its features."""
    classifier = load_trained(folder).to(machine.device)
    train_set = Pictures(stage.PREPARED / "train", side=side)
    rows, _ = features(classifier, train_set, params.familiarity_pictures, machine, f"features at {side} pixels")
    # What shows nothing is not familiar either.
    pictures = [each.photo().square(side) for each in others]
    pictures += [photo.square(side) for photo in sanity.pictures().values()]
    learned = Learned(rows, _features(classifier, pictures, machine))
    if others:
        return classifier.cpu(), learned
    val_set = Pictures(stage.PREPARED / "val", side=side)
    val_rows, _ = features(classifier, val_set, len(val_set), machine, "features of the validation pictures")
    return classifier.cpu(), Lesser(Residual(rows, val_rows, params.familiarity_dimensions), learned)


def _features(classifier: Classifier, pictures: list[Pixels], machine: Machine) -> Tensor:
    """Pooled features float32 [n, channels] of uint8 [side, side, 3] each."""
    with torch.inference_mode():
        rows = [
            classifier.feature_map(torch.from_numpy(picture[np.newaxis].copy()).permute(0, 3, 1, 2).to(machine.device))
            .mean((2, 3))
            .float()
            .cpu()
            for picture in pictures
        ]
    return torch.cat(rows)


def check_parity(graphs: tuple[Graph, Graph], network: Runner, side: int, count: int) -> dict[str, float]:
    """Compare the exported file with torch on real photos; returns the largest difference by output.

    Differences are relative to the output's largest value, or to 1 if that is less.

    Raises:
        StageError: one of them is above ``TOLERANCE``.
    """
    first, closer = graphs
    differences = {}
    for graph, answer, size, prefix in ((first, network.first, SIZE, ""), (closer, network.closer, side, "closer_")):
        val_set = Pictures(stage.PREPARED / "val", side=size)
        pictures = np.stack([val_set.array(index) for index in evenly_spaced(len(val_set), count)])
        with torch.inference_mode():
            expected = graph(torch.from_numpy(pictures))
        for name, mine, tensor in zip(Outputs._fields, answer(pictures), expected, strict=True):
            golden = tensor.numpy()
            difference = np.abs(mine - golden).max() / max(1.0, float(np.abs(golden).max()))
            differences[prefix + name] = float(difference)
    # "not <=" rather than ">": a NaN must fail.
    wrong = [f"{name} by {difference:.2g}" for name, difference in differences.items() if not difference <= TOLERANCE]
    if wrong:
        raise stage.StageError(
            f"the exported file's outputs differ from torch's by more than {TOLERANCE:g} of their scale: "
            f"{', '.join(wrong)}"
        )
    return differences
