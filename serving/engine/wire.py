"""The messages between the front process and its lanes, over one stream socket for each lane.

A lane answers only with MessagePack of the types below, so a lane that a hostile file has taken over can send the front
process data but no code. A request is a header and a body: a picture file, the JSON of a batch, or an item of it.
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


class Flags(IntFlag):
    """How to answer a request."""

    EXPLAIN = 1  # with the evidence map
    DRAW = 2  # with the evidence drawn over the picture
    ALONE = 4  # no other picture is waiting or in a lane: use every core
    BASE64 = 8  # the body is one item of a batch: a JSON string with base64
    BATCH = 16  # the body is a batch: find its pictures


PLAIN: Final = Flags(0)


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """How a lane starts: the model, and what a picture may cost.

    With ``path``, the lane reads the model file, or the fp32 file beside it as a fallback, and copies it to the memory
    file that came with this message. Without ``path``, the model is already in that memory file.
    """

    path: str | None
    file: str
    fallback: str | None = None
    threads: int  # of the wide session; 1 for none
    max_pixels: int
    max_bytes: int | None  # of memory for decoding
    cpu_seconds: float


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model has passed its exam in the lane. The contract comes without the golden pictures' files."""

    contract: Contract
    file: str
    fallback: str | None
    digest: str


class LoadRefused(msgspec.Struct, frozen=True, tag=True):
    """The model is refused; ``again``: the file could not be read, and trying again may help."""

    reason: str
    again: bool


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One picture's answer; each number is the shortest decimal that gives the network's float32."""

    label: Label
    verdict: Verdict
    unsure_because: Because | None
    cats: float
    dogs: float
    familiarity: float
    brightness: float  # mean pixel value, 0..1
    size: int  # of the picture file, in bytes
    evidence: list[list[float]] | None
    png: bytes | None
    decode: float  # seconds; so are the next two
    infer: float
    draw: float
    cpu: float  # processor seconds for all of it

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
    """One picture of a batch: the client's id for it, and where its JSON string is in the body."""

    id: str | None
    start: int
    end: int


class Batch(msgspec.Struct, frozen=True, tag=True):
    """The pictures of a batch."""

    items: list[Item]


Outcome = Answer | PictureRefused | ModelFailed | Batch
