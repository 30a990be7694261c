"""Which web pages may use the service, and the host names it answers to.

A browser sends a POST for any page it shows, and a form or text/plain needs no preflight. Starlette's `CORSMiddleware`
only keeps such a page from reading the answer, and `TrustedHostMiddleware` knows names but no range of addresses; both
refuse in plain text. The rules for POSTs are those of Go's `http.CrossOriginProtection`.
"""

import ipaddress
import re
import socket
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http import problems
from serving.http.headers import SAME_ORIGIN, Headers
from serving.telemetry.metrics import Metrics

ANY: Final = b"*"
SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Encoding, Content-Type, Inference-Header-Content-Length, "
    "X-API-Key, X-Request-Id",
    "Access-Control-Max-Age": "7200",  # the most that Chromium takes
}
VARY: Final = (b"vary", b"Origin")
_SHARED: Final[Headers] = (
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"access-control-expose-headers", b"Inference-Header-Content-Length, Retry-After, X-Request-Id"),
)
# A name without a dot is a machine's or a container's: no page can have one that leads here.
_LOOPBACK: Final = r"([\w-]+\.)*localhost|[\w-]+|127(\.\d{1,3}){3}|\[::1\]"


class Origins:
    """ASGI middleware that refuses requests of foreign pages and to foreign hosts, before their body is read.

    The headers that tell the browser go into ``scope["state"]["sharing"]``: `Observe` adds them to every answer, also
    to those that it makes itself.
    """

    def __init__(self, app: ASGIApp, allowed: str, host: str, metrics: Metrics) -> None:
        """Allow pages of the origins in the setting ``allowed``; check the Host header if ``host`` is on loopback."""
        self.app = app
        self.metrics = metrics
        self.allowed = frozenset(_canonical(origin) for origin in allowed.encode().replace(b",", b" ").split())
        self.vary: Headers = () if ANY in self.allowed or not self.allowed else (VARY,)
        self.hosts: re.Pattern[bytes] | None = None
        # Where every page is allowed, one that has its own name lead here (DNS rebinding) gains nothing.
        if ANY not in self.allowed and on_loopback(host):
            # A proxy on this machine passes on the host of the origin under which it serves this service.
            names = [host.encode(), *(origin.partition(b"://")[2] for origin in self.allowed)]
            known = b"|".join([_LOOPBACK.encode(), *map(re.escape, names)])
            self.hosts = re.compile(rb"(%b)\.?(:\d*)?" % known, re.IGNORECASE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or answer one request."""
        app = self.app if scope["type"] != "http" else self._answer(scope) or self.app
        await app(scope, receive, send)

    def _answer(self, scope: Scope) -> Response | None:
        """The answer to a preflight or a request to be refused, None for others."""
        headers = dict(scope["headers"])
        host, origin = headers.get(b"host"), headers.get(b"origin")
        if host is not None and self.hosts is not None and not self.hosts.fullmatch(host):
            return self._refusal(
                scope,
                "misdirected_request",
                "the service listens on loopback and answers to localhost and loopback addresses; "
                "behind a proxy, CATSDOGS_ORIGINS must name the origin that the proxy serves",
            )
        preflight = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
        granted = ANY if ANY in self.allowed else origin if origin in self.allowed else None
        if granted is not None:
            scope["state"]["sharing"] = (*_SHARED, (b"access-control-allow-origin", granted), *self.vary)
            return Response(status_code=204, headers=PREFLIGHT) if preflight else None
        if (preflight or scope["method"] not in SAFE) and _foreign(host, origin, headers.get(b"sec-fetch-site")):
            scope["state"]["sharing"] = (*SAME_ORIGIN, VARY)
            return self._refusal(
                scope,
                "foreign_origin",
                "web pages of other origins may not use the service unless the setting CATSDOGS_ORIGINS allows them",
            )
        if self.vary:
            scope["state"]["sharing"] = (*SAME_ORIGIN, *self.vary)
        return None

    def _refusal(self, scope: Scope, code: str, detail: str) -> Response:
        self.metrics.rejected.count(code)
        return problems.response(code, detail, scope)


def _foreign(host: bytes | None, origin: bytes | None, site: bytes | None) -> bool:
    """Whether a browser sends the request for a page of another origin.

    Sec-Fetch-Site decides if it is there, since a proxy may replace Host. ``same-site`` is foreign: that may be another
    program on localhost, or another customer of a hosting domain. The scheme is not compared: TLS ends at a proxy.
    """
    if site is not None:
        return site not in (b"same-origin", b"none")
    if origin is None:  # no browser, or no page
        return False
    return host is None or _canonical(origin.partition(b"://")[0] + b"://" + host) != _canonical(origin)


def _canonical(origin: bytes) -> bytes:
    """An origin as browsers send it: in lower case, and without the port if it is the scheme's own."""
    origin = origin.lower()
    return origin.removesuffix(b":443" if origin.startswith(b"https:") else b":80")


def on_loopback(host: str) -> bool:
    """Whether only this machine's own programs reach a service on this host."""
    try:
        addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, None)]
    except (OSError, ValueError):  # the server will say so when it listens
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)
