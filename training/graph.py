"""The graphs that are exported: everything between uint8 pictures and the contract's outputs.

A model file holds two, that of the first look and that of the second, with an input and outputs each; a run computes
only what is asked for.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from shared.pixels import Pixels
from shared.second_look import CLOSER_INPUT, CLOSER_OUTPUT, INPUT, Outputs
from training.models import Classifier

EVIDENCE_SIZE: Final = 7
SUREST: Final = 10.0  # log-odds, a probability of 0.99995: no validation set is large enough to claim more
TEMPERATURE: Final = "temperature"
# So large that no log-odds reach their bound; and not 1, which the exporter would leave out.
UNCALIBRATED: Final = 100.0
HALVED: Final = ".float16"
PREFIX: Final = "closer/"


class Graph(nn.Module):
    """A network with what makes log-odds of its features, in evaluation mode.

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

    def odds(self, pooled: Tensor) -> Tensor:
        """Log-odds of dogs, float [n, 1]."""
        odds = nn.functional.linear(pooled, self.weight, self.bias) / self.temperature
        return odds.clamp(-SUREST, SUREST)


class First(Graph):
    """The first look."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take uint8 [n, 224, 224, 3]; return probabilities [n, 2], evidence [n, 7, 7] and familiarity [n], float32.

        The mean of the evidence is the log-odds of dogs before the temperature.
        """
        places = self.classifier.feature_map(image.permute(0, 3, 1, 2))
        pooled = places.mean((2, 3))
        odds = self.odds(pooled)
        evidence = nn.functional.conv2d(places, self.weight.view(1, -1, 1, 1), self.bias)
        if evidence.shape[-2:] != (EVIDENCE_SIZE, EVIDENCE_SIZE):
            evidence = nn.functional.adaptive_avg_pool2d(evidence, EVIDENCE_SIZE)
        return torch.cat([-odds, odds], 1).sigmoid(), evidence.squeeze(1), self.familiarity(pooled).sigmoid()


class Closer(Graph):
    """The second look."""

    def forward(self, image: Tensor) -> Tensor:
        """Take uint8 [n, side, side, 3]; return the log-odds of dogs and of being familiar, float32 [n, 2]."""
        pooled = self.classifier.feature_map(image.permute(0, 3, 1, 2)).mean((2, 3))
        return torch.cat([self.odds(pooled), self.familiarity(pooled).unsqueeze(1)], 1)


def to_onnx(graph: First | Closer, side: int, opset: int) -> onnx.ModelProto:
    """Export one graph, for pictures of ``side`` pixels and batches of any size."""
    first = isinstance(graph, First)
    name = INPUT if first else CLOSER_INPUT
    program = torch.onnx.export(
        graph,
        (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
        input_names=[name],
        output_names=list(Outputs._fields) if first else [CLOSER_OUTPUT],
        dynamic_shapes={"image": {0: torch.export.Dim("n" if first else "m")}},
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
    both: onnx.ModelProto = onnx.ModelProto.FromString(first.SerializeToString())
    second = onnx.ModelProto.FromString(closer.SerializeToString())
    del second.graph.value_info[:]  # which may name the input and the output, and would have them renamed
    second = onnx.compose.add_prefix(second, PREFIX, rename_inputs=False, rename_outputs=False)
    there = {_value(entry): entry.name for entry in both.graph.initializer if entry.raw_data}
    same = {
        entry.name: there[_value(entry)]
        for entry in second.graph.initializer
        if entry.dims and entry.raw_data and _value(entry) in there
    }
    for node in second.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
    both.graph.node.extend(second.graph.node)
    both.graph.initializer.extend(entry for entry in second.graph.initializer if entry.name not in same)
    both.graph.input.extend(second.graph.input)
    both.graph.output.extend(second.graph.output)
    return both


def _value(entry: TensorProto) -> tuple[int, tuple[int, ...], bytes]:
    return entry.data_type, tuple(entry.dims), entry.raw_data


def parts(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The two graphs of :func:`merged`, each a model of its own."""
    extractor = onnx.utils.Extractor(model)
    return (
        extractor.extract_model([INPUT], list(Outputs._fields)),
        extractor.extract_model([CLOSER_INPUT], [CLOSER_OUTPUT]),
    )


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
    for entry in model.graph.initializer:
        if entry.name.endswith(TEMPERATURE):
            value = closer if entry.name.startswith(PREFIX) else first
            entry.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), entry.name))
    return model


class Runner:
    """The two networks of a model file, computed by onnxruntime; a :class:`shared.second_look.Network`."""

    def __init__(self, model: bytes, options: onnxruntime.SessionOptions | None = None) -> None:
        """Make the session."""
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._nothing = {entry.name: np.zeros((0, *entry.shape[1:]), np.uint8) for entry in self._session.get_inputs()}
        self._only_what_is_asked = onnxruntime.RunOptions()
        self._only_what_is_asked.only_execute_path_to_fetches = True

    def first(self, pictures: Pixels) -> Outputs:
        """The first look."""
        return Outputs(*self._run(Outputs._fields, INPUT, pictures))

    def closer(self, pictures: Pixels) -> npt.NDArray[np.float32]:
        """The second look."""
        (odds,) = self._run((CLOSER_OUTPUT,), CLOSER_INPUT, pictures)
        return odds

    def _run(self, outputs: Sequence[str], name: str, pictures: Pixels) -> list[npt.NDArray[np.float32]]:
        found: list[npt.NDArray[np.float32]] = self._session.run(
            list(outputs), self._nothing | {name: np.ascontiguousarray(pictures)}, self._only_what_is_asked
        )
        return found


def single_threaded(model: bytes) -> Runner:
    """Run the file as a lane of the service does, on one thread, which depends least on what the other cores do."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return Runner(model, options)
