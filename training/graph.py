"""The graphs that are exported: everything between uint8 pictures and the contract's outputs.

A model file holds two, that of the first look and that of the second; an input says which one is computed.
"""

from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from shared.pixels import Pixels
from shared.second_look import AGAIN, INPUT, Outputs, inputs
from training.models import Classifier

EVIDENCE_SIZE: Final = 7
SUREST: Final = 10.0  # log-odds, a probability of 0.99995: no validation set is large enough to claim more
TEMPERATURE: Final = "temperature"
# So large that no log-odds reach their bound; and not 1, which the exporter would leave out.
UNCALIBRATED: Final = 100.0
HALVED: Final = ".float16"
FIRST: Final = "first"
CLOSER: Final = "closer"


class Graph(nn.Module):
    """A network with all that comes after it, in evaluation mode.

    Args:
        classifier: the trained network.
        familiarity: fitted on its features; gives log-odds.
    """

    weight: Tensor  # [1, channels], of dogs less those of cats
    bias: Tensor  # [1]
    temperature: Tensor  # what the log-odds of dogs are divided by, set by `with_temperatures`

    def __init__(self, classifier: Classifier, familiarity: nn.Module) -> None:
        """Put the parts together."""
        super().__init__()
        self.classifier = classifier
        self.familiarity = familiarity
        weight, bias = classifier.head.weight.detach(), classifier.head.bias.detach()
        self.register_buffer("weight", (weight[1] - weight[0])[None].clone())
        self.register_buffer("bias", (bias[1] - bias[0])[None].clone())
        self.register_buffer(TEMPERATURE, torch.tensor(UNCALIBRATED))
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take uint8 [n, side, side, 3]; return probabilities [n, 2], evidence [n, 7, 7] and familiarity [n], float32.

        The mean of the evidence is the log-odds of dogs before the temperature, at 7 places a side.
        """
        places = self.classifier.feature_map(image.permute(0, 3, 1, 2))
        pooled = places.mean((2, 3))
        odds = nn.functional.linear(pooled, self.weight, self.bias) / self.temperature
        odds = odds.clamp(-SUREST, SUREST)
        evidence = nn.functional.conv2d(places, self.weight.view(1, -1, 1, 1), self.bias)
        if evidence.shape[-2:] != (EVIDENCE_SIZE, EVIDENCE_SIZE):
            evidence = nn.functional.adaptive_avg_pool2d(evidence, EVIDENCE_SIZE)
        familiar = self.familiarity(pooled).clamp(-SUREST, SUREST)
        return torch.cat([-odds, odds], 1).sigmoid(), evidence.squeeze(1), familiar.sigmoid()


def to_onnx(graph: Graph, side: int, opset: int) -> onnx.ModelProto:
    """Export one graph, for pictures of ``side`` pixels and batches of any size."""
    program = torch.onnx.export(
        graph,
        (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
        input_names=[INPUT],
        output_names=list(Outputs._fields),
        dynamic_shapes={"image": {0: torch.export.Dim("n")}},
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return without_traces(program.model_proto)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what the exporter records about each node: its stack trace, with this machine's paths."""
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.ClearField("doc_string")
    return model


def merged(first: onnx.ModelProto, closer: onnx.ModelProto) -> onnx.ModelProto:
    """Put the two graphs into one file; what both hold alike, as when one network does both, is there once."""
    graphs = [onnx.GraphProto.FromString(model.graph.SerializeToString()) for model in (first, closer)]
    there = {_entry(entry) for entry in graphs[0].initializer}
    same = [entry for entry in graphs[1].initializer if entry.dims and _entry(entry) in there]
    names = {entry.name for entry in same}
    for graph, name in zip(graphs, (FIRST, CLOSER), strict=True):
        graph.name = name
        own = [entry for entry in graph.initializer if entry.name not in names]
        for field in (graph.initializer, graph.input, graph.value_info):  # what was known of shapes is of one side
            del field[:]
        graph.initializer.extend(own)
    choice = helper.make_node("If", [AGAIN], Outputs._fields, else_branch=graphs[0], then_branch=graphs[1])
    inputs = [
        helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", "side", "side", 3]),
        helper.make_tensor_value_info(AGAIN, TensorProto.BOOL, []),
    ]
    outputs: list[onnx.ValueInfoProto] = [
        onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in first.graph.output
    ]
    return helper.make_model(
        helper.make_graph([choice], "looks", inputs, outputs, same),
        opset_imports=first.opset_import,
        ir_version=first.ir_version,
        producer_name=first.producer_name,
        producer_version=first.producer_version,
    )


def _entry(entry: TensorProto) -> bytes:
    data: bytes = entry.SerializeToString(deterministic=True)
    return data


def branches(model: onnx.ModelProto) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """Those of :func:`merged`'s choice, of the first look and of the second; to be read or changed in place."""
    (choice,) = model.graph.node
    found = {attribute.name: attribute.g for attribute in choice.attribute}
    return found["else_branch"], found["then_branch"]


def parts(model: onnx.ModelProto, sides: tuple[int, int]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The two graphs of :func:`merged`, each a model of its own, for pictures of these sides."""
    first, closer = (_part(model, graph, side) for graph, side in zip(branches(model), sides, strict=True))
    return first, closer


def _part(model: onnx.ModelProto, branch: onnx.GraphProto, side: int) -> onnx.ModelProto:
    used = {name for node in branch.node for name in node.input}
    entries = [*branch.initializer, *(entry for entry in model.graph.initializer if entry.name in used)]
    image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", side, side, 3])
    graph = helper.make_graph(branch.node, branch.name, [image], branch.output, entries)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the weights in float16: half the bytes. onnxruntime widens them once, on loading."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    casts = []
    for entry in model.graph.initializer:
        if entry.data_type == TensorProto.FLOAT and len(entry.dims) > 1:
            name = entry.name
            entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry).astype(np.float16), name + HALVED))
            casts.append(helper.make_node("Cast", [name + HALVED], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Undo :func:`halved`, but for the rounding."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for entry in model.graph.initializer:
        if entry.name.endswith(HALVED):
            name = entry.name.removesuffix(HALVED)
            entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry).astype(np.float32), name))
    nodes = [node for node in model.graph.node if not (node.op_type == "Cast" and node.input[0].endswith(HALVED))]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def with_temperatures(model: onnx.ModelProto, first: float, closer: float) -> onnx.ModelProto:
    """A copy of the file, of :func:`merged`, with other temperatures."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for graph, value in zip(branches(model), (first, closer), strict=True):
        (entry,) = (entry for entry in graph.initializer if entry.name == TEMPERATURE)
        entry.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), TEMPERATURE))
    return model


class Runner:
    """The networks of a model file, computed by onnxruntime; a :class:`shared.second_look.Network`."""

    def __init__(self, model: bytes, options: onnxruntime.SessionOptions | None = None) -> None:
        """Make the session."""
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def first(self, pictures: Pixels) -> Outputs:
        """The first look."""
        return Outputs(*self._session.run(Outputs._fields, inputs(pictures, again=False)))

    def closer(self, pictures: Pixels) -> Outputs:
        """The second look."""
        return Outputs(*self._session.run(Outputs._fields, inputs(pictures, again=True)))


def single_threaded(model: bytes) -> Runner:
    """Run the file as a lane of the service does, on one thread, which depends least on what the other cores do."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return Runner(model, options)
