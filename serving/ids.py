"""Ids that cannot be guessed, made without a system call each."""

import hashlib
import itertools
import os
from typing import Final

KEY_BYTES: Final = 32
ID_BYTES: Final = 16


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
