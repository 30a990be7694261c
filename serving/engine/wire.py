"""What the front process and its lanes say to each other, over one stream socket for each lane.

A lane answers nothing but MessagePack of the types below, so a lane that a hostile file took over can hand the front
process data but no code. Requests are a header and a body: the picture file, or the JSON of a batch.
"""

import struct
from enum import IntFlag
from typing import Final, Literal

import msgspec

from shared.contract import Contract, Label

Verdict = Literal["cats", "dogs", "unsure"]
Because = Literal["close_call", "unfamiliar"]
# Of a request: bytes of the body, and flags. Of an answer: bytes of its MessagePack.
REQUEST: Final = struct.Struct("<II")
ANSWER: Final = struct.Struct("<I")


class Flags(IntFlag):
    """How to answer a request."""

    EXPLAIN = 1  # with the evidence map
    DRAW = 2  # with the evidence drawn over the picture
    ALONE = 4  # nothing else is under way: use every core
    BASE64 = 8  # the body is the JSON string of a batch's item
    BATCH = 16  # the body is a batch, to be taken apart


PLAIN: Final = Flags(0)


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What a lane starts with: the model, and what a picture may cost.

    With ``path``, the lane reads the model from there into the memory file that came with it, falling back to the fp32
    file beside it; without, the model is in that memory file already.
    """

    path: str | None
    file: str
    fallback: str | None = None
    threads: int  # of the wide session; 1 for none
    core: int | None  # to keep to
    max_pixels: int
    max_bytes: int | None  # of memory for decoding
    cpu_seconds: float


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The lane has the model, and the model has passed its exam in it. The contract's golden pictures are left out."""

    contract: Contract
    file: str
    fallback: str | None
    digest: str


class LoadRefused(msgspec.Struct, frozen=True, tag=True):
    """The model must not answer; ``again``: the file could not be read, which may pass."""

    reason: str
    again: bool


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One picture's answer; numbers are the shortest decimals that name the float32 of the network."""

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
    decode: float  # seconds, as the next two
    infer: float
    draw: float
    cpu: float  # processor seconds of the whole piece

    @property
    def confidence(self) -> float:
        """The larger probability."""
        return max(self.cats, self.dogs)


class PictureRefused(msgspec.Struct, frozen=True, tag=True):
    """The picture or batch is refused, with a code of ``serving.errors``."""

    code: str
    detail: str


class ModelFailed(msgspec.Struct, frozen=True, tag=True):
    """The model failed on this picture."""

    reason: str


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One picture of a batch: its id, and where in the body its JSON string is."""

    id: str | None
    start: int
    end: int


class Batch(msgspec.Struct, frozen=True, tag=True):
    """A batch, taken apart."""

    items: list[Item]


Outcome = Answer | PictureRefused | ModelFailed | Batch
