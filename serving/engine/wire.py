"""The messages between the front process, the zygote, and the lanes, over one stream socket for each lane.

A lane answers only with MessagePack of the types below, so a lane that a hostile file has taken over can send the front
process data but no code. A request is a header and a body: a picture file, a picture's pixels, the JSON of
a batch or of an inference request, or an item of it.
"""

import struct
from enum import IntFlag
from typing import Final, Literal

import msgspec

from shared.contract import Contract, Label

Verdict = Literal["cats", "dogs", "unsure"]
Because = Literal["close_call", "unfamiliar"]
# Headers. Of a request: length of the body, flags. Of an answer: length of its MessagePack.
REQUEST: Final = struct.Struct("<II")
ANSWER: Final = struct.Struct("<I")
# Bodies up to this size are passed in memory that front process and lane share; larger ones through the socket.
SHARED_BYTES: Final = 4_194_304
# What the front process and the zygote exchange, one message at a time, once the model is loaded.
NUMBER: Final = struct.Struct("<i")
# The largest message of the zygote.
MAX_MESSAGE: Final = 262_144


class Flags(IntFlag):
    """How to answer a request."""

    EXPLAIN = 1  # with the evidence map
    DRAW = 2  # with the evidence drawn over the picture
    ALONE = 4  # no other picture is waiting or in a lane: use every core
    BASE64 = 8  # the body is one item of a batch: a JSON string with base64
    BATCH = 16  # the body is a batch: find its pictures
    INFER = 32  # the body is the JSON of an inference request: find its pictures
    PIXELS = 64  # the body is a decoded picture: uint8 [224, 224, 3]
    KEEP = 128  # leave what the network saw, uint8 [224, 224, 3], at the start of the shared memory
    KEEP_UNSURE = 256  # likewise, if the verdict is unsure


PLAIN: Final = Flags(0)
# What the body is.
SOURCE: Final = Flags.BASE64 | Flags.PIXELS
Body = bytes | bytearray | memoryview


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The model file, or the int8 file with an fp32 file beside it as a fallback, and what a picture may cost."""

    path: str
    max_pixels: int
    max_bytes: int | None  # of memory for decoding
    cpu_seconds: float


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model has passed its exam in the zygote. The contract comes without the golden pictures' files."""

    contract: Contract
    file: str
    fallback: str | None
    digest: str


class LoadRefused(msgspec.Struct, frozen=True, tag=True):
    """The model is refused; ``again``: the file could not be read, and trying again may help."""

    reason: str
    again: bool


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A lane is ready; ``refused`` says why it has no wide session, if it should."""

    refused: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One picture's answer; each number is the shortest decimal that gives the network's float32."""

    label: Label
    verdict: Verdict
    unsure_because: Because | None
    cats: float
    dogs: float
    familiarity: float
    again: bool  # it was looked at twice
    brightness: float  # mean pixel value, 0..1
    size: int  # of the picture file, in bytes
    width: int  # of the upright picture, in pixels; so is the height
    height: int
    evidence: list[list[float]] | None
    png: bytes | None
    decode: float  # seconds; so are the next two
    infer: float
    draw: float
    cpu: float  # processor seconds for all of it
    kept: bool = False  # what the network saw is in the shared memory
    pixels: bytes | None = None  # it, once the front process has read it there

    @property
    def confidence(self) -> float:
        """The larger probability."""
        return max(self.cats, self.dogs)


class PictureRefused(msgspec.Struct, frozen=True, tag=True):
    """The picture or batch is refused with a code of ``serving.errors``."""

    code: str
    detail: str


class ModelFailed(msgspec.Struct, frozen=True, tag=True):
    """The model failed on this picture."""

    reason: str


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One picture of a batch: the client's id for it, and where its JSON string is in the body, or why it has none."""

    id: str | None
    start: int
    end: int
    refused: str | None = None


class Batch(msgspec.Struct, frozen=True, tag=True):
    """The pictures of a batch."""

    items: list[Item]


class Output(msgspec.Struct, frozen=True, array_like=True):
    """An output that an inference request asks for; ``binary``: behind the answer's JSON."""

    name: str
    binary: bool


class Inference(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What an inference request asks for; the last two have pictures that are in its JSON and not behind it."""

    id: str | None
    datatype: Literal["BYTES", "UINT8"]
    count: int
    outputs: list[Output]
    binary_bytes: int | None
    items: list[Item] = []
    pixels: bytes = b""


Outcome = Answer | PictureRefused | ModelFailed | Batch | Inference
