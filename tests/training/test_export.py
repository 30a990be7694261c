import io
from math import log
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from serving.settings import SHIPPED_INT8, SHIPPED_MODEL
from shared.pixels import SIZE, Pixels, decode, pixels
from tests.conftest import blobs, encoded
from training import models
from training.export import check_parity
from training.familiarity import Residual
from training.golden import golden_pictures
from training.graph import SUREST, Graph, Runner, halved, merged, parts, to_onnx, widened, with_temperatures
from training.stage import StageError

TEMPERATURES = (1.7, 0.8)
SIDE = 96


@pytest.fixture(scope="module")
def graphs() -> tuple[Graph, Graph]:
    torch.manual_seed(0)
    first, closer = (graph(temperature) for temperature in TEMPERATURES)
    return first, closer


def graph(temperature: float) -> Graph:
    classifier = models.build("simple_cnn", pretrained=False)
    rows = torch.rand(50, classifier.head.in_features)
    made = Graph(classifier, Residual(rows, torch.rand(20, classifier.head.in_features), 16))
    made.temperature.fill_(temperature)
    return made


@pytest.fixture(scope="module")
def alone(graphs: tuple[Graph, Graph]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    first, closer = graphs
    return to_onnx(first, SIZE, 20), to_onnx(closer, SIDE, 20)


@pytest.fixture(scope="module")
def exported(alone: tuple[onnx.ModelProto, onnx.ModelProto]) -> onnx.ModelProto:
    return merged(*alone)


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
        ("image", onnx.TensorProto.UINT8, ["n", "side", "side", 3]),
        ("again", onnx.TensorProto.BOOL, []),
    ]
    assert [shape(value) for value in exported.graph.output] == [
        ("probabilities", onnx.TensorProto.FLOAT, ["n", 2]),
        ("evidence", onnx.TensorProto.FLOAT, ["n", 7, 7]),
        ("familiarity", onnx.TensorProto.FLOAT, ["n"]),
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
@pytest.mark.parametrize("again", [False, True])
def test_the_file_answers_like_torch_for_any_batch(
    graphs: tuple[Graph, Graph], network: Runner, n: int, again: bool
) -> None:
    shown = pictures(n, SIDE if again else SIZE)
    with torch.inference_mode():
        golden = [tensor.numpy() for tensor in graphs[again](torch.from_numpy(shown))]
    for mine, theirs in zip(network.closer(shown) if again else network.first(shown), golden, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * max(1.0, float(np.abs(theirs).max())))


def test_a_file_that_differs_is_refused(graphs: tuple[Graph, Graph], exported: onnx.ModelProto, work: Path) -> None:
    def checked(model: onnx.ModelProto) -> dict[str, float]:
        return check_parity(graphs, Runner(model.SerializeToString()), SIDE, 3)

    assert max(checked(exported).values()) < 1e-4
    with pytest.raises(StageError, match=r"differ from torch's by more than .*: probabilities by"):
        checked(with_temperatures(exported, 1.6, TEMPERATURES[1]))
    with pytest.raises(StageError, match=r"differ from torch's by more than .*: closer_probabilities by"):
        checked(with_temperatures(exported, TEMPERATURES[0], 0.7))
    with pytest.raises(StageError, match="closer_probabilities by nan"):
        checked(with_temperatures(exported, TEMPERATURES[0], float("nan")))


def test_the_evidence_adds_up_to_the_answer(network: Runner) -> None:
    outputs = network.first(pictures(4))
    log_odds = np.log(outputs.probabilities[:, 1] / outputs.probabilities[:, 0])
    np.testing.assert_allclose(outputs.evidence.mean((1, 2)) / TEMPERATURES[0], log_odds, atol=1e-3)
    np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=1e-6)


def test_no_answer_is_surer_than_a_validation_set_can_show(exported: onnx.ModelProto) -> None:
    cold = Runner(with_temperatures(exported, 1e-6, 1e-6).SerializeToString())
    assert float(cold.first(pictures(4)).probabilities.max()) < 1
    surest = float(cold.closer(pictures(4, SIDE)).probabilities.max())
    assert log(surest / (1 - surest)) == pytest.approx(SUREST, abs=2e-3)


def test_halved_weights_answer_alike_in_half_the_bytes_and_can_be_widened(
    alone: tuple[onnx.ModelProto, onnx.ModelProto], network: Runner
) -> None:
    half = [halved(model) for model in alone]
    assert half[0].ByteSize() < 0.6 * alone[0].ByteSize()
    wide = [widened(model) for model in half]
    for one, other in (half, wide):
        found = Runner(merged(one, other).SerializeToString()).first(pictures(3))
        assert np.abs(found.probabilities - network.first(pictures(3)).probabilities).max() < 1e-3
    assert wide[0].ByteSize() == pytest.approx(alone[0].ByteSize(), rel=0.01)


def test_what_both_networks_hold_alike_is_stored_once(
    graphs: tuple[Graph, Graph], alone: tuple[onnx.ModelProto, onnx.ModelProto], network: Runner
) -> None:
    first, again = halved(alone[0]), halved(to_onnx(graphs[0], SIDE, 20))
    both = merged(first, again)
    assert both.ByteSize() < 1.2 * first.ByteSize()
    onnx.checker.check_model(both, full_check=True)
    found = Runner(both.SerializeToString())
    assert np.abs(found.first(pictures(2)).probabilities - network.first(pictures(2)).probabilities).max() < 1e-3
    assert np.abs(found.closer(pictures(2)).probabilities - found.first(pictures(2)).probabilities).max() < 1e-6


def test_each_part_of_a_file_can_be_had_alone(
    alone: tuple[onnx.ModelProto, onnx.ModelProto], exported: onnx.ModelProto, network: Runner
) -> None:
    found = parts(exported, (SIZE, SIDE))
    assert [part.graph.input[0].type for part in found] == [part.graph.input[0].type for part in alone]
    assert [len(part.graph.initializer) for part in found] == [len(part.graph.initializer) for part in alone]
    rebuilt = Runner(merged(*found).SerializeToString())
    np.testing.assert_array_equal(rebuilt.first(pictures(1)).evidence, network.first(pictures(1)).evidence)
    shown = pictures(1, SIDE)
    np.testing.assert_array_equal(rebuilt.closer(shown).evidence, network.closer(shown).evidence)


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
