import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from serving.settings import SHIPPED_INT8, SHIPPED_MODEL
from shared.pixels import SIZE, Pixels, decode, pixels
from tests.conftest import blobs, encoded
from training import models
from training.export import check_parity
from training.familiarity import Residual
from training.golden import golden_pictures
from training.graph import (
    SUREST,
    Closer,
    First,
    Runner,
    halved,
    merged,
    parts,
    to_onnx,
    widened,
    with_temperatures,
)
from training.stage import StageError

TEMPERATURES = (1.7, 0.8)
SIDE = 96


@pytest.fixture(scope="module")
def graphs() -> tuple[First, Closer]:
    torch.manual_seed(0)
    found: list[nn.Module] = []
    for kind, temperature in zip((First, Closer), TEMPERATURES, strict=True):
        classifier = models.build("simple_cnn", pretrained=False)
        rows = torch.rand(50, classifier.head.in_features)
        graph = kind(classifier, Residual(rows, torch.rand(20, classifier.head.in_features), 16))
        graph.temperature.fill_(temperature)
        found.append(graph)
    first, closer = found
    assert isinstance(first, First)
    assert isinstance(closer, Closer)
    return first, closer


@pytest.fixture(scope="module")
def exported(graphs: tuple[First, Closer]) -> onnx.ModelProto:
    first, closer = graphs
    return merged(to_onnx(first, SIZE, 20), to_onnx(closer, SIDE, 20))


@pytest.fixture(scope="module")
def network(exported: onnx.ModelProto) -> Runner:
    return Runner(exported.SerializeToString())


def pictures(n: int, side: int = SIZE) -> Pixels:
    return np.stack([decode(encoded(blobs(seed), "PNG")).square(side) for seed in range(n)])


def test_the_file_has_the_documented_inputs_and_outputs(exported: onnx.ModelProto) -> None:
    def shape(value: onnx.ValueInfoProto) -> tuple[str, int, list[object]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]

    assert [shape(value) for value in exported.graph.input] == [
        ("image", onnx.TensorProto.UINT8, ["n", 224, 224, 3]),
        ("closer", onnx.TensorProto.UINT8, ["m", SIDE, SIDE, 3]),
    ]
    assert [shape(value) for value in exported.graph.output] == [
        ("probabilities", onnx.TensorProto.FLOAT, ["n", 2]),
        ("evidence", onnx.TensorProto.FLOAT, ["n", 7, 7]),
        ("familiarity", onnx.TensorProto.FLOAT, ["n"]),
        ("log_odds", onnx.TensorProto.FLOAT, ["m", 2]),
    ]
    assert next(opset.version for opset in exported.opset_import if not opset.domain) == 20
    onnx.checker.check_model(exported)


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
def test_the_file_answers_like_torch_for_any_batch(graphs: tuple[First, Closer], network: Runner, n: int) -> None:
    first, closer = graphs
    with torch.inference_mode():
        golden = [tensor.numpy() for tensor in first(torch.from_numpy(pictures(n)))]
        odds = closer(torch.from_numpy(pictures(n, SIDE))).numpy()
    for mine, theirs in zip(network.first(pictures(n)), golden, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * max(1.0, float(np.abs(theirs).max())))
    np.testing.assert_allclose(network.closer(pictures(n, SIDE)), odds, atol=1e-3)


def test_a_file_that_differs_is_refused(graphs: tuple[First, Closer], exported: onnx.ModelProto, work: Path) -> None:
    def checked(model: onnx.ModelProto) -> dict[str, float]:
        return check_parity(graphs, Runner(model.SerializeToString()), SIDE, 3)

    assert max(checked(exported).values()) < 1e-4
    with pytest.raises(StageError, match=r"differ from torch's by more than .*: probabilities by"):
        checked(with_temperatures(exported, 1.6, TEMPERATURES[1]))
    with pytest.raises(StageError, match=r"differ from torch's by more than .*: log_odds by"):
        checked(with_temperatures(exported, TEMPERATURES[0], 0.7))
    with pytest.raises(StageError, match="log_odds by nan"):
        checked(with_temperatures(exported, TEMPERATURES[0], float("nan")))


def test_the_evidence_adds_up_to_the_answer(network: Runner) -> None:
    outputs = network.first(pictures(4))
    log_odds = np.log(outputs.probabilities[:, 1] / outputs.probabilities[:, 0])
    np.testing.assert_allclose(outputs.evidence.mean((1, 2)) / TEMPERATURES[0], log_odds, atol=1e-3)
    np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=1e-6)


def test_no_answer_is_surer_than_a_validation_set_can_show(exported: onnx.ModelProto) -> None:
    cold = Runner(with_temperatures(exported, 1e-6, 1e-6).SerializeToString())
    assert float(cold.first(pictures(4)).probabilities.max()) < 1
    assert float(np.abs(cold.closer(pictures(4, SIDE))[:, 0]).max()) == SUREST


def test_halved_weights_answer_alike_in_half_the_bytes_and_can_be_widened(
    exported: onnx.ModelProto, network: Runner
) -> None:
    half = halved(exported)
    assert half.ByteSize() < 0.6 * exported.ByteSize()
    for model in (half, widened(half)):
        found = Runner(model.SerializeToString()).first(pictures(3))
        assert np.abs(found.probabilities - network.first(pictures(3)).probabilities).max() < 1e-3
    assert "Cast" not in {node.op_type for node in widened(half).graph.node if node.input[0].endswith(".float16")}


def test_what_both_networks_hold_alike_is_stored_once(graphs: tuple[First, Closer]) -> None:
    first, _ = graphs
    same = Closer(first.classifier, first.familiarity)
    alone = to_onnx(first, SIZE, 20)
    assert merged(alone, to_onnx(same, SIDE, 20)).ByteSize() < 1.2 * alone.ByteSize()


def test_constants_of_the_same_bytes_and_another_type_stay_apart() -> None:
    def model(name: str, kind: int) -> onnx.ModelProto:
        zeros = onnx.helper.make_tensor("zeros", kind, [8], bytes(8), raw=True)
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Add", [name, "zeros"], [f"{name} out"])],
            name,
            [onnx.helper.make_tensor_value_info(name, kind, [8])],
            [onnx.helper.make_tensor_value_info(f"{name} out", kind, [8])],
            [zeros],
        )
        return onnx.helper.make_model(graph)

    both = merged(model("image", onnx.TensorProto.INT8), model("closer", onnx.TensorProto.UINT8))
    onnx.checker.check_model(both, full_check=True)
    assert len(both.graph.initializer) == 2


def test_each_part_of_a_file_can_be_had_alone(exported: onnx.ModelProto, network: Runner) -> None:
    first, closer = parts(exported)
    assert [value.name for value in first.graph.input] == ["image"]
    np.testing.assert_array_equal(
        Runner(first.SerializeToString()).first(pictures(1)).evidence, network.first(pictures(1)).evidence
    )
    np.testing.assert_array_equal(
        Runner(closer.SerializeToString()).closer(pictures(1, SIDE)), network.closer(pictures(1, SIDE))
    )


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
