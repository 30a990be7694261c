import copy
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from serving.settings import SHIPPED_INT8, SHIPPED_MODEL
from shared.exam import Outputs
from shared.pixels import Pixels, pixels
from tests.conftest import blobs, encoded
from training import models
from training.export import check_parity
from training.familiarity import Familiarity
from training.golden import golden_pictures
from training.graph import Graph, largest_difference, runner, to_onnx
from training.stage import StageError

TEMPERATURE = 1.7


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    classifier = models.build("simple_cnn", pretrained=False)
    rows = torch.rand(50, classifier.head.in_features)
    familiarity = Familiarity(rows, torch.rand(20, classifier.head.in_features), 16)
    return Graph(classifier, familiarity, TEMPERATURE)


@pytest.fixture(scope="module")
def exported(graph: Graph) -> onnx.ModelProto:
    return to_onnx(graph, opset=20)


def pictures(n: int) -> Pixels:
    return np.stack([pixels(encoded(blobs(seed), "PNG")) for seed in range(n)])


def test_the_file_has_the_documented_input_and_outputs(exported: onnx.ModelProto) -> None:
    def shape(value: onnx.ValueInfoProto) -> tuple[str, int, list[object]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]

    assert [shape(value) for value in exported.graph.input] == [("image", onnx.TensorProto.UINT8, ["n", 224, 224, 3])]
    assert [shape(value) for value in exported.graph.output] == [
        ("probabilities", onnx.TensorProto.FLOAT, ["n", 2]),
        ("evidence", onnx.TensorProto.FLOAT, ["n", 7, 7]),
        ("familiarity", onnx.TensorProto.FLOAT, ["n"]),
    ]
    assert next(opset.version for opset in exported.opset_import if not opset.domain) == 20


def test_the_file_says_nothing_of_the_machine_that_made_it(exported: onnx.ModelProto) -> None:
    data = exported.SerializeToString()
    assert b".py" not in data
    assert str(Path.cwd()).encode() not in data


@pytest.mark.parametrize(
    "path", [path for path in (SHIPPED_MODEL, SHIPPED_INT8) if path.exists()], ids=lambda p: p.name
)
def test_the_shipped_files_neither(path: Path) -> None:
    assert b".py" not in path.read_bytes()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_file_answers_like_torch_for_any_batch(graph: Graph, exported: onnx.ModelProto, n: int) -> None:
    differences = check_parity(graph, runner(exported.SerializeToString()), pictures(n))
    assert max(differences.values()) < 1e-4


def test_a_file_that_differs_is_refused(graph: Graph, exported: onnx.ModelProto) -> None:
    run = runner(exported.SerializeToString())
    far = 2e-4 * max(1.0, float(graph.familiarity.scale[0]) / 4)
    with pytest.raises(StageError, match=r"differ from torch's by more than .*: familiarity"):
        check_parity(graph, lambda batch: (o := run(batch))._replace(familiarity=o.familiarity + far), pictures(2))
    with pytest.raises(StageError, match=r"differ from torch's by more than .*: probabilities"):
        check_parity(
            graph, lambda batch: (o := run(batch))._replace(probabilities=o.probabilities * np.nan), pictures(2)
        )


def test_the_evidence_adds_up_to_the_answer(exported: onnx.ModelProto) -> None:
    outputs = runner(exported.SerializeToString())(pictures(4))
    log_odds = np.log(outputs.probabilities[:, 1] / outputs.probabilities[:, 0])
    np.testing.assert_allclose(outputs.evidence.mean((1, 2)) / TEMPERATURE, log_odds, atol=1e-3)
    np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=1e-6)


def test_evidence_is_compared_relative_to_its_size() -> None:
    def outputs(evidence: float) -> Outputs:
        return Outputs(np.zeros((1, 2), "f"), np.full((1, 7, 7), evidence, "f"), np.zeros(1, "f"))

    assert largest_difference(outputs(101.0), outputs(100.0))["evidence"] == pytest.approx(0.01)
    assert largest_difference(outputs(2e-6), outputs(1e-6))["evidence"] == pytest.approx(1)
    assert largest_difference(outputs(0.1), outputs(0))["evidence"] == pytest.approx(0.1)


def test_a_sigmoid_s_rounding_is_measured_by_its_slope(graph: Graph, exported: onnx.ModelProto) -> None:
    steep = copy.deepcopy(graph)
    steep.familiarity.scale[0] = 1000
    run = runner(exported.SerializeToString())

    def close(batch: Pixels) -> Outputs:
        with torch.inference_mode():
            familiarity = steep(torch.from_numpy(batch))[2].numpy()
        return run(batch)._replace(familiarity=familiarity + 0.02)

    check_parity(steep, close, pictures(2))
    with pytest.raises(StageError, match="familiarity"):
        check_parity(steep, lambda batch: (o := close(batch))._replace(familiarity=o.familiarity + 0.02), pictures(2))


def test_the_golden_pictures_cover_every_format_and_are_small() -> None:
    golden = golden_pictures()
    images = [Image.open(io.BytesIO(data)) for data in golden.values()]
    assert len(golden) >= 12
    assert {image.format for image in images} == {"JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP"}
    assert {"CMYK", "L", "P", "I;16", "RGB"} <= {image.mode for image in images}
    assert sum(map(len, golden.values())) < 200_000
    assert golden == golden_pictures()
    for data in golden.values():
        pixels(data)
