"""Object stores, by `obstore`: S3, Google Cloud Storage and Azure; and single files on the web."""

import contextlib
import http.client
import secrets
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from scoring.errors import ScoreError

SCHEMES: Final = ("s3://", "gs://", "az://")
WEB: Final = ("http://", "https://")
# Slashes before a key: az://ACCOUNT/CONTAINER/KEY, s3://BUCKET/KEY.
_DEPTHS: Final = {"az://": 4}
# Seconds between attempts to create an object that a store says both exists and does not.
CONFLICT_SECONDS: Final = (0.1, 0.4, 1.6, 6.4)
# obstore repeats what a store answered with 429 or 5xx, or not at all, until the time is over. A pause is drawn from
# 0.1 seconds to `base` times the one before. With a base of 2, eight attempts took 1.5 s: less than a store's restart.
RETRY: Final[Any] = {
    "max_retries": 1000,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=15), "base": 4},
}
RACERS: Final = 8
# What stores answer for one object that may not be read, or that lies in an archive. They refuse all objects otherwise,
# as with credentials that have expired.
_FORBIDDEN: Final = ("AccessDenied", "InvalidObjectState", "AuthorizationPermissionMismatch", "BlobArchived")
WEB_SECONDS: Final = 20.0  # that a web server may take to answer, or to go on
_REFUSED: Final = {*range(400, 500)} - {429}  # statuses that another attempt does not change
WEB_PAUSES: Final = (1.0, 4.0)  # seconds before another attempt


def is_address(text: str) -> bool:
    """Whether this is an address, rather than a path."""
    return text.startswith(SCHEMES + WEB)


def split(address: str) -> tuple[str, str]:
    """The address of a store, and the key in it."""
    depth = _DEPTHS.get(address[:5], 3)
    parts = address.split("/", depth)
    return "/".join(parts[:depth]), parts[depth] if len(parts) > depth else ""


class Bucket:
    """What lies in a store under an address; keys are relative to it."""

    def __init__(self, address: str) -> None:
        """Open it; credentials and endpoints come from the environment, as for the store's own tools.

        Raises:
            ScoreError: it cannot be opened.
        """
        import obstore  # noqa: PLC0415 - 20 MB, of use to those with a store

        self.address = address
        self._obstore: Any = obstore
        try:
            self._store: Any = obstore.store.from_url(address, retry_config=RETRY)
        except Exception as error:  # the classes of its builders have no common base
            raise ScoreError(f"{address}: {_line(error)}") from error

    def listed(self, folder: str = "") -> Iterator[dict[str, Any]]:
        """What there is, in the store's order, some thousand at a time: ``path``, ``size``, ``e_tag``."""
        try:
            for some in self._obstore.list(self._store, folder or None, chunk_size=1000):
                yield from some
        except self._obstore.exceptions.BaseError as error:
            raise self._failed(folder, error) from error

    def get(self, key: str, most: int | None = None) -> bytes | None:
        """An object; None if it has more than ``most`` bytes.

        Raises:
            FileNotFoundError: there is none.
            PermissionError: it may not be read.
            ScoreError: the store does not answer, or allows nothing.
        """
        try:
            found = self._obstore.get(self._store, key)
            if most is not None and found.meta["size"] > most:
                return None
            return bytes(found.bytes())
        except ValueError as error:  # a key with "//", "." or ".."
            raise FileNotFoundError(str(error)) from error
        except self._obstore.exceptions.BaseError as error:
            if any(f"<Code>{code}<" in str(error) for code in _FORBIDDEN):
                raise PermissionError(_line(error)) from error
            raise self._failed(key, error) from error

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self._obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        except self._obstore.exceptions.BaseError as error:
            raise self._failed(key, error) from error
        return True

    def create(self, key: str, content: bytes | Path) -> bool:
        """Put an object with ``If-None-Match: *``; False if there is one already.

        S3 answers 412 if there is one, and 409 while another request for the same key is under way, which may fail: so
        one that is refused and still not there is put again.
        """
        for seconds in (*CONFLICT_SECONDS, 0):
            try:
                self._obstore.put(self._store, key, content, mode="create", use_multipart=False)
                return True
            except self._obstore.exceptions.AlreadyExistsError:
                if self.exists(key):
                    return False
                time.sleep(seconds)
            except self._obstore.exceptions.BaseError as error:
                raise self._failed(key, error) from error
        raise ScoreError(f"{self.address}: {key} is refused as existing, and does not exist")

    def keeps_the_first(self) -> bool:
        """Whether only one of those who create one object at the same time succeeds: some stores let all of them."""
        key = f"_probe-{secrets.token_hex(8)}"
        with ThreadPoolExecutor(RACERS) as racers:
            made = list(racers.map(lambda racer: self.create(key, str(racer).encode()), range(RACERS)))
        with contextlib.suppress(self._obstore.exceptions.BaseError):  # who may put need not be allowed to delete
            self._obstore.delete(self._store, key)
        return made.count(True) == 1

    def _failed(self, key: str, error: Exception) -> Exception:
        if isinstance(error, FileNotFoundError):
            return error
        return ScoreError(f"{self.address}: {key}: {_line(error)}")


@lru_cache(maxsize=64)
def bucket(address: str) -> Bucket:
    """The store of this address, opened once."""
    return Bucket(address)


def web(address: str, most: int | None = None) -> bytes | None:
    """A file on the web; None if it has more than ``most`` bytes.

    Raises:
        OSError: it cannot be had.
        ValueError: this is no address.
    """
    request = urllib.request.Request(urllib.parse.quote(address, safe=string.punctuation))  # noqa: S310 - see `WEB`
    for pause in (*WEB_PAUSES, None):
        try:
            with urllib.request.urlopen(request, timeout=WEB_SECONDS) as answer:  # noqa: S310
                data: bytes = answer.read() if most is None else answer.read(most + 1)
                if most is not None and len(data) > most:
                    return None
                if not answer.length:  # that is left to read
                    return data
                raise ConnectionError("the file is cut off")
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if pause is None or isinstance(error, http.client.InvalidURL) or getattr(error, "code", 500) in _REFUSED:
                raise error if isinstance(error, OSError) else OSError(repr(error)) from error
            time.sleep(pause)
    raise AssertionError


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
