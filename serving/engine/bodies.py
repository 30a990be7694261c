"""The JSON of batches and inference requests, taken apart in a lane: where each picture is."""

import binascii
import codecs
from typing import Final

import msgspec
import numpy as np
from msgspec import UNSET

from serving import inference as protocol
from serving.engine.wire import Batch, Flags, Inference, Item
from serving.messages import MAX_BATCH, MAX_OBJECTS, MAX_VALUES
from shared.pixels import SIZE, Pixels

MAX_ID: Final = 200
_TO_PLAIN_BASE64: Final = bytes.maketrans(b"-_", b"+/")


class _BatchItem(msgspec.Struct):
    data: msgspec.Raw
    id: str | None = None


class _BatchBody(msgspec.Struct):
    images: list[msgspec.Raw]


def unpack(data: bytes, flags: Flags) -> Batch | Inference | bytes | Pixels:
    """Return a picture, a file or pixels, or where the pictures of a body are.

    Raises:
        ValueError: the body is malformed; `msgspec.MsgspecError` and RecursionError, too.
    """
    if Flags.BATCH in flags:
        return _batch(data)
    if Flags.INFER in flags:
        return _inference(data)
    if Flags.BASE64 in flags:
        return _base64(msgspec.json.decode(data, type=str))
    if Flags.PIXELS in flags:
        return np.frombuffer(data, np.uint8).reshape(SIZE, SIZE, 3)
    return data


def _batch(data: bytes) -> Batch:
    """Find each picture of a batch, so that lanes can decode their base64 in parallel."""
    body = msgspec.json.decode(
        memoryview(data)[len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0 :], type=_BatchBody
    )
    if len(body.images) > MAX_BATCH:
        raise ValueError(f"a batch has at most {MAX_BATCH} pictures, not {len(body.images):,}")
    base = _address(data)
    return Batch([_item(image, base) for image in body.images])


def _item(image: msgspec.Raw, base: int) -> Item:
    """Find one picture of a batch, or say what is wrong with it; ``base`` is the batch's address."""
    try:
        item = msgspec.json.decode(image, type=_BatchItem)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Item(None, 0, 0, str(error))
    if item.id is not None and len(item.id) > MAX_ID:
        return Item(None, 0, 0, f"the id is longer than {MAX_ID} characters")
    start = _address(item.data) - base
    return Item(item.id, start, start + memoryview(item.data).nbytes)


def _inference(data: bytes) -> Inference:
    """Find the pictures in the JSON of an inference request."""
    if data.count(b"{") > MAX_OBJECTS:
        raise ValueError("too many objects")
    asked, tensor = protocol.read(data)
    if tensor is UNSET:
        raise ValueError("there is nothing behind the JSON without the header Inference-Header-Content-Length")
    base = _address(data)
    start = _address(tensor) - base
    values = 1 + data.count(b",", start, start + memoryview(tensor).nbytes)
    if asked.datatype == "UINT8":
        count = asked.count * protocol.PICTURE_BYTES
        if values > count:
            raise ValueError(f"the data has more numbers than {count:,}")
        return msgspec.structs.replace(asked, pixels=_numbers(tensor, count))
    if values > MAX_VALUES:
        raise ValueError(f"the data has more strings than {asked.count}")
    starts = [(_address(string) - base, memoryview(string).nbytes) for string in _strings(tensor, asked.count)]
    return msgspec.structs.replace(asked, items=[Item(None, start, start + size) for start, size in starts])


def _numbers(tensor: msgspec.Raw, count: int) -> bytes:
    """Read ``count`` numbers from 0 to 255, in a list of any dimensions."""
    # With a list for each pixel, 64 pictures took 1.9 s of processor time, and so 0.4 (two cores).
    flat = b"[" + bytes(tensor).translate(None, b"[] \t\r\n") + b"]"
    numbers = msgspec.json.decode(flat, type=list[int])
    if len(numbers) != count:
        raise ValueError(f"the data has {len(numbers):,} numbers, not {count:,}")
    return bytes(numbers)


def _strings(tensor: msgspec.Raw, count: int) -> list[msgspec.Raw]:
    """Find ``count`` strings, in a flat list or one of two dimensions."""
    found: list[msgspec.Raw] = []
    for value in msgspec.json.decode(tensor, type=list[msgspec.Raw]):
        nested = bytes(memoryview(value)[:1]) == b"["
        found += msgspec.json.decode(value, type=list[msgspec.Raw]) if nested else [value]
    if len(found) != count:
        raise ValueError(f"the data has {len(found):,} strings, not {count}")
    return found


def _base64(text: str) -> bytes:
    """Decode base64, also as a ``data:`` URI, with line breaks, in the URL-safe alphabet or without padding."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        plain = text.encode("ascii").translate(_TO_PLAIN_BASE64, b" \t\r\n")
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError as error:  # binascii.Error is one, and what is not ASCII another
        raise ValueError(f"invalid base64: {error}") from error


def _address(data: bytes | msgspec.Raw) -> int:
    return int(np.frombuffer(memoryview(data), np.uint8).ctypes.data)
