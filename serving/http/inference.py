"""The handlers of the Open Inference Protocol, under /v2."""

import struct
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from serving import __version__
from serving.engine.wire import PLAIN, Flags, Inference, Verdict
from serving.errors import ProblemError
from serving.http import uploads
from serving.inference import (
    OUTPUTS,
    PICTURE_BYTES,
    InferResponse,
    Live,
    ModelMetadata,
    ReadyToInfer,
    ServerMetadata,
    Tensor,
    read,
)
from serving.messages import Prediction
from serving.service import Picture, Service, Work

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
HEADER: Final = "Inference-Header-Content-Length"
# Of the JSON before binary data: it is read in the front process.
MAX_JSON_BYTES: Final = 65_536
_LENGTH: Final = struct.Struct("<I")


async def server_metadata(_: Request) -> Response:
    """GET /v2."""
    return _json(ServerMetadata(version=__version__))


async def server_live(request: Request) -> Response:
    """GET /v2/health/live: the process is alive."""
    if not _service(request).alive:
        raise ProblemError("not_ready", "no worker can be started; the process must be replaced")
    return _json(Live())


async def server_ready(request: Request) -> Response:
    """GET /v2/health/ready: new work is accepted."""
    _service(request).ready  # noqa: B018 - raises if it is not
    return _json(ReadyToInfer())


async def model_ready(request: Request) -> Response:
    """GET /v2/models/cats-dogs/ready: the same, as there is one model."""
    return await server_ready(request)


async def model_metadata(_: Request) -> Response:
    """GET /v2/models/cats-dogs: inputs and outputs."""
    return _json(ModelMetadata())


async def infer(request: Request) -> Response:
    """POST /v2/models/cats-dogs/infer: up to 64 pictures."""
    service = _service(request)
    async with uploads.received(request, service.settings.max_batch_bytes, uploads.Whole()) as (work, (body,)):
        asked, pictures = await _pictures(work, body, request.headers.get(HEADER))
        answers = await work.predict_all(pictures)
    predictions = []
    for number, answer in enumerate(answers):
        if isinstance(answer, ProblemError):
            raise ProblemError(answer.code, f"picture {number}: {answer.detail}", answer.retry_after)
        predictions.append(answer)
    return _answer(asked, predictions, work.model.contract.version)


async def _pictures(work: Work, body: bytearray, header: str | None) -> tuple[Inference, list[Picture]]:
    """Find the pictures of a request: in its JSON, which a lane reads, or behind it."""
    view = memoryview(body)
    if header is None or header == str(len(body)):
        asked = await work.infer(body)
        if asked.datatype == "BYTES":
            found = [(view[item.start : item.end], Flags.BASE64) for item in asked.items]
            return asked, [Picture(data, flags) for data, flags in found]
        return asked, [Picture(data, Flags.PIXELS) for data in _pixels(memoryview(asked.pixels))]
    length = int(header) if header.isascii() and header.isdigit() and len(header) <= len(str(MAX_JSON_BYTES)) else 0
    if not 1 <= length <= min(MAX_JSON_BYTES, len(body)):
        raise ProblemError(
            "malformed_request",
            f"{HEADER} is the length of the JSON: at most {MAX_JSON_BYTES:,}, and that of the body",
        )
    try:
        asked, _ = read(view[:length])
        tensor = view[length:]
        if asked.binary_bytes != len(tensor):
            raise ValueError(f"binary_data_size is {asked.binary_bytes}, and {len(tensor):,} bytes are behind the JSON")
        if asked.datatype == "UINT8":
            if len(tensor) != asked.count * PICTURE_BYTES:
                raise ValueError(f"the pixels are {len(tensor):,} bytes, not {asked.count * PICTURE_BYTES:,}")
            return asked, [Picture(data, Flags.PIXELS) for data in _pixels(tensor)]
        return asked, [Picture(data, PLAIN) for data in _files(tensor, asked.count)]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProblemError("malformed_request", str(error)) from error


def _pixels(tensor: memoryview) -> list[memoryview]:
    return [tensor[start : start + PICTURE_BYTES] for start in range(0, len(tensor), PICTURE_BYTES)]


def _files(tensor: memoryview, count: int) -> list[memoryview]:
    """Split a BYTES tensor: each element has its length before it."""
    files, start = [], 0
    for _ in range(count):
        if start + _LENGTH.size > len(tensor):
            break
        (size,) = _LENGTH.unpack_from(tensor, start)
        start += _LENGTH.size + size
        files.append(tensor[start - size : start])
    if start != len(tensor) or len(files) != count:
        raise ValueError(f"the bytes behind the JSON are not {count} strings, each with its length before it")
    return files


def _answer(asked: Inference, predictions: Sequence[Prediction], version: str) -> Response:
    columns: dict[str, list[float] | list[Verdict]] = {
        "probabilities": [
            value for found in predictions for value in (found.probabilities.cats, found.probabilities.dogs)
        ],
        "familiarity": [found.familiarity for found in predictions],
        "verdict": [found.verdict for found in predictions],
    }
    outputs, behind = [], b""
    for output in asked.outputs:
        datatype, shape = OUTPUTS[output.name]
        tensor = Tensor(name=output.name, datatype=datatype, shape=[asked.count, *shape[1:]], data=columns[output.name])
        if output.binary:
            data = _encoded(columns[output.name])
            tensor = msgspec.structs.replace(tensor, data=UNSET, parameters={"binary_data_size": len(data)})
            behind += data
        outputs.append(tensor)
    document = msgspec.json.encode(
        InferResponse(model_version=version, id=UNSET if asked.id is None else asked.id, outputs=outputs)
    )
    if not any(output.binary for output in asked.outputs):
        return Response(document, media_type=JSON)
    return Response(document + behind, media_type=BINARY, headers={HEADER: str(len(document))})


def _encoded(values: Sequence[float | str]) -> bytes:
    return b"".join(
        struct.pack("<f", value) if isinstance(value, float) else _LENGTH.pack(len(value)) + value.encode()
        for value in values
    )


def _json(message: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(message), media_type=JSON)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
