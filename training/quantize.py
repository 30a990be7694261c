"""Quantize: write both networks in int8.

    catsdogs quantize

Writes ``models/candidate.int8.onnx``: static quantization of weights (int8, per output channel) and activations
(uint8), in QDQ form, calibrated on training photos, and packaged with its own temperatures, thresholds and exam. The
heads, the evidence and the familiarity stay in float: they are a thousandth of the work, and decide the answer.

Weights get 7 bits of the 8. A processor without VNNI adds pairs of products in 16 bits, which overflow with 8; with 7
every processor computes the same.
"""

import tempfile
from pathlib import Path
from typing import Final

import mlflow
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from shared.files import write_json, write_whole
from shared.pixels import Pixels
from training import stage, tracking
from training.export import read_candidate, read_networks
from training.graph import Runner, merged
from training.packaging import package
from training.params import Export, Quantize
from training.pictures import Pictures, evenly_spaced

LAYERS: Final = ["Conv", "Gemm", "MatMul"]
QUANTIZED: Final = [*LAYERS, "Add", "Clip", "Relu"]
CORRECTED_ON: Final = 64  # of the calibration photos
ZERO_POINT: Final = 128
SPREAD: Final = 127.5
CENTRED: Final = "centred"
CENTRED_RANGE: Final = {
    CENTRED: [
        {
            "scale": np.array(1 / SPREAD, np.float32),
            "zero_point": np.array(ZERO_POINT, np.uint8),
            "quant_type": QuantType.QUInt8,
        }
    ]
}


class CalibrationPhotos(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Calibration photos for the ranges of the activations, uint8 [side, side, 3] each, one at a time."""

    def __init__(self, name: str, photos: list[Pixels]) -> None:
        """Start with the first; ``name`` is the graph's input."""
        self._name = name
        self._photos = iter(photos)

    def get_next(self) -> dict[str, Pixels] | None:
        """Give the next photo as a batch of one, None after the last."""
        picture = next(self._photos, None)
        return None if picture is None else {self._name: picture[np.newaxis]}


def quantize(params: Quantize, answering: Export) -> None:
    """Quantize ``models/candidate.onnx`` to ``models/candidate.int8.onnx``.

    Raises:
        StageError: an earlier stage has not run, or no exam can be set for the file.
    """
    trained = read_networks()
    graphs = []
    for graph in read_candidate():
        side = graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        train_set = Pictures(stage.PREPARED / "train", side=side)
        photos = [train_set.array(index) for index in evenly_spaced(len(train_set), params.pictures)]
        graphs.append(whole_numbers(graph, photos, params.percentile, params.in_float))
    packaged = package(merged(*graphs), "int8", trained, answering, {"the same graph computed in float": in_float})
    write_whole(stage.CANDIDATE_INT8, packaged.data)
    write_json(stage.REPORTS / "quantize.json", packaged.report)
    with tracking.run(trained.first["mlflow_run_id"]):
        tracking.log_section("quantize", params)
        mlflow.log_metrics({f"int8_{k}": v for k, v in packaged.report.items() if isinstance(v, float)})
    print(f"{stage.CANDIDATE_INT8}: {packaged.report['version']}, {packaged.report['megabytes']:.1f} MB")


def whole_numbers(
    model: onnx.ModelProto, photos: list[Pixels], percentile: float, in_float: tuple[str, ...]
) -> onnx.ModelProto:
    """Quantize the trunk of one of the graphs of ``training.graph``.

    Args:
        model: float.
        photos: to calibrate the ranges of the activations on, uint8 [side, side, 3] each.
        percentile: share of each activation's values, in per cent, that its range must hold; 100 is all of them.
        in_float: layers to leave in float, by the names of their weights.
    """
    model = centred(model)
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            source,
            result,
            CalibrationPhotos(_input(model), photos),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_left_in_float(model, in_float),
            calibrate_method=CalibrationMethod.MinMax if percentile == 100 else CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": percentile, "TensorQuantOverrides": CENTRED_RANGE},
        )
        quantized = onnx.load(result)
    _correct_biases(model, quantized, [photos[index] for index in evenly_spaced(len(photos), CORRECTED_ON)])
    _feed_bytes(quantized)
    pooled = [_pool(model).output[0]]
    _move_back(quantized, _channel_means(model, pooled, photos)[0] - _channel_means(quantized, pooled, photos)[0])
    return quantized


def _input(model: onnx.ModelProto) -> str:
    name: str = model.graph.input[0].name
    return name


def _pool(model: onnx.ModelProto) -> onnx.NodeProto:
    """The node that takes the mean over places: the last before the head. A trunk may have others."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    node: onnx.NodeProto = made_by[model.graph.output[0].name]
    while node.op_type != "ReduceMean":
        node = made_by[node.input[0]]
    return node


def _left_in_float(model: onnx.ModelProto, wanted: tuple[str, ...]) -> list[str]:
    """Names of the nodes that stay in float: all after the trunk, attention's products, and what ``wanted`` says."""
    weights = {entry.name for entry in model.graph.initializer}
    trunk, needed = [], {_pool(model).input[0]}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            trunk.append(node)
            needed.update(node.input)
    layers = [node for node in trunk if node.op_type in LAYERS]
    kept = {
        node.output[0]
        for node in layers
        if not weights.intersection(node.input) or set(wanted).intersection(node.input)
    }
    products = {node.output[0] for node in layers if node.op_type == "MatMul"}
    inside = {node.name for node in trunk}
    return [
        node.name
        for node in model.graph.node
        if node.name not in inside
        # With its activation, so that the output of a float layer is rounded after the clipping to 0..6, not before.
        or kept.intersection((*node.input, *node.output))
        # The bias of a product: one scale for all of its channels would be too coarse.
        or (node.op_type == "Add" and products.intersection(node.input) and weights.intersection(node.input))
    ]


def _channel_means(model: onnx.ModelProto, names: list[str], photos: list[Pixels]) -> list[npt.NDArray[np.float64]]:
    """Mean of tensors [1, channels] or [1, channels, h, w] over the photos and places, float64 [channels] each."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    sums = [np.float64(0)] * len(names)
    for photo in photos:
        found = session.run(names, {_input(model): photo[np.newaxis]})
        sums = [
            total + value[0].mean(tuple(range(1, value.ndim - 1))) for total, value in zip(sums, found, strict=True)
        ]
    return [np.asarray(total / len(photos), np.float64) for total in sums]


def _correct_biases(model: onnx.ModelProto, quantized: onnx.ModelProto, photos: list[Pixels]) -> None:
    """Undo what rounding does to each channel on average, in the layers' biases, from the input on.

    Bias correction (Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2): each layer is measured with
    those before it corrected already. Without it, rounding in the first block is felt in all that follow.

    Args:
        model: in float.
        quantized: the same, in whole numbers; modified in place.
        photos: to measure on, uint8 [side, side, 3] each.
    """
    entries = {entry.name: entry for entry in quantized.graph.initializer}
    made_by = {name: node for node in quantized.graph.node for name in node.output}
    names = {node.name: node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    wanted = dict(zip(names, _channel_means(model, list(names.values()), photos), strict=True))
    for node in quantized.graph.node:
        bias = made_by.get(node.input[2]) if node.op_type == "Conv" and len(node.input) > 2 else None
        if bias is None:
            continue
        scale, steps = (numpy_helper.to_array(entries[bias.input[place]]).astype(np.float64) for place in (1, 0))
        off = wanted[node.name] - _channel_means(quantized, [node.output[0]], photos)[0]
        entries[bias.input[0]].CopyFrom(
            numpy_helper.from_array(np.rint(steps + off / scale).astype(np.int32), bias.input[0])
        )


def _move_back(model: onnx.ModelProto, shift: npt.NDArray[np.float64]) -> None:
    """Undo what the last layers' rounding does to the features on average, in the biases of the layers that read them.

    They end in float, so it costs nothing.

    Args:
        model: the quantized graph.
        shift: what to add to the pooled features, float64 [channels].
    """
    graph = model.graph
    pool = _pool(model)
    entries = {entry.name: entry for entry in graph.initializer}

    def array(name: str) -> npt.NDArray[np.float64]:
        return numpy_helper.to_array(entries[name]).astype(np.float64)

    new: dict[str, npt.NDArray[np.float64]] = {}
    for node in graph.node:
        if node.op_type == "Gemm" and node.input[0] == pool.output[0]:
            new[node.input[2]] = array(node.input[2]) + array(node.input[1]) @ shift  # a head: weights [1, channels]
        elif node.op_type == "Conv" and node.input[0] == pool.input[0]:
            new[node.input[2]] = array(node.input[2]) + array(node.input[1])[:, :, 0, 0] @ shift  # the evidence
        elif node.op_type == "Sub" and node.input[0] == pool.output[0]:
            new[node.input[1]] = array(node.input[1]) - shift  # the mean that familiarity is measured from
    assert new, "not a graph of training.graph"
    for name, value in new.items():
        entries[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))


def centred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the first layer take ``(image - 128) / 127.5`` instead of the normalised picture, with the same result.

    What is normalised is linear in that, so it goes into the layer's weights and bias. A byte of the picture is then a
    quantized value of this input as it stands, and neither normalising nor quantizing it costs anything: 3 of 15 ms,
    measured on two cores. (At the picture's edge the padding now stands for a grey of 128 rather than the mean's.)
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    weights = {entry.name: entry for entry in graph.initializer}
    subtract = next(node for node in graph.node if node.op_type == "Sub")
    divide = next(node for node in graph.node if subtract.output[0] in node.input)
    first = next(node for node in graph.node if divide.output[0] in node.input)
    assert (subtract.op_type, divide.op_type, first.op_type) == ("Sub", "Div", "Conv"), "not a graph of training.graph"
    mean, std = (numpy_helper.to_array(weights[node.input[1]]).reshape(-1) for node in (subtract, divide))
    kernel = numpy_helper.to_array(weights[first.input[1]])  # [channels, 3, height, width]
    bias = numpy_helper.to_array(weights[first.input[2]]) if len(first.input) > 2 else np.zeros(len(kernel), np.float32)
    new = {
        "centre": np.float32(ZERO_POINT),
        "spread": np.float32(SPREAD),
        "first.weight": kernel * (SPREAD / std)[:, None, None],
        "first.bias": bias + (kernel.sum((2, 3)) * ((ZERO_POINT - mean) / std)).sum(1),
    }
    for name, value in new.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    subtract.input[1], divide.input[1] = "centre", "spread"
    divide.output[0] = CENTRED
    del first.input[:]
    first.input.extend([CENTRED, "first.weight", "first.bias"])
    _drop_unused(model)
    return model


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    for entry in [entry for entry in model.graph.initializer if entry.name not in used]:
        model.graph.initializer.remove(entry)


def _feed_bytes(model: onnx.ModelProto) -> None:
    """Use the picture's bytes as the quantized input directly, without Cast, Sub, Div and QuantizeLinear."""
    graph = model.graph
    quantized = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == CENTRED)
    made_by = {name: node for node in graph.node for name in node.output}
    divide = made_by[CENTRED]
    subtract = made_by[divide.input[0]]
    cast = made_by[subtract.input[0]]
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == quantized.output[0]:
                node.input[place] = cast.input[0]
    for node in (quantized, divide, subtract, cast):
        graph.node.remove(node)
    _drop_unused(model)


def in_float(model: onnx.ModelProto) -> Runner:
    """Run a QDQ graph as it is written, rounding between layers but computing each in float.

    It shows how far another processor's int8 arithmetic can be from this one's: it neither saturates nor rounds as the
    int8 kernels here do.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return Runner(model.SerializeToString(), options)
