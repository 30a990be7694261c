"""The part of the served model's contract that drift and accuracy are measured against."""

from pathlib import Path

import httpx
import msgspec

from shared.addresses import without_secrets
from shared.contract import Reference
from shared.intervals import Interval


class ServedError(Exception):
    """The contract could not be read; the message says why, without an address's secrets."""

    def __init__(self, message: str) -> None:
        """Keep the message."""
        super().__init__(without_secrets(message))


class TestResult(msgspec.Struct, frozen=True):
    """What its own test found."""

    __test__ = False  # a noun of the field, not a class of pytest's

    accuracy: Interval


class Served(msgspec.Struct, frozen=True):
    """The part of a contract that drift and live accuracy are measured against."""

    version: str
    reference: Reference
    test: TestResult | None = None


def from_url(url: str, key: str | None) -> Served:
    """Ask a running service.

    Args:
        url: where it is.
        key: its API key, if it requires one.

    Raises:
        ServedError: it does not answer, or its answer is not a contract.
    """
    try:
        answer = httpx.get(
            httpx.URL(url).join("/model"), headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=10
        )
    except httpx.InvalidURL as error:
        raise ServedError(f"{url}: not a URL") from error  # the error has a part of it, which may be of a password
    except httpx.HTTPError as error:
        raise ServedError(f"{url}: {str(error) or type(error).__name__}") from error
    if answer.status_code != 200:
        raise ServedError(f"{url}: GET /model answered status {answer.status_code}")
    return _decode(answer.content, url)


def from_file(path: Path) -> Served:
    """Read what ``GET /model`` answered from a file.

    Raises:
        ServedError: it cannot be read, or holds no contract.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ServedError(f"{path}: {error.strerror}") from error
    return _decode(data, str(path))


def _decode(data: bytes, source: str) -> Served:
    try:
        return msgspec.json.decode(data, type=Served)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ServedError(f"{source}: not a contract: {error}") from error
