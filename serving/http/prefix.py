"""The path under which a proxy serves the service, if it is not the root.

Pages and the OpenAPI document have relative addresses, so a proxy that removes its prefix needs nothing else. What is
left to do here is to remove a prefix that is still there, and to add a slash to the bare prefix, from which relative
addresses would lead elsewhere.
"""

import re
from typing import Final

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

# No `//`: as an address, that would be another host.
PREFIX: Final = re.compile(rb"(/[A-Za-z0-9_.~-]+)+")


class Prefix:
    """ASGI middleware that removes the prefix from a request's path."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        """Remove ``root_path`` or, if it is empty, what the header X-Forwarded-Prefix says."""
        self.app = app
        self.root_path = root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request, or redirect it."""
        if scope["type"] == "http" and (prefix := self.root_path or _forwarded(scope)):
            if scope["path"] == prefix:
                await RedirectResponse(f"{prefix}/")(scope, receive, send)
                return
            if scope["path"].startswith(f"{prefix}/"):
                scope["path"] = scope["path"].removeprefix(prefix)
        await self.app(scope, receive, send)


def _forwarded(scope: Scope) -> str:
    given: bytes = next((value for name, value in scope["headers"] if name == b"x-forwarded-prefix"), b"")
    given = given.rstrip(b"/")
    return given.decode() if PREFIX.fullmatch(given) else ""
