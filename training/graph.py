"""The graph that is exported: everything between a uint8 picture and the contract's three outputs."""

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from shared.exam import Outputs
from shared.pixels import SIZE, Pixels
from training.familiarity import Familiarity
from training.models import Classifier

INPUT: Final = "image"
EVIDENCE_SIZE: Final = 7


class Graph(nn.Module):
    """Normalisation, network, temperature, softmax, evidence and familiarity in one.

    Args:
        classifier: the trained network.
        familiarity: fitted on its features.
        temperature: what the logits are divided by.
    """

    def __init__(self, classifier: Classifier, familiarity: Familiarity, temperature: float) -> None:
        """Put the parts together in evaluation mode."""
        super().__init__()
        self.classifier = classifier
        self.familiarity = familiarity
        self.temperature = temperature
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take uint8 [n, 224, 224, 3]; return probabilities [n, 2], evidence [n, 7, 7] and familiarity [n], float32.

        The mean of the evidence is the difference of the logits, dogs less cats, before the temperature.
        """
        places = self.classifier.feature_map(image.permute(0, 3, 1, 2))
        pooled = places.mean((2, 3))
        head = self.classifier.head
        probabilities = (head(pooled) / self.temperature).softmax(1)
        weight, bias = head.weight[1] - head.weight[0], head.bias[1] - head.bias[0]
        evidence = nn.functional.conv2d(places, weight.view(1, -1, 1, 1), bias.view(1))
        if evidence.shape[-2:] != (EVIDENCE_SIZE, EVIDENCE_SIZE):
            evidence = nn.functional.adaptive_avg_pool2d(evidence, EVIDENCE_SIZE)
        return probabilities, evidence.squeeze(1), self.familiarity(pooled)


def to_onnx(graph: Graph, opset: int) -> onnx.ModelProto:
    """Export the graph with a dynamic batch size."""
    program = torch.onnx.export(
        graph,
        (torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8),),
        input_names=[INPUT],
        output_names=list(Outputs._fields),
        dynamic_shapes={INPUT: {0: torch.export.Dim("n")}},
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


def runner(model: bytes, options: onnxruntime.SessionOptions | None = None) -> Callable[[Pixels], Outputs]:
    """Make a function that runs the ONNX file on uint8 [n, 224, 224, 3]."""
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(batch: Pixels) -> Outputs:
        return Outputs(*session.run(list(Outputs._fields), {INPUT: batch}))

    return run


def largest_difference(one: Outputs, other: Outputs) -> dict[str, float]:
    """Largest absolute difference by output; that of the evidence is relative to the other's largest value."""
    differences = {}
    for name, a, b in zip(Outputs._fields, one, other, strict=True):
        scale = float(np.abs(b).max()) or 1.0 if name == "evidence" else 1.0
        differences[name] = float(np.abs(a - b).max()) / scale
    return differences
