"""The Open Inference Protocol: its JSON, and what a request asks for. Front process and lanes read it.

https://github.com/kserve/open-inference-protocol, with Triton's binary tensor data extension.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.engine.wire import Inference, Output
from serving.messages import MAX_BATCH
from shared.contract import CLASSES
from shared.spec import SIZE

MODEL: Final = "cats-dogs"
INPUT: Final = "image"
SHAPE: Final = [SIZE, SIZE, 3]
PICTURE_BYTES: Final = SIZE * SIZE * 3
# Datatypes and shapes, -1 for any number of pictures.
INPUTS: Final = (("BYTES", [-1]), ("UINT8", [-1, *SHAPE]))
OUTPUTS: Final[dict[str, tuple[Literal["FP32", "BYTES"], list[int]]]] = {
    "probabilities": ("FP32", [-1, len(CLASSES)]),
    "familiarity": ("FP32", [-1]),
    "verdict": ("BYTES", [-1]),
}


class Parameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Parameters of a request, an input or an output; unknown ones are ignored."""

    binary_data_size: Annotated[int, Meta(ge=0, description="Bytes of this tensor behind the JSON.")] | None = None
    binary_data: Annotated[bool, Meta(description="Answer this output behind the JSON.")] | None = None
    binary_data_output: Annotated[bool, Meta(description="Answer all outputs so.")] | None = None
    classification: Annotated[Any, Meta(description="Not supported.")] = None
    shared_memory_region: Annotated[Any, Meta(description="Not supported.")] = None


NONE: Final = Parameters()


class InferInput(msgspec.Struct, frozen=True, omit_defaults=True):
    """The pictures."""

    name: Annotated[str, Meta(description="`image`")]
    datatype: Annotated[Literal["BYTES", "UINT8"], Meta(description="`BYTES`: picture files; `UINT8`: RGB pixels.")]
    shape: Annotated[list[int], Meta(description="`[n]` or `[n, 1]` files, `[n, 224, 224, 3]` pixels; n up to 64.")]
    data: Annotated[
        Any, Meta(description="Base64 of files, or numbers, nested or flat; absent if it is behind the JSON.")
    ] = UNSET
    parameters: Parameters | None = None


class InferOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """An output that is wanted."""

    name: Annotated[str, Meta(description="`probabilities`, `familiarity` or `verdict`")]
    parameters: Parameters | None = None


class InferRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Up to 64 pictures, and the outputs wanted of them; all if none are named."""

    inputs: list[InferInput]
    id: Annotated[str, Meta(max_length=200, description="Returned with the answer.")] | None = None
    outputs: list[InferOutput] | None = None
    parameters: Parameters | None = None


class _RawInput(InferInput, frozen=True):
    data: msgspec.Raw | UnsetType = UNSET


class _RawRequest(InferRequest, frozen=True):
    inputs: list[_RawInput]  # type: ignore[assignment]  # the same JSON, its data left undecoded


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor of the answer; with `binary_data_size` among its parameters its data is behind the JSON."""

    name: str
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    data: list[Any] | UnsetType = UNSET
    parameters: dict[str, int] | UnsetType = UNSET


class InferResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer; its probabilities are of cats and dogs, in this order, for each picture."""

    model_name: str = MODEL
    model_version: str
    id: str | UnsetType = UNSET
    outputs: list[Tensor]


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor that the model takes or gives; -1 stands for the number of pictures."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What the model takes and gives. `image` is one input, in either of two forms."""

    name: str = MODEL
    platform: str = "onnxruntime_onnx"
    inputs: list[TensorMetadata] = msgspec.field(
        default_factory=lambda: [TensorMetadata(INPUT, datatype, shape) for datatype, shape in INPUTS]
    )
    outputs: list[TensorMetadata] = msgspec.field(
        default_factory=lambda: [TensorMetadata(name, *form) for name, form in OUTPUTS.items()]
    )


class ServerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """The server."""

    name: str = MODEL
    version: str
    extensions: list[str] = msgspec.field(default_factory=lambda: ["binary_tensor_data"])


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """The process can answer."""

    live: bool = True


class ReadyToInfer(msgspec.Struct, frozen=True, kw_only=True):
    """New work is accepted. The protocol's text calls it `live`, KServe's client `ready`."""

    live: bool = True
    ready: bool = True


def read(data: bytes | memoryview) -> tuple[Inference, msgspec.Raw | UnsetType]:
    """Read the JSON of a request; returns what it asks for, and the ``data`` of its input as it stands there.

    Raises:
        ValueError: it is not a request for this model; `msgspec.MsgspecError` is one.
    """
    request = msgspec.json.decode(data, type=_RawRequest)
    names = [given.name for given in request.inputs]
    if names != [INPUT]:
        raise ValueError(f"the request needs one input {INPUT!r}, not {_named(names)}")
    image = request.inputs[0]
    count = image.shape[0] if image.shape else 0
    if not 1 <= count <= MAX_BATCH:
        raise ValueError(f"the first number of the shape is that of the pictures, from 1 to {MAX_BATCH}")
    shapes = ([count], [count, 1]) if image.datatype == "BYTES" else ([count, *SHAPE],)
    if image.shape not in shapes:
        raise ValueError(f"the shape of {image.datatype} is {' or '.join(map(str, shapes))}")
    everything = (request.parameters or NONE).binary_data_output or False
    outputs = [_output(output, everything) for output in request.outputs or map(InferOutput, OUTPUTS)]
    if len({output.name for output in outputs}) < len(outputs):
        raise ValueError("an output is named twice")
    size = (image.parameters or NONE).binary_data_size
    if (image.data is UNSET) == (size is None):
        raise ValueError("the input needs data, or binary_data_size among its parameters")
    return Inference(
        id=request.id,
        datatype=image.datatype,
        count=count,
        outputs=outputs,
        binary_bytes=size,
    ), image.data


def _output(output: InferOutput, binary: bool) -> Output:
    parameters = output.parameters or NONE
    if output.name not in OUTPUTS:
        raise ValueError(f"there is no output {_named([output.name])}; there are {', '.join(OUTPUTS)}")
    if parameters.classification is not None or parameters.shared_memory_region is not None:
        raise ValueError("shared memory and classification are not supported")
    return Output(output.name, binary if parameters.binary_data is None else parameters.binary_data)


def _named(names: list[str]) -> str:
    return ", ".join(ascii(name[:40]) for name in names[:5]) or "none"
