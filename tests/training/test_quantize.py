import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from shared.pixels import SIZE, Pixels, pixels
from shared.second_look import INPUT
from tests.conftest import blobs, encoded
from training import models
from training.familiarity import Residual
from training.graph import Graph, Runner, merged, to_onnx
from training.quantize import centred, in_float, whole_numbers


def picture(seed: int) -> Pixels:
    return pixels(encoded(blobs(seed), "PNG"))[np.newaxis]


PHOTOS = [picture(seed)[0] for seed in range(12)]


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    torch.manual_seed(0)
    classifier = models.build("simple_cnn", pretrained=False)
    for layer in classifier.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.bias, std=0.1)  # as trained ones have it
    rows = torch.rand(50, classifier.head.in_features)
    graph = Graph(classifier, Residual(rows, torch.rand(20, 64), 16))
    graph.temperature.fill_(1.3)
    return to_onnx(graph, SIZE, 20)


def runner(model: onnx.ModelProto) -> Runner:
    return Runner(merged(model, model).SerializeToString())


@pytest.fixture(scope="module")
def quantized(exported: onnx.ModelProto) -> onnx.ModelProto:
    return whole_numbers(exported, PHOTOS, 100, ())


def test_whole_numbers_answer_nearly_like_float(exported: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    onnx.checker.check_model(quantized)
    float_, whole = runner(exported), runner(quantized)
    for seed in range(20, 26):
        a, b = float_.first(picture(seed)), whole.first(picture(seed))
        assert np.abs(a.probabilities - b.probabilities).max() < 0.02
        assert np.abs(a.evidence - b.evidence).mean() < 0.1 * np.abs(a.evidence).max()


def test_the_weights_are_bytes_and_the_file_is_smaller(exported: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    assert quantized.ByteSize() < 0.45 * exported.ByteSize()
    weights = [entry for entry in quantized.graph.initializer if entry.data_type == onnx.TensorProto.INT8]
    assert len([entry for entry in weights if len(entry.dims) == 4]) == 2  # both convolutions of the trunk
    # Seven bits: pairs of products then fit 16 bits on processors that add them so.
    assert all(np.abs(onnx.numpy_helper.to_array(entry).astype(int)).max() <= 64 for entry in weights)


def test_the_picture_goes_in_as_the_bytes_it_is(quantized: onnx.ModelProto) -> None:
    readers = {node.op_type for node in quantized.graph.node if INPUT in node.input}
    assert readers == {"Transpose"}
    transposed = next(node.output[0] for node in quantized.graph.node if INPUT in node.input)
    assert {node.op_type for node in quantized.graph.node if transposed in node.input} == {"DequantizeLinear"}
    assert "Cast" not in {node.op_type for node in quantized.graph.node}


def test_a_layer_can_stay_in_float(exported: onnx.ModelProto) -> None:
    names = [entry.name for entry in exported.graph.initializer if len(entry.dims) == 4 and entry.dims[2] > 1]
    kept = names[-1]
    model = whole_numbers(exported, PHOTOS, 100, (kept,))
    assert kept in {entry.name for entry in model.graph.initializer if entry.data_type == onnx.TensorProto.FLOAT}


def test_other_arithmetic_for_the_same_graph_is_close(quantized: onnx.ModelProto) -> None:
    here, there = (run.first(picture(3)) for run in (runner(quantized), in_float(merged(quantized, quantized))))
    assert np.abs(here.probabilities - there.probabilities).max() < 0.02


def test_rounding_does_not_move_any_channel_on_average(exported: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    float_ = centred(exported)  # whose padding stands for the same grey
    layers = [node for node in float_.graph.node if node.op_type == "Conv"][:2]  # the trunk's
    for layer in layers:
        twin = next(node for node in quantized.graph.node if node.name == layer.name)
        before, after = channel_means(float_, layer.output[0]), channel_means(quantized, twin.output[0])
        assert np.abs(before - after).max() < 0.002 * np.abs(before).max()


def channel_means(model: onnx.ModelProto, output: str) -> npt.NDArray[np.float64]:
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [session.run([output], {INPUT: photo[np.newaxis]})[0] for photo in PHOTOS]
    means: npt.NDArray[np.float64] = np.concatenate(found).mean((0, 2, 3), dtype=np.float64)
    return means


def test_rounding_does_not_move_the_answers_on_average(exported: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    float_, whole = runner(exported), runner(quantized)

    def log_odds(network: Runner) -> float:
        shares = np.concatenate([network.first(photo[np.newaxis]).probabilities for photo in PHOTOS])
        return float(np.log(shares[:, 1] / shares[:, 0]).mean())

    assert log_odds(whole) == pytest.approx(log_odds(float_), abs=1e-3)
