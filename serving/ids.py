"""Ids that cannot be guessed, made without a system call each."""

import functools
import hashlib
import hmac
import itertools
import os
import re
import struct
import time
from datetime import UTC, datetime
from typing import Final, NamedTuple

from serving.engine.wire import Verdict
from shared.contract import CLASSES, Label

KEY_BYTES: Final = 32
ID_BYTES: Final = 16
# Of the number in a prediction's id, and of the part that it begins with. ops/edge/haproxy.cfg reads that.
NUMBER_BYTES: Final = 8
REPLICA_BYTES: Final = 2
# Of a prediction's id: seconds since 1970, a number that makes it unique, the answer, the model. It sorts by time.
_CONTENT: Final = struct.Struct(">I8sB4s")
MAC_BYTES: Final = 10
# There is one way to write an id, so that nobody votes twice by writing it another way.
FORM: Final = re.compile(f"[0-9a-f]{{{2 * (_CONTENT.size + MAC_BYTES)}}}")
_UNSURE: Final = 2  # beside the number of the class


class Ids:
    """Makes ids: a keyed hash (BLAKE2, RFC 7693) of a counter, with one random key.

    `os.urandom` releases the interpreter's lock, and getting it back from busy threads takes longer than the hash.
    """

    def __init__(self) -> None:
        """Draw the key."""
        self._key = os.urandom(KEY_BYTES)
        self._count = itertools.count()

    def new(self) -> str:
        """Return 32 hexadecimal digits, different each time."""
        return self.draw(ID_BYTES).hex()

    def draw(self, size: int) -> bytes:
        """Return ``size`` bytes that cannot be predicted."""
        return hashlib.blake2b(next(self._count).to_bytes(8, "big"), digest_size=size, key=self._key).digest()


class Predicted(NamedTuple):
    """What a prediction's id says of it; ``model`` is the beginning of the SHA-256 of the model's version."""

    time: datetime
    label: Label
    unsure: bool
    model: bytes


class PredictionIds:
    """Makes the ids of predictions and knows them again: they carry the answer and a MAC (keyed BLAKE2, RFC 7693).

    So feedback needs no store: every process with the same key takes it. ``replica`` is what the ids of this process
    have in common, in hexadecimal digits, for a balancer.
    """

    def __init__(self, key: str) -> None:
        """Take the key; empty for a random one."""
        self._key = hashlib.sha256(key.encode() or os.urandom(KEY_BYTES)).digest()
        self._replica = os.urandom(REPLICA_BYTES)
        self.replica = self._replica.hex()
        self._numbers = Ids()

    def new(self, label: Label, verdict: Verdict, model: str) -> str:
        """Return an id of the form ``FORM``, different each time."""
        number = self._replica + self._numbers.draw(NUMBER_BYTES - REPLICA_BYTES)
        answer = CLASSES.index(label) | (_UNSURE if verdict == "unsure" else 0)
        content = _CONTENT.pack(int(time.time()), number, answer, _beginning(model))
        return (content + self._mac(content)).hex()

    def read(self, id_: str) -> Predicted | None:
        """What an id says; None if it was not made with this key."""
        content = _content(id_)
        if content is None or not hmac.compare_digest(self._mac(content).hex(), id_[2 * _CONTENT.size :]):
            return None
        return _predicted(content)

    def _mac(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=MAC_BYTES, key=self._key).digest()


@functools.cache
def _beginning(model: str) -> bytes:
    return hashlib.sha256(model.encode()).digest()[:4]


def recorded(id_: str) -> Predicted | None:
    """What an id in our own journal says, whatever its key was; None for one of 0.1, which said nothing."""
    return _predicted(content) if (content := _content(id_)) else None


def _content(id_: str) -> bytes | None:
    return bytes.fromhex(id_)[: _CONTENT.size] if FORM.fullmatch(id_) else None


def _predicted(content: bytes) -> Predicted:
    seconds, _, answer, model = _CONTENT.unpack(content)
    label: Label = "dogs" if answer & 1 else "cats"
    return Predicted(datetime.fromtimestamp(seconds, UTC), label, bool(answer & _UNSURE), model)
