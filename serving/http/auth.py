"""API keys. The service knows only their SHA-256 digests, so a leaked setting gives no access."""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterator
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http import problems
from serving.telemetry.metrics import Metrics

# Health checks need no key: an orchestrator has none.
OPEN: Final = frozenset(("/health", "/health/ready", "/v2/health/live", "/v2/health/ready"))
CHALLENGES: Final = ('Bearer realm="cats-dogs"', 'Basic realm="cats-dogs", charset="UTF-8"')


def make() -> tuple[str, str]:
    """Make a key of 256 random bits; returns it and its digest in hex."""
    key = secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def digests(setting: str) -> tuple[bytes, ...]:
    """Read the setting ``api_keys``, whose form `serving.settings` has checked."""
    return tuple(bytes.fromhex(text) for text in setting.replace(",", " ").split())


class Keys:
    """ASGI middleware that answers 401 to a request without a valid key, before its body is read."""

    def __init__(self, app: ASGIApp, known: tuple[bytes, ...], metrics: Metrics) -> None:
        """Pass requests on to ``app`` if they have a key whose digest is ``known``."""
        self.app = app
        self.known = known
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse one request."""
        if scope["type"] != "http" or scope["path"] in OPEN or any(map(self._knows, _presented(scope["headers"]))):
            await self.app(scope, receive, send)
            return
        self.metrics.rejected.count("unauthorized")
        answer = problems.response(
            "unauthorized",
            "send a key as Authorization: Bearer KEY, as X-API-Key: KEY, or as the password of HTTP Basic",
            scope,
        )
        for challenge in CHALLENGES:
            answer.headers.append("WWW-Authenticate", challenge)
        await answer(scope, receive, send)

    def _knows(self, key: bytes) -> bool:
        digest = hashlib.sha256(key).digest()
        # Compare all digests, so that the time does not reveal which one matched.
        return sum(hmac.compare_digest(digest, known) for known in self.known) > 0


def _presented(headers: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, credentials = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield credentials.strip()
            elif scheme.lower() == b"basic":
                try:
                    yield base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
                except binascii.Error:
                    continue
