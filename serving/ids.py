"""Ids that nobody can guess, without asking the kernel for each."""

import hashlib
import itertools
import os
from typing import Final

KEY_BYTES: Final = 32
ID_BYTES: Final = 16


class Ids:
    """Makes ids: a keyed hash (BLAKE2, RFC 7693) of a count, under a key that is drawn once.

    `os.urandom` lets go of the interpreter's lock, and beside busy lanes getting it back takes longer than all else
    that an id is.
    """

    def __init__(self) -> None:
        """Draw the key."""
        self._key = os.urandom(KEY_BYTES)
        self._count = itertools.count()

    def new(self) -> str:
        """32 hexadecimal digits, other ones each time."""
        count = next(self._count).to_bytes(8, "big")
        return hashlib.blake2b(count, digest_size=ID_BYTES, key=self._key).hexdigest()
