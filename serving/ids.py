"""Ids that cannot be guessed, made without a system call each."""

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
# Of the number in a prediction's id, which begins with them. ops/edge/haproxy.cfg reads them.
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
        count = next(self._count).to_bytes(8, "big")
        return hashlib.blake2b(count, digest_size=ID_BYTES, key=self._key).hexdigest()


class Predicted(NamedTuple):
    """What a prediction's id says of it; ``model`` is the beginning of the SHA-256 of the model's version."""

    time: datetime
    label: Label
    unsure: bool
    model: bytes


class PredictionIds:
    """Makes the ids of predictions and knows them again: they carry the answer, and a MAC (HMAC-SHA256, truncated).

    So feedback needs no store: every process with the same key takes it.
    """

    def __init__(self, key: str) -> None:
        """Take the key; empty for a random one."""
        self._key = key.encode() or os.urandom(KEY_BYTES)
        self._replica = os.urandom(REPLICA_BYTES)
        self._numbers = Ids()

    @property
    def replica(self) -> str:
        """What the ids of this process have in common, in hexadecimal digits, for a balancer."""
        return self._replica.hex()

    def new(self, label: Label, verdict: Verdict, model: str) -> str:
        """Return an id of the form ``FORM``, different each time."""
        answer = CLASSES.index(label) | (_UNSURE if verdict == "unsure" else 0)
        number = (self._replica + bytes.fromhex(self._numbers.new()))[:8]
        content = _CONTENT.pack(int(time.time()), number, answer, hashlib.sha256(model.encode()).digest()[:4])
        return (content + self._mac(content)).hex()

    def read(self, id_: str) -> Predicted | None:
        """What an id says; None if it was not made with this key."""
        content = _content(id_)
        if content is None or not hmac.compare_digest(self._mac(content).hex(), id_[2 * _CONTENT.size :]):
            return None
        return _predicted(content)

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, "sha256")[:MAC_BYTES]


def recorded(id_: str) -> Predicted | None:
    """What an id in our own journal says, whatever its key was; None for one of 0.1, which said nothing."""
    return _predicted(content) if (content := _content(id_)) else None


def _content(id_: str) -> bytes | None:
    return bytes.fromhex(id_)[: _CONTENT.size] if FORM.fullmatch(id_) else None


def _predicted(content: bytes) -> Predicted:
    seconds, _, answer, model = _CONTENT.unpack(content)
    label: Label = "dogs" if answer & 1 else "cats"
    return Predicted(datetime.fromtimestamp(seconds, UTC), label, bool(answer & _UNSURE), model)
